"""The files that loaders read, converted once and kept."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import respipe

logger = logging.getLogger(__name__)

_FFCV_QUALITY = 90


def prepare_files(data: Path, names: Iterable[str], workdir: Path, *, num_workers: int) -> dict[str, Path]:
    """Convert a class folder for the loaders that need it; files of an earlier run are used again.

    Args:
        data: class folder of JPEGs.
        names: of the files wanted: "ffcv-500", "ffcv-256", "pyramid".
        workdir: where they are kept, under names that change with the data, the converter and its settings.
        num_workers: processes that convert.

    Returns:
        path by name.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    content = folder_digest(data)
    files: dict[str, Path] = {}
    for name in sorted(set(names)):
        converter, convert = ("respipe", _write_pyramid) if name == "pyramid" else ("ffcv", _FFCV_WRITERS[name])
        target = workdir / f"{name}-{content}-{_converter_digest(converter)}.beton"
        if not target.exists():
            logger.info("Converting %s: %s", data.name, name)
            convert(data, target, num_workers)
        files[name] = target
    return files


def folder_digest(data: Path) -> str:
    """Short text that changes when files are added, removed, renamed or written anew."""
    digest = hashlib.sha256()
    for path in sorted(data.rglob("*")):
        if path.is_file():
            status = path.stat()
            digest.update(f"{path.relative_to(data)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def _converter_digest(converter: str) -> str:
    """Short text that changes with the code that converts: respipe's changes between releases too."""
    if converter == "ffcv":
        return f"q{_FFCV_QUALITY}-{version('ffcv')}"
    package = Path(respipe.__file__).parent
    digest = hashlib.sha256()
    for part in ("conversion", "storage"):
        for path in sorted((package / part).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _write_pyramid(data: Path, target: Path, num_workers: int) -> None:
    respipe.convert(data, target, num_workers=num_workers)


def _ffcv_writer(max_resolution: int) -> Callable[[Path, Path, int], None]:
    def write(data: Path, target: Path, num_workers: int) -> None:
        from .stock_ffcv import write_ffcv_file

        unfinished = target.with_suffix(".unfinished")
        write_ffcv_file(data, unfinished, max_resolution=max_resolution, quality=_FFCV_QUALITY, num_workers=num_workers)
        unfinished.rename(target)

    return write


_FFCV_WRITERS = {"ffcv-500": _ffcv_writer(500), "ffcv-256": _ffcv_writer(256)}
