"""Decoding the part of a JPEG that a crop needs into planes, interval by interval."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from respipe.backends.layout import Layout, interval_bounds
from respipe.backends.tiles.dct import store_block, store_flat_block
from respipe.backends.tiles.entropy import DAMAGED, DETAILED, decode_block, is_read_to_end, start_reading


class Region(NamedTuple):
    """A rectangle of MCUs: from ``top`` and ``left`` to before ``bottom`` and ``right``."""

    top: int
    left: int
    bottom: int
    right: int


class Planes(NamedTuple):
    """Where the decoded samples of a region are: luma, blue and red behind each other in one array.

    Each plane is (bands, columns, 8) as :mod:`respipe.backends.tiles.dct` describes.

    Args:
        luma_columns, chroma_columns: columns of a plane.
        blue, red: where these planes begin.
        end: samples of all planes.
    """

    luma_columns: int
    chroma_columns: int
    blue: int
    red: int
    end: int


@numba.njit(nogil=True, cache=True, error_model="numpy")
def lay_out_planes(layout: Layout, region: Region) -> Planes:
    """Lay out the planes of a region."""
    num_mcus = (region.bottom - region.top) * (region.right - region.left)
    blue = num_mcus * layout.mcu_height * layout.mcu_width
    chroma = 64 * num_mcus if layout.components == 3 else 0
    across = region.right - region.left
    return Planes(across * layout.mcu_width, 8 * across, blue, blue + chroma, blue + 2 * chroma)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def covering_region(layout: Layout, top: int, left: int, bottom: int, right: int) -> Region:
    """The MCUs that a part of the image draws on, with those that chroma upsampling at its edge looks at."""
    high, wide = layout.mcu_height >> 3, layout.mcu_width >> 3
    return Region(
        max(top - high, 0) // layout.mcu_height,
        max(left - wide, 0) // layout.mcu_width,
        min((bottom + high - 1) // layout.mcu_height + 1, layout.rows),
        min((right + wide - 1) // layout.mcu_width + 1, layout.columns),
    )


@numba.njit(nogil=True, cache=True, error_model="numpy")
def decode_region(
    data: NDArray[np.uint8],
    layout: Layout,
    region: Region,
    quantization: NDArray[np.float32],
    lookup: NDArray[np.int32],
    block: NDArray[np.float32],
    samples: NDArray[np.uint8],
) -> bool:
    """Decode every interval that a region touches.

    Args:
        data: (n,) uint8, an encoded image.
        layout: of the same, with an index.
        region: at least one MCU.
        quantization: see :func:`respipe.backends.tiles.header.read_coding`.
        lookup: see :func:`respipe.backends.tiles.entropy.standard_lookup`.
        block: (64,) float32 scratch.
        samples: (n,) uint8, filled as :func:`lay_out_planes` has it.

    Returns:
        False where the data is damaged.
    """
    means = np.empty(3, np.int64)
    for row in range(region.top, region.bottom):
        first = (row * layout.columns + region.left) // layout.interval
        last = (row * layout.columns + region.right - 1) // layout.interval
        for number in range(first, last + 1):
            if not _decode_interval(data, layout, region, row, number, quantization, lookup, block, means, samples):
                return False
    return True


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _decode_interval(
    data: NDArray[np.uint8],
    layout: Layout,
    region: Region,
    row: int,
    number: int,
    quantization: NDArray[np.float32],
    lookup: NDArray[np.int32],
    block: NDArray[np.float32],
    means: NDArray[np.int64],
    samples: NDArray[np.uint8],
) -> bool:
    """Decode one interval up to the last MCU that the region needs in this row."""
    start, end = interval_bounds(data, layout, number)
    if start < 0:
        return False
    wide, high = layout.mcu_width >> 3, layout.mcu_height >> 3
    planes = lay_out_planes(layout, region)
    begin = number * layout.interval
    stop = min(begin + layout.interval, layout.rows * layout.columns)
    needed = min(stop, row * layout.columns + region.right)
    bits = start_reading(start)
    means[:] = 0
    for mcu in range(begin, needed):
        column = mcu - row * layout.columns - region.left
        for part in range(wide * high + layout.components - 1):
            component = max(part - wide * high + 1, 0)
            if component == 0:
                band = (row - region.top) * high + part // wide
                at = 8 * (band * planes.luma_columns + 8 * (column * wide + part % wide))
            else:
                at = 8 * ((row - region.top) * planes.chroma_columns + 8 * column)
                at += planes.blue if component == 1 else planes.red
            bits, mean, found = decode_block(data, end, bits, means[component], component, quantization, lookup, block)
            means[component] = mean
            if found == DAMAGED:
                return False
            if column < 0:
                continue
            if found == DETAILED:
                store_block(block, samples, at)
            else:
                store_flat_block(block[0], samples, at)
    return needed < stop or is_read_to_end(bits, end)
