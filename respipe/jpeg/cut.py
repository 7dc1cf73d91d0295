"""Cutting a crop out of a JPEG's compressed bytes: a smaller JPEG, with nothing decoded.

Restart markers divide a scan into intervals that carry nothing over from one to the next. Where every interval covers
a part of one row of MCUs, or whole rows, the intervals are tiles of the picture, and those that a crop touches make a
JPEG of their own::

    +----+----+----+----+
    |  0 |  1 |  2 |  3 |
    +----+---.+..--+----+         +----+----+
    |  4 |  5:|6 : |  7 |   ->    |  5 |  6 |    header with the new height and width,
    +----+---:+--:-+----+         +----+----+    restart markers renumbered from 0
    |  8 |  9:|10: | 11 |         |  9 | 10 |
    +----+---'+--'-+----+         +----+----+

Its pixels inside the crop are those of the whole picture, bit for bit: the crop is widened first by what upsampling of
subsampled colour looks at. All of this is compiled, holds no GIL and never reads or writes outside its arrays.
"""

from __future__ import annotations

from operator import index
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from respipe.jpeg.compilation import compiled
from respipe.jpeg.compiled_header import Layout, closing_marker, interval_bounds, next_segment, read_layout
from respipe.jpeg.header import JpegError, read_header
from respipe.jpeg.markers import APP0, APP14, APP15, COM, EOI, RST0, SOF0, SOF1, SOI, SOS

CUT, WHOLE, DAMAGED = 0, 1, 2

_SIDES = ("top", "left", "height", "width")


class Cut(NamedTuple):
    """What became of a JPEG.

    Args:
        status: ``CUT``; ``WHOLE`` where the JPEG is to be used as it is, since the crop needs all of it or it cannot be
            cut; ``DAMAGED`` where it is not of the size expected, or its restart markers are not where they have to be.
        length: bytes written, with ``CUT``.
        top, left, height, width: with ``CUT``, the part of the picture that the written JPEG shows, in pixels.
    """

    status: int
    length: int
    top: int
    left: int
    height: int
    width: int


class _Tiles(NamedTuple):
    """How restart intervals lie in the picture: as ``rows`` x ``columns`` tiles of ``height`` x ``width`` pixels.

    Those at the right and at the bottom may reach over the edge.
    """

    rows: int
    columns: int
    height: int
    width: int


def cut(data: bytes, box: tuple[int, int, int, int]) -> tuple[bytes, tuple[int, int, int, int]]:
    """Cut the part of a JPEG that a crop needs.

    Decoded with libjpeg's default upsampling, the pixels of the crop equal those of the whole image.

    Args:
        data: a JPEG. Its restart intervals are found by its index (:mod:`respipe.jpeg.index`), or else by
            searching for the markers.
        box: ``top, left, height, width`` of the crop in pixels of the picture as stored: before any rotation that its
            metadata ask for, which are left out of the result. It may reach over the edge.

    Returns:
        a JPEG, and ``top, left, height, width`` of the part of the picture that it shows. Both are those of the whole
        picture where it has no restart markers, or none in the same columns of every row.

    Raises:
        ValueError: the box has not four sides.
        JpegError: it is no JPEG, or its restart markers are damaged.
    """
    if len(box) != len(_SIDES):
        raise ValueError(f"`box` must be {len(_SIDES)} whole numbers, {', '.join(_SIDES)}; got {box!r}.")
    header = read_header(data)
    source = np.frombuffer(data, np.uint8)
    out = np.empty(len(source), np.uint8)
    found = cut_crop(source, header.height, header.width, np.array([index(side) for side in box]), out)
    if found.status == DAMAGED:
        raise JpegError("its restart markers are not where they have to be")
    if found.status == WHOLE:
        return data, (0, 0, header.height, header.width)
    return out[: found.length].tobytes(), (found.top, found.left, found.height, found.width)


@compiled
def cut_crop(data: NDArray[np.uint8], height: int, width: int, box: NDArray[np.int64], out: NDArray[np.uint8]) -> Cut:
    """Write the part of a JPEG that a crop needs.

    Args:
        data: (n,) uint8, the encoded image; of any format, but only a JPEG is ever cut.
        height, width: its size in pixels.
        box: (4,) ``top, left, height, width`` of the crop in pixels. It may reach over the edge.
        out: (n,) uint8 or longer, filled from its beginning.
    """
    assert len(out) >= len(data), "a cut is never longer than its source"
    layout = read_layout(data)
    if layout.height > 0 and (layout.height, layout.width) != (height, width):
        return Cut(DAMAGED, 0, 0, 0, 0, 0)
    tiles = _tiles(layout)
    if tiles.rows == 0:
        return Cut(WHOLE, 0, 0, 0, 0, 0)
    # Colour is upsampled between centres of its samples, so a pixel looks half a sample far. A sample is as large as
    # 1/8 of the MCU, where it is subsampled at all.
    top, bottom = _covered(box[0], box[2], layout.mcu_height // 16, tiles.height, tiles.rows)
    left, right = _covered(box[1], box[3], layout.mcu_width // 16, tiles.width, tiles.columns)
    # Where colour is at most two samples wide, libjpeg repeats samples instead.
    if right == tiles.columns and left > 0 and layout.width - left * tiles.width <= layout.mcu_width // 4:
        left -= 1
    if (bottom - top, right - left) == (tiles.rows, tiles.columns):
        return Cut(WHOLE, 0, 0, 0, 0, 0)
    height = min(bottom * tiles.height, layout.height) - top * tiles.height
    width = min(right * tiles.width, layout.width) - left * tiles.width
    at = _copy_header(data, height, width, out)
    length = _copy_tiles(data, layout, tiles.columns, (top, bottom, left, right), out, at)
    return Cut(CUT if length > 0 else DAMAGED, length, top * tiles.height, left * tiles.width, height, width)


@compiled
def _tiles(layout: Layout) -> _Tiles:
    """The tiles that restart intervals make; none where they make no grid."""
    interval, columns = layout.interval, layout.columns
    if interval == 0 or (columns % interval != 0 and interval % columns != 0):
        return _Tiles(0, 0, 0, 0)
    across, down = min(interval, columns), max(interval // columns, 1)
    return _Tiles(
        (layout.rows + down - 1) // down, columns // across, down * layout.mcu_height, across * layout.mcu_width
    )


@compiled
def _covered(start: int, length: int, margin: int, tile: int, count: int) -> tuple[int, int]:
    """The first tile along one axis that a stretch of pixels touches, and the one after the last; at least one."""
    first = min(max(start - margin, 0) // tile, count - 1)
    stop = (start + length + margin + tile - 1) // tile
    return first, min(max(stop, first + 1), count)


@compiled
def _copy_header(data: NDArray[np.uint8], height: int, width: int, out: NDArray[np.uint8]) -> int:
    """Copy what decoding needs of the segments up to the first scan, with another size; returns the bytes written."""
    out[0], out[1] = 0xFF, SOI
    at, end, frame, marker = 2, 2, 0, 0
    while marker != SOS:
        marker, start, end = next_segment(data, end)
        # JFIF and Adobe tell what the components are.
        if marker == COM or (APP0 < marker <= APP15 and marker != APP14):
            continue
        if marker in (SOF0, SOF1):
            frame = at + 4
        out[at], out[at + 1] = 0xFF, marker
        at = _copy(data, start - 2, end, out, at + 2)
    out[frame + 1], out[frame + 2] = height >> 8, height & 0xFF
    out[frame + 3], out[frame + 4] = width >> 8, width & 0xFF
    return at


@compiled
def _copy_tiles(
    data: NDArray[np.uint8],
    layout: Layout,
    columns: int,
    window: tuple[int, int, int, int],
    out: NDArray[np.uint8],
    at: int,
) -> int:
    """Copy the intervals of a window of tiles, ``top, bottom, left, right``, to ``at``; returns where they end.

    That is 0 where an interval is not where it has to be.
    """
    top, bottom, left, right = window
    number, start, after, copied = -1, layout.scan, layout.scan, 0
    for row in range(top, bottom):
        end_of_row_above = after
        for column in range(left, right):
            wanted = row * columns + column
            if layout.offsets > 0:
                start, stop = interval_bounds(data, layout, wanted)
                after = stop + 2
            else:
                while number < wanted and start >= 0:
                    number += 1
                    start, after = _next_interval(data, after, closing_marker(layout, number))
            # Rows that overlap might not fit into the output together.
            if start < end_of_row_above:
                return 0
            at = _copy(data, start, after, out, at)
            out[at - 1] = RST0 + (copied & 7)
            copied += 1
    out[at - 1] = EOI
    return at


@compiled
def _next_interval(data: NDArray[np.uint8], start: int, closing: int) -> tuple[int, int]:
    """The interval that begins at ``start``, and the end of the marker that closes it; -1 where another one does."""
    at = start
    while at + 1 < len(data):
        if data[at] == 0xFF and data[at + 1] not in (0, 0xFF):
            return (start, at + 2) if data[at + 1] == closing else (-1, at)
        at += 1
    return -1, at


@compiled
def _copy(data: NDArray[np.uint8], start: int, stop: int, out: NDArray[np.uint8], at: int) -> int:
    """``out[at:] = data[start:stop]``, which Numba would check for overlap; returns where it ends."""
    for i in range(stop - start):
        out[at + i] = data[start + i]
    return at + stop - start
