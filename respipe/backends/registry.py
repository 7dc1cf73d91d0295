"""Which backend decodes a dataset."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from typing import Literal, NamedTuple, get_args

import torch

from respipe.backends.base import Backend
from respipe.backends.dali.backend import DaliBackend
from respipe.backends.dali.pipeline import dali_extra
from respipe.backends.ffcv.backend import FfcvBackend
from respipe.backends.reference import ReferenceBackend
from respipe.backends.tiles import TilesBackend
from respipe.storage.dataset import Dataset

logger = logging.getLogger(__name__)

BackendName = Literal["tiles", "ffcv", "dali", "reference"]

_MODULES: dict[BackendName, tuple[str, ...]] = {
    "tiles": ("numba",),
    "ffcv": ("ffcv", "numba"),
    "dali": ("nvidia.dali",),
    "reference": (),
}
_DISTRIBUTIONS: dict[BackendName, tuple[str, ...]] = {
    "tiles": ("numba",),
    "ffcv": ("ffcv",),
    "dali": ("nvidia-dali-cuda130", "nvidia-dali-cuda120"),
    "reference": ("pillow",),
}


class BackendStatus(NamedTuple):
    """What ``respipe doctor`` tells about a backend.

    Args:
        name: as given to ``Loader(backend=...)``.
        installed: whether what it needs is installed.
        version: of the package that decodes, None where it is not installed.
        note: what it is good for, or the command that installs it.
    """

    name: BackendName
    installed: bool
    version: str | None
    note: str


def available_backends() -> list[BackendStatus]:
    """Every backend, installed or not."""
    notes: dict[BackendName, str] = {
        "tiles": "fastest on the CPU, for .beton files of `respipe convert`",
        "ffcv": "any .beton file, on the CPU",
        "dali": "class folders and .beton files, on the CPU or a GPU",
        "reference": "always there, and slow",
    }
    return [
        BackendStatus(name, True, _version(name), note)
        if _is_installed(name)
        else BackendStatus(name, False, None, _install_command(name))
        for name, note in notes.items()
    ]


def make_backend(
    name: str, dataset: Dataset, *, device: torch.device, num_threads: int, level_margin: float = 1.0
) -> Backend:
    """Build a backend.

    Args:
        name: "tiles", "ffcv", "dali", "reference", or "auto" for the fastest that is installed and can read the
            dataset.
        dataset: where the images are.
        device: where batches will be used; only "dali" decodes on a GPU.
        num_threads: decoding threads.
        level_margin: see :func:`respipe.backends.routing.route`.

    Raises:
        ValueError: there is no such backend, or it cannot read this dataset.
        MissingBackendError: what it needs is not installed.
    """
    if name == "auto":
        name = _choose(dataset, device)
    if name == "tiles":
        return TilesBackend(dataset, num_threads=num_threads, level_margin=level_margin)
    if name == "dali":
        return DaliBackend(dataset, num_threads=num_threads, device=device, level_margin=level_margin)
    if name == "ffcv":
        return FfcvBackend(dataset, num_threads=num_threads, level_margin=level_margin)
    if name == "reference":
        return ReferenceBackend(dataset, num_threads=num_threads, level_margin=level_margin)
    raise ValueError(f"`backend` must be one of {('auto', *get_args(BackendName))}; got {name!r}.")


def _choose(dataset: Dataset, device: torch.device) -> BackendName:
    is_file = bool(dataset.buffers)
    has_raw = any(bool(level.raw.any()) for level in dataset.levels)
    dali = _is_installed("dali") and not has_raw
    kind = f"{'a .beton file' if is_file else 'a class folder'}{' of raw pixels' if has_raw else ''}"
    if dali and device.type == "cuda":
        return _log_choice("dali", f"DALI is installed and can decode on {device}")
    if dataset.tiled and _is_installed("tiles"):
        return _log_choice("tiles", f"crops can be cut out of the bytes of {dataset.path}")
    if is_file and _is_installed("ffcv"):
        return _log_choice("ffcv", f"FFCV is installed and {dataset.path} is {kind}")
    if dali:
        return _log_choice("dali", f"DALI is installed and {dataset.path} is {kind}")
    logger.warning(
        "backend='auto' chose 'reference', which is slow, because nothing faster that is installed can read %s, %s. "
        "For a faster one: %s",
        dataset.path,
        kind,
        _install_command("ffcv" if is_file else "dali"),
    )
    return "reference"


def _log_choice(name: BackendName, reason: str) -> BackendName:
    logger.info("backend='auto' chose %r because %s.", name, reason)
    return name


def _is_installed(name: BackendName) -> bool:
    return all(_is_found(module) for module in _MODULES[name])


def _is_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that a dotted name lies in is missing
        return False


def _version(name: BackendName) -> str | None:
    for distribution in _DISTRIBUTIONS[name]:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _install_command(name: BackendName) -> str:
    if name == "tiles":
        return "pip install numba"
    extra = dali_extra() if name == "dali" else name
    return f"pip install 'respipe[{extra}]'"
