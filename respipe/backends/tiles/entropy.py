"""Entropy decoding with the standard Huffman tables: what is looked up, and how bits are read.

The next 11 bits tell the next coefficient, and where they suffice the one behind it, too. An entry is an int64::

    bits  0.. 5   bits to consume
    bit   7       set where the bits of the value must be read separately; the value is then their number
    bits  8..15   how far to move on in the block; 128 for the end of the block, 255 for a code that does not exist
    bits 16..23   how far to move on after that, 0 where the entry stands for one symbol
    bits 24..39   value
    bits 40..51   second value
    bits 52..57   bits of the first symbol alone
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from respipe.backends.tiles.intrinsics import CHUNK, copy_chunk
from respipe.jpeg.compilation import compiled
from respipe.jpeg.huffman import AC_CHROMA, AC_LUMA, DC_CHROMA, DC_LUMA, HuffmanTable

_SHORT_BITS = 11
# Longer codes all begin with eight ones. They are looked up by the eight bits behind those.
_SHORT, _LONG = 1 << _SHORT_BITS, 1 << 8

TABLE = _SHORT + _LONG
"""Entries of each part of :func:`standard_lookup`."""

_UNREAD, _NO_CODE = 0x80, 255

END = 128
"""How far the end of a block moves on."""


def standard_lookup() -> NDArray[np.int64]:
    """(4 x 2304,) int64: entries for means and for other coefficients of luma, then of chroma."""
    tables = (DC_LUMA, False), (AC_LUMA, True), (DC_CHROMA, False), (AC_CHROMA, True)
    return np.array([entry for table, has_runs in tables for entry in _entries(table, has_runs=has_runs)], np.int64)


def _entries(table: HuffmanTable, *, has_runs: bool) -> list[int]:
    short, long = [_entry(1, _NO_CODE)] * _SHORT, [_entry(1, _NO_CODE)] * _LONG
    unknown = 0xFF << _SHORT_BITS - 8
    short[unknown:] = [0] * (_SHORT - unknown)  # to be looked up as long codes, but for those entered below
    codes, lengths = table.codes()
    for code, length, symbol in zip(codes.tolist(), lengths.tolist(), table.symbols.tolist(), strict=True):
        run, size = (symbol >> 4, symbol & 15) if has_runs else (0, symbol)
        step = END if has_runs and symbol == 0 else run + 1
        free = _SHORT_BITS - length
        if free < 0:
            rest = 16 - length
            first = code << rest & 0xFF
            long[first : first + (1 << rest)] = [_entry(length, step, size) | _UNREAD] * (1 << rest)
        elif size > free:
            short[code << free : code + 1 << free] = [_entry(length, step, size) | _UNREAD] * (1 << free)
        else:
            for rest in range(1 << free):
                bits = rest >> free - size
                value = bits if bits << 1 >> size else bits - (1 << size) + 1
                short[(code << free) + rest] = _entry(length + size, step, value)
    return [*(_in_pairs(short) if has_runs else short), *long]


def _entry(length: int, step: int, value: int = 0) -> int:
    return length | step << 8 | (value & 0xFFFF) << 24 | length << 52


def _in_pairs(entries: list[int]) -> list[int]:
    """Add to each entry the symbol behind it where its bits are all there."""
    pairs: list[int] = []
    for bits, entry in enumerate(entries):
        behind = entries[bits << (entry & 0x3F) & _SHORT - 1]
        length = (entry & 0x3F) + (behind & 0x3F)
        if not entry or not behind or (entry | behind) & _UNREAD or entry >> 8 & 0xFF >= END or length > _SHORT_BITS:
            pairs.append(entry)
        else:
            second = (behind >> 8 & 0xFF) << 16 | (behind >> 24 & 0xFFF) << 40
            pairs.append(entry + (behind & 0x3F) | second)
    return pairs


# Numba inlines these; on scalars they cost nothing.


@compiled
def short_code(buffer: np.uint64) -> np.uint64:
    """Where in a part of the look-up table the next bits are found."""
    return buffer >> np.uint64(64 - _SHORT_BITS)


@compiled
def long_code(buffer: np.uint64) -> np.uint64:
    """Where they are found if the entry there is 0."""
    return np.uint64(_SHORT) + (buffer >> np.uint64(48) & np.uint64(0xFF))


@compiled
def num_bits(entry: int) -> int:
    """Bits to consume."""
    return entry & 0x3F


@compiled
def num_bits_of_first(entry: int) -> int:
    """Bits of the first symbol alone."""
    return entry >> 52


@compiled
def is_unread(entry: int) -> bool:
    """Whether the bits of the value must be read separately."""
    return entry & _UNREAD != 0


@compiled
def step(entry: int) -> int:
    """How far to move on in the block."""
    return entry >> 8 & 0xFF


@compiled
def value(entry: int) -> int:
    """The value, or the number of its bits."""
    return entry << 24 >> 48


@compiled
def second_step(entry: int) -> int:
    """How far to move on after that."""
    return entry >> 16 & 0xFF


@compiled
def second_value(entry: int) -> int:
    """The second value."""
    return entry << 12 >> 52


@compiled
def is_end(place: int) -> bool:
    """Whether a block ends here: with its last coefficient, or with the symbol for the end before that one."""
    return place == 63 or place >> 6 == END >> 6


@compiled
def read_value(buffer: np.uint64, length: int, size: int) -> int:
    """The value of ``size`` bits that follows a code of ``length`` bits (ITU-T T.81, F.2.2.1, EXTEND)."""
    bits = int(np.int64((buffer << np.uint64(length)) >> np.uint64(64 - size)))
    return bits if bits >> (size - 1) != 0 else bits - (1 << size) + 1


@compiled
def bits_and_value(entry: int, buffer: np.uint64) -> tuple[int, int]:
    """Bits to consume, those of a value read separately included, and the value."""
    length, found = num_bits(entry), value(entry)
    if is_unread(entry):
        return length + found, read_value(buffer, length, found)
    return length, found


SLACK = 256
"""How many bytes an array for :func:`unstuff` must be longer than the coded bytes.

No block has more than 64 symbols of 26 bits, so that one of a damaged interval reads no further behind its end.
"""


@compiled
def unstuff(data: NDArray[np.uint8], start: int, end: int, out: NDArray[np.uint8]) -> int:
    """Copy coded bytes without the zero that follows each byte 0xFF.

    Args:
        data: (n,) uint8.
        start, end: of a restart interval in ``data``, where a marker is behind it.
        out: (end - start + SLACK,) uint8 or more, filled.

    Returns:
        how many bytes they are now, or -1 where there is a marker among them.
    """
    count = 0
    while start < end:
        if start + CHUNK <= len(data):
            plain = copy_chunk(data, start, out, count)
        else:
            out[count] = data[start]
            plain = 1 if data[start] != 0xFF else 0
        start += plain
        count += plain
        # The marker at the end is the last byte 0xFF that is found.
        if start < end and data[start] == 0xFF:
            if data[start + 1] != 0:
                return -1
            out[count] = 0xFF
            start += 2
            count += 1
    return count
