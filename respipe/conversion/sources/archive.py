"""Tar and zip archives of images in class folders, and tars of class archives, read in place."""

from __future__ import annotations

import hashlib
import logging
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from respipe.conversion.sources.base import SourceSpec
from respipe.errors import CorruptImageError, StorageError
from respipe.printable import printable
from respipe.storage.beton.string_table import TextTable
from respipe.storage.class_folder import is_litter
from respipe.storage.fields import Column
from respipe.storage.upright import EXTENSIONS

logger = logging.getLogger(__name__)

_TAR, _ZIP = (257, b"ustar"), (0, b"PK\3\4")
# Bytes of a zip member's header before its name, and where that says how long name and extra field are.
_ZIP_HEADER, _ZIP_LENGTHS = 30, slice(26, 30)

# Name within the archive, place and length in bytes of what is stored, and whether that is deflated.
_Member = tuple[str, int, int, bool]


class ArchiveSource:
    """Images in the class folders of an uncompressed tar or a zip, or in a tar of one tar per class.

    Args:
        path: the archive, read once from start to end for the places of its members (a zip: its directory alone).

    Raises:
        StorageError: it is damaged, compressed as a whole, or its images lie in no class.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self.kind = "zip of class folders"
        found: list[_Member] = []
        skipped = Counter[str]()
        try:
            if _begins(self._path, *_ZIP):
                members = list(_zip_members(self._path))
            else:
                with tarfile.open(self._path, "r:") as archive:
                    members = list(_tar_members(archive))
                nested = any("!" in name for name, *_ in members)
                self.kind = "tar of class archives" if nested else "tar of class folders"
        except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
            raise StorageError(f"{path} cannot be read as an archive: {error}. Is it whole? Copy it again.") from error
        for member in members:
            parts = member[0].replace("!", "").split("/")
            if any(is_litter(part) for part in parts if part != "."):
                skipped["hidden names and litter"] += 1
            elif not member[0].lower().endswith(EXTENSIONS):
                skipped[f"{PurePosixPath(member[0]).suffix.lower() or 'no extension'} files"] += 1
            else:
                found.append(member)
        if skipped:
            logger.warning("%s: passed over %s", path, ", ".join(f"{n} x {what}" for what, n in skipped.most_common(8)))
        classes, labels = _classes(self._path, [name for name, *_ in found])
        order = sorted(range(len(found)), key=lambda row: (labels[row], found[row][0]))
        names = [found[row][0].replace("!", "") for row in order]
        if twice := next((one for one, count in Counter(names).items() if count > 1), None):
            raise StorageError(f"{path} holds {printable(twice)} more than once. Leave one of them in.")
        self._names = TextTable.of(names)
        self._places = np.array([found[row][1:] for row in order], np.int64)
        self._label = Column(kind="class", values=np.array([labels[row] for row in order], np.int64), classes=classes)
        digest = hashlib.sha256("\n".join(classes).encode("utf-8", "surrogateescape"))
        for array in (self._names.text, self._names.offsets, self._places, np.asarray(self._label.values)):
            digest.update(array.tobytes())
        self.fingerprint = digest.hexdigest()[:16]

    @property
    def fields(self) -> Mapping[str, Column]:
        """The label: the folder or archive that an image lies in, among the sorted ones."""
        return {"label": self._label}

    def __len__(self) -> int:
        return len(self._places)

    def read(self, index: int) -> bytes:
        """One member's bytes; see :meth:`respipe.conversion.Source.read`."""
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


def _tar_members(archive: tarfile.TarFile, start: int = 0, prefix: str = "") -> Iterator[_Member]:
    """Every file in a tar, and those in the tars in it, whose names are followed by "!"."""
    for member in archive:
        if not member.isfile():
            continue
        place = start + member.offset_data
        if member.name.lower().endswith(".tar") and not prefix:
            with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
                yield from _tar_members(inner, place, f"{PurePosixPath(member.name).stem}!/")
        else:
            yield f"{prefix}{member.name}", place, member.size, False


def _zip_members(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            if member.is_dir():
                continue
            if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{printable(member.filename)} is encrypted or compressed otherwise than by deflating")
            file.seek(member.header_offset)
            name, extra = np.frombuffer(file.read(_ZIP_HEADER)[_ZIP_LENGTHS], "<u2").tolist()
            place = member.header_offset + _ZIP_HEADER + name + extra
            yield member.filename, place, member.compress_size, member.compress_type == zipfile.ZIP_DEFLATED


def _classes(path: Path, names: list[str]) -> tuple[tuple[str, ...], list[int]]:
    """Class names, and the class of each image: the first folder in which their paths differ."""
    folders = [[part for part in name.split("/")[:-1] if part != "."] for name in names]
    depth = 0
    while folders and all(len(parts) > depth + 1 and parts[depth] == folders[0][depth] for parts in folders):
        depth += 1
    if not folders or any(len(parts) <= depth for parts in folders):
        raise StorageError(
            f"{path} must hold images in one folder, or one tar, per class; found {len(names)} images"
            f"{', some in no folder' if folders else ''}. Unpack it, and move each image into a folder of its class."
        )
    own = [parts[depth].rstrip("!") for parts in folders]
    classes = tuple(sorted(set(own)))
    places = {name: number for number, name in enumerate(classes)}
    return classes, [places[name] for name in own]


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


SPEC = SourceSpec(
    format="archive",
    title="a tar or zip of class folders, or a tar of one tar per class",
    recognise=_is_archive,
    open=lambda given, _: ArchiveSource(given),
)
