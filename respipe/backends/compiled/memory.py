"""A dataset's files and a batch's outputs for compiled loops: tables of addresses, whatever their number.

Numba would compile anew for each number of arrays in a tuple.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from respipe.backends.base import ROW, Crops, Outputs, ReadJob
from respipe.jpeg.compilation import carray, cgutils, compiled, intrinsic, prepare, types
from respipe.jpeg.cut import CUT, DAMAGED, cut_crop
from respipe.storage.dataset import Bytes

NO_CROPS = Crops(
    np.empty(0, ROW), np.empty((0, 1, 4)), np.empty((0, 1, 4), np.int64), np.empty((0, 4), np.int64), np.empty(0, bool)
)
NO_TABLE = np.empty((0, 2), np.int64)


def prepare_loop(decode_images: Any) -> None:
    """Have a compiled loop over crops ready; see :func:`respipe.jpeg.compilation.prepare`."""
    prepare(decode_images, NO_TABLE, NO_CROPS, NO_TABLE)


def buffer_table(buffers: Sequence[Bytes], job: ReadJob, part: slice) -> NDArray[np.int64]:
    """(n, 2) int64: address and length in bytes of each buffer; zeros for those that no row of a part names.

    The buffers must stay alive as long as the table is used.
    """
    table = np.zeros((len(buffers), 2), np.int64)
    rows = job.rows[part]
    for number in np.unique(rows["buffer"]).tolist() if len(buffers) > 1 else [0]:
        table[number] = buffers[number].ctypes.data, buffers[number].size
    ends = rows["offset"] + rows["length"]
    assert (rows["offset"] >= 0).all() and (ends <= table[rows["buffer"], 1]).all(), "images lie inside their buffer"
    return table


def output_table(outputs: Outputs, part: slice) -> NDArray[np.int64]:
    """(K, 2) int64: address of the first row of a part of each output, and the side S of its images."""
    return np.array([(output[part].ctypes.data, output.shape[1]) for output in outputs], np.int64)


def _as_pointer(_context: Any, address: Any) -> Any:
    def generate(_target: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


_pointer: Any = intrinsic(_as_pointer)


@compiled
def stored_bytes(buffers: NDArray[np.int64], row: Any) -> Bytes:
    """(n,) uint8, the stored image of a row, not to be written to."""
    return carray(_pointer(buffers[row.buffer, 0] + row.offset), (row.length,), np.uint8)


@compiled
def output_of(outputs: NDArray[np.int64], number: int, row: int) -> NDArray[np.uint8]:
    """(S, S, 3) uint8, one image of an output."""
    side = outputs[number, 1]
    return carray(_pointer(outputs[number, 0] + 3 * row * side * side), (side, side, 3), np.uint8)


@compiled
def cut_images(buffers: NDArray[np.int64], crops: Crops, out: NDArray[np.uint8], parts: NDArray[np.int64]) -> int:
    """Cut a range of images, and write what becomes of them one after the other.

    Args:
        buffers: table of :func:`buffer_table`.
        crops: where the images are, and their crops.
        out: uint8, at least as long as all stored images of the range.
        parts: (B, 4) int64, filled with the start and the end of each JPEG in ``out``, both 0 where the stored image is
            to be used as it is, and with ``top, left`` of the part of the picture that it shows.

    Returns:
        The first row whose image is damaged, or -1. Rows from there on are not filled.
    """
    at = 0
    for i in range(len(crops.rows)):
        row = crops.rows[i]
        found = cut_crop(stored_bytes(buffers, row), row.height, row.width, crops.covers[i], out[at:])
        if found.status == DAMAGED:
            return i
        parts[i] = 0
        if found.status == CUT:
            parts[i, 0], parts[i, 1], parts[i, 2], parts[i, 3] = at, at + found.length, found.top, found.left
            at += found.length
    return -1
