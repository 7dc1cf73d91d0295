"""The compiled loop of the tiles backend: from a batch's bytes and boxes to its pixels."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from respipe.backends.filters import triangle_filter
from respipe.backends.tiles.dct import quantized_cosines
from respipe.backends.tiles.decode import Region, covering_region, decode_region, lay_out_planes
from respipe.backends.tiles.entropy import SLACK
from respipe.backends.tiles.header import read_quantizers
from respipe.backends.tiles.resize import Rows, resize_columns, resize_rows
from respipe.backends.tiles.simd import PIXELS
from respipe.backends.tiles.taps import chroma_filter, fixed_point
from respipe.jpeg.compiled_header import Layout, read_layout


class Scratch(NamedTuple):
    """Memory of one thread, large enough for any image of its part of a batch.

    Args:
        samples: uint8, decoded planes.
        rows: uint16, planes resized horizontally.
        quantizers: (192,) float32.
        cosines: (1536,) float32.
        coded: uint8, a restart interval.
        block: (64,) float32.
    """

    samples: NDArray[np.uint8]
    rows: NDArray[np.uint16]
    quantizers: NDArray[np.float32]
    cosines: NDArray[np.float32]
    coded: NDArray[np.uint8]
    block: NDArray[np.float32]


# No MCU is larger than this along a side.
_MCU = 32


@numba.njit(nogil=True, cache=True, error_model="numpy")
def decode_images(
    lookup: NDArray[np.int64],
    memory: NDArray[np.uint8],
    stored: NDArray[np.int64],
    boxes: NDArray[np.float64],
    hulls: NDArray[np.int64],
    covers: NDArray[np.int64],
    flips: NDArray[np.bool_],
    outputs: tuple[NDArray[np.uint8], ...],
) -> int:
    """Decode, crop, resize and mirror a range of images.

    Args:
        lookup: see :func:`respipe.backends.tiles.entropy.standard_lookup`.
        memory, stored, boxes, hulls, covers, flips, outputs: see :data:`respipe.backends.pool.compiled.DecodeImages`.

    Returns:
        the first row whose image is damaged, or -1. Rows from there on are not filled.
    """
    heights, widths = (stored[:, 2] + _MCU) // _MCU * _MCU, (stored[:, 3] + _MCU) // _MCU * _MCU
    size = PIXELS
    for output in outputs:
        size = max(size, (output.shape[1] + PIXELS - 1) // PIXELS * PIXELS)
    scratch = Scratch(
        np.empty(3 * (heights * widths).max(), np.uint8),
        np.empty(3 * heights.max() * size, np.uint16),
        np.empty(192, np.float32),
        np.empty(1536, np.float32),
        np.empty(stored[:, 1].max() + SLACK, np.uint8),
        np.empty(64, np.float32),
    )
    for i in range(len(stored)):
        data = memory[stored[i, 0] : stored[i, 0] + stored[i, 1]]
        layout = read_layout(data)
        if layout.offsets == 0 or layout.height != stored[i, 2] or layout.width != stored[i, 3]:
            return i
        top, left = max(covers[i, 0], 0), max(covers[i, 1], 0)
        bottom = min(covers[i, 0] + covers[i, 2], layout.height)
        right = min(covers[i, 1] + covers[i, 3], layout.width)
        if top >= bottom or left >= right:
            for output in outputs:
                output[i] = 0
            continue
        region = covering_region(layout, top, left, bottom, right)
        if not read_quantizers(data, layout, scratch.quantizers):
            return i
        quantized_cosines(scratch.quantizers, scratch.cosines)
        if not decode_region(
            data, layout, region, scratch.cosines, lookup, scratch.coded, scratch.block, scratch.samples
        ):
            return i
        for number, output in enumerate(outputs):
            _resize(layout, region, boxes[i, number], hulls[i, number], flips[i], scratch, output[i])
    return -1


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _resize(
    layout: Layout,
    region: Region,
    box: NDArray[np.float64],
    hull: NDArray[np.int64],
    flip: bool,
    scratch: Scratch,
    out: NDArray[np.uint8],
) -> None:
    """Resize decoded planes to (S, S, 3) RGB: each plane along its rows, then row by row along the columns."""
    size = out.shape[0]
    stride = (size + PIXELS - 1) // PIXELS * PIXELS
    planes = lay_out_planes(layout, region)
    top, left = region.top * layout.mcu_height, region.left * layout.mcu_width
    vertical = triangle_filter(box[0], box[2], hull[0], hull[0] + hull[2], layout.height, size, False)
    horizontal = triangle_filter(box[1], box[3], hull[1], hull[1] + hull[3], layout.width, size, flip)
    num_rows = planes.blue // planes.luma_columns
    rows = scratch.rows[: num_rows * stride].reshape(num_rows, stride)
    taps = fixed_point(horizontal, 0)
    resize_rows(scratch.samples, planes.luma_columns, top, left, vertical, taps, 0, 1, rows)
    luma = Rows(rows, top, fixed_point(vertical, 0))
    if layout.components == 1:
        resize_columns(luma, luma, True, out)
        return
    high, wide = layout.mcu_height >> 3, layout.mcu_width >> 3
    vertical = chroma_filter(vertical, high, (layout.height + high - 1) // high)
    horizontal = chroma_filter(horizontal, wide, (layout.width + wide - 1) // wide)
    top, left = top // high, left // wide
    num_chroma = (planes.red - planes.blue) // planes.chroma_columns
    rows = scratch.rows[rows.size : rows.size + 2 * num_chroma * stride].reshape(num_chroma, 2 * stride)
    taps = fixed_point(horizontal, 128)
    resize_rows(scratch.samples[planes.blue :], planes.chroma_columns, top, left, vertical, taps, 0, 2, rows)
    resize_rows(scratch.samples[planes.red :], planes.chroma_columns, top, left, vertical, taps, 1, 2, rows)
    resize_columns(luma, Rows(rows, top, fixed_point(vertical, 128)), False, out)
