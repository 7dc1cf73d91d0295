"""The filters with which planes are resized: for chroma at its own resolution, and as integers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from respipe.backends.compiled.filters import Filter, reach
from respipe.backends.tiles.simd import BLOCK
from respipe.jpeg.compilation import compiled


@compiled
def chroma_filter(luma: Filter, ratio: int, num_samples: int, repeats: bool) -> Filter:
    """The filter on a chroma plane that equals a filter on the upsampled plane.

    As libjpeg does, chroma of half the resolution is upsampled with a triangle filter (3/4 of the nearer sample and 1/4
    of the other, at the edge the nearer one alone), any other by repeating samples.

    Args:
        luma: filter on the upsampled plane.
        ratio: upsampled samples for each chroma sample.
        num_samples: chroma samples of the image along this axis.
        repeats: whether samples are repeated also at half the resolution.
    """
    if ratio == 1:
        return luma
    size, num_luma = luma.weights.shape
    is_smooth = ratio == 2 and not repeats
    margin = 1 if is_smooth else 0
    start, stop = reach(luma)
    low, high = max((start - margin) // ratio, 0), min((stop - 1 + margin) // ratio + 1, num_samples)
    num_taps = min(num_luma // ratio + 2, high - low)
    first = np.empty(size, np.int64)
    weights = np.zeros((size, num_taps), np.float32)
    for i in range(size):
        at = luma.first[i]
        if not is_smooth:
            origin = min(at // ratio, high - num_taps)
            for k in range(num_luma):
                weights[i, (at + k) // ratio - origin] += luma.weights[i, k]
        else:
            origin = min(max(at - 1 >> 1, low), high - num_taps)
            for k in range(num_luma):
                near = at + k >> 1
                other = min(max(near - 1 + 2 * (at + k & 1), 0), num_samples - 1)
                weights[i, near - origin] += np.float32(0.75) * luma.weights[i, k]
                weights[i, other - origin] += np.float32(0.25) * luma.weights[i, k]
        first[i] = origin
    return Filter(first, weights)


class Taps(NamedTuple):
    """A filter in integers, which count in parts of 65536. Each number stands in both halves of an element.

    Behind the S pixels of output are others up to a multiple of BLOCK, which stay black.

    Args:
        first: (n,) int64, where the window of each output pixel begins.
        weights: (n, K) uint32, their weights.
        constants: (n,) uint32, what to add, in parts of 256 of a grey level: for rounding, and for black.
    """

    first: NDArray[np.int64]
    weights: NDArray[np.uint32]
    constants: NDArray[np.uint32]


@compiled
def fixed_point(taps: Filter, black: int) -> Taps:
    """Round the weights of a filter, so that their sum remains what it is.

    Sums of products that are rounded to parts of 256 are then off by about 1/20 of a grey level where a crop is reduced
    to a tenth, by 1/2 where it is reduced to a hundredth.

    Args:
        taps: the filter.
        black: what samples outside the image are.
    """
    size, num_taps = taps.weights.shape
    padded = (size + BLOCK - 1) // BLOCK * BLOCK
    first, weights = np.empty(padded, np.int64), np.zeros((padded, num_taps), np.uint32)
    constants = np.zeros(padded, np.uint32)
    first[:size] = taps.first
    first[size:] = taps.first[0]
    rounding = min(num_taps >> 1, 0xFF)  # each product loses half a part of 256 on average
    for i in range(size):
        total, before = np.float32(0.5), 0
        for k in range(num_taps):
            total += np.float32(65536.0) * taps.weights[i, k]
            behind = int(total)
            weights[i, k] = 0x10001 * min(behind - before, 0xFFFF)
            before = behind
        constants[i] = 0x10001 * (rounding + (max(0x10000 - before, 0) * black >> 8))
    return Taps(first, weights, constants)
