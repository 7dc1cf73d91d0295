"""The weights of an antialiased resize along one axis, compiled with Numba: Pillow's bilinear filter."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray


class Filter(NamedTuple):
    """What each pixel of output takes of the samples along one axis.

    All windows have the same length and lie inside the image, so that a loop over them needs no condition. Along the
    output they move one way only.

    Args:
        first: (S,) int64, where the window of each output pixel begins.
        weights: (S, K) float32. They sum to one, or to less where samples outside the image are black.
    """

    first: NDArray[np.int64]
    weights: NDArray[np.float32]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def reach(taps: Filter) -> tuple[int, int]:
    """The first sample of all windows, and the one behind the last."""
    one, other = taps.first[0], taps.first[-1]
    return min(one, other), max(one, other) + taps.weights.shape[1]


@numba.njit(nogil=True, cache=True, error_model="numpy")
def triangle_filter(
    start: float, extent: float, hull_start: int, hull_stop: int, image_length: int, size: int, flip: bool
) -> Filter:
    """A triangle filter, stretched by the reduction so that shrinking does not alias.

    Weights are normalised over the hull. Pixels of the hull that lie outside the image are black, so their taps are
    dropped afterwards.

    Args:
        start, extent: the box along this axis, in pixels.
        hull_start, hull_stop: its integer hull.
        image_length: pixels of the image along this axis.
        size: S.
        flip: mirror the output.
    """
    low, high = max(hull_start, 0), min(hull_stop, image_length)
    first = np.empty(size, np.int64)
    if low >= high:
        first[:] = min(low, image_length - 1)
        return Filter(first, np.zeros((size, 1), np.float32))
    scale = extent / size
    support = max(scale, 1.0)
    slope = 1.0 / support
    num_taps = min(int(np.ceil(2.0 * support)), high - low)
    weights = np.empty((size, num_taps), np.float32)
    for i in range(size):
        x = size - 1 - i if flip else i
        center = start + (i + 0.5) * scale
        begin = max(int(np.floor(center - support + 0.5)), hull_start)
        end = min(int(np.floor(center + support + 0.5)), hull_stop)
        origin = min(max(begin, low), high - num_taps)
        total = 0.0
        for k in range(num_taps):
            weight = max(1.0 - abs(origin + k + 0.5 - center) * slope, 0.0)
            weights[x, k] = weight
            total += weight
        for pixel in range(begin, low):
            total += max(1.0 - abs(pixel + 0.5 - center) * slope, 0.0)
        for pixel in range(high, end):
            total += max(1.0 - abs(pixel + 0.5 - center) * slope, 0.0)
        factor = 1.0 / total
        for k in range(num_taps):
            weights[x, k] *= factor
        first[x] = origin
    return Filter(first, weights)
