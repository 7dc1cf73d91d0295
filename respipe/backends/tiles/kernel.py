"""The compiled loop of the tiles backend: from a batch's bytes and boxes to its pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from respipe.backends.base import Crops, Outputs, ReadJob, corrupt_row
from respipe.backends.compiled.filters import resize_filter
from respipe.backends.compiled.memory import buffer_table, output_of, output_table, stored_bytes
from respipe.backends.compiled.resample import resample
from respipe.backends.tiles.dct import quantized_cosines
from respipe.backends.tiles.decode import Region, covering_region, decode_region, lay_out_planes
from respipe.backends.tiles.entropy import SLACK, standard_lookup
from respipe.backends.tiles.resize import Rows, decoded_pixels, resize_columns, resize_rows
from respipe.backends.tiles.simd import PIXELS
from respipe.backends.tiles.taps import chroma_filter, fixed_point
from respipe.jpeg.compilation import compiled
from respipe.jpeg.compiled_header import Layout, read_layout, read_quantizers
from respipe.storage.dataset import Dataset


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


_LOOKUP = standard_lookup()


def decode_part(dataset: Dataset, job: ReadJob, part: slice, outputs: Outputs) -> None:
    """Fill in a range of a batch; a :data:`respipe.backends.base.Decoder`."""
    buffers = dataset.buffers
    failed = decode_images(buffer_table(buffers, job, part), job.crops(part), output_table(outputs, part))
    if failed >= 0:
        raise corrupt_row(dataset, job, part.start + failed, "its restart intervals are damaged")


@compiled
def decode_images(buffers: NDArray[np.int64], crops: Crops, outputs: NDArray[np.int64]) -> int:
    """Decode, crop, resize and mirror a range of images.

    Args:
        buffers: table of :func:`respipe.backends.compiled.memory.buffer_table`.
        crops: where the images are, and their crops.
        outputs: table of :func:`respipe.backends.compiled.memory.output_table`, whose arrays are filled.

    Returns:
        The first row whose image is damaged, or -1. Rows from there on are not filled.
    """
    rows, covers = crops.rows, crops.covers
    if len(rows) == 0:
        return -1
    heights, widths = (rows["height"] + _MCU) // _MCU * _MCU, (rows["width"] + _MCU) // _MCU * _MCU
    size = PIXELS
    for number in range(len(outputs)):
        size = max(size, (outputs[number, 1] + PIXELS - 1) // PIXELS * PIXELS)
    scratch = Scratch(
        np.empty(3 * (heights * widths).max(), np.uint8),
        np.empty(3 * heights.max() * size, np.uint16),
        np.empty(192, np.float32),
        np.empty(1536, np.float32),
        np.empty(rows["length"].max() + SLACK, np.uint8),
        np.empty(64, np.float32),
    )
    for i in range(len(rows)):
        data = stored_bytes(buffers, rows[i])
        layout = read_layout(data)
        if layout.offsets == 0 or layout.height != rows[i].height or layout.width != rows[i].width:
            return i
        top, left = max(covers[i, 0], 0), max(covers[i, 1], 0)
        bottom = min(covers[i, 0] + covers[i, 2], layout.height)
        right = min(covers[i, 1] + covers[i, 3], layout.width)
        if top >= bottom or left >= right:
            for number in range(len(outputs)):
                output_of(outputs, number, i)[:] = 0
            continue
        region = covering_region(layout, top, left, bottom, right)
        if not read_quantizers(data, layout, scratch.quantizers):
            return i
        quantized_cosines(scratch.quantizers, scratch.cosines)
        if not decode_region(
            data, layout, region, scratch.cosines, _LOOKUP, scratch.coded, scratch.block, scratch.samples
        ):
            return i
        _show(layout, region, (top, left, bottom, right), crops, i, scratch, outputs)
    return -1


@compiled
def _show(
    layout: Layout,
    region: Region,
    part: tuple[int, int, int, int],
    crops: Crops,
    row: int,
    scratch: Scratch,
    outputs: NDArray[np.int64],
) -> None:
    """Resize what was decoded of an image, of which ``part`` is wanted, to every output."""
    boxes, hulls, flip = crops.boxes[row], crops.hulls[row], crops.flips[row]
    if crops.exact:
        pixels = decoded_pixels(scratch.samples, layout, region, part)
        corner = np.array([part[0], part[1], 0, 0])
        for number in range(len(outputs)):
            out = output_of(outputs, number, row)
            resample(pixels, boxes[number] - corner, hulls[number] - corner, flip, out, crops.cubic)
        return
    for number in range(len(outputs)):
        _resize(layout, region, boxes[number], hulls[number], flip, scratch, output_of(outputs, number, row))


@compiled
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
    vertical = resize_filter(box[0], box[2], hull[0], hull[0] + hull[2], layout.height, size, False)
    horizontal = resize_filter(box[1], box[3], hull[1], hull[1] + hull[3], layout.width, size, flip)
    num_rows = planes.blue // planes.luma_columns
    rows = scratch.rows[: num_rows * stride].reshape(num_rows, stride)
    taps = fixed_point(horizontal, 0)
    resize_rows(scratch.samples, planes.luma_columns, top, left, vertical, taps, 0, 1, rows)
    luma = Rows(rows, top, fixed_point(vertical, 0))
    if layout.components == 1:
        resize_columns(luma, luma, True, out)
        return
    high, wide = layout.mcu_height >> 3, layout.mcu_width >> 3
    # Where chroma is halved horizontally, to at most two columns, libjpeg repeats its samples along both axes.
    repeats = wide == 2 and layout.width <= 4
    vertical = chroma_filter(vertical, high, (layout.height + high - 1) // high, repeats)
    horizontal = chroma_filter(horizontal, wide, (layout.width + wide - 1) // wide, repeats)
    top, left = top // high, left // wide
    num_chroma = (planes.red - planes.blue) // planes.chroma_columns
    rows = scratch.rows[rows.size : rows.size + 2 * num_chroma * stride].reshape(num_chroma, 2 * stride)
    taps = fixed_point(horizontal, 128)
    resize_rows(scratch.samples[planes.blue :], planes.chroma_columns, top, left, vertical, taps, 0, 2, rows)
    resize_rows(scratch.samples[planes.red :], planes.chroma_columns, top, left, vertical, taps, 1, 2, rows)
    resize_columns(luma, Rows(rows, top, fixed_point(vertical, 128)), False, out)
