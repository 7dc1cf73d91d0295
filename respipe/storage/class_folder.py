"""Finding the images of a class folder: one subfolder per class, images anywhere below it."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shlex
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from respipe.errors import StorageError
from respipe.printable import printable
from respipe.storage.beton.string_table import TextTable
from respipe.storage.fields import Column
from respipe.storage.upright import EXTENSIONS

logger = logging.getLogger(__name__)

# What a link leads to that dangles, or that leads to itself.
_NOWHERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}

# What file managers, notebooks, archives and file systems leave in folders, in lower case.
_LITTER = {
    *("@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "thumbs.db", "ehthumbs.db"),
    *("desktop.ini", "__macosx", "__pycache__", "icon\r", "iconcache.db"),
}

# Names of what a dataset is divided into, in lower case.
SPLITS = {
    *("train", "training", "val", "valid", "validation", "test", "testing", "eval", "evaluation", "dev"),
    *("train2012", "val2012", "trainval", "extra", "holdout"),
}

_NUM_LISTED = 8


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

    Names with a leading dot are left out at every depth, and so is what file managers, notebooks and archives leave
    behind. What else is passed over is logged, counted by extension. Links are followed, also out of the folder, except
    those to a folder that they are in: these lead in circles.

    Raises:
        StorageError: the folder cannot be read, has no classes or no images, or holds splits instead of classes.
    """
    skipped = Counter[str]()
    try:
        top = root.stat()
        classes, loose = _list_root(root, skipped)
        found = [_scan(root / name, f"{name}/", top, skipped) for name in classes]
        splits = [name for name in classes if name.lower() in SPLITS and _has_folders(root / name)]
    except OSError as error:
        raise StorageError(f"{root} cannot be read: {error}. Check the path and its permissions.") from error
    if classes and splits == classes:
        commands = " and ".join(f"`respipe convert {shlex.quote(str(root / name))} {name}.beton`" for name in splits)
        raise StorageError(
            f"{root} must hold one subfolder per class; its subfolders {', '.join(splits)} are splits that hold such "
            f"folders. Name one of them: {commands}."
        )
    counts = [len(files) for files in found]
    if not sum(counts):
        _refuse_empty(root, len(classes), loose, skipped)
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        logger.warning(
            "%s: %d of %d classes have no images, first %s", root, len(empty), len(classes), printable(empty[0])
        )
    if loose:
        logger.warning("%s: %d images lie in no class and are passed over, first %s", root, len(loose), loose[0])
    if skipped:
        logger.warning("%s: passed over %s", root, _counts(skipped))
    if all(name.isdecimal() for name in classes) and sorted(classes, key=int) != classes:
        logger.warning(
            "%s: the classes are numbers, and are sorted as text as torchvision does: %s, ... Label 2 is class %s.",
            root,
            ", ".join(classes[:4]),
            classes[2],
        )
    files = [file for files in found for file in files]
    return ClassFolder(
        root=root,
        classes=tuple(classes),
        names=TextTable.of(name for name, _ in files),
        labels=np.repeat(np.arange(len(classes), dtype=np.int64), counts),
        sizes=np.array([size for _, size in files], np.int64),
    )


def is_litter(name: str) -> bool:
    """Whether a file or folder of this name is none of a dataset's: hidden, or left behind by some program."""
    return name.startswith(".") or name.lower() in _LITTER


def _note(name: str, skipped: Counter[str]) -> None:
    """Count something that is passed over."""
    if name.startswith("."):
        skipped["hidden names"] += 1
    elif name.lower() in _LITTER:
        skipped[printable(name)] += 1
    else:
        skipped[f"{printable(Path(name).suffix.lower()) or 'no extension'} files"] += 1


def _counts(skipped: Counter[str]) -> str:
    return ", ".join(f"{count} x {what}" for what, count in skipped.most_common(_NUM_LISTED))


def _list_root(root: Path, skipped: Counter[str]) -> tuple[list[str], list[str]]:
    """Names of the class folders, and of images beside them."""
    classes: list[str] = []
    loose: list[str] = []
    with os.scandir(root) as entries:
        for entry in entries:
            is_folder = _is_folder(entry)
            if is_litter(entry.name):
                _note(entry.name, skipped)
            elif is_folder:
                classes.append(entry.name)
            elif entry.name.lower().endswith(EXTENSIONS):
                loose.append(printable(entry.name))
            else:
                _note(entry.name, skipped)
    return sorted(classes), sorted(loose)


def _has_folders(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_is_folder(entry) and not is_litter(entry.name) for entry in entries)


def _refuse_empty(root: Path, num_classes: int, loose: list[str], skipped: Counter[str]) -> NoReturn:
    what = f"found {num_classes} subfolders and no images in them"
    remedy = "Check the path"
    if loose:
        what += f", but {len(loose)} images directly in it"
        remedy = "Move each image into a folder named after its class, or name the folder above"
    if skipped:
        what += f"; passed over {_counts(skipped)}"
    if archives := [name for name in skipped if name.split()[0] in (".tar", ".zip", ".gz", ".tgz", ".parquet")]:
        remedy = f"Name one of the {archives[0]} itself, or unpack them"
    raise StorageError(
        f"{root} must hold one subfolder per class with images ({', '.join(EXTENSIONS)}) in them; {what}. {remedy}."
    )


def _scan(folder: Path, prefix: str, root: os.stat_result, skipped: Counter[str]) -> list[tuple[str, int]]:
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
                if is_litter(entry.name):
                    _note(entry.name, skipped)
                elif _is_folder(entry):
                    todo.append((Path(entry.path), f"{prefix}{entry.name}/", above | {identity}))
                elif entry.name.lower().endswith(EXTENSIONS):
                    files.append((prefix + entry.name, _length(entry)))
                else:
                    _note(entry.name, skipped)
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
