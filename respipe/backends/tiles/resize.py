"""Antialiased resizing of decoded planes straight to the output, where colour is converted.

The result is what resizing the upsampled colour image would give: chroma is never upsampled, but its filter has the
weights that upsampling followed by the luma filter would have.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from respipe.backends.resample import filter_taps, max_taps
from respipe.backends.tiles.machine import PIXELS, convert, transpose, weigh_eight, weigh_pixels


class Taps(NamedTuple):
    """A filter along one axis.

    Args:
        first, length: (S,) int64, the first sample and the number of samples that each output pixel draws on.
        weights: (S, K) float32, their weights.
    """

    first: NDArray[np.int64]
    length: NDArray[np.int64]
    weights: NDArray[np.float32]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def luma_taps(start: float, extent: float, hull_start: int, hull_stop: int, image_length: int, size: int) -> Taps:
    """The filter of :func:`respipe.backends.resample.filter_taps` for one side of a box."""
    first, length = np.empty(size, np.int64), np.empty(size, np.int64)
    weights = np.empty((size, max_taps(extent, size)), np.float32)
    filter_taps(start, extent, hull_start, hull_stop, image_length, first, length, weights)
    return Taps(first, length, weights)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def chroma_taps(luma: Taps, ratio: int, num_samples: int) -> Taps:
    """The filter on a chroma plane that equals a filter on the upsampled plane.

    As libjpeg does, chroma of half the resolution is upsampled with a triangle filter (3/4 of the nearer sample and 1/4
    of the other, at the edge the nearer one alone), any other by repeating samples.

    Args:
        luma: filter on the upsampled plane.
        ratio: upsampled samples for each chroma sample.
        num_samples: chroma samples of the image along this axis.
    """
    if ratio == 1:
        return luma
    size, reach = luma.weights.shape
    first, length = np.empty(size, np.int64), np.empty(size, np.int64)
    weights = np.zeros((size, reach // 2 + 3), np.float32)
    for i in range(size):
        origin = max(luma.first[i] // ratio - 1, 0)
        last = origin
        for k in range(luma.length[i]):
            at = luma.first[i] + k
            near = at // ratio
            weight = luma.weights[i, k]
            if ratio == 2:
                other = min(max(near - 1 + 2 * (at & 1), 0), num_samples - 1)
                weights[i, other - origin] += np.float32(0.25) * weight
                weight *= np.float32(0.75)
                last = max(last, other)
            weights[i, near - origin] += weight
            last = max(last, near)
        first[i] = origin
        length[i] = last + 1 - origin if luma.length[i] > 0 else 0
    return Taps(first, length, weights)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _reach(taps: Taps) -> tuple[int, int]:
    """The first sample that any output pixel draws on, and the one after the last."""
    start, stop = np.iinfo(np.int64).max, 0
    for i in range(len(taps.first)):
        if taps.length[i] > 0:
            start, stop = min(start, taps.first[i]), max(stop, taps.first[i] + taps.length[i])
    return min(start, stop), stop


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=True)
def resize_rows(
    plane: NDArray[np.uint8],
    middle: float,
    width: int,
    top: int,
    left: int,
    vertical: Taps,
    horizontal: Taps,
    flip: bool,
    scratch: NDArray[np.float32],
    rows: NDArray[np.float32],
) -> None:
    """Resize a plane horizontally.

    Args:
        plane: (bands x width x 8,) uint8, see :mod:`respipe.backends.tiles.dct`.
        middle: what black is in this plane, subtracted from every sample.
        width: samples of a band.
        top, left: where the plane begins in the image, both multiples of 8.
        vertical: filter on the rows, which tells which of them are needed.
        horizontal: filter on the columns.
        flip: mirror left to right.
        scratch: (8 width + 64,) float32 or more.
        rows: (8 x bands, S rounded up to a multiple of PIXELS) float32, filled where needed.
    """
    size, num_taps = horizontal.weights.shape
    stride = rows.shape[1]
    weights, out = horizontal.weights.reshape(-1), rows.reshape(-1)
    start, stop = _reach(vertical)
    for band in range((start - top) >> 3, (stop - top + 7) >> 3):
        samples = plane[8 * width * band : 8 * width * (band + 1)]
        columns = scratch[64 : 64 + len(samples)]
        for i in range(len(samples)):
            columns[i] = np.float32(samples[i]) - np.float32(middle)
        for block in range(0, stride, 8):
            for j in range(8):
                place = min(block + j, size - 1)
                x = size - 1 - place if flip else place
                first, length = horizontal.first[x] - left, horizontal.length[x]
                weigh_eight(columns, 8 * first, 8, weights, x * num_taps, length, scratch, 8 * j)
            transpose(scratch, out, 8 * band * stride + block, stride)


class Plane(NamedTuple):
    """A plane resized along its rows, and the filter along its columns.

    Args:
        rows: (n, S rounded up to a multiple of PIXELS) float32.
        top: the row of the image that is the first.
        taps: the filter.
    """

    rows: NDArray[np.float32]
    top: int
    taps: Taps


@numba.njit(nogil=True, cache=True, error_model="numpy")
def resize_columns(luma: Plane, blueness: Plane, redness: Plane, is_gray: bool, out: NDArray[np.uint8]) -> None:
    """Resize planes vertically and convert them to colour, a vector of pixels at a time.

    Args:
        luma, blueness, redness: Y, Cb - 128, Cr - 128; the latter two of the same size.
        is_gray: whether there is luma alone; the others are ignored.
        out: (S, S, 3) uint8, filled.
    """
    size, stride = len(out), luma.rows.shape[1]
    pixels = out.reshape(-1)
    rows, weights, reach = luma.rows.reshape(-1), luma.taps.weights.reshape(-1), luma.taps.weights.shape[1]
    blue, red = blueness.rows.reshape(-1), redness.rows.reshape(-1)
    chroma_weights, chroma_reach = blueness.taps.weights.reshape(-1), blueness.taps.weights.shape[1]
    sums = np.zeros(3 * PIXELS, np.float32)
    rest = np.empty(3 * PIXELS, np.uint8)
    for y in range(size):
        start, count = stride * (luma.taps.first[y] - luma.top), luma.taps.length[y]
        chroma_start, chroma_count = stride * (blueness.taps.first[y] - blueness.top), blueness.taps.length[y]
        for x in range(0, size, PIXELS):
            weigh_pixels(rows, start + x, stride, weights, y * reach, count, sums, 0)
            if not is_gray:
                at, tap = chroma_start + x, y * chroma_reach
                weigh_pixels(blue, at, stride, chroma_weights, tap, chroma_count, sums, PIXELS)
                weigh_pixels(red, at, stride, chroma_weights, tap, chroma_count, sums, 2 * PIXELS)
            to = 3 * (size * y + x)
            if x + PIXELS <= size:
                convert(sums, pixels, to)
            else:
                convert(sums, rest, 0)
                for i in range(3 * (size - x)):
                    pixels[to + i] = rest[i]
