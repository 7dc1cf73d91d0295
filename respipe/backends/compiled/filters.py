"""The weights of an antialiased resize along one axis, compiled with Numba: Pillow's bilinear and bicubic filters."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from respipe.jpeg.compilation import compiled


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


@compiled
def reach(taps: Filter) -> tuple[int, int]:
    """The first sample of all windows, and the one behind the last."""
    one, other = taps.first[0], taps.first[-1]
    return min(one, other), max(one, other) + taps.weights.shape[1]


@compiled
def _weight(distance: np.float32, cubic: bool) -> np.float32:
    """A triangle, or Keys' cubic with a = -1/2."""
    one, nothing = np.float32(1.0), np.float32(0.0)
    if not cubic:
        return max(one - distance, nothing)
    if distance < one:
        return (np.float32(1.5) * distance - np.float32(2.5)) * distance * distance + one
    rest = np.float32(2.0) - distance
    return np.float32(0.5) * rest * rest * (one - distance) if rest > nothing else nothing


@compiled
def resize_filter(
    start: float,
    extent: float,
    hull_start: int,
    hull_stop: int,
    image_length: int,
    size: int,
    flip: bool,
    cubic: bool = False,
) -> Filter:
    """A triangle or a cubic filter, stretched by the reduction so that shrinking does not alias.

    Weights are normalised over the hull. Pixels of the hull that lie outside the image are black, so their taps are
    dropped afterwards.

    Args:
        start, extent: the box along this axis, in pixels.
        hull_start, hull_stop: its integer hull.
        image_length: pixels of the image along this axis.
        size: S.
        flip: mirror the output.
        cubic: the cubic filter, whose weights may be negative, instead of the triangle.
    """
    low, high = max(hull_start, 0), min(hull_stop, image_length)
    first = np.empty(size, np.int64)
    if low >= high:
        first[:] = min(low, image_length - 1)
        return Filter(first, np.zeros((size, 1), np.float32))
    scale = extent / size
    slope = np.float32(1.0 / max(scale, 1.0))
    support = max(scale, 1.0) * (2.0 if cubic else 1.0)
    num_taps = min(int(np.ceil(2.0 * support)), high - low)
    offsets = np.empty(size, np.float32)
    for i in range(size):
        center = start + ((size - 1 - i if flip else i) + 0.5) * scale
        first[i] = min(max(int(np.floor(center - support + 0.5)), low), high - num_taps)
        offsets[i] = center - 0.5 - first[i]
    weights = np.empty((size, num_taps), np.float32)
    one, nothing = np.float32(1.0), np.float32(0.0)
    for i in range(size):
        total = nothing
        for k in range(num_taps):
            weight = _weight(abs(np.float32(k) - offsets[i]) * slope, cubic)
            weights[i, k] = weight
            total += weight
        if hull_start < low or hull_stop > high:
            before, behind = int(np.floor(offsets[i] - support)), int(np.ceil(offsets[i] + support))
            for k in range(max(hull_start - first[i], before), low - first[i]):
                total += _weight(abs(np.float32(k) - offsets[i]) * slope, cubic)
            for k in range(high - first[i], min(hull_stop - first[i], behind + 1)):
                total += _weight(abs(np.float32(k) - offsets[i]) * slope, cubic)
        factor = one / total
        for k in range(num_taps):
            weights[i, k] *= factor
    return Filter(first, weights)
