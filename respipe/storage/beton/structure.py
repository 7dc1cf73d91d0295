"""Reading the structure of a ``.beton``: every count and place in it is checked before it is used."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from respipe.errors import StorageError
from respipe.printable import printable
from respipe.storage.beton.appendix import Appendix, AppendixError, is_announced, read_appendix
from respipe.storage.beton.format import ALLOCATION, FIELD, HEADER, IMAGE, VERSION, FieldType, ImageMode, metadata_dtype
from respipe.storage.dataset import Level
from respipe.storage.regular_files import open_regular
from respipe.storage.upright import most_pixels

_MAX_AXES = 32  # of an array in a file by FFCV

_OTHERS = {
    "a tar archive": (257, b"ustar"),
    "a zip archive": (0, b"PK\3\4"),
    "a gzip archive": (0, b"\x1f\x8b"),
    "a bzip2 archive": (0, b"BZh"),
    "an xz archive": (0, b"\xfd7zXZ"),
    "a Zstandard archive": (0, b"\x28\xb5\x2f\xfd"),
    "a 7z archive": (0, b"7z\xbc\xaf"),
    "a RAR archive": (0, b"Rar!"),
    "a Parquet file": (0, b"PAR1"),
    "an HDF5 file": (0, b"\x89HDF"),
    "a JPEG image": (0, b"\xff\xd8\xff"),
    "a PNG image": (0, b"\x89PNG"),
}


def broken(path: Path, what: str) -> StorageError:
    """The error for a file that is no sound ``.beton``."""
    return StorageError(
        f"{path} cannot be read as a .beton: {what}. The file is truncated, damaged or of another format; "
        "copy or convert it again."
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """What the header, the tables and the appendix of a ``.beton`` say.

    Args:
        path: the file, for errors.
        num_samples: rows of ``metadata``, at least 1.
        fields: type of each field by name, in the file's order.
        arguments: (F, 1024) uint8, what each field's type is told, such as the shape of an array.
        metadata: (N,) one row per sample, columns ``f0``, ``f1``, ... in the order of ``fields``.
        data_start, data_end: the bytes that images may lie in.
        pointers, lengths: (A,) uint64, the allocation table, sorted by pointer.
        appendix: present in files written by respipe.
    """

    path: Path
    num_samples: int
    fields: dict[str, FieldType]
    arguments: NDArray[np.uint8]
    metadata: NDArray[Any]
    data_start: int
    data_end: int
    pointers: NDArray[np.uint64]
    lengths: NDArray[np.uint64]
    appendix: Appendix | None

    def column(self, name: str) -> NDArray[Any]:
        """(N,) the metadata of one field."""
        return self.metadata[f"f{list(self.fields).index(name)}"]


def read_structure(path: Path, memory: NDArray[np.uint8]) -> Structure:
    """Read and check everything but the images.

    Args:
        path: the file, for errors.
        memory: (size,) uint8, the whole file.

    Raises:
        StorageError: the file is not a sound ``.beton``; the message names the file, what is wrong and the value found.
    """
    num_fields, num_samples, table_start = _read_header(path, memory)
    metadata_start = HEADER.itemsize + num_fields * FIELD.itemsize
    if metadata_start > len(memory):
        raise broken(path, f"{num_fields} fields do not fit into its {len(memory)} bytes")
    table = memory[HEADER.itemsize : metadata_start].view(FIELD)
    fields = _read_fields(path, table)
    dtype = metadata_dtype(list(fields.values()))
    if num_samples > (len(memory) - metadata_start) // dtype.itemsize:
        raise broken(path, f"the metadata of {num_samples} samples does not fit into its {len(memory)} bytes")
    head_size = metadata_start + num_samples * dtype.itemsize
    if not head_size <= table_start <= len(memory) or (len(memory) - table_start) % ALLOCATION.itemsize:
        raise broken(path, f"the allocation table is said to begin at byte {table_start} of {len(memory)}")
    appendix = None
    if is_announced(memory, table[0]["arguments"], alloc_table_ptr=table_start):
        try:
            appendix = read_appendix(memory, head_size=head_size, alloc_table_ptr=table_start)
        except AppendixError as error:
            raise broken(path, str(error)) from error
    allocations = memory[table_start:].view(ALLOCATION)
    order = np.argsort(allocations["ptr"], kind="stable")
    return Structure(
        path=path,
        num_samples=num_samples,
        fields=fields,
        arguments=table["arguments"],
        metadata=memory[metadata_start:head_size].view(dtype),
        data_start=head_size,
        data_end=appendix.start if appendix else table_start,
        pointers=allocations["ptr"][order],
        lengths=allocations["size"][order],
        appendix=appendix,
    )


def _read_header(path: Path, memory: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Number of fields, number of samples, start of the allocation table."""
    if len(memory) < HEADER.itemsize:
        raise broken(path, f"it has {len(memory)} bytes, fewer than a header")
    header = memory[: HEADER.itemsize].view(HEADER)[0]
    num_fields, num_samples = int(header["num_fields"]), int(header["num_samples"])
    if kind := _other_format(memory[:512].tobytes()):
        where = printable(str(path))
        if kind in ("a tar archive", "a zip archive"):
            remedy = f"Convert it with `respipe convert {where} TARGET.beton`."
        elif kind == "a gzip archive":
            remedy = f"Unpack it with `gunzip {where}`, and convert the tar that this leaves."
        else:
            remedy = "Lay its images into one folder per class, and convert the folder that holds these."
        raise StorageError(f"{where} is {kind}, not a .beton. {remedy}")
    if header["version"] != VERSION:
        raise broken(path, f"its format version is {header['version']} where {VERSION} is expected")
    if num_fields < 1 or num_samples < 1:
        raise broken(path, f"it has {num_fields} fields and {num_samples} samples")
    return num_fields, num_samples, int(header["alloc_table_ptr"])


def _other_format(head: bytes) -> str | None:
    """What a file that is no ``.beton`` is, where its first bytes say so."""
    return next((kind for kind, (start, mark) in _OTHERS.items() if head[start:].startswith(mark)), None)


def format_of(path: Path) -> str | None:
    """What a file is, told from its first bytes: "a .beton", "a gzip archive" and so on; None where they do not say."""
    if not path.is_file():
        return None
    with open_regular(path) as file:
        head = file.read(512)
    if head[:2] == VERSION.to_bytes(2, "little") and len(head) >= HEADER.itemsize:
        return "a .beton"
    return _other_format(head)


def _read_fields(path: Path, table: NDArray[Any]) -> dict[str, FieldType]:
    fields: dict[str, FieldType] = {}
    for entry in table:
        raw = entry["name"].tobytes().split(b"\x00")[0]
        name = raw.decode("ascii", "replace")
        if not raw.isascii() or not name.isprintable() or not name or name in fields:
            raise broken(path, f"field {len(fields)} has the name {raw!r}, which is empty, taken or not ASCII")
        try:
            fields[name] = FieldType(int(entry["type_id"]))
        except ValueError:
            what = f"field `{name}` has type {entry['type_id']}, whose layout only its own writer knows"
            raise broken(path, what) from None
    return fields


def read_images(structure: Structure, name: str) -> Level:
    """Look up and check the images of one field.

    Raises:
        StorageError: an image lies outside the data region, or its mode, size or length cannot be right.
    """
    column = structure.column(name)
    assert column.dtype == IMAGE, "only image fields hold images"
    pointers, mode = column["data_ptr"], column["mode"]
    _require(structure, name, mode <= max(ImageMode), "mode must be 0 (JPEG) or 1 (raw)", mode)
    heights, widths = column["height"].astype(np.int32), column["width"].astype(np.int32)
    shorter = np.minimum(heights, widths)
    _require(structure, name, shorter > 0, "height and width must be at least 1", shorter)
    sizes = _allocated(structure, name, pointers)
    raw = mode == ImageMode.RAW
    num_pixels = heights.astype(np.uint64) * widths.astype(np.uint64)
    limit = most_pixels()
    _require(
        structure, name, raw | (num_pixels <= limit), f"encoded images must have at most {limit} pixels", num_pixels
    )
    expected = 3 * num_pixels
    _require(structure, name, ~raw | (sizes == expected), "length must be height x width x 3", sizes)
    offsets, lengths = pointers.astype(np.int64), sizes.astype(np.int64)
    for array in (heights, widths, offsets, lengths, raw):
        array.flags.writeable = False
    buffers = _nothing(np.int32, structure.num_samples)
    return Level(name=name, heights=heights, widths=widths, buffers=buffers, offsets=offsets, sizes=lengths, raw=raw)


def read_vectors(structure: Structure, memory: NDArray[np.uint8], name: str) -> NDArray[np.float32] | None:
    """Rows of numbers, as FFCV's NDArrayField and TorchTensorField store them: (N, K) float32; None for other shapes.

    Raises:
        StorageError: a row lies outside the data region, or its shape and type cannot be read.
    """
    arguments = structure.arguments[list(structure.fields).index(name)]
    shape = arguments[: 8 * _MAX_AXES].view("<u8")
    length = int(arguments[8 * _MAX_AXES :][:8].view("<u8")[0])
    try:
        ((_, code),) = json.loads(arguments[8 * (_MAX_AXES + 1) :][:length].tobytes())
        dtype = np.dtype(str(code))
    except (ValueError, TypeError) as error:
        raise broken(structure.path, f"the type of field `{name}` cannot be read ({error})") from error
    if np.count_nonzero(shape) != 1 or not shape[0] or dtype.kind not in "biuf":
        return None
    pointers = structure.column(name)
    sizes = _allocated(structure, name, pointers)
    size = int(shape[0]) * dtype.itemsize
    _require(structure, name, sizes == size, f"length must be {size}", sizes)
    rows = np.empty((structure.num_samples, int(shape[0])), np.float32)
    for row, start in zip(rows, pointers.tolist(), strict=True):
        row[:] = memory[start : start + size].view(dtype)
    return rows


def _allocated(structure: Structure, name: str, pointers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Lengths in bytes of what pointers of one field lead to, all of it within the data region."""
    known = np.zeros(structure.num_samples, np.bool_)
    sizes = np.zeros(structure.num_samples, np.uint64)
    if len(structure.pointers):
        rows = np.searchsorted(structure.pointers, pointers).clip(max=len(structure.pointers) - 1)
        known = structure.pointers[rows] == pointers
        sizes = structure.lengths[rows]
    _require(structure, name, known, "pointer must be in the allocation table", pointers)
    # Compared by subtraction: a sum of two hostile 64-bit numbers would wrap around.
    start, end = np.uint64(structure.data_start), np.uint64(structure.data_end)
    inside = (pointers >= start) & (pointers < end)
    _require(structure, name, inside, f"pointer must be in {start}..{end}", pointers)
    fits = (sizes > 0) & (sizes <= end - np.where(inside, pointers, start))
    _require(structure, name, fits, f"length must be at least 1 and end before byte {end}", sizes)
    return sizes


def read_hidden_levels(structure: Structure, appendix: Appendix, names: Sequence[str]) -> list[Level]:
    """Look up and check the smaller levels, which lie where FFCV does not look.

    Raises:
        StorageError: an image lies outside the data region, or the tables are not of one length.
    """
    try:
        # Copied, not to follow what may be written to the file later.
        tables = [appendix.array(f"level_{name}").copy() for name in ("heights", "widths", "offsets", "sizes")]
    except AppendixError as error:
        raise broken(structure.path, str(error)) from error
    found = [(table.dtype, table.shape) for table in tables]
    shape = len(names), structure.num_samples
    if found != [(np.dtype(kind), shape) for kind in (np.int32, np.int32, np.int64, np.int64)]:
        raise broken(structure.path, f"the tables of its {len(names)} smaller levels are {found}")
    for table in tables:
        table.flags.writeable = False
    heights, widths, offsets, sizes = tables
    start, end = structure.data_start, structure.data_end
    shorter, num_pixels = np.minimum(heights, widths), np.multiply(heights, widths, dtype=np.int64)
    _require(structure, names, shorter > 0, "height and width must be at least 1", shorter)
    _require(structure, names, num_pixels <= most_pixels(), f"must have at most {most_pixels()} pixels", num_pixels)
    inside = (offsets >= start) & (offsets < end)
    _require(structure, names, inside, f"pointer must be in {start}..{end}", offsets)
    fits = (sizes > 0) & (sizes <= end - np.where(inside, offsets, start))
    _require(structure, names, fits, f"length must be at least 1 and end before byte {end}", sizes)
    none = _nothing(np.bool_, structure.num_samples)
    buffers = _nothing(np.int32, structure.num_samples)
    return [
        Level(name=name, heights=rows[0], widths=rows[1], buffers=buffers, offsets=rows[2], sizes=rows[3], raw=none)
        for name, *rows in zip(names, *tables, strict=True)
    ]


@lru_cache(maxsize=8)
def _nothing(kind: type[np.generic], length: int) -> NDArray[Any]:
    """Zeros that take no memory."""
    return np.broadcast_to(kind(), length)


def _require(
    structure: Structure, names: str | Sequence[str], good: NDArray[np.bool_], rule: str, values: NDArray[Any]
) -> None:
    """Raise for the first sample of a field, or of several with a row each, that is not good."""
    if not good.all():
        place = np.unravel_index(np.argmin(good), good.shape)
        name = names if isinstance(names, str) else names[int(place[0])]
        raise broken(structure.path, f"sample {place[-1]}, field `{name}`: {rule}; got {values[place]}")
