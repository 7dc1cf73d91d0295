"""Reading ``.beton`` files: respipe's pyramids, and what FFCV's own writer makes."""

from __future__ import annotations

import functools
import hashlib
import logging
import mmap
import os
import re
import sys
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from respipe.errors import CorruptImageError, StorageError
from respipe.jpeg.header import JpegError, is_complete, read_header
from respipe.printable import printable
from respipe.storage.beton.appendix import Appendix, AppendixError
from respipe.storage.beton.format import FieldType
from respipe.storage.beton.string_table import TextTable
from respipe.storage.beton.structure import (
    Structure,
    broken,
    read_hidden_levels,
    read_images,
    read_structure,
    read_vectors,
)
from respipe.storage.dataset import Bytes, Dataset, Level
from respipe.storage.fetching import FetchedFiles, Source
from respipe.storage.fields import Column, Computed, Kind
from respipe.storage.regular_files import open_regular
from respipe.storage.upright import stored_damage

logger = logging.getLogger(__name__)

# Where a file has no checksums, this many images stand for all of them in its fingerprint.
_FINGERPRINT_IMAGES = 64

# Bytes at either end of a file, where the tables of small ones lie.
_TABLES_READ = 1 << 14

# What respipe records besides the classes, which may be missing.
_ATTRIBUTES: dict[str, type[str | dict[str, Any]]] = {"writer": str, "settings": dict, "source": dict}


class BetonDataset:
    """A ``.beton`` file, memory-mapped and read-only. See :class:`respipe.storage.dataset.Dataset`.

    Opening it checks every count, size and pointer in it, so that no later read can leave the file. Safe to share
    between threads and to inherit by a fork; pickling stores the path, and unpickling opens the file again.

    A file may be replaced or deleted while it is open: what is mapped stays. One that is cut short in place is noticed
    by ``revision``, but whoever reads beyond its end before that, or where its disk fails, is ended by the system
    (SIGBUS), as with every mapped file. Descriptors are too few for a thousand files: none is kept.

    The levels are those that respipe recorded. In a file by another writer they are the field ``image``, or the only
    image field, or the largest, together with fields named after it with a number, such as ``image_344``.

    Numbers and rows of numbers in a file by another writer become fields: integers, and floats without a fraction,
    that are the label are taken for classes. A file without any number has no labels.

    Args:
        path: the file.
        label_field: name of the field that is the label, if not ``label``; "" for no labels.
        mapped: what :func:`map_file` gave for it, where that was called before.

    Attributes:
        attributes: what respipe recorded about the conversion; empty for files by other writers.

    Raises:
        StorageError: the file is missing, not a sound ``.beton``, or has no such labels or no images.
    """

    kind = "beton"
    place: tuple[Source, int] | None = None
    """Who fetches the bytes of the file, and its number there; None where all of them are there."""

    def __init__(
        self, path: str | Path, *, label_field: str | None = None, mapped: tuple[os.stat_result, Bytes] | None = None
    ) -> None:
        self.path = Path(path)
        self._label_field = label_field
        self._status, memory = mapped or map_file(self.path)
        self._memory: Bytes | None = memory
        structure = read_structure(self.path, memory)
        self.levels = _read_levels(structure)
        self.fields = _read_fields(structure, memory, label_field)
        self._num_samples = structure.num_samples
        self._names: TextTable | None = None
        self._fingerprint: str | None = None
        self.classes: tuple[str, ...] | None = None
        self.attributes: dict[str, Any] = {}
        if structure.appendix is not None:
            try:
                self._read_appendix(structure.appendix)
            except (AppendixError, KeyError, TypeError, ValueError) as error:
                raise broken(self.path, f"its appendix is inconsistent ({error})") from error

    def _read_appendix(self, appendix: Appendix) -> None:
        self.attributes = dict(appendix.attributes)
        for name, kind in _ATTRIBUTES.items():
            if not isinstance(self.attributes.get(name, kind()), kind):
                raise ValueError(f"its attribute {name!r} is no {kind.__name__}")
        for field in cast("list[dict[str, Any]]", self.attributes.get("fields", [])):
            name = str(field["name"])
            self.fields[name] = self._recorded(appendix, name, field["kind"])
        classes, label = self.attributes["classes"], self.fields.get("label")
        if classes is not None and label is not None:
            self.classes = tuple(str(name) for name in classes)
            labels = np.asarray(label.values)
            if label.kind != "class" or labels.min() < 0 or labels.max() >= len(self.classes):
                raise ValueError(f"labels reach {labels.max()} with {len(self.classes)} classes")
            self.fields["label"] = replace(label, classes=self.classes)
        names, offsets, checksums = (appendix.array(name) for name in ("names", "name_offsets", "crc32"))
        if (names.dtype, offsets.dtype, checksums.dtype) != (np.uint8, np.int64, np.uint32):
            raise ValueError(f"names and checksums of types {names.dtype}, {offsets.dtype} and {checksums.dtype}")
        self._names = TextTable(names, offsets)
        if len(self._names) != self._num_samples or checksums.shape != (len(self.levels), self._num_samples):
            raise ValueError(f"{len(self._names)} names and checksums of shape {checksums.shape}")
        checksums = checksums.copy()  # not to follow what may be written to the file later
        checksums.flags.writeable = False
        pairs = zip(self.levels, checksums, strict=True)
        self.levels = tuple(Level(**{**vars(level), "checksums": row}) for level, row in pairs)  # faster than replace

    def _recorded(self, appendix: Appendix, name: str, kind: Kind) -> Column:
        """A field as respipe recorded it: its kind, and its values unless FFCV sees them too."""
        if f"field:{name}" not in appendix:
            return replace(self.fields[name], kind=kind)
        values = appendix.array(f"field:{name}")
        column = (
            Column(kind=kind, values=values)
            if f"field:{name}:offsets" not in appendix
            else self._table(kind, TextTable(values, appendix.array(f"field:{name}:offsets")))
        )
        if len(column) != self._num_samples:
            raise ValueError(f"{len(column)} values of field {name!r}")
        return column

    @staticmethod
    def _table(kind: Kind, table: TextTable) -> Column:
        return Column(kind=kind, values=table if kind == "text" else Computed(table.raw, len(table)))

    @property
    def labels(self) -> NDArray[Any] | None:
        return np.asarray(self.fields["label"].values) if "label" in self.fields else None

    @property
    def buffers(self) -> tuple[Bytes, ...]:
        return (self._open_memory(),)

    @property
    def fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self)
        return self._fingerprint

    @property
    def fetched(self) -> FetchedFiles | None:
        return None if self.place is None else FetchedFiles([self.place])

    @property
    def tiled(self) -> bool:
        return self.attributes.get("tiled") is True

    def __len__(self) -> int:
        return self._num_samples

    def encoded(self, index: int, level: int = 0) -> Bytes:
        """The stored bytes of one image: (n,) uint8, a read-only view of the file."""
        stored = self.levels[level]
        offset = int(stored.offsets[index])
        return self._open_memory()[offset : offset + int(stored.sizes[index])]

    def check(self, index: int, level: int = 0) -> None:
        """Compare an image with its checksum; where there is none, see whether it decodes to the recorded size.

        Raises:
            CorruptImageError: it differs, or is damaged.
        """
        problem = self.problem(index, level)
        if problem is not None:
            raise CorruptImageError(
                f"{self.path}: sample {index} ({self.name(index)}, {self.levels[level].name}) is damaged: {problem}. "
                f"Run `respipe verify {self.path}` to list every damaged sample, then convert it again.",
                index=index,
            )

    def problem(self, index: int, level: int = 0) -> str | None:
        """What ``check`` finds wrong with an image, or None."""
        data = self.encoded(index, level)
        stored = self.levels[level]
        if stored.checksums is not None:
            same = zlib.crc32(data.data) == stored.checksums[index]
            return None if same else "its bytes differ from those that were written (checksum)"
        if stored.raw[index]:
            return None  # any bytes are valid pixels, and their number was checked when the file was opened
        try:
            header = read_header(data)
        except JpegError as error:
            return f"it is no valid JPEG: {error}"
        height, width = int(stored.heights[index]), int(stored.widths[index])
        if (header.height, header.width) != (height, width):
            return f"its header says {header.width} x {header.height} pixels where {width} x {height} are recorded"
        return stored_damage(data.tobytes()) if is_complete(data, header) else "its end is missing"

    def name(self, index: int) -> str:
        """Where a sample came from: its path relative to the source folder, or "sample 17" where unknown."""
        return printable(self._names[index]) if self._names is not None else f"sample {index}"

    def revision(self) -> int:
        """The time of the last change to the file, in nanoseconds; see :class:`respipe.storage.dataset.Dataset`."""
        size = len(self._open_memory())
        with suppress(FileNotFoundError):
            status = self.path.stat()
            if os.path.samestat(status, self._status):  # else the name is another file's, and ours is as it was
                self._status = status
        if self._status.st_size < size:
            raise StorageError(
                f"{self.path} has become shorter while it was open: {self._status.st_size} bytes where {size} were. "
                "Restore it, and open it again."
            )
        return self._status.st_mtime_ns

    def share_tables(self, levels: tuple[Level, ...], fields: Mapping[str, Column]) -> None:
        """Let go of its tables for views of equal ones, where files that are opened together keep one of each."""
        self.levels, self.fields = levels, dict(fields)

    def close(self) -> None:
        """Release the memory map. Arrays taken from it stay valid and keep it alive. Safe to call twice."""
        self._memory = None

    def _open_memory(self) -> Bytes:
        if self._memory is None:
            raise ValueError(f"The dataset {self.path} must be open; it was closed. Open it again.")
        return self._memory

    def __reduce__(self) -> tuple[object, ...]:
        return functools.partial(BetonDataset, self.path, label_field=self._label_field), ()


def fingerprint_of(dataset: Dataset) -> str:
    """The fingerprint of stored images: the same for one file and for several that hold the same one after the other.

    Returns:
        Sixteen hexadecimal digits of the SHA-256 of labels, sizes and checksums.
    """
    digest = hashlib.sha256(b"" if dataset.labels is None else dataset.labels.tobytes())
    for level in dataset.levels:
        for array in (level.heights, level.widths, level.sizes):
            digest.update(np.ascontiguousarray(array).data)
    if dataset.levels[0].checksums is not None:
        for level in dataset.levels:
            digest.update(cast("NDArray[np.uint32]", level.checksums).data)
    else:
        for index in np.linspace(0, len(dataset) - 1, min(len(dataset), _FINGERPRINT_IMAGES)).astype(int).tolist():
            digest.update(dataset.encoded(index).data)
    return digest.hexdigest()[:16]


# Without it Python keeps a descriptor for every map, only to be able to resize it.
_MAP_OPTIONS: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}


def map_file(path: Path) -> tuple[os.stat_result, Bytes]:
    """A file's status and its memory map, after its beginning and end were read: others run while a disk is slow."""
    try:
        file = open_regular(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be opened: {error}. Check the path and its permissions.") from error
    with file:
        status = os.fstat(file.fileno())
        if status.st_size == 0:
            raise broken(path, "it is empty")
        file.read(_TABLES_READ)
        file.seek(-min(_TABLES_READ, status.st_size), os.SEEK_END)
        file.read()
        try:
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ, **_MAP_OPTIONS)
        except (OSError, ValueError) as error:
            raise StorageError(f"{path} cannot be mapped into memory: {error}. Is it on a local disk?") from error
        return status, np.frombuffer(memory, np.uint8)


def _read_levels(structure: Structure) -> tuple[Level, ...]:
    names = [name for name, kind in structure.fields.items() if kind is FieldType.IMAGE]
    if structure.appendix is not None:
        recorded = structure.appendix.attributes.get("levels")
        chosen = cast("list[Any]", recorded) if isinstance(recorded, list) else []
        hidden = "level_offsets" in structure.appendix
        if not chosen or any(name not in names for name in chosen[: 1 if hidden else None]):
            raise broken(structure.path, f"its appendix names levels {recorded!r} where its image fields are {names}")
        names = chosen
    elif not names:
        found = ", ".join(f"`{name}`" for name in structure.fields)
        raise StorageError(f"{structure.path} must have an image field; its fields are {found}.")
    if structure.appendix is not None and "level_offsets" in structure.appendix:
        levels = [read_images(structure, names[0]), *read_hidden_levels(structure, structure.appendix, names[1:])]
    else:
        levels = [read_images(structure, name) for name in names]
    if structure.appendix is None:
        return _family(structure.path, levels)
    if any(smaller > larger for larger, smaller in pairwise(map(_area, levels))):
        raise broken(structure.path, f"its levels {names} are not in the order of their sizes")
    return tuple(levels)


def _family(path: Path, found: list[Level]) -> tuple[Level, ...]:
    """The levels among the image fields of another writer: others may be masks, or other pictures altogether."""
    found = sorted(found, key=_area, reverse=True)
    main = next((level for level in found if level.name == "image"), found[0])
    named = re.compile(re.escape(main.name) + r"_\d+")
    levels = [main, *(level for level in found if named.fullmatch(level.name) and _area(level) <= _area(main))]
    if left := [level.name for level in found if level not in levels]:
        logger.warning("%s: image fields %s are no levels of `%s` and go unused", path, left, main.name)
    return tuple(levels)


def _area(level: Level) -> int:
    """Pixels of all its images."""
    return int(np.multiply(level.heights, level.widths, dtype=np.int64).sum())


def _read_fields(structure: Structure, memory: Bytes, label_field: str | None) -> dict[str, Column]:
    """The numbers and rows of numbers in a file, the one that is the label under that name."""
    numbers = [name for name, kind in structure.fields.items() if kind in (FieldType.INT, FieldType.FLOAT)]
    arrays = [name for name, kind in structure.fields.items() if kind in (FieldType.ARRAY, FieldType.TENSOR)]
    vectors = {name: rows for name in arrays if (rows := read_vectors(structure, memory, name)) is not None}
    found = [name for name in structure.fields if name in vectors or name in numbers]
    name = "label" if label_field is None else label_field
    if name and name not in found and (found or label_field) and structure.appendix is None:
        raise StorageError(
            f"{structure.path} must have a field `{name}` of numbers for the labels; its number fields are {found}. "
            "Name the right one, or none: --label-field '', or respipe.storage.BetonDataset(path, label_field=...)."
        )
    fields: dict[str, Column] = {}
    for field in sorted(found, key=lambda field: field != name):
        if field in vectors:
            column = Column(kind="vector", values=vectors[field])
        elif field == name:
            column = _as_label(structure.column(field))
        else:
            whole = structure.fields[field] is FieldType.INT
            values = structure.column(field).astype(np.int64 if whole else np.float64)
            column = Column(kind="integer" if whole else "float", values=values)
        np.asarray(column.values).flags.writeable = False
        if field == name or field != "label":
            fields["label" if field == name else field] = column
    return fields


def _as_label(stored: NDArray[Any]) -> Column:
    """Numbers as labels: classes where all of them are whole."""
    if (
        stored.dtype.kind == "f"
        and not (np.isfinite(stored) & (stored == np.floor(stored)) & (abs(stored) < 2**53)).all()
    ):
        return Column(kind="float", values=stored.astype(np.float64))
    return Column(kind="class", values=stored.astype(np.int64))
