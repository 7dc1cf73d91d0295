"""The entropy-coded part of a JPEG, read with any Huffman tables and written with the standard ones, compiled.

Every symbol is copied together with the bits of its value. Only the means of blocks change, which are coded as
differences: they begin again from zero in each restart interval::

    block | mean - mean of the block before | zeros, value | zeros, value | ... | end of block |
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from respipe.jpeg.compilation import compiled
from respipe.jpeg.huffman import AC_CHROMA, AC_LUMA, DC_CHROMA, DC_LUMA, HuffmanTable
from respipe.jpeg.markers import RST0

DAMAGED, TOO_LONG = -1, -2

_CODE_BITS = 16
_LENGTH_BITS = 5
_LENGTH_MASK = (1 << _LENGTH_BITS) - 1
# Enough for a code and its value.
_ENOUGH_BITS = 32
# A block is coded in less, with the zeros stuffed after bytes of ones and a restart marker before it.
_BLOCK_BYTES = 512
_MAX_DC_BITS = 11


class Scan(NamedTuple):
    """What recoding must know of a scan.

    Args:
        start: place of its first byte.
        num_mcus: MCUs in it.
        blocks: (n,) int64, the component of each block of an MCU.
        source_interval, target_interval: MCUs between restart markers.
        dc_symbols, ac_symbols: (components, 65536) uint16, by the next 16 bits: the symbol and the length of its code,
            ``symbol << 5 | length``; 0 where they begin with no code.
        dc_codes, ac_codes: (components, 256) int64, by symbol: its standard code and the code's length,
            ``code << 5 | length``; 0 where there is none.
    """

    start: int
    num_mcus: int
    blocks: NDArray[np.int64]
    source_interval: int
    target_interval: int
    dc_symbols: NDArray[np.uint16]
    ac_symbols: NDArray[np.uint16]
    dc_codes: NDArray[np.int64]
    ac_codes: NDArray[np.int64]


@functools.lru_cache(maxsize=16)
def symbols_by_bits(counts: bytes, symbols: bytes) -> NDArray[np.uint16]:
    """(65536,) uint16, a row of :attr:`Scan.dc_symbols` or ``ac_symbols``.

    Raises:
        ValueError: there are more codes than bits can tell apart, or not as many symbols.
    """
    lengths = np.repeat(np.arange(1, _CODE_BITS + 1), np.frombuffer(counts, np.uint8))
    values = np.frombuffer(symbols, np.uint8).astype(np.int64) << _LENGTH_BITS | lengths
    # Codes rise with their length, so that each is followed by the next one (Annex C of the JPEG standard).
    known = np.repeat(values.astype(np.uint16), 1 << (_CODE_BITS - lengths))
    if len(known) > 1 << _CODE_BITS:
        raise ValueError(f"{len(known)} of {1 << _CODE_BITS} codes are taken")
    return np.concatenate([known, np.zeros((1 << _CODE_BITS) - len(known), np.uint16)])


def _codes_by_symbol(table: HuffmanTable) -> NDArray[np.int64]:
    codes, lengths = table.codes()
    entries = np.zeros(256, np.int64)
    entries[table.symbols] = codes << _LENGTH_BITS | lengths
    return entries


_LUMA, _CHROMA = (
    (_codes_by_symbol(dc), _codes_by_symbol(ac)) for dc, ac in ((DC_LUMA, AC_LUMA), (DC_CHROMA, AC_CHROMA))
)
DC_CODES, AC_CODES = (np.stack([luma, chroma, chroma]) for luma, chroma in zip(_LUMA, _CHROMA, strict=True))
"""(3, 256) int64, :attr:`Scan.dc_codes` and ``ac_codes`` of luma and two chroma components."""


class _Reader(NamedTuple):
    """Where reading stands.

    Args:
        place: of the next byte to load.
        buffer: loaded bits, the next of them at the value ``2 ** (num_bits - 1)``.
        num_bits: how many of them are left.
        num_missing: how many of them lie beyond the end of the interval, where they count as zeros.
    """

    place: int
    buffer: int
    num_bits: int
    num_missing: int


class _Writer(NamedTuple):
    """Where writing stands: the place of the next byte, and bits that wait for their byte to fill up."""

    place: int
    buffer: int
    num_bits: int


@compiled
def recode(data: NDArray[np.uint8], scan: Scan, output: NDArray[np.uint8]) -> int:
    """Read a scan and write it anew.

    Args:
        data: (n,) uint8, the JPEG.
        scan: see there.
        output: (m,) uint8, filled with the new scan, without the end-of-image marker.

    Returns:
        the number of bytes written; DAMAGED where the source is damaged or has symbols that standard tables have no
        code for, TOO_LONG where the output has no room.
    """
    reader = _Reader(scan.start, 0, 0, 0)
    writer = _Writer(0, 0, 0)
    means, written = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for mcu in range(scan.num_mcus):
        if mcu > 0 and mcu % scan.source_interval == 0:
            reader = _pass_marker(data, reader, mcu // scan.source_interval - 1)
            means[:] = 0
        if mcu > 0 and mcu % scan.target_interval == 0:
            writer = _put_marker(output, writer, mcu // scan.target_interval - 1)
            written[:] = 0
        for component in scan.blocks:
            if writer.place + _BLOCK_BYTES > len(output):
                return TOO_LONG
            reader, difference = _read_difference(data, reader, scan.dc_symbols[component])
            means[component] += difference
            change = means[component] - written[component]
            written[component] = means[component]
            writer, coded = _put_difference(output, writer, scan.dc_codes[component], int(change))
            if not coded:
                return DAMAGED
            reader, writer, coded = _copy_ac(
                data, reader, scan.ac_symbols[component], output, writer, scan.ac_codes[component]
            )
            if not coded:
                return DAMAGED
        if reader.num_bits < reader.num_missing:
            return DAMAGED
    return _pad(output, writer).place


@compiled
def _load(data: NDArray[np.uint8], reader: _Reader) -> _Reader:
    """Load bits until there are enough for a code and its value; none from beyond a marker."""
    place, buffer, num_bits, num_missing = reader
    while num_bits < _ENOUGH_BITS:
        byte = 0
        if place + 1 < len(data) and (data[place] != 0xFF or data[place + 1] == 0):
            byte = int(np.int64(data[place]))
            place += 2 if byte == 0xFF else 1
        else:
            num_missing += 8
        buffer = buffer << 8 | byte
        num_bits += 8
    return _Reader(place, buffer, num_bits, num_missing)


@compiled
def _take(reader: _Reader, count: int) -> tuple[_Reader, int]:
    """The next bits, as a number."""
    left = reader.num_bits - count
    value = (reader.buffer >> left) & ((1 << count) - 1)
    return _Reader(reader.place, reader.buffer, left, reader.num_missing), value


@compiled
def _read_symbol(reader: _Reader, symbols: NDArray[np.uint16]) -> tuple[_Reader, int]:
    """The next symbol; -1 where there is none with such a code."""
    entry = int(np.int64(symbols[(reader.buffer >> (reader.num_bits - _CODE_BITS)) & 0xFFFF]))
    if entry == 0:
        return reader, -1
    left = reader.num_bits - (entry & _LENGTH_MASK)
    return _Reader(reader.place, reader.buffer, left, reader.num_missing), entry >> _LENGTH_BITS


@compiled
def _read_difference(data: NDArray[np.uint8], reader: _Reader, symbols: NDArray[np.uint16]) -> tuple[_Reader, int]:
    """The difference of a block's mean from the one before; one that no block can have where it is damaged."""
    reader, size = _read_symbol(_load(data, reader), symbols)
    if not 0 <= size <= _MAX_DC_BITS:
        return reader, 1 << 2 * _MAX_DC_BITS
    reader, value = _take(reader, size)
    if size > 0 and value >> (size - 1) == 0:
        value -= (1 << size) - 1
    return reader, value


@compiled
def _copy_ac(
    data: NDArray[np.uint8],
    reader: _Reader,
    symbols: NDArray[np.uint16],
    output: NDArray[np.uint8],
    writer: _Writer,
    codes: NDArray[np.int64],
) -> tuple[_Reader, _Writer, bool]:
    """Copy the coefficients of a block but for its mean. The last value is False where they are damaged."""
    place = 1
    while place < 64:
        reader, symbol = _read_symbol(_load(data, reader), symbols)
        code = codes[symbol] if symbol >= 0 else 0
        if code == 0:
            return reader, writer, False
        size = symbol & 15
        reader, value = _take(reader, size)
        writer = _put(output, writer, (code >> _LENGTH_BITS) << size | value, (code & _LENGTH_MASK) + size)
        if symbol == 0:  # end of block
            return reader, writer, True
        place += (symbol >> 4) + 1
    return reader, writer, place == 64


@compiled
def _pass_marker(data: NDArray[np.uint8], reader: _Reader, number: int) -> _Reader:
    """Begin the interval after a restart marker; a reader without any bits where the marker is not at its place."""
    place, padding = reader.place, reader.num_bits - reader.num_missing
    if 0 <= padding < 8 and place + 1 < len(data) and data[place] == 0xFF and data[place + 1] == RST0 + (number & 7):
        return _Reader(place + 2, 0, 0, 0)
    return _Reader(len(data), 0, 0, 1)


@compiled
def _put(output: NDArray[np.uint8], writer: _Writer, value: int, length: int) -> _Writer:
    """Append bits, with a zero after each byte of ones."""
    place = writer.place
    buffer, num_bits = writer.buffer << length | value, writer.num_bits + length
    while num_bits >= 8:
        num_bits -= 8
        output[place] = (buffer >> num_bits) & 0xFF
        place += 1
        if output[place - 1] == 0xFF:
            output[place] = 0
            place += 1
    return _Writer(place, buffer & 0xFF, num_bits)


@compiled
def _put_difference(
    output: NDArray[np.uint8], writer: _Writer, codes: NDArray[np.int64], change: int
) -> tuple[_Writer, bool]:
    """Append the difference of a block's mean; False where it is too large for a block of 8-bit samples."""
    size = 0
    while abs(change) >> size:
        size += 1
    code = codes[size]
    if code == 0:
        return writer, False
    value = change if change >= 0 else change + (1 << size) - 1
    return _put(output, writer, (code >> _LENGTH_BITS) << size | value, (code & _LENGTH_MASK) + size), True


@compiled
def _pad(output: NDArray[np.uint8], writer: _Writer) -> _Writer:
    """Fill up the last byte with ones."""
    free = -writer.num_bits & 7
    return _put(output, writer, (1 << free) - 1, free)


@compiled
def _put_marker(output: NDArray[np.uint8], writer: _Writer, number: int) -> _Writer:
    """Append a restart marker."""
    writer = _pad(output, writer)
    output[writer.place] = 0xFF
    output[writer.place + 1] = RST0 + (number & 7)
    return _Writer(writer.place + 2, 0, 0)
