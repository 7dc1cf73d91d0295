"""Antialiased resizing of a crop, compiled with Numba: Pillow's filters, to within one grey level."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from respipe.backends.compiled.filters import reach, resize_filter
from respipe.backends.compiled.vectors import LANES, PIXELS, ROWS, weigh_pixels
from respipe.jpeg.compilation import compiled, compiled_with_fast_math


@compiled_with_fast_math
def resample(
    image: NDArray[np.uint8],
    box: NDArray[np.float64],
    hull: NDArray[np.int64],
    flip: bool,
    out: NDArray[np.uint8],
    cubic: bool = False,
) -> None:
    """Resize the crop of one image.

    Args:
        image: (H, W, 3) uint8.
        box: (4,) ``top, left, height, width`` in pixels of the image.
        hull: (4,) its integer hull; what lies outside the image is black.
        flip: mirror left to right.
        out: (S, S, 3) uint8, filled.
        cubic: bicubic instead of bilinear.
    """
    height, width = image.shape[0], image.shape[1]
    size = out.shape[0]
    vertical = resize_filter(box[0], box[2], hull[0], hull[0] + hull[2], height, size, False, cubic)
    horizontal = resize_filter(box[1], box[3], hull[1], hull[1] + hull[3], width, size, flip, cubic)
    vectors = _vectors(horizontal.weights)
    num_steps = (horizontal.weights.shape[1] + PIXELS - 1) // PIXELS
    left, right = reach(horizontal)
    source = image.reshape(height, 3 * width)[:, 3 * left : 3 * right]
    rows = np.zeros((ROWS, 3 * (right - left) + LANES), np.float32)
    sums = np.empty((ROWS, 3 * size + 1), np.float32)
    lines = out.reshape(size, 3 * size)
    top, bottom = reach(vertical)
    between = np.empty((bottom - top if cubic else 0, 3 * size), np.uint8)
    for start in range(0, len(between) if cubic else size, ROWS):
        stop = min(start + ROWS, len(between) if cubic else size)
        for y in range(start, stop):
            if cubic:
                rows[y - start, : source.shape[1]] = source[top + y]
            else:
                # Vertical first: it runs along contiguous memory, and leaves only S rows for the horizontal pass.
                _weigh_rows(source, vertical.first[y], vertical.weights[y], rows[y - start])
        for x in range(size):
            weigh_pixels(rows, 3 * (horizontal.first[x] - left), vectors, x, num_steps, sums, 3 * x)
        for y in range(start, stop):
            if cubic:
                _clip(sums[y - start])
            _round(sums[y - start, : 3 * size], between[y] if cubic else lines[y])
    if cubic:
        # Weights are negative, too, so that Pillow's clipping between its passes shows, of which this is the second.
        for y in range(size):
            _weigh_rows(between, vertical.first[y] - top, vertical.weights[y], sums[0])
            _clip(sums[0])
            _round(sums[0, : 3 * size], lines[y])


@compiled
def _vectors(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weights as ``weigh_pixels`` takes them: repeated for each channel, zero in the lanes between."""
    size, num_taps = weights.shape
    vectors = np.zeros((size, (num_taps + PIXELS - 1) // PIXELS * LANES), np.float32)
    for x in range(size):
        for k in range(num_taps):
            at = k // PIXELS * LANES + k % PIXELS * 3
            vectors[x, at] = vectors[x, at + 1] = vectors[x, at + 2] = weights[x, k]
    return vectors


@compiled_with_fast_math
def _weigh_rows(source: NDArray[np.uint8], first: int, weights: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Write a weighted sum of rows to the beginning of ``out``, two at a time to spare memory accesses."""
    row = out[: source.shape[1]]
    count = len(weights)
    while count > 1 and weights[count - 1] == 0:
        count -= 1
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


@compiled_with_fast_math
def _clip(sums: NDArray[np.float32]) -> None:
    for i in range(len(sums)):
        sums[i] = min(max(sums[i], np.float32(0.0)), np.float32(255.0))


@compiled_with_fast_math
def _round(sums: NDArray[np.float32], line: NDArray[np.uint8]) -> None:
    """Round numbers of at least 0 and less than 255.5."""
    for i in range(len(line)):
        line[i] = np.uint8(np.int32(sums[i] + np.float32(0.5)))
