"""Tar and zip archives of images in class folders or with a file of labels, and tars of class archives, in place."""

from __future__ import annotations

import hashlib
import io
import logging
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from respipe.conversion.sources.base import Source, SourceOptions, SourceSpec
from respipe.conversion.sources.columns import noted
from respipe.conversion.sources.labels import is_flat, with_label_file
from respipe.errors import CorruptImageError, StorageError
from respipe.printable import printable
from respipe.storage.beton.string_table import TextTable
from respipe.storage.class_folder import SPLITS, are_splits, counted, is_litter
from respipe.storage.fields import Column
from respipe.storage.upright import EXTENSIONS

logger = logging.getLogger(__name__)

_TAR, _ZIP = (257, b"ustar"), (0, b"PK\3\4")
_TAR_BLOCK = 512
# Bytes of a zip member's header before its name, and where that says how long name and extra field are.
_ZIP_HEADER, _ZIP_LENGTHS = 30, slice(26, 30)
_LINK = -1


class Member(NamedTuple):
    """Name within the archive, place and length in bytes of what is stored, whether that is deflated, what is wrong."""

    name: str
    place: int
    size: int
    deflated: bool = False
    fault: str = ""

    @property
    def folders(self) -> list[str]:
        return [part for part in self.name.split("/")[:-1] if part != "."]


class ArchiveSource:
    """Images in the class folders of an uncompressed tar or a zip, or in a tar of one tar per class.

    A member that the archive does not hold whole, or that a later one of the same name replaces, is one sample's fault.
    So is what follows the place where a tar ends without its end mark, or goes on with something else: nobody knows how
    many samples are lost there.

    Args:
        path: the archive, read once from start to end for the places of its members (a zip: its directory alone).
        split: the folder that is meant, where it holds "train" and "val" rather than classes.
        flat: whether the folders that its images lie in tell nothing; they have no labels then.

    Raises:
        StorageError: it is damaged, compressed as a whole, or its images lie in no class.
    """

    def __init__(self, path: str | Path, *, split: str | None = None, flat: bool = False) -> None:
        self._path = Path(path)
        skipped = Counter[str]()
        found = [each for each in counted(_members(self._path), path, "files") if not _is_passed_over(each, skipped)]
        self.kind = _kind(self._path, found[:1])
        self.passed_over: Mapping[str, int] = skipped
        if skipped:
            logger.warning("%s: passed over %s", path, ", ".join(f"{n} x {what}" for what, n in skipped.most_common(8)))
        found, flat = _of_split(self._path, found, split, flat=flat)
        classes, labels = _classes(self._path, found, flat=flat)
        order = sorted(range(len(found)), key=lambda row: (labels[row] < 0, labels[row], found[row].name))
        last = {member.name.removeprefix("./"): row for row, member in enumerate(found)}
        self.faults = {
            index: found[row].fault or "a later one of the same name replaces it"
            for index, row in enumerate(order)
            if found[row].fault or last[found[row].name.removeprefix("./")] != row
        }
        self._names = TextTable.of(found[row].name.replace("!", "") for row in order)
        self._places = np.array([found[row][1:4] for row in order], np.int64)
        values = np.array([labels[row] for row in order], np.int64)
        known = noted(values, self.faults, self.name) if self.faults else values
        label = Column(kind="class", values=known, classes=classes)
        self.fields: Mapping[str, Column] = {} if flat else {"label": label}
        digest = hashlib.sha256("\n".join((*classes, *self.faults.values())).encode("utf-8", "surrogateescape"))
        for array in (self._names.text, self._names.offsets, self._places, values):
            digest.update(array.tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> bytes:
        """One member's bytes; see :meth:`respipe.conversion.Source.read`."""
        if index in self.faults:
            raise CorruptImageError(self.faults[index], index=index)
        place, size, deflated = self._places[index].tolist()
        with self._path.open("rb") as file:
            file.seek(place)
            data = file.read(size)
        if len(data) < size:
            raise CorruptImageError(f"the archive ends after {len(data)} of its {size} bytes", index=index)
        if not deflated:
            return data
        try:
            return zlib.decompress(data, wbits=-zlib.MAX_WBITS)
        except zlib.error as error:
            raise CorruptImageError(f"it cannot be inflated: {error}", index=index) from error

    def name(self, index: int) -> str:
        """Its path within the archive."""
        return printable(self._names[index])


def _members(path: Path) -> Iterator[Member]:
    try:
        if _begins(path, *_ZIP):
            yield from _zip_members(path)
        else:
            with path.open("rb") as file:
                yield from tar_members(file, path.name, 0, path.stat().st_size)
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
        raise StorageError(f"{path} cannot be read as an archive: {error}. Is it whole? Copy it again.") from error


def tar_members(file: IO[bytes], name: str, start: int, stop: int, prefix: str = "") -> Iterator[Member]:
    """Every file in a tar, and those in the tars in it, whose names are followed by "!".

    Args:
        file: holds the tar.
        name: of the tar.
        start, stop: bytes of the file where the tar begins and should end; the file may end before.
        prefix: of the names of members.
    """
    previous = ""
    end = min(stop, file.seek(0, io.SEEK_END))
    try:
        file.seek(start)
        if end - start < _TAR_BLOCK:
            raise tarfile.ReadError("it is empty")
        archive: Any = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - the caller closes the file
        while (archive.firstmember is not None or archive.offset < end) and (member := archive.next()) is not None:
            archive.members.clear()  # it would keep every one in memory
            previous, place = member.name, member.offset_data
            if member.size < 0:
                raise ValueError("a length below zero")
            if member.isfile() and member.name.lower().endswith(".tar") and not prefix:
                inner = f"{PurePosixPath(member.name).stem}!/"
                yield from tar_members(file, member.name, place, place + member.size, inner)
            elif not member.isdir():
                cut = f"{name} ends after {max(0, end - place)} of its {member.size} bytes"
                fault = cut if place + member.size > end else ""
                yield Member(f"{prefix}{member.name}", place, member.size if member.isfile() else _LINK, fault=fault)
            if place + member.size > end:
                return
        if not (fault := _wrong_end(file, archive.offset, end)):
            return
    except (tarfile.TarError, ValueError) as error:
        if not previous and not prefix:
            raise
        fault = str(error)
    folder, slash, last = previous.rpartition("/")
    lost = f"{folder}{slash}what follows {last}" if last else name
    yield Member(f"{prefix}{lost}", start, 0, fault=f"lost, as {name} is damaged: {fault}")


def _wrong_end(file: IO[bytes], place: int, end: int) -> str:
    """What is wrong with the place in a tar where there is no further header; empty where it is marked as the end."""
    file.seek(place)
    mark = file.read(max(0, min(_TAR_BLOCK, end - place)))
    if len(mark) < _TAR_BLOCK:
        return "it ends without an end mark"
    return f"what is at byte {place:,} is no header" if any(mark) else ""


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        end = path.stat().st_size
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{printable(member.filename)} is encrypted or compressed otherwise than by deflating")
            file.seek(member.header_offset)
            header = file.read(_ZIP_HEADER)
            is_whole = len(header) == _ZIP_HEADER and header.startswith(_ZIP[1])
            name, extra = np.frombuffer(header[_ZIP_LENGTHS], "<u2").tolist() if is_whole else (0, 0)
            place = member.header_offset + _ZIP_HEADER + name + extra
            is_whole &= place + member.compress_size <= end
            fault = "" if is_whole else "it is not where the archive's directory says"
            deflated = member.compress_type == zipfile.ZIP_DEFLATED
            yield Member(member.filename, place, member.compress_size, deflated, fault)


def _is_passed_over(member: Member, skipped: Counter[str]) -> bool:
    name = member.name
    if member.fault:
        return False
    if any(is_litter(part) for part in name.replace("!", "").split("/") if part != "."):
        skipped["hidden names and litter"] += 1
    elif member.size == _LINK:
        skipped["links"] += 1
    elif not name.lower().endswith(EXTENSIONS):
        skipped[f"{printable(PurePosixPath(name).suffix.lower()) or 'no extension'} files"] += 1
    else:
        return False
    return True


def _kind(path: Path, first: Sequence[Member]) -> str:
    of = "class archives" if any("!" in each.name for each in first) else "class folders"
    of = "images" if first and not first[0].folders else of
    return f"{'zip' if _begins(path, *_ZIP) else 'tar'} of {of}"


def _of_split(path: Path, found: list[Member], split: str | None, *, flat: bool) -> tuple[list[Member], bool]:
    """The members of a split, and whether the folders that they lie in tell nothing."""
    paths = [each.folders for each in found if not each.fault]
    depth = 0
    while paths and all(len(parts) > depth and parts[depth] == paths[0][depth] for parts in paths):
        depth += 1
    heads = {parts[depth] for parts in paths if len(parts) > depth}
    divided = {parts[depth] for parts in paths if len(parts) > depth + 1}
    if split is None:
        if not flat and are_splits(heads, divided.__contains__):
            raise StorageError(
                f"{path} must hold one folder per class; it holds the splits {', '.join(sorted(heads))}. Say which one "
                "with `split=` (--split)."
            )
        return found, flat
    if paths and split in paths[0][:depth]:  # all of it is of one split
        return found, flat
    if split not in heads:
        raise StorageError(f"`split` must be one that {path} holds, {', '.join(sorted(heads))}; got {split!r}.")
    # Nobody outside has the labels of a test set: it is images alone.
    flat |= split.startswith("test") and split not in divided
    return [each for each in found if each.folders[depth : depth + 1] == [split]], flat


def _classes(path: Path, found: list[Member], *, flat: bool) -> tuple[tuple[str, ...], list[int]]:
    """Class names, and the class of each image: the first folder in which their paths differ; -1 for none."""
    paths = [each.folders for each in found if not each.fault]
    depth = 0
    while paths and all(len(parts) > depth + 1 and parts[depth] == paths[0][depth] for parts in paths):
        depth += 1
    classes = tuple(sorted({"".join(parts[depth : depth + 1]).rstrip("!") for parts in paths}))
    # Where all images are in one folder called "val", that is no class.
    if not paths or (not flat and ("" in classes or (len(classes) == 1 and classes[0].lower() in SPLITS))):
        first = f" ({found[0].name}: {found[0].fault})" if not paths and found else ""
        raise StorageError(
            f"{path} must hold images in one folder, or one tar, per class; found {len(paths)} images{first}"
            f"{', some in no folder' if paths else ''}. Where a file labels them, such as ImageNet's devkit or "
            "Kaggle's LOC_val_solution.csv, give it with `labels=` (--labels)."
        )
    if flat:
        return (), [0] * len(found)
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, [numbers.get("".join(each.folders[depth:][:1]).rstrip("!"), -1) for each in found]


def _begins(path: Path, start: int, mark: bytes) -> bool:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(len(mark)) == mark


def _is_archive(given: Any) -> bool:
    return (
        isinstance(given, str)
        and Path(given).is_file()
        and (_begins(Path(given), *_TAR) or _begins(Path(given), *_ZIP))
    )


def open_archive(given: str, options: SourceOptions) -> Source:
    """An archive, with the labels of a file where one is given."""
    source = ArchiveSource(given, split=options.split, flat=is_flat(options))
    if options.labels is None:
        return source
    return with_label_file(source, options.labels, label_field=options.label_field)


def _glance(given: str) -> str:
    path = Path(given)
    first = (member for member in _members(path) if not _is_passed_over(member, Counter()))
    return "zip" if _begins(path, *_ZIP) else _kind(path, [*islice(first, 1)])


SPEC = SourceSpec(
    format="archive",
    title="a tar or zip of class folders, or of images with a file of their labels, or a tar of one tar per class",
    recognise=_is_archive,
    open=open_archive,
    options=frozenset({"labels", "label_field", "split"}),
    glance=_glance,
)
