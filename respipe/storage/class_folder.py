"""Finding the images of a class folder: one subfolder per class, images anywhere below it."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from respipe.errors import StorageError
from respipe.printable import printable
from respipe.storage.beton.string_table import TextTable
from respipe.storage.fields import Column

logger = logging.getLogger(__name__)

# What a link leads to that dangles, or that leads to itself.
_NOWHERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassFolder:
    """The files of a class folder, in the order of torchvision's ``ImageFolder``.

    Args:
        root: the folder.
        classes: names of its subfolders, sorted; a file's label is the place of its subfolder in here.
        names: (N,) paths relative to ``root``.
        labels: (N,) int64.
        sizes: (N,) int64, length of each file in bytes.
    """

    root: Path
    classes: tuple[str, ...]
    names: TextTable
    labels: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __post_init__(self) -> None:
        for array in (self.labels, self.sizes):
            array.flags.writeable = False

    @property
    def fields(self) -> Mapping[str, Column]:
        """The label: a class."""
        return {"label": Column(kind="class", values=self.labels, classes=self.classes)}

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with the files' names, their order or their lengths."""
        digest = hashlib.sha256("\n".join(self.classes).encode("utf-8", "surrogateescape"))
        for data in (self.names.text.data, self.names.offsets.data, self.labels.data, self.sizes.data):
            digest.update(data)
        return digest.hexdigest()[:16]


def scan_class_folder(root: Path) -> ClassFolder:
    """List the images of a class folder.

    Hidden subfolders are left out. Links are followed, also out of the folder, but for those to a folder that they are
    in: these lead in circles.

    Raises:
        StorageError: the folder cannot be read, or has no classes or no images.
    """
    try:
        with os.scandir(root) as entries:
            classes = sorted(entry.name for entry in entries if _is_folder(entry) and not entry.name.startswith("."))
        top = root.stat()
        found = [_scan(root / name, f"{name}/", top) for name in classes]
    except OSError as error:
        raise StorageError(f"{root} cannot be read: {error}. Check the path and its permissions.") from error
    counts = [len(files) for files in found]
    if not sum(counts):
        raise StorageError(
            f"{root} must hold one subfolder per class with images ({', '.join(EXTENSIONS)}) in them; found "
            f"{len(classes)} subfolders and no images."
        )
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        logger.warning(
            "%s: %d of %d classes have no images, first %s", root, len(empty), len(classes), printable(empty[0])
        )
    files = [file for files in found for file in files]
    return ClassFolder(
        root=root,
        classes=tuple(classes),
        names=TextTable.of(name for name, _ in files),
        labels=np.repeat(np.arange(len(classes), dtype=np.int64), counts),
        sizes=np.array([size for _, size in files], np.int64),
    )


def _scan(folder: Path, prefix: str, root: os.stat_result) -> list[tuple[str, int]]:
    """Relative path and length of every image below a folder: folder by folder, names sorted within each."""
    by_folder: dict[str, list[tuple[str, int]]] = {}
    todo = [(folder, prefix, {_identity(root)})]
    while todo:
        folder, prefix, above = todo.pop()
        identity = _identity(folder.stat())
        if identity in above:
            logger.warning("%s: left out, as it leads back to a folder that it is in", printable(str(folder)))
            continue
        files: list[tuple[str, int]] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_folder(entry):
                    todo.append((Path(entry.path), f"{prefix}{entry.name}/", above | {identity}))
                elif entry.name.lower().endswith(EXTENSIONS):
                    files.append((prefix + entry.name, _length(entry)))
        by_folder[prefix[:-1]] = sorted(files)
    return [file for name in sorted(by_folder) for file in by_folder[name]]


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno not in _NOWHERE:
            raise
        return False


def _length(entry: os.DirEntry[str]) -> int:
    """A file's length in bytes; 0 for what is none, which whoever reads the image reports."""
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno not in _NOWHERE:
            raise
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
