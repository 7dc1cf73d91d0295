"""What a decoder must know of a JPEG before its first scan, compiled: the loop over a batch holds no GIL.

The strict, explaining reader is :mod:`respipe.jpeg.header`. This one answers a narrower question, whether a crop can
be cut out of the compressed bytes, and where everything for that lies. It never reads outside the bytes it is given.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from respipe.jpeg.compilation import compiled
from respipe.jpeg.huffman import AC_CHROMA, AC_LUMA, DC_CHROMA, DC_LUMA
from respipe.jpeg.index import MARKER, OFFSET_BYTES, SIGNATURE
from respipe.jpeg.markers import DHT, DQT, DRI, EOI, RST0, RST7, SOF0, SOF1, SOI, SOS, TEM

_SIGNATURE = np.frombuffer(SIGNATURE, np.uint8)

# By class and identifier as DHT segments have them: luma's means, chroma's, luma's other coefficients, chroma's.
_STANDARD = [np.concatenate([*table]) for table in (DC_LUMA, DC_CHROMA, AC_LUMA, AC_CHROMA)]
_STANDARD_BYTES = np.concatenate(_STANDARD)
_STANDARD_STARTS = np.cumsum([0, *map(len, _STANDARD)])


class Layout(NamedTuple):
    """Geometry and places of a JPEG's parts; all zero where it is no JPEG with one Huffman-coded scan of 8 bits.

    Args:
        height, width: in pixels.
        components: 1 or 3.
        mcu_height, mcu_width: pixels that an MCU covers.
        rows, columns: MCUs of the image.
        interval: MCUs between restart markers, 0 for none.
        num_intervals: restart intervals of the image, 0 where it has no restart markers.
        frame: place of the frame header's contents, which begin with precision, height and width.
        scan: place of the first entropy-coded byte.
        offsets: place of the first offset of respipe's index, 0 where there is none or it does not fit the image.
    """

    height: int
    width: int
    components: int
    mcu_height: int
    mcu_width: int
    rows: int
    columns: int
    interval: int
    num_intervals: int
    frame: int
    scan: int
    offsets: int


@compiled
def byte(data: NDArray[np.uint8], at: int) -> int:
    """One byte as a signed integer: Numba makes unsigned ones of sums with uint8, and floats of their quotients."""
    return int(np.int64(data[at]))


@compiled
def next_segment(data: NDArray[np.uint8], position: int) -> tuple[int, int, int]:
    """The next segment of a JPEG's header at or after ``position``.

    Returns:
        its marker, the start and the end of its contents; marker 0 where the bytes make no sense.
    """
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = byte(data, position + 1)
        if marker == 0xFF:
            position += 1
        elif marker == TEM or RST0 <= marker <= RST7:
            position += 2
        elif marker in (0, SOI, EOI):
            break
        else:
            start = position + 4
            end = position + 2 + (byte(data, position + 2) << 8 | byte(data, position + 3))
            if start <= end <= len(data):
                return marker, start, end
            break
    return 0, 0, 0


@compiled
def read_layout(data: NDArray[np.uint8]) -> Layout:
    """Walk through a JPEG's header.

    Args:
        data: (n,) uint8, an encoded image.
    """
    nothing = Layout(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    if len(data) < 4 or data[0] != 0xFF or data[1] != SOI:
        return nothing
    end, frame, frame_end, interval, offsets, offsets_end = 2, 0, 0, 0, 0, 0
    while True:
        marker, start, end = next_segment(data, end)
        if marker in (SOF0, SOF1) and frame == 0:
            frame, frame_end = start, end
        elif marker == DRI and end - start >= 2:
            interval = byte(data, start) << 8 | byte(data, start + 1)
        elif marker == MARKER and _is_index(data, start, end):
            offsets, offsets_end = start + len(_SIGNATURE), end
        elif marker == SOS or marker == 0 or _is_other_frame(marker):
            break
    if marker != SOS or end == start:
        return nothing
    # A scan with fewer components than the frame is not the only one.
    components = _components(data, frame, frame_end)
    if components == 0 or data[start] != components:
        return nothing
    height, width = (
        byte(data, frame + 1) << 8 | byte(data, frame + 2),
        byte(data, frame + 3) << 8 | byte(data, frame + 4),
    )
    mcu_height, mcu_width = _mcu(data, frame, components)
    rows, columns = (height + mcu_height - 1) // mcu_height, (width + mcu_width - 1) // mcu_width
    count = (rows * columns + interval - 1) // interval if interval > 0 else 0
    if count == 0 or offsets_end - offsets != OFFSET_BYTES * (count + 1):
        offsets = 0
    return Layout(height, width, components, mcu_height, mcu_width, rows, columns, interval, count, frame, end, offsets)


@compiled
def _is_other_frame(marker: int) -> bool:
    """Whether a marker begins a frame that is progressive, lossless, arithmetic, hierarchical, or a second one."""
    return 0xC0 <= marker <= 0xCF and marker != DHT


@compiled
def _is_index(data: NDArray[np.uint8], start: int, end: int) -> bool:
    if end - start <= len(_SIGNATURE):
        return False
    for i in range(len(_SIGNATURE)):  # noqa: SIM110 - Numba compiles no generator expressions
        if data[start + i] != _SIGNATURE[i]:
            return False
    return True


@compiled
def _components(data: NDArray[np.uint8], frame: int, frame_end: int) -> int:
    """Components of a frame of 8 bits with a size; 0 for any other."""
    if frame == 0 or frame_end - frame < 6 or data[frame] != 8:
        return 0
    components = byte(data, frame + 5)
    if components not in (1, 3) or frame_end - frame < 6 + 3 * components:
        return 0
    empty = (data[frame + 1] == 0 and data[frame + 2] == 0) or (data[frame + 3] == 0 and data[frame + 4] == 0)
    return 0 if empty else components


@compiled
def _mcu(data: NDArray[np.uint8], frame: int, components: int) -> tuple[int, int]:
    """Height and width in pixels of an MCU."""
    wide, high = 1, 1
    if components == 3:  # a scan of one component has MCUs of one block, whatever its sampling factors are
        for number in range(components):
            sampling = byte(data, frame + 7 + 3 * number)
            wide, high = max(wide, sampling >> 4), max(high, sampling & 15)
    return 8 * high, 8 * wide


@compiled
def closing_marker(layout: Layout, number: int) -> int:
    """The marker that ends a restart interval."""
    return EOI if number == layout.num_intervals - 1 else RST0 + (number & 7)


@compiled
def interval_bounds(data: NDArray[np.uint8], layout: Layout, number: int) -> tuple[int, int]:
    """Start and end of one restart interval's entropy-coded bytes in ``data``, by the index.

    Returns:
        ``(-1, -1)`` where the index points elsewhere than between the markers of this interval.
    """
    at = layout.offsets + OFFSET_BYTES * number
    start = layout.scan + (byte(data, at) | byte(data, at + 1) << 8 | byte(data, at + 2) << 16)
    stop = layout.scan + (byte(data, at + 3) | byte(data, at + 4) << 8 | byte(data, at + 5) << 16) - 2
    if start > stop or stop + 2 > len(data):
        return -1, -1
    if data[stop] != 0xFF or data[stop + 1] != closing_marker(layout, number):
        return -1, -1
    if number == 0:
        return (start, stop) if start == layout.scan else (-1, -1)
    if data[start - 2] != 0xFF or data[start - 1] != closing_marker(layout, number - 1):
        return -1, -1
    return start, stop


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
    first, length = _STANDARD_STARTS[table], _STANDARD_STARTS[table + 1] - _STANDARD_STARTS[table]
    if length > end - start:
        return False
    found, standard = data[start : start + length], _STANDARD_BYTES[first : first + length]
    differing = np.uint8(0)
    for i in range(length):  # to its end and from zero, so that it becomes vector instructions
        differing |= found[i] ^ standard[i]
    return differing == 0
