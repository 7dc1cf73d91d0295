"""Finding the images of a class folder: one subfolder per class, images anywhere below it."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shlex
import stat
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from respipe.errors import StorageError
from respipe.printable import printable
from respipe.storage.beton.string_table import TextTable
from respipe.storage.fields import Column
from respipe.storage.upright import EXTENSIONS

logger = logging.getLogger(__name__)

T = TypeVar("T")

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

# Ways into the images of ImageNet as Kaggle packs it, from the folders above them.
_IMAGENET_TREE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")

_NUM_LISTED = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassFolder:
    """The files of a class folder, in the order of torchvision's ``ImageFolder``.

    Args:
        root: the folder.
        classes: names of its subfolders, sorted; a file's label is the place of its subfolder in here. Empty where the
            folder is not divided into classes; all labels are 0 then.
        names: (N,) paths relative to ``root``.
        labels: (N,) int64.
        sizes: (N,) int64, length of each file in bytes.
        passed_over: what else is there, ".txt files", and how many.
    """

    root: Path
    classes: tuple[str, ...]
    names: TextTable
    labels: NDArray[np.int64]
    sizes: NDArray[np.int64]
    passed_over: Mapping[str, int]

    def __post_init__(self) -> None:
        for array in (self.labels, self.sizes):
            array.flags.writeable = False

    @property
    def fields(self) -> Mapping[str, Column]:
        """The label: a class."""
        return {"label": Column(kind="class", values=self.labels, classes=self.classes)} if self.classes else {}

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
    with _readable(root):
        refuse_splits(root)
        classes, loose = _list_root(root, skipped)
        found = [
            _scan(root / name, f"{name}/", {_identity(root.stat())}, skipped)
            for name in counted(classes, root, "classes")
        ]
    counts = [len(files) for files in found]
    if not sum(counts):
        _refuse_empty(root, len(classes), loose, skipped)
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        logger.warning(
            "%s: %d of %d classes have no images, first %s", root, len(empty), len(classes), printable(empty[0])
        )
    if loose:
        logger.warning("%s: %d images lie in no class and are passed over, first %s", root, len(loose), loose[0])
    if all(name.isdecimal() for name in classes) and sorted(classes, key=int) != classes:
        logger.warning(
            "%s: the classes are numbers, and are sorted as text as torchvision does: %s, ... Label 2 is class %s.",
            root,
            ", ".join(classes[:4]),
            classes[2],
        )
    return _folder(root, [file for files in found for file in files], skipped, classes, counts)


def scan_flat_folder(root: Path) -> ClassFolder:
    """List the images anywhere below a folder, whatever folders they lie in; see :func:`scan_class_folder`.

    Raises:
        StorageError: the folder cannot be read or has no images.
    """
    skipped = Counter[str]()
    with _readable(root):
        files = _scan(root, "", set(), skipped)
    if not files:
        raise StorageError(f"{root} must hold images ({', '.join(EXTENSIONS)}); found none. Check the path.")
    return _folder(root, files, skipped, [], [len(files)])


def _folder(
    root: Path, files: list[tuple[str, int]], skipped: Counter[str], classes: list[str], counts: list[int]
) -> ClassFolder:
    if skipped:
        logger.warning("%s: passed over %s", root, _counts(skipped))
    return ClassFolder(
        root=root,
        classes=tuple(classes),
        names=TextTable.of(name for name, _ in files),
        labels=np.repeat(np.arange(len(counts), dtype=np.int64), counts),
        sizes=np.array([size for _, size in files], np.int64),
        passed_over=skipped,
    )


@contextmanager
def _readable(root: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{root} cannot be read: {error}. Check the path and its permissions.") from error


def find_splits(root: Path) -> dict[str, Path]:
    """The folders "train", "val" and the like that a folder holds instead of classes, by name; none for a class folder.

    ImageNet's tree, ``ILSVRC/Data/CLS-LOC``, counts for the folders that it is in.
    """
    tree = next((root / way for way in _IMAGENET_TREE if (root / way).is_dir()), root)
    folders, _ = _list_root(tree, Counter())
    if tree != root or are_splits(folders, lambda name: has_folders(tree / name)):
        return {name: tree / name for name in folders if tree != root or name.lower() in SPLITS}
    return {}


def are_splits(names: Collection[str], divided: Callable[[str], bool]) -> bool:
    """Whether folders of these names are splits rather than classes: of splits, some hold folders of classes."""
    named = [name for name in names if name.lower() in SPLITS]
    return bool(named) and (len(named) > 1 or len(names) == 1) and any(map(divided, named))


def refuse_splits(root: Path) -> None:
    """Raise a ``StorageError`` that says what to type, for a folder that holds splits instead of classes."""
    if splits := find_splits(root):
        commands = " and ".join(
            f"`respipe convert {shlex.quote(str(path))} {name}.beton`"
            for name, path in splits.items()
            if has_folders(path)
        )
        raise StorageError(
            f"{root} must hold one subfolder per class; it holds the splits {', '.join(splits)}. Name one of them: "
            f"{commands}{', or ' if commands else ''}convert it with `--split {max(splits)}` (`split=`)."
        )


def counted(items: Iterable[T], where: object, what: str, *, seconds: float = 5.0) -> Iterator[T]:
    """The same items, logging every few seconds how many there have been: for lists that take minutes to make."""
    last = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            logger.info("%s: %s %s so far", where, f"{number:,}", what)


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


def has_folders(folder: Path) -> bool:
    """Whether a folder holds folders that count."""
    with os.scandir(folder) as entries:
        return any(_is_folder(entry) and not is_litter(entry.name) for entry in entries)


def _refuse_empty(root: Path, num_classes: int, loose: list[str], skipped: Counter[str]) -> NoReturn:
    what = f"found {num_classes} subfolders and no images in them"
    remedy = "Check the path"
    if loose:
        what += f", but {len(loose)} images directly in it"
        remedy = (
            "Move each image into a folder named after its class, or name the folder above, or convert them with a "
            f"file of their labels, such as ImageNet's devkit: `respipe convert {shlex.quote(str(root))} TARGET.beton "
            "--labels FILE`"
        )
    if skipped:
        what += f"; passed over {_counts(skipped)}"
    if archives := [name for name in skipped if name.split()[0] in (".tar", ".zip", ".gz", ".tgz", ".parquet")]:
        remedy = f"Name one of the {archives[0]} itself, or unpack them"
    raise StorageError(
        f"{root} must hold one subfolder per class with images ({', '.join(EXTENSIONS)}) in them; {what}. {remedy}."
    )


def _scan(folder: Path, prefix: str, around: set[tuple[int, int]], skipped: Counter[str]) -> list[tuple[str, int]]:
    """Relative path and length of every image below a folder: folder by folder, names sorted within each."""
    by_folder: dict[str, list[tuple[str, int]]] = {}
    todo = [(folder, prefix, around)]
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
