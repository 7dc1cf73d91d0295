"""What respipe adds to a ``.beton``: named arrays and a JSON directory, hidden from FFCV before the allocation table.

::

    start                arrays, each at a multiple of 8
    directory_ptr        directory: JSON {"attributes": {...}, "arrays": [{name, dtype, shape, offset, crc32}, ...]}
    alloc_table_ptr - 48 footer: magic, version, checksums, start, directory_ptr, directory_size
    alloc_table_ptr      the file's allocation table, which FFCV reads up to the end of the file

The footer also holds checksums of the file's beginning (header, field table, metadata) and of its allocation table, so
that together with the checksums of the images no byte of the file that matters goes unchecked.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from respipe.storage.beton import format as layout
from respipe.storage.beton.format import FIELD, HEADER, FieldType, align, metadata_dtype

MAGIC = b"respipe\x00"
VERSION = 1
FOOTER = np.dtype(
    [
        ("magic", "u1", (8,)),
        ("version", "<u4"),
        ("directory_crc32", "<u4"),
        ("head_crc32", "<u4"),
        ("alloc_table_crc32", "<u4"),
        ("start", "<u8"),
        ("directory_ptr", "<u8"),
        ("directory_size", "<u8"),
    ]
)
_ALIGNMENT = 8
# Plain numbers only: nothing that could hold references or run code.
_DTYPES = {np.dtype(kind).str: np.dtype(kind) for kind in ("u1", "<u2", "<u4", "<u8", "<i4", "<i8", "<f4", "<f8", "?")}


class AppendixError(ValueError):
    """An appendix is damaged. The message says what is wrong, without naming the file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Appendix:
    """The appendix of an open file.

    Args:
        start: where it begins; images end before.
        directory_ptr: where its arrays have ended.
        attributes: JSON values by name.
    """

    start: int
    directory_ptr: int
    attributes: Mapping[str, Any]
    _memory: NDArray[np.uint8]
    _entries: Mapping[str, _Entry]

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Start and end of everything in it, and of the allocation table, but for what fills up between arrays."""
        arrays = [(entry.offset, entry.offset + entry.num_bytes) for entry in self._entries.values()]
        return [*arrays, (self.directory_ptr, len(self._memory))]

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def array(self, name: str) -> NDArray[Any]:
        """One array by name, checked against its checksum: a read-only view of the file.

        Raises:
            AppendixError: there is no such array, or its bytes are not those that were written.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise AppendixError(f"the appendix has no array {name!r}")
        stored = self._memory[entry.offset : entry.offset + entry.num_bytes]
        if zlib.crc32(stored.data) != entry.crc32:
            raise AppendixError(f"the checksum of the appendix's array {name!r} differs from the stored one")
        return stored.view(entry.dtype).reshape(entry.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    crc32: int

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def is_announced(memory: NDArray[np.uint8], arguments: NDArray[np.uint8], *, alloc_table_ptr: int) -> bool:
    """Whether a file must have an appendix.

    Either of two marks will do, so that one damaged bit cannot make a file pass for one without checksums.

    Args:
        memory: the whole file.
        arguments: those of its first field, which begin with ``MAGIC`` in respipe's files and mean nothing to FFCV.
        alloc_table_ptr: where the allocation table begins.
    """
    footer = memory[max(0, alloc_table_ptr - FOOTER.itemsize) : alloc_table_ptr]
    return MAGIC in (part[: len(MAGIC)].tobytes() for part in (arguments, footer))


def read_appendix(memory: NDArray[np.uint8], *, head_size: int, alloc_table_ptr: int) -> Appendix:
    """Read the appendix that ends where the allocation table begins.

    Args:
        memory: the whole file.
        head_size: length of header, field table and metadata.
        alloc_table_ptr: where the allocation table begins.

    Raises:
        AppendixError: it is missing or damaged, or the file's beginning or allocation table is.
    """
    footer_ptr = alloc_table_ptr - FOOTER.itemsize
    if footer_ptr < head_size:
        raise AppendixError("there is no room for the appendix that its marks announce")
    footer = memory[footer_ptr:alloc_table_ptr].view(FOOTER)[0]
    if footer["magic"].tobytes() != MAGIC:
        raise AppendixError("the appendix that its marks announce is missing")
    if footer["version"] != VERSION:
        raise AppendixError(f"the appendix has version {footer['version']}, this respipe reads version {VERSION}")
    start, pointer, size = (int(footer[name]) for name in ("start", "directory_ptr", "directory_size"))
    if not head_size <= start <= pointer <= footer_ptr or size != footer_ptr - pointer:
        raise AppendixError(f"the appendix's directory is said to lie at {pointer} with {size} bytes")
    directory = memory[pointer:footer_ptr]
    for name, part, key in (
        ("the file's beginning", memory[:head_size], "head_crc32"),
        ("the allocation table", memory[alloc_table_ptr:], "alloc_table_crc32"),
        ("the appendix's directory", directory, "directory_crc32"),
    ):
        if zlib.crc32(part.data) != footer[key]:
            raise AppendixError(f"the checksum of {name} differs from the stored one")
    attributes, entries = _read_directory(directory.tobytes(), start=start, stop=pointer)
    if start != min((entry.offset for entry in entries.values()), default=pointer):
        raise AppendixError(f"the appendix is said to begin at {start}, where none of its arrays does")
    return Appendix(start=start, directory_ptr=pointer, attributes=attributes, _memory=memory, _entries=entries)


def image_span(read: Callable[[int, int], bytes], size: int) -> tuple[int, int] | None:
    """Where the tables at the beginning of a ``.beton`` end, and those behind the images begin.

    Args:
        read: gives the bytes between two places.
        size: of the file.

    Returns:
        None where it is none of respipe's.
    """
    if size < HEADER.itemsize:
        return None
    header = np.frombuffer(read(0, HEADER.itemsize), HEADER)[0]
    end, alloc = HEADER.itemsize + int(header["num_fields"]) * FIELD.itemsize, int(header["alloc_table_ptr"])
    if not end <= alloc - FOOTER.itemsize <= size or header["version"] != layout.VERSION:
        return None
    table = np.frombuffer(read(HEADER.itemsize, end), FIELD)
    footer = np.frombuffer(read(alloc - FOOTER.itemsize, alloc), FOOTER)[0]
    if footer["magic"].tobytes() != MAGIC:
        return None
    row = metadata_dtype([FieldType(int(entry["type_id"])) for entry in table])
    return end + int(header["num_samples"]) * row.itemsize, int(footer["start"])


def _read_directory(text: bytes, *, start: int, stop: int) -> tuple[dict[str, Any], dict[str, _Entry]]:
    try:
        directory = json.loads(text)
        attributes: dict[str, Any] = dict(directory["attributes"])
        entries = {str(entry["name"]): _read_entry(entry) for entry in directory["arrays"]}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise AppendixError(f"the appendix's directory makes no sense ({type(error).__name__}: {error})") from error
    for name, entry in entries.items():
        if not start <= entry.offset <= entry.offset + entry.num_bytes <= stop:
            raise AppendixError(f"the appendix's array {name!r} is said to lie at {entry.offset}")
    return attributes, entries


def _read_entry(entry: Mapping[str, Any]) -> _Entry:
    dtype = _DTYPES[entry["dtype"]]
    shape = cast("tuple[int, ...]", tuple(entry["shape"]))
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"an array of shape {shape}")
    return _Entry(dtype=dtype, shape=shape, offset=int(entry["offset"]), crc32=int(entry["crc32"]))


def encode_appendix(arrays: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any], *, start: int) -> _Unsealed:
    """Lay out an appendix that begins at ``start`` of the file, a multiple of 8.

    Call :meth:`_Unsealed.seal` once the rest of the file is known; ``num_bytes`` tells where the allocation table goes.
    """
    assert start % _ALIGNMENT == 0
    parts: list[bytes] = []
    entries: list[dict[str, Any]] = []
    position = start
    for name, array in arrays.items():
        stored = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        assert stored.dtype.str in _DTYPES, f"array {name} has dtype {array.dtype}, which readers refuse"
        data = stored.tobytes()
        entries.append(
            {
                "name": name,
                "dtype": stored.dtype.str,
                "shape": list(stored.shape),
                "offset": position,
                "crc32": zlib.crc32(data),
            }
        )
        padding = align(len(data), _ALIGNMENT) - len(data)
        parts.append(data + b"\x00" * padding)
        position += len(parts[-1])
    directory = json.dumps({"attributes": attributes, "arrays": entries}, sort_keys=True).encode()
    parts.append(directory)
    return _Unsealed(start=start, directory_ptr=position, directory=directory, body=b"".join(parts))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Unsealed:
    start: int
    directory_ptr: int
    directory: bytes
    body: bytes

    @property
    def num_bytes(self) -> int:
        """Length of the whole appendix."""
        return len(self.body) + FOOTER.itemsize

    def seal(self, *, head_crc32: int, alloc_table_crc32: int) -> bytes:
        """The appendix, with a footer that holds the checksums of the file's beginning and of its allocation table."""
        footer = np.zeros(1, FOOTER)
        footer["magic"] = np.frombuffer(MAGIC, np.uint8)
        footer["version"] = VERSION
        footer["directory_crc32"] = zlib.crc32(self.directory)
        footer["head_crc32"] = head_crc32
        footer["alloc_table_crc32"] = alloc_table_crc32
        footer["start"] = self.start
        footer["directory_ptr"] = self.directory_ptr
        footer["directory_size"] = len(self.directory)
        return self.body + footer.tobytes()
