"""Which tables a JPEG is coded with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from respipe.backends.tiles.intrinsics import load_word
from respipe.jpeg.compilation import compiled
from respipe.jpeg.compiled_header import Layout, byte, next_segment
from respipe.jpeg.huffman import AC_CHROMA, AC_LUMA, DC_CHROMA, DC_LUMA
from respipe.jpeg.markers import DHT, DQT, SOS

# By class and identifier as DHT segments have them: luma's means, chroma's, luma's other coefficients, chroma's.
_STANDARD = [np.concatenate([*table]) for table in (DC_LUMA, DC_CHROMA, AC_LUMA, AC_CHROMA)]
_STANDARD_BYTES = np.concatenate(_STANDARD)
_STANDARD_STARTS = np.cumsum([0, *map(len, _STANDARD)])


@compiled
def read_quantizers(data: NDArray[np.uint8], layout: Layout, quantizers: NDArray[np.float32]) -> bool:
    """Read the quantisation tables, and check that all else is as the tile decoder expects it.

    Args:
        data: (n,) uint8, an encoded image.
        layout: of the same.
        quantizers: (192,) float32, filled for each component in zigzag order.

    Returns:
        whether luma uses the standard Huffman tables for luma, chroma those for chroma, and chroma has one block in
        each MCU.
    """
    places = np.zeros(4, np.int64)  # where the contents of each quantisation table begin
    marker, huffman, start, end = 0, 0, 0, 2
    while marker != SOS:
        marker, start, end = next_segment(data, end)
        sound = marker != 0
        if marker == DQT:
            sound = _find_quantizers(data, start, end, places)
        elif marker == DHT:
            found = _standard_tables(data, start, end)
            sound = found != 0
            huffman |= found
        if not sound:
            return False
    needed = 0b0101 if layout.components == 1 else 0b1111
    if huffman & needed != needed or end - start < 1 + 2 * layout.components:
        return False
    for component in range(layout.components):
        frame, scan = layout.frame + 6 + 3 * component, start + 1 + 2 * component
        quantizer = places[data[frame + 2] & 3]
        usual = data[scan + 1] == (0x00 if component == 0 else 0x11) and data[scan] == data[frame]
        if quantizer == 0 or not usual or (component > 0 and data[frame + 1] != 0x11):
            return False
        for place in range(64):
            quantizers[64 * component + place] = np.float32(data[quantizer + place])
    return True


@compiled
def _find_quantizers(data: NDArray[np.uint8], start: int, end: int, places: NDArray[np.int64]) -> bool:
    while start + 65 <= end:
        if data[start] > 3:
            return False  # more than 8 bits, or no such table
        places[data[start]] = start + 1
        start += 65
    return start == end


@compiled
def _standard_tables(data: NDArray[np.uint8], start: int, end: int) -> int:
    """Which tables a DHT segment holds, one bit each; 0 where one of them is not the standard one."""
    found = 0
    while start < end:
        table = 2 * (byte(data, start) >> 4) + (byte(data, start) & 15)
        if data[start] not in (0x00, 0x01, 0x10, 0x11) or not _is_standard(data, start + 1, end, table):
            return 0
        found |= 1 << table
        start += 1 + _STANDARD_STARTS[table + 1] - _STANDARD_STARTS[table]
    return found


@compiled
def _is_standard(data: NDArray[np.uint8], start: int, end: int, table: int) -> bool:
    first, stop = _STANDARD_STARTS[table], _STANDARD_STARTS[table + 1]
    length = stop - first
    if length > end - start:
        return False
    for i in range(0, length, 8):
        at = min(i, length - 8)  # no table is shorter
        if load_word(data, start + at) != load_word(_STANDARD_BYTES, first + at):
            return False
    return True
