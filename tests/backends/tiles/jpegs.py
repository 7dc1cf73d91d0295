"""JPEGs as respipe's conversion writes them, of any subsampling."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from respipe.backends.base import ROW, Crops
from respipe.backends.compiled.memory import output_table
from respipe.backends.tiles.kernel import decode_images
from respipe.jpeg.index import with_index

SUBSAMPLINGS = ("4:4:4", "4:2:2", "4:2:0", "gray")


def noise(height: int, width: int, *, seed: int = 0, contrast: float = 1.0) -> Image.Image:
    """An image that uses every coefficient."""
    values = np.random.default_rng([seed, height, width]).normal(128, 60 * contrast, (height, width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def encode(
    image: Image.Image, *, subsampling: str = "4:2:0", interval: int = 1, quality: int = 90, **options: Any
) -> NDArray[np.uint8]:
    """(n,) uint8: the JPEG with restart markers and their index."""
    buffer = io.BytesIO()
    if subsampling == "gray":
        image = image.convert("L")
    else:
        options["subsampling"] = subsampling
    image.save(buffer, "JPEG", quality=quality, restart_marker_blocks=interval, **options)
    return np.frombuffer(with_index(buffer.getvalue()), np.uint8)


def upsampling(length: int, ratio: int) -> NDArray[np.float64]:
    """(length, samples): libjpeg's upsampling of a line of chroma."""
    num_samples = -(-length // ratio)
    rows = np.zeros((length, num_samples))
    for at in range(length):
        near = at // ratio
        other = min(max(near + (1 if at % 2 else -1), 0), num_samples - 1) if ratio == 2 else near
        rows[at, near] += 0.75
        rows[at, other] += 0.25
    return rows


def decode_crops(
    images: Sequence[NDArray[np.uint8]],
    shapes: NDArray[np.int64],
    boxes: NDArray[np.float64],
    hulls: NDArray[np.int64],
    covers: NDArray[np.int64],
    flips: NDArray[np.bool_],
    outputs: tuple[NDArray[np.uint8], ...],
) -> int:
    """What the compiled loop returns for images in a buffer each, of (B, 2) heights and widths."""
    rows = np.zeros(len(images), ROW)
    rows["buffer"], rows["length"] = np.arange(len(images)), [len(image) for image in images]
    rows["height"], rows["width"] = shapes.T
    buffers = np.array([(image.ctypes.data, len(image)) for image in images], np.int64)
    crops = Crops(rows, boxes, hulls, covers, flips)
    return decode_images(buffers, crops, output_table(outputs, slice(0, len(images))))
