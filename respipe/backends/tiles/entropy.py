"""Entropy decoding of restart intervals coded with the standard Huffman tables."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from respipe.backends.tiles.dct import BASIS, PLACES
from respipe.backends.tiles.machine import add_scaled, load_word
from respipe.storage.huffman import AC_CHROMA, AC_LUMA, DC_CHROMA, DC_LUMA, HuffmanTable

# Codes of up to this many bits are looked up together with the bits of their value, where those fit, too.
_SHORT_BITS = 11
# All longer standard codes begin with eight ones; this many bits follow.
_LONG_BITS = 8
_TABLE = (1 << _SHORT_BITS) + (1 << _LONG_BITS)
# An entry of the tables: bits to consume, whether the value's bits are still to be read (then the value is their
# number), how far to move on in the block, and the value.
_LENGTH, _UNREAD, _STEP_SHIFT, _STEP, _VALUE_SHIFT = 0x1F, 0x80, 8, 0x7F, 16
_END_OF_BLOCK = 0x00
_BEYOND = 64
_LOW_BITS, _HIGH_BITS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
_ONES, _LAST_BYTE = np.uint64(0xFFFFFFFFFFFFFFFF), np.uint64(0xFF)
_NO_CODE = 1 | 127 << _STEP_SHIFT

# Of a block: nothing but its mean, more, or damaged.
FLAT, DETAILED, DAMAGED = 0, 1, -1


class Bits(NamedTuple):
    """Where a reader of bits stands.

    Args:
        position: of the next byte to load.
        buffer: uint64, the next bits, first in the highest place.
        loaded: how many of them are valid, at most 64.
        missing: how many of them lie beyond the end of the data, which then counts as zeros.
    """

    position: int
    buffer: np.uint64
    loaded: int
    missing: int


def standard_lookup() -> NDArray[np.int32]:
    """(4 x 2304,) int32, what :func:`decode_block` looks up: means and other coefficients of luma, then of chroma.

    Each part has entries by the next 11 bits, then those of longer codes by the 8 bits after eight ones.
    """
    tables = (DC_LUMA, False), (AC_LUMA, True), (DC_CHROMA, False), (AC_CHROMA, True)
    return np.concatenate([_entries(table, has_runs=has_runs) for table, has_runs in tables])


def _entries(table: HuffmanTable, *, has_runs: bool) -> NDArray[np.int32]:
    entries = np.full(_TABLE, _NO_CODE, np.int64)
    entries[0xFF << _SHORT_BITS - 8 : 1 << _SHORT_BITS] = 0  # looked up again, unless a short code is entered below
    codes, lengths = table.codes()
    for code, length, symbol in zip(codes.tolist(), lengths.tolist(), table.symbols.tolist(), strict=True):
        run, size = (symbol >> 4, symbol & 15) if has_runs else (0, symbol)
        step = _BEYOND if has_runs and symbol == _END_OF_BLOCK else run + 1
        unread = length | _UNREAD | step << _STEP_SHIFT | size << _VALUE_SHIFT
        free = _SHORT_BITS - length
        if free < 0:
            tail = _LONG_BITS + 8 - length
            first = (1 << _SHORT_BITS) + ((code << tail) & 0xFF)
            entries[first : first + (1 << tail)] = unread
        elif size > free:
            entries[code << free : (code + 1) << free] = unread
        else:
            bits = np.arange(1 << free, dtype=np.int64) >> np.int64(free - size)
            values = np.where(bits << 1 >> size, bits, bits - (1 << size) + 1)
            entries[code << free : (code + 1) << free] = length + size | step << _STEP_SHIFT | values << _VALUE_SHIFT
    return entries.astype(np.int32)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def start_reading(position: int) -> Bits:
    """A reader that begins at a byte."""
    return Bits(position, np.uint64(0), 0, 0)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _load_bytes(
    data: NDArray[np.uint8], end: int, position: int, buffer: np.uint64, loaded: int, missing: int
) -> tuple[int, np.uint64, int, int]:
    """Load more than 56 bits byte by byte, leaving out the zero that follows each byte 0xFF."""
    while loaded <= 56:
        byte = np.uint64(0)
        if position < end:
            byte = np.uint64(data[position])
            position += 2 if byte == np.uint64(0xFF) else 1
        else:
            missing += 8
        buffer |= byte << np.uint64(56 - loaded)
        loaded += 8
    return position, buffer, loaded, missing


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _read_value(buffer: np.uint64, length: int, size: int) -> int:
    """The value of ``size`` bits that follows a code of ``length`` bits (ITU-T T.81, F.2.2.1, EXTEND)."""
    value = int(np.int64((buffer << np.uint64(length)) >> np.uint64(64 - size)))
    return value if value >> (size - 1) != 0 else value - (1 << size) + 1


@numba.njit(nogil=True, cache=True, error_model="numpy", inline="always")
def decode_block(
    data: NDArray[np.uint8],
    end: int,
    bits: Bits,
    prediction: int,
    component: int,
    quantization: NDArray[np.float32],
    lookup: NDArray[np.int32],
    block: NDArray[np.float32],
) -> tuple[Bits, int, int]:
    """Decode a block of 8 x 8 coefficients and transform it along its columns.

    Inlined, and in one piece: handing arrays on would count references at every symbol.

    Args:
        data: (n,) uint8.
        end: of the interval in ``data``.
        bits: reader within the interval.
        prediction: mean of the block before, in quantised units.
        component: 0 for luma, 1 and 2 for chroma.
        quantization: (192,) float32, of each component in zigzag order.
        lookup: see :func:`standard_lookup`.
        block: (64,) float32, filled as :func:`respipe.backends.tiles.dct.store_block` takes it.

    Returns:
        the reader, the block's mean in quantised units, and FLAT (then only the first value of ``block`` is filled),
        DETAILED or DAMAGED.
    """
    position, buffer, loaded, missing = bits
    table, quantum = np.uint64(2 * _TABLE if component else 0), 64 * component
    place, found, mean, step = -1, FLAT, prediction, 0
    while place < 63:
        if loaded < 32:
            word = load_word(data, position) if position + 8 <= end else _ONES
            if (~word - _LOW_BITS) & word & _HIGH_BITS == np.uint64(0):  # none of its bytes is 0xFF
                buffer |= word >> np.uint64(loaded)
                position += (63 - loaded) >> 3
                loaded |= 56
            else:
                position, buffer, loaded, missing = _load_bytes(data, end, position, buffer, loaded, missing)
        entry = int(np.int64(lookup[table + (buffer >> np.uint64(64 - _SHORT_BITS))]))
        if entry == 0:
            entry = int(np.int64(lookup[table + np.uint64(1 << _SHORT_BITS) + (buffer >> np.uint64(48) & _LAST_BYTE)]))
        length, step, value = entry & _LENGTH, entry >> _STEP_SHIFT & _STEP, entry >> _VALUE_SHIFT
        if entry & _UNREAD:
            size = value
            value = _read_value(buffer, length, size)
            length += size
        buffer <<= np.uint64(length)
        loaded -= length
        place += step
        if place > 63:
            break
        if place == 0:
            mean += value
            block[0] = np.float32(mean) * quantization[quantum] * BASIS[0]
            table += np.uint64(_TABLE)
            continue
        if found == FLAT:
            block[1:8] = block[0]
            block[8:] = np.float32(0.0)
            found = DETAILED
        add_scaled(block, PLACES[place, 0], BASIS, PLACES[place, 1], np.float32(value) * quantization[quantum + place])
    # A block ends with its last coefficient or with the symbol for its end, alone.
    if (place > 63 and step != _BEYOND) or loaded < missing:
        found = DAMAGED
    return Bits(position, buffer, loaded, missing), mean, found


@numba.njit(nogil=True, cache=True, error_model="numpy")
def is_read_to_end(bits: Bits, end: int) -> bool:
    """Whether nothing is left of an interval but the bits that fill up its last byte."""
    return bits.position == end and bits.loaded - bits.missing < 8
