"""Antialiased resizing of a crop, compiled with Numba: Pillow's bilinear filter, to within one grey level."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


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
def add_weighted(row: NDArray[np.float32], line: NDArray[np.uint8], weight: np.float32) -> None:
    """``row += weight * line``, in a form that the compiler vectorises."""
    for i in range(len(row)):
        row[i] += weight * np.float32(line[i])


@numba.njit(nogil=True, cache=True, error_model="numpy", fastmath=True)
def resample(
    image: NDArray[np.uint8],
    box: NDArray[np.float64],
    hull: NDArray[np.int64],
    flip: bool,
    rows: NDArray[np.float32],
    out: NDArray[np.uint8],
) -> None:
    """Resize the crop of one image.

    Args:
        image: (H, W, 3) uint8.
        box: (4,) ``top, left, height, width`` in pixels of the image.
        hull: (4,) its integer hull; what lies outside the image is black.
        flip: mirror left to right.
        rows: scratch of at least 3 W elements.
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
    left, right = max(hull[1], 0), min(hull[1] + hull[3], width)
    source = image.reshape(height, 3 * width)[:, 3 * left : 3 * right]
    row = rows[: 3 * (right - left)]
    half = np.float32(0.5)
    for y in range(size):
        # Vertical first: it runs along contiguous memory, and leaves only S rows for the horizontal pass.
        row[:] = half
        for k in range(count_y[y]):
            add_weighted(row, source[first_y[y] + k], weights_y[y, k])
        for x in range(size):
            red = green = blue = np.float32(0.0)
            total = np.float32(0.0)
            at = 3 * (first_x[x] - left)
            taps = row[at : at + 3 * count_x[x]]
            for k in range(count_x[x]):
                weight = weights_x[x, k]
                red += weight * taps[3 * k]
                green += weight * taps[3 * k + 1]
                blue += weight * taps[3 * k + 2]
                total += weight
            # Next to black padding the weights inside the image sum to less than one, and so does the rounding term.
            missing = half * (np.float32(1.0) - total)
            target = size - 1 - x if flip else x
            out[y, target, 0] = np.uint8(red + missing)
            out[y, target, 1] = np.uint8(green + missing)
            out[y, target, 2] = np.uint8(blue + missing)
