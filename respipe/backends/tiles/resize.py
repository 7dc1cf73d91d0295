"""Antialiased resizing of decoded planes straight to the output, where colour is converted.

The result is what resizing the upsampled colour image would give: chroma is never upsampled, but its filter has the
weights that upsampling followed by the luma filter would have.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from respipe.backends.compiled.filters import Filter, reach
from respipe.backends.tiles.simd import BAND, BLOCK, PIXELS, convert, weigh_columns, weigh_row, weigh_two_rows
from respipe.backends.tiles.taps import Taps
from respipe.jpeg.compilation import compiled, compiled_with_fast_math


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


@compiled_with_fast_math
def resize_plane(
    samples: NDArray[np.uint8],
    width: int,
    top: int,
    left: int,
    vertical: Filter,
    horizontal: Filter,
    black: int,
    out: NDArray[np.float32],
) -> None:
    """Resize a plane with filters whose weights may be negative, which the integers above cannot have.

    Args:
        samples, width, top, left: as for :func:`resize_rows`.
        vertical, horizontal: filters on the rows and on the columns.
        black: what samples outside the image are.
        out: (S, S) float32, filled with the samples less ``black``.
    """
    size = len(out)
    start, stop = reach(vertical)
    rows = np.empty((stop - start, size), np.float32)
    line = np.empty(width, np.float32)
    for y in range(start, stop):
        at = (y - top) // BAND * BAND * width + (y - top) % BAND
        for x in range(width):
            line[x] = np.float32(np.int32(samples[at + BAND * x]) - black)
        for x in range(size):
            first, total = horizontal.first[x] - left, np.float32(0.0)
            for k in range(horizontal.weights.shape[1]):
                total += horizontal.weights[x, k] * line[first + k]
            rows[y - start, x] = total
    for y in range(size):
        first = vertical.first[y] - start
        out[y] = np.float32(0.0)
        for k in range(vertical.weights.shape[1]):
            for x in range(size):
                out[y, x] += vertical.weights[y, k] * rows[first + k, x]


@compiled_with_fast_math
def to_colour(planes: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
    """Convert to RGB (ITU-T T.871), rounded and clipped.

    Args:
        planes: (3, S, S) float32, Y, and Cb and Cr less 128.
        out: (S, S, 3) uint8, filled.
    """
    for y in range(len(out)):
        for x in range(len(out)):
            luma, blueness, redness = planes[0, y, x], planes[1, y, x], planes[2, y, x]
            out[y, x, 0] = _rounded(luma + np.float32(1.402) * redness)
            out[y, x, 1] = _rounded(luma - np.float32(0.344136) * blueness - np.float32(0.714136) * redness)
            out[y, x, 2] = _rounded(luma + np.float32(1.772) * blueness)


@compiled
def _rounded(value: np.float32) -> np.uint8:
    return np.uint8(np.int32(min(max(value, np.float32(0.0)), np.float32(255.0)) + np.float32(0.5)))
