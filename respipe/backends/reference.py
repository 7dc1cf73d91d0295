"""The reference backend: Pillow decodes and resizes, exactly as the other backends are meant to.

It decodes every format that Pillow reads, from files of any kind. The oracle of the contract suite, and slow.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from respipe.backends.base import Backend, BackendSpec, Interpolation, Outputs, ReadJob, corrupt_image
from respipe.backends.pool import PooledBackend
from respipe.storage.dataset import Dataset
from respipe.storage.upright import BrokenImageError, decode


def decode_part(dataset: Dataset, job: ReadJob, part: slice, outputs: Outputs) -> None:
    """Fill in a range of a batch; a :data:`respipe.backends.base.Decoder`."""
    for row in range(part.start, part.stop):
        image = decode_upright(dataset, int(job.indices[row]), int(job.levels[row]))
        for output, box, hull in zip(outputs, job.boxes[row], job.hulls[row], strict=True):
            output[row] = crop_and_resize(
                image, box, hull, size=output.shape[1], flip=bool(job.flips[row]), interpolation=job.interpolation
            )


def _build(dataset: Dataset, *, device: torch.device, num_threads: int) -> Backend:
    return PooledBackend("reference", dataset, decode_part, device=device, num_threads=num_threads)


SPEC = BackendSpec(
    name="reference",
    summary="always there, and slow",
    modules=(),
    distributions=("pillow",),
    install="pip install pillow",
    priority=lambda _: 0,
    refuse=lambda _: None,
    build=_build,
    interpolations=("bilinear", "bicubic"),
)


def decode_upright(dataset: Dataset, index: int, level: int = 0) -> Image.Image:
    """One stored image as upright RGB.

    Raises:
        CorruptImageError: it cannot be decoded without a complaint, or its size is not the recorded one.
    """
    stored = dataset.levels[level]
    height, width = int(stored.heights[index]), int(stored.widths[index])
    data = dataset.encoded(index, level)
    if stored.raw[index]:
        return Image.fromarray(data.reshape(height, width, 3))
    try:
        decoded = decode(data.tobytes())
    except BrokenImageError as error:
        raise corrupt_image(dataset, index, level, str(error)) from error
    if decoded.warnings:
        raise corrupt_image(dataset, index, level, decoded.warnings[0])
    image = decoded.image
    if image.size != (width, height):
        found = f"{image.width} x {image.height} pixels where {width} x {height} were recorded"
        raise corrupt_image(dataset, index, level, found)
    return image


def crop_and_resize(
    image: Image.Image,
    box: np.ndarray,
    box_hull: np.ndarray,
    *,
    size: int,
    flip: bool,
    interpolation: Interpolation = "bilinear",
) -> np.ndarray:
    """Crop an RGB image to a box and resize it: the definition that every backend follows.

    Args:
        image: the decoded level.
        box: (4,) float64, ``top, left, height, width`` in pixels of the image.
        box_hull: (4,) int64, its integer hull.
        size: side of the output.
        flip: mirror left to right.
        interpolation: filter of the resize.

    Returns:
        (size, size, 3) uint8.
    """
    top, left, height, width = (int(side) for side in box_hull)
    cropped = image.crop((left, top, left + width, top + height))
    y, x = float(box[0]) - top, float(box[1]) - left
    edges = (max(x, 0.0), max(y, 0.0), min(x + float(box[3]), width), min(y + float(box[2]), height))
    resized = cropped.resize((size, size), Image.Resampling[interpolation.upper()], box=edges)
    pixels = np.asarray(resized)
    return pixels[:, ::-1].copy() if flip else pixels
