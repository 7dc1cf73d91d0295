"""Damage, as data: every mutation is drawn from a random generator alone."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from respipe.storage.beton.appendix import FOOTER, MAGIC
from respipe.storage.beton.format import FIELD, HEADER, FieldType, metadata_dtype

Rng = np.random.Generator

_INTERESTING = (
    0,
    1,
    2,
    3,
    7,
    8,
    127,
    128,
    255,
    256,
    32767,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63,
    2**64 - 1,
)


def _place(rng: Rng, length: int) -> int:
    """Anywhere, most often near the beginning, where headers are."""
    return int(length * rng.random() ** int(rng.choice([1, 3])))


def _flip(rng: Rng, data: bytearray, _: bytes) -> None:
    data[_place(rng, len(data))] ^= 1 << int(rng.integers(8))


def _scribble(rng: Rng, data: bytearray, _: bytes) -> None:
    at, length = _place(rng, len(data)), int(rng.integers(1, 33))
    data[at : at + length] = rng.bytes(len(data[at : at + length]))


def _mark(rng: Rng, data: bytearray, _: bytes) -> None:
    at = _place(rng, len(data) - 1)
    data[at : at + 2] = bytes((0xFF, int(rng.integers(0xC0, 0x100))))


def _delete(rng: Rng, data: bytearray, _: bytes) -> None:
    at = _place(rng, len(data))
    del data[at : at + int(rng.integers(1, 65))]


def _repeat(rng: Rng, data: bytearray, _: bytes) -> None:
    at, length = _place(rng, len(data)), int(rng.integers(1, 65))
    data[at:at] = data[at : at + length]


def _splice(rng: Rng, data: bytearray, other: bytes) -> None:
    """Replace a stretch by one of another image, often from the same place."""
    at, length = _place(rng, len(data)), int(rng.integers(2, 400))
    start = at if rng.random() < 0.5 else _place(rng, len(other))
    data[at : at + length] = other[start : start + length]


def _number(rng: Rng, data: bytearray, _: bytes) -> None:
    """Put a number where numbers like to be wrong."""
    size = int(rng.choice([1, 2, 4, 8]))
    at = _place(rng, max(1, len(data) - size))
    value = int(rng.choice(np.array(_INTERESTING, np.uint64))) % (1 << 8 * size)
    data[at : at + size] = value.to_bytes(size, rng.choice(["little", "big"]))


def _zero(rng: Rng, data: bytearray, _: bytes) -> None:
    at, length = _place(rng, len(data)), int(rng.integers(1, 513))
    data[at : at + length] = bytes(len(data[at : at + length]))


def _truncate(rng: Rng, data: bytearray, _: bytes) -> None:
    del data[int(rng.integers(0, len(data))) :]


MUTATIONS: tuple[Callable[[Rng, bytearray, bytes], None], ...] = (
    _flip,
    _scribble,
    _mark,
    _delete,
    _repeat,
    _splice,
    _number,
    _zero,
    _truncate,
)


def mutated(rng: Rng, data: bytes, other: bytes) -> bytes:
    """A copy with one to three mutations.

    Args:
        rng: decides everything.
        data: what is to be damaged.
        other: another one of its kind, of which parts may be taken.
    """
    damaged = bytearray(data)
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        if len(damaged) < 4:
            break
        MUTATIONS[int(rng.integers(len(MUTATIONS)))](rng, damaged, other)
    return bytes(damaged)


def mutated_beton(rng: Rng, data: bytes, other: bytes) -> bytes:
    """A copy of a ``.beton`` with damage anywhere, to numbers in its tables, or to the directory of its appendix.

    Half of those with checksums get new ones that fit, as an attacker would do: what they say must still be refused or
    lead nowhere but into the file.
    """
    way = rng.random()
    if way < 0.3:
        damaged = bytearray(mutated(rng, data, other))
    else:
        damaged = bytearray(data)
        if way < 0.5:
            _replace_directory(rng, damaged)
        for _ in range(int(rng.integers(0 if way < 0.5 else 1, 4))):
            _change_number(rng, damaged)
    if rng.random() < 0.5:
        seal(damaged)
    return bytes(damaged)


def _footer_of(data: bytearray) -> tuple[slice, NDArray[Any]] | None:
    """Where the appendix's footer is, and a copy of it; None where there is none."""
    if len(data) < HEADER.itemsize:
        return None
    table = int(np.frombuffer(bytes(data[: HEADER.itemsize]), HEADER)[0]["alloc_table_ptr"])
    place = slice(table - FOOTER.itemsize, table)
    if not FOOTER.itemsize <= table <= len(data) or data[place][: len(MAGIC)] != MAGIC:
        return None
    return place, np.frombuffer(bytes(data[place]), FOOTER).copy()


def _change_number(rng: Rng, data: bytearray) -> None:
    """Change a number in the header, the fields and metadata, the appendix or the allocation table."""
    header = np.frombuffer(bytes(data[: HEADER.itemsize]), HEADER)[0]
    table, num_samples = (min(int(header[name]), len(data)) for name in ("alloc_table_ptr", "num_samples"))
    metadata = HEADER.itemsize + int(header["num_fields"]) * FIELD.itemsize
    found = _footer_of(data)
    appendix = int(found[1]["start"][0]) if found is not None else metadata
    parts = [(0, HEADER.itemsize), (metadata, metadata + 64 * num_samples), (appendix, table), (table, len(data))]
    start, stop = parts[int(rng.integers(len(parts)))]
    size = int(rng.choice([1, 2, 4, 8]))
    start = max(0, min(start, len(data) - size))
    at = int(rng.integers(start, max(start + 1, min(stop, len(data)) - size)))
    value = int.from_bytes(data[at : at + size], "little") + int(rng.integers(-9, 10))
    if rng.random() < 0.5:
        value = int(rng.choice(np.array(_INTERESTING, np.uint64)))
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


_STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    2**70,
    1.5,
    "",
    "x",
    [],
    [[]],
    {},
    {"a": 1},
    [0],
    [1, 2],
)
_DTYPES = ("|u1", "<u2", "<u4", "<u8", "<i4", "<i8", "<f4", "<f8", "|b1", "|O", "x")


def _replace_directory(rng: Rng, data: bytearray) -> None:
    """Write something strange into the appendix's directory."""
    found = _footer_of(data)
    if found is None:
        return
    place, footer = found
    start = int(footer["directory_ptr"][0])
    directory = json.loads(data[start : place.start])
    part = directory["attributes"] if rng.random() < 0.3 else directory["arrays"][int(rng.integers(3))]
    key = sorted(part)[int(rng.integers(len(part)))]
    part[key] = str(rng.choice(_DTYPES)) if key == "dtype" else _STRANGE[int(rng.integers(len(_STRANGE)))]
    text = json.dumps(directory, sort_keys=True).encode()
    footer["directory_size"] = len(text)
    table = bytes(data[place.stop :])
    data[start:] = text + footer.tobytes() + table
    header = np.frombuffer(bytes(data[: HEADER.itemsize]), HEADER).copy()
    header["alloc_table_ptr"] = start + len(text) + FOOTER.itemsize
    data[: HEADER.itemsize] = header.tobytes()


def seal(data: bytearray) -> None:
    """Compute the checksums of the tables anew, where the file still has an appendix."""
    found = _footer_of(data)
    if found is None:
        return
    place, footer = found
    header = np.frombuffer(bytes(data[: HEADER.itemsize]), HEADER)[0]
    metadata = HEADER.itemsize + int(header["num_fields"]) * FIELD.itemsize
    try:
        types = [FieldType(data[at]) for at in range(HEADER.itemsize, metadata, FIELD.itemsize)]
    except (ValueError, IndexError):
        return
    head = metadata + int(header["num_samples"]) * metadata_dtype(types).itemsize
    footer["head_crc32"] = zlib.crc32(data[:head])
    footer["directory_crc32"] = zlib.crc32(data[int(footer["directory_ptr"][0]) : place.start])
    footer["alloc_table_crc32"] = zlib.crc32(data[place.stop :])
    data[place] = footer.tobytes()
