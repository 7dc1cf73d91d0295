"""Antialiased resizing of a crop, compiled with Numba: Pillow's bilinear filter, to within one grey level."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from respipe.backends.lanes import LANES, PIXELS, ROWS, weigh_pixels


@numba.njit(nogil=True, cache=True, error_model="numpy")
def max_taps(box_length: float, size: int) -> int:
    """How many source pixels one output pixel can draw on along an axis."""
    return int(2.0 * max(box_length / size, 1.0)) + 3


@numba.njit(nogil=True, cache=True, error_model="numpy")
def filter_taps(
    box_start: float,
    box_length: float,
    hull_start: int,
    hull_stop: int,
    image_length: int,
    first: NDArray[np.int64],
    count: NDArray[np.int64],
    weights: NDArray[np.float32],
) -> None:
    """Weights of a triangle filter along one axis, stretched by the reduction so that shrinking does not alias.

    Weights are normalised over the hull. Pixels of the hull that lie outside the image are black, so their taps are
    dropped afterwards.

    Args:
        box_start, box_length: the box along this axis, in pixels.
        hull_start, hull_stop: its integer hull.
        image_length: pixels of the image along this axis.
        first, count: (S,) filled with the first pixel and the number of pixels that each output pixel draws on.
        weights: (S, max_taps) filled with their weights.
    """
    size = len(first)
    scale = box_length / size
    support = max(scale, 1.0)
    for i in range(size):
        center = box_start + (i + 0.5) * scale
        start = max(int(np.floor(center - support + 0.5)), hull_start)
        stop = min(int(np.floor(center + support + 0.5)), hull_stop)
        total = 0.0
        for pixel in range(start, stop):
            total += max(0.0, 1.0 - abs(pixel + 0.5 - center) / support)
        inside = max(start, 0)
        first[i] = inside
        count[i] = max(min(stop, image_length) - inside, 0)
        for k in range(count[i]):
            weights[i, k] = max(0.0, 1.0 - abs(inside + k + 0.5 - center) / support) / total


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=True)
def resample(
    image: NDArray[np.uint8], box: NDArray[np.float64], hull: NDArray[np.int64], flip: bool, out: NDArray[np.uint8]
) -> None:
    """Resize the crop of one image.

    Args:
        image: (H, W, 3) uint8.
        box: (4,) ``top, left, height, width`` in pixels of the image.
        hull: (4,) its integer hull; what lies outside the image is black.
        flip: mirror left to right.
        out: (S, S, 3) uint8, filled.
    """
    height, width = image.shape[0], image.shape[1]
    size = out.shape[0]
    first_y, count_y = np.empty(size, np.int64), np.empty(size, np.int64)
    first_x, count_x = np.empty(size, np.int64), np.empty(size, np.int64)
    weights_y = np.empty((size, max_taps(box[2], size)), np.float32)
    weights_x = np.empty((size, max_taps(box[3], size)), np.float32)
    filter_taps(box[0], box[2], hull[0], hull[0] + hull[2], height, first_y, count_y, weights_y)
    filter_taps(box[1], box[3], hull[1], hull[1] + hull[3], width, first_x, count_x, weights_x)
    vectors = _vectors(count_x, weights_x)
    left = min(max(hull[1], 0), width)
    right = max(min(hull[1] + hull[3], width), left)
    source = image.reshape(height, 3 * width)[:, 3 * left : 3 * right]
    rows = np.zeros((ROWS, 3 * (right - left) + LANES), np.float32)
    sums = np.empty((ROWS, 3 * size + 1), np.float32)
    lines = out.reshape(size, 3 * size)
    for start in range(0, size, ROWS):
        stop = min(start + ROWS, size)
        # Vertical first: it runs along contiguous memory, and leaves only S rows for the horizontal pass.
        for y in range(start, stop):
            _weigh_rows(source, first_y[y], count_y[y], weights_y[y], rows[y - start])
        for target in range(size):
            x = size - 1 - target if flip else target
            weigh_pixels(
                rows, 3 * (first_x[x] - left), vectors, x, (count_x[x] + PIXELS - 1) // PIXELS, sums, 3 * target
            )
        for y in range(start, stop):
            _round(sums[y - start, : 3 * size], lines[y])


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _vectors(count: NDArray[np.int64], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights as ``weigh_pixels`` takes them: repeated for each channel, zero in the lanes between."""
    size, most = weights.shape
    vectors = np.zeros((size, (most + PIXELS - 1) // PIXELS * LANES), np.float32)
    for x in range(size):
        for k in range(count[x]):
            at = k // PIXELS * LANES + k % PIXELS * 3
            vectors[x, at] = vectors[x, at + 1] = vectors[x, at + 2] = weights[x, k]
    return vectors


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=True)
def _weigh_rows(
    source: NDArray[np.uint8], first: int, count: int, weights: NDArray[np.float32], out: NDArray[np.float32]
) -> None:
    """Write the weighted sum of ``count`` rows to the beginning of ``out``, two at a time to spare memory accesses."""
    row = out[: source.shape[1]]
    if count == 0:
        row[:] = np.float32(0.0)
    for k in range(0, count, 2):
        pair = min(k + 1, count - 1)
        line, next_line = source[first + k], source[first + pair]
        weight, next_weight = weights[k], weights[pair] if pair > k else np.float32(0.0)
        # Two plain loops: with a condition inside, the compiler would not vectorise them.
        if k == 0:
            for i in range(len(row)):
                row[i] = weight * np.float32(line[i]) + next_weight * np.float32(next_line[i])
        else:
            for i in range(len(row)):
                row[i] += weight * np.float32(line[i]) + next_weight * np.float32(next_line[i])


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=True)
def _round(sums: NDArray[np.float32], line: NDArray[np.uint8]) -> None:
    """Round numbers of at least 0 and less than 255.5."""
    for i in range(len(line)):
        line[i] = np.uint8(np.int32(sums[i] + np.float32(0.5)))
