"""Tar and zip archives of images in class folders or with a file of labels, and tars of class archives, in place."""

from __future__ import annotations

import hashlib
import io
import logging
import struct
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
from respipe.storage.beton.structure import format_of
from respipe.storage.class_folder import SPLITS, are_splits, counted, is_litter
from respipe.storage.fields import Column
from respipe.storage.upright import EXTENSIONS

logger = logging.getLogger(__name__)

_TAR_BLOCK = 512
# Zeros at the end of a tar are fewer than this.
_TAR_PADDING = 2 << 20
# Bytes of a zip member's header before its name, how it begins, and where it says how long name and extra field are.
_ZIP_HEADER, _ZIP_MARK, _ZIP_LENGTHS = 30, b"PK\3\4", slice(26, 30)

# How a member is stored: plainly, or in a zip after a header of its own, where 0 and 8 are the zip's words.
_PLAIN, _STORED, _DEFLATED = -1, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


# What opening an archive raises where it is damaged.
_BROKEN = (
    *(tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, ValueError, IndexError, NotImplementedError),
    struct.error,
)


class Member(NamedTuple):
    """Name within the archive, place and length in bytes of what is stored, how it is, and what is wrong with it.

    The name of a folder, or of a tar that stands for one, ends with a slash.
    """

    name: str
    place: int
    size: int
    coding: int = _PLAIN
    fault: str = ""
    is_link: bool = False
    is_packed: bool = False  # in a tar within the tar

    @property
    def is_folder(self) -> bool:
        return self.name.endswith("/") and not self.fault

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
        members = counted(_members(self._path), path, "files")
        found = [each for each in members if each.is_folder or not _is_passed_over(each, skipped)]
        folders, found = [each for each in found if each.is_folder], [each for each in found if not each.is_folder]
        self.kind = _kind(self._path, found[:1])
        self.passed_over: Mapping[str, int] = skipped
        if skipped:
            logger.warning("%s: passed over %s", path, ", ".join(f"{n} x {what}" for what, n in skipped.most_common(8)))
        found, flat = _of_split(self._path, found, split, flat=flat)
        classes, labels = _classes(self._path, found, folders, flat=flat)
        order = sorted(range(len(found)), key=lambda row: (labels[row] < 0, labels[row], found[row].name))
        last = {member.name.removeprefix("./"): row for row, member in enumerate(found)}
        self.faults = {
            index: found[row].fault or "a later one of the same name replaces it"
            for index, row in enumerate(order)
            if found[row].fault or last[found[row].name.removeprefix("./")] != row
        }
        self._names = TextTable.of(found[row].name for row in order)
        self._places = np.array([found[row][1:4] for row in order], np.int64)
        self.num_bytes = int(self._places[:, 1].sum())
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
        place, size, coding = self._places[index].tolist()
        checksum = None
        with self._path.open("rb") as file:
            file.seek(place)
            if coding != _PLAIN:
                header = file.read(_ZIP_HEADER)
                if len(header) < _ZIP_HEADER or not header.startswith(_ZIP_MARK):
                    raise CorruptImageError("it is not where the archive's directory says", index=index)
                if not header[6] & 8:  # else it follows the data, and the header has none
                    checksum = int.from_bytes(header[14:18], "little")
                file.seek(sum(np.frombuffer(header[_ZIP_LENGTHS], "<u2").tolist()), io.SEEK_CUR)
            data = file.read(size)
        if len(data) < size:
            raise CorruptImageError(f"the archive ends after {len(data)} of its {size} bytes", index=index)
        if coding == _DEFLATED:
            try:
                data = zlib.decompress(data, wbits=-zlib.MAX_WBITS)
            except zlib.error as error:
                raise CorruptImageError(f"it cannot be inflated: {error}", index=index) from error
        if checksum is not None and zlib.crc32(data) != checksum:
            raise CorruptImageError("its checksum differs from the archive's", index=index)
        return data

    def name(self, index: int) -> str:
        """Its path within the archive."""
        return printable(self._names[index])


def _members(path: Path) -> Iterator[Member]:
    try:
        if _is_zip(path):
            yield from _zip_members(path)
        else:
            with path.open("rb") as file:
                yield from tar_members(file, path.name, 0, path.stat().st_size)
    except _BROKEN as error:
        raise StorageError(f"{path} cannot be read as an archive: {error}. Is it whole? Copy it again.") from error


def tar_members(file: IO[bytes], name: str, start: int, stop: int, prefix: str = "") -> Iterator[Member]:
    """Every file in a tar, and those in the tars in it, whose names are their folders'.

    Args:
        file: holds the tar.
        name: of the tar.
        start, stop: bytes of the file where the tar begins and should end; the file may end before.
        prefix: of the names of members.
    """
    previous, told = "", False
    end = min(stop, file.seek(0, io.SEEK_END))
    try:
        file.seek(start)
        if end - start < _TAR_BLOCK:
            raise tarfile.ReadError("it is empty")
        archive: Any = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115 - the caller closes the file
        while not told and (archive.firstmember is not None or archive.offset < end):
            if (member := archive.next()) is None:
                break
            archive.members.clear()  # it would keep every one in memory
            previous = member.name
            for each in _files_of(file, member, name, end, prefix):
                told |= bool(each.fault) and member.offset_data + member.size > end
                yield each
        fault = "" if told else _wrong_end(file, archive.offset, end)
    except (tarfile.TarError, ValueError) as error:
        if not previous and not prefix:
            raise
        fault = str(error)
    if fault:
        folder, slash, last = previous.rpartition("/")
        lost = f"{folder}{slash}what follows {last}" if last else name
        fault = f"lost, as {name} is damaged: {fault}"
        yield Member(f"{prefix}{lost}", start, 0, fault=fault, is_packed=bool(prefix))


def _files_of(file: IO[bytes], member: tarfile.TarInfo, name: str, end: int, prefix: str) -> Iterator[Member]:
    """One member of a tar, which ends at a byte of the file; or the members of the tar that it is."""
    place, size = member.offset_data, member.size
    if size < 0:
        raise ValueError("a length below zero")
    if member.isfile() and member.name.lower().endswith(".tar") and not prefix:
        yield Member(f"{PurePosixPath(member.name).stem}/", place, 0)
        yield from tar_members(file, member.name, place, place + size, f"{PurePosixPath(member.name).stem}/")
    elif member.isdir():
        yield Member(f"{prefix}{member.name.rstrip('/')}/", place, 0)
    else:
        fault = f"{name} ends after {max(0, end - place)} of its {size} bytes" if place + size > end else ""
        yield Member(f"{prefix}{member.name}", place, size, _PLAIN, fault, not member.isfile(), bool(prefix))


def _wrong_end(file: IO[bytes], place: int, end: int) -> str:
    """What is wrong with the place in a tar where there is no further header; empty where zeros mark it as the end."""
    file.seek(place)
    mark = file.read(max(0, min(_TAR_PADDING, end - place)))
    if mark.strip(b"\0"):
        return f"what is at byte {place:,} is no header"
    if len(mark) < _TAR_BLOCK:
        return "it ends without an end mark"
    return "" if len(mark) < _TAR_PADDING else "it ends in zeros, as what was not downloaded does"


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.is_dir():
                yield Member(member.filename.replace("\\", "/"), member.header_offset, 0)
                continue
            if member.flag_bits & 1 or member.compress_type not in (_STORED, _DEFLATED):
                raise ValueError(f"{printable(member.filename)} is encrypted or compressed otherwise than by deflating")
            name = member.filename.replace("\\", "/")
            yield Member(name, member.header_offset, member.compress_size, member.compress_type)


def _is_passed_over(member: Member, skipped: Counter[str]) -> bool:
    name = member.name
    if member.fault:
        return False
    if any(is_litter(part) for part in name.split("/") if part != "."):
        skipped["hidden names and litter"] += 1
    elif member.is_link:
        skipped["links"] += 1
    elif not name.lower().endswith(EXTENSIONS):
        skipped[f"{printable(PurePosixPath(name).suffix.lower()) or 'no extension'} files"] += 1
    else:
        return False
    return True


def _kind(path: Path, first: Sequence[Member]) -> str:
    of = "class archives" if any(each.is_packed for each in first) else "class folders"
    of = "images" if first and not first[0].folders else of
    return f"{'zip' if _is_zip(path) else 'tar'} of {of}"


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


def _classes(
    path: Path, found: list[Member], folders: list[Member], *, flat: bool
) -> tuple[tuple[str, ...], list[int]]:
    """Class names, and the class of each image: the first folder in which their paths differ; -1 for none.

    A folder without images beside those that have some is a class, as it is where nothing is packed.
    """
    paths = [each.folders for each in found if not each.fault]
    depth = 0
    while paths and all(len(parts) > depth + 1 and parts[depth] == paths[0][depth] for parts in paths):
        depth += 1
    classes = tuple(sorted({"".join(parts[depth : depth + 1]) for parts in paths}))
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
    beside = {parts[-1] for each in folders if (parts := each.folders) and parts[:-1] == paths[0][:depth]}
    if empty := sorted(name for name in beside - {*classes} if not is_litter(name)):
        classes = tuple(sorted({*classes, *empty}))
        logger.warning(
            "%s: %d of %d classes have no images, first %s", path, len(empty), len(classes), printable(empty[0])
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return classes, [numbers.get("".join(each.folders[depth:][:1]), -1) for each in found]


def _is_zip(path: Path) -> bool:
    return format_of(path) == "a zip archive"


def _is_archive(given: Any) -> bool:
    if not isinstance(given, str) or not Path(given).is_file():
        return False
    found = format_of(Path(given))
    # Tars of old have no mark, and what is left of one may be nothing at all.
    return found in ("a tar archive", "a zip archive") or (found is None and Path(given).suffix == ".tar")


def open_archive(given: str, options: SourceOptions) -> Source:
    """An archive, with the labels of a file where one is given."""
    source = ArchiveSource(given, split=options.split, flat=is_flat(options))
    if options.labels is None:
        return source
    return with_label_file(source, options.labels, label_field=options.label_field)


def _glance(given: str) -> str:
    path = Path(given)
    members = (member for member in _members(path) if not member.is_folder)
    first = (member for member in members if not _is_passed_over(member, Counter()))
    return "zip" if _is_zip(path) else _kind(path, [*islice(first, 1)])


SPEC = SourceSpec(
    format="archive",
    title="a tar or zip of class folders, or of images with a file of their labels, or a tar of one tar per class",
    recognise=_is_archive,
    open=open_archive,
    options=frozenset({"labels", "label_field", "split"}),
    glance=_glance,
)
