"""The compiled loop of the FFCV backend. Importing this module loads FFCV's native library and Numba."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
from numpy.typing import NDArray

from respipe.backends.base import Crops, Outputs, ReadJob, corrupt_row
from respipe.backends.compiled.memory import buffer_table, output_of, output_table, stored_bytes
from respipe.backends.compiled.resample import resample
from respipe.jpeg.compilation import compiled, types
from respipe.jpeg.cut import CUT, DAMAGED, cut_crop
from respipe.storage.dataset import Dataset


def _ffcv_library() -> ctypes.CDLL:
    """FFCV's native library, without running the package: that would import OpenCV and compile for three seconds."""
    spec = importlib.util.find_spec("ffcv")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for suffix in importlib.machinery.EXTENSION_SUFFIXES:
            path = Path(folder) / f"_libffcv{suffix}"
            if path.exists():
                return ctypes.CDLL(str(path))
    raise ImportError("no installed package named ffcv contains its native library _libffcv")


def _function(library: ctypes.CDLL, name: str, result: types.Type, *arguments: types.Type) -> Any:
    """A function of a library, or of one that it is linked with, for use in compiled code.

    A symbol that the linker resolves keeps the compiled loop cacheable on disk; a ctypes pointer would not.
    """
    try:
        address = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    except AttributeError as error:
        raise ImportError(f"FFCV's native library is not linked with libjpeg-turbo's {name}") from error
    symbol = f"respipe_{name}"
    llvmlite.binding.add_symbol(symbol, address or 0)
    return types.ExternalFunction(symbol, result(*arguments))


_LIBRARY = _ffcv_library()
# FFCV's own function around this decoder asks it for an inverse DCT that is less exact, and no faster.
_new_decoder = _function(_LIBRARY, "tjInitDecompress", types.uintp)
_free_decoder = _function(_LIBRARY, "tjDestroy", types.int32, types.uintp)
# Returns 0 on success. Arguments: decoder, source and its length, destination, width, bytes per row (0 for no padding),
# height, pixel format (0 for RGB), flags.
_decompress = _function(_LIBRARY, "tjDecompress2", types.int32, *[types.uintp] * 4, *[types.int32] * 5)

# libjpeg-turbo writes aligned rows of pixels past the processor's caches; resizing wants them there.
_SHIFT = 8


def decode_part(dataset: Dataset, job: ReadJob, part: slice, outputs: Outputs) -> None:
    """Fill in a range of a batch; a :data:`respipe.backends.base.Decoder`."""
    buffers = dataset.buffers
    failed = decode_images(buffer_table(buffers, job, part), job.crops(part), output_table(outputs, part))
    if failed >= 0:
        damage = "its size or its restart markers are wrong, or libjpeg-turbo reports damaged data"
        raise corrupt_row(dataset, job, part.start + failed, damage)


@compiled
def decode_images(buffers: NDArray[np.int64], crops: Crops, outputs: NDArray[np.int64]) -> int:
    """Decode, crop, resize and mirror a range of images.

    Args:
        buffers: table of :func:`respipe.backends.compiled.memory.buffer_table`.
        crops: where the images are, and their crops.
        outputs: table of :func:`respipe.backends.compiled.memory.output_table`, whose arrays are filled.

    Returns:
        The first row whose JPEG cannot be decoded, or -1. Rows from there on are not filled.
    """
    if len(crops.rows) == 0:
        return -1
    decoder = _new_decoder()
    failed = _decode_rows(decoder, buffers, crops, outputs)
    _free_decoder(decoder)
    return failed


@compiled
def _decode_rows(decoder: int, buffers: NDArray[np.int64], crops: Crops, outputs: NDArray[np.int64]) -> int:
    rows, covers = crops.rows, crops.covers
    pixels = np.empty(_SHIFT + max(1, 3 * (rows["height"] * rows["width"]).max()), np.uint8)[_SHIFT:]
    encoded = np.empty(rows["length"].max(), np.uint8)
    box, box_hull = np.empty(4, np.float64), np.empty(4, np.int64)
    for i in range(len(rows)):
        height, width = rows[i].height, rows[i].width
        data = stored_bytes(buffers, rows[i])
        top, left = 0, 0
        if rows[i].raw == 1:
            image = pixels[: 3 * height * width].reshape(height, width, 3)
            # Only the rows of the crop, which no decoder needs.
            first, stop = max(covers[i, 0], 0), min(covers[i, 0] + covers[i, 2], height)
            image[first:stop] = data.reshape(height, width, 3)[first:stop]
        else:
            # Decode no more than the crops need: what was cut out becomes the image, and the boxes move with it.
            top, left, height, width = _decode_crop(decoder, data, height, width, covers[i], encoded, pixels)
            if height == 0:
                return i
            image = pixels[: 3 * height * width].reshape(height, width, 3)
        for number in range(len(outputs)):
            box[:], box_hull[:] = crops.boxes[i, number], crops.hulls[i, number]
            box[0] -= top
            box[1] -= left
            box_hull[0] -= top
            box_hull[1] -= left
            resample(image, box, box_hull, crops.flips[i], output_of(outputs, number, i), crops.cubic)
    return -1


@compiled
def _decode_crop(
    decoder: int,
    data: NDArray[np.uint8],
    height: int,
    width: int,
    box_hull: NDArray[np.int64],
    encoded: NDArray[np.uint8],
    pixels: NDArray[np.uint8],
) -> tuple[int, int, int, int]:
    """Decode the part of a JPEG that a crop needs; all of it, where it cannot be cut.

    Args:
        decoder: libjpeg-turbo's.
        data: the JPEG.
        height, width: its recorded size.
        box_hull: (4,) the crop's integer hull.
        encoded: scratch, at least as long as ``data``.
        pixels: filled; room for the whole image.

    Returns:
        ``top, left, height, width`` of the decoded part; height 0 where the JPEG is damaged or of another size.
    """
    top, left, source, length = 0, 0, data.ctypes.data, len(data)
    found = cut_crop(data, height, width, box_hull, encoded)
    if found.status == DAMAGED:
        return 0, 0, 0, 0
    if found.status == CUT:
        top, left, height, width = found.top, found.left, found.height, found.width
        source, length = encoded.ctypes.data, found.length
    code = _decompress(decoder, source, length, pixels.ctypes.data, width, 0, height, 0, 0)
    return top, left, height if code == 0 else 0, width
