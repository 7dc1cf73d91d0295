"""Antialiased resizing of decoded planes straight to the output, where colour is converted.

The result is what resizing the upsampled colour image would give: chroma is never upsampled, but its filter has the
weights that upsampling followed by the luma filter would have.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from respipe.backends.compiled.filters import Filter, reach
from respipe.backends.tiles.decode import Region, lay_out_planes
from respipe.backends.tiles.simd import BAND, BLOCK, PIXELS, convert, weigh_columns, weigh_row, weigh_two_rows
from respipe.backends.tiles.taps import Taps
from respipe.jpeg.compilation import compiled
from respipe.jpeg.compiled_header import Layout


class Rows(NamedTuple):
    """Planes resized along their rows, and the filter along their columns.

    Args:
        values: (n, S rounded up to a multiple of PIXELS, times the number of planes) uint16, in parts of 256 of a grey
            level: PIXELS of each plane in turn.
        top: the row of the image that is the first.
        taps: the filter.
    """

    values: NDArray[np.uint16]
    top: int
    taps: Taps


@compiled
def resize_rows(
    samples: NDArray[np.uint8],
    width: int,
    top: int,
    left: int,
    vertical: Filter,
    horizontal: Taps,
    plane: int,
    num_planes: int,
    rows: NDArray[np.uint16],
) -> None:
    """Resize a plane horizontally.

    Args:
        samples: (bands x width x BAND,) uint8, see :mod:`respipe.backends.tiles.dct`.
        width: columns of the plane.
        top, left: where the plane begins in the image.
        vertical: filter on the rows, which tells which of them are needed.
        horizontal: filter on the columns.
        plane, num_planes: which of how many planes of ``rows`` it is.
        rows: (BAND x bands, n) uint16, filled where needed, see :class:`Rows`.
    """
    stride, out = rows.shape[1], rows.reshape(-1)
    weights, num_taps = horizontal.weights.reshape(-1), horizontal.weights.shape[1]
    start, stop = reach(vertical)
    for band in range((start - top) // BAND, (stop - 1 - top) // BAND + 1):
        begin, to = BAND * (width * band - left), BAND * stride * band
        for x in range(0, len(horizontal.first), BLOCK):
            at = to + x + x // PIXELS * PIXELS * (num_planes - 1) + PIXELS * plane
            weigh_columns(samples, begin, horizontal.first, weights, horizontal.constants, x, num_taps, out, at, stride)


@compiled
def resize_columns(luma: Rows, chroma: Rows, is_gray: bool, out: NDArray[np.uint8]) -> None:
    """Resize planes vertically and convert them to colour, a vector of pixels at a time.

    Args:
        luma, chroma: Y; Cb and Cr.
        is_gray: whether there is luma alone; chroma is ignored.
        out: (S, S, 3) uint8, filled.
    """
    size, pixels = len(out), out.reshape(-1)
    rows, stride = luma.values.reshape(-1), luma.values.shape[1]
    weights, num_taps = luma.taps.weights.reshape(-1), luma.taps.weights.shape[1]
    chroma_rows, chroma_stride = chroma.values.reshape(-1), chroma.values.shape[1]
    chroma_weights, num_chroma = chroma.taps.weights.reshape(-1), chroma.taps.weights.shape[1]
    sums = np.full(3 * PIXELS, 128 << 8, np.uint16)
    rest = np.empty(3 * PIXELS, np.uint8)
    for y in range(size):
        start, constant = stride * (luma.taps.first[y] - luma.top), luma.taps.constants[y]
        chroma_start = chroma_stride * (chroma.taps.first[y] - chroma.top)
        chroma_constant = chroma.taps.constants[y]
        for x in range(0, size, PIXELS):
            weigh_row(rows, start + x, stride, weights, y * num_taps, num_taps, constant, sums, 0)
            if not is_gray:
                at, tap = chroma_start + 2 * x, y * num_chroma
                weigh_two_rows(
                    chroma_rows, at, chroma_stride, chroma_weights, tap, num_chroma, chroma_constant, sums, PIXELS
                )
            to = 3 * (size * y + x)
            # What is converted beyond the end of a row is overwritten by the next one.
            if to + len(rest) <= len(pixels):
                convert(sums, pixels, to)
            else:
                convert(sums, rest, 0)
                pixels[to : 3 * size * (y + 1)] = rest[: 3 * (size - x)]


@compiled
def decoded_pixels(
    samples: NDArray[np.uint8], layout: Layout, region: Region, part: tuple[int, int, int, int]
) -> NDArray[np.uint8]:
    """Upsample chroma and convert colours of a part of an image, with every rounding and clipping of libjpeg.

    Args:
        samples: decoded planes, see :func:`respipe.backends.tiles.decode.lay_out_planes`.
        layout, region: of the image, and what was decoded of it.
        part: top, left, bottom and right of what is wanted, within the image.

    Returns:
        (bottom - top, right - left, 3) uint8.
    """
    top, left, bottom, right = part
    planes = lay_out_planes(layout, region)
    first_row, first_column = region.top * layout.mcu_height, region.left * layout.mcu_width
    out = np.empty((bottom - top, right - left, 3), np.uint8)
    chroma = np.zeros((2, right - left), np.int32)
    for y in range(top, bottom):
        if layout.components == 3:
            for plane, start in ((0, planes.blue), (1, planes.red)):
                _upsample(samples[start:], planes.chroma_columns, layout, region, y, left, chroma[plane])
        line = _line(y - first_row, planes.luma_columns)
        for x in range(right - left):
            luma = np.int32(samples[line + BAND * (left - first_column + x)])
            blueness, redness = chroma[0, x], chroma[1, x]
            # ITU-T T.871 in parts of 65536.
            out[y - top, x, 0] = _clipped(luma + (91881 * redness + 32768 >> 16))
            out[y - top, x, 1] = _clipped(luma + (32768 - 22554 * blueness - 46802 * redness >> 16))
            out[y - top, x, 2] = _clipped(luma + (116130 * blueness + 32768 >> 16))
    return out


@compiled
def _upsample(
    samples: NDArray[np.uint8], width: int, layout: Layout, region: Region, y: int, left: int, out: NDArray[np.int32]
) -> None:
    """A line of chroma at the resolution of luma, less 128: see :func:`respipe.backends.tiles.taps.chroma_filter`."""
    high, wide = layout.mcu_height >> 3, layout.mcu_width >> 3
    num_rows, num_columns = (layout.height + high - 1) // high, (layout.width + wide - 1) // wide
    repeats = wide == 2 and layout.width <= 4
    below, beside = high == 2 and not repeats, wide == 2 and not repeats
    near = y // high
    other = min(max(near - 1 + 2 * (y & 1), 0), num_rows - 1) if below else near
    near, other = _line(near - 8 * region.top, width), _line(other - 8 * region.top, width)
    first = max(left // wide - 1, 0)
    stop = min((left + len(out) - 1) // wide + 2, num_columns)
    sums = np.empty(stop - first, np.int32)
    for column in range(first, stop):
        at = BAND * (column - 8 * region.left)
        value = np.int32(samples[near + at])
        sums[column - first] = 3 * value + samples[other + at] if below else value
    for x in range(left, left + len(out)):
        total, shift, half = sums[x // wide - first], 0, 0
        if beside:
            neighbour = min(max(x // wide - 1 + 2 * (x & 1), 0), num_columns - 1)
            total, shift, half = 3 * total + sums[neighbour - first], 2, 1 + (x & 1)
        if below:
            shift, half = (4, 8 - (x & 1)) if beside else (2, 1 + (y & 1))
        out[x - left] = (total + half >> shift) - 128


@compiled
def _line(row: int, width: int) -> int:
    """Where a row of a plane begins, whose samples are BAND apart."""
    return row // BAND * BAND * width + row % BAND


@compiled
def _clipped(value: int) -> np.uint8:
    return np.uint8(min(max(value, 0), 255))
