"""How faithful a loader's pixels are to the original image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from respipe.planning.random_resized_crop import RandomResizedCrop

DEFINITION = (
    "PSNR = 10 log10(255^2 / MSE) in dB, MSE the mean squared difference over all pixels, channels and crops, against "
    "Pillow's antialiased bilinear resize of the same box cut from the original image. Boxes are random resized crops "
    "on whole pixels of the image that the loader stores, scaled to the original."
)

_ATTEMPTS = 10
_EXIF_ORIENTATION = 0x0112


def draw_uniforms(count: int, *, seed: int) -> NDArray[np.float64]:
    """Draws that decide the boxes of some crops, the same for every loader: (10, count, 4) float64 in [0, 1)."""
    return np.random.default_rng(seed).random((_ATTEMPTS, count, 4))


def draw_boxes(
    heights: NDArray[np.int64], widths: NDArray[np.int64], uniforms: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Random resized crops of N images: (N, 4) int64 ``top, left, height, width``."""
    boxes = RandomResizedCrop().boxes(heights, widths, size=1, draws=lambda attempt: uniforms[attempt])
    return boxes.astype(np.int64)


def as_shares(boxes: NDArray[np.int64], heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.float64]:
    """Boxes as shares of the image's height and width: (N, 4) float64."""
    return boxes / np.stack([heights, widths, heights, widths], axis=1)


def choose_samples(data: Path, paths: Sequence[str], count: int, *, seed: int) -> list[str]:
    """Random samples to compare on. Images that EXIF rotates are left out: not every loader turns them upright."""
    chosen: list[str] = []
    order: list[int] = np.random.default_rng(seed).permutation(len(paths)).tolist()
    for number in order:
        with Image.open(data / paths[number]) as image:
            if image.getexif().get(_EXIF_ORIENTATION, 1) == 1:
                chosen.append(paths[number])
        if len(chosen) == count:
            break
    return sorted(chosen)


def original_crop(image: Image.Image, box: NDArray[np.float64], *, size: int) -> NDArray[np.uint8]:
    """What a perfect loader gives: the box cut out of the original and resized with antialiasing.

    Args:
        image: the original, RGB.
        box: (4,) ``top, left, height, width`` as shares of the image. Where its edges lie within a pixel, the filter
            sees the whole pixel, but nothing beyond.
        size: side of the output.

    Returns:
        (size, size, 3) uint8.
    """
    top, bottom = _pixels(box[0], image.height), _pixels(box[0] + box[2], image.height)
    left, right = _pixels(box[1], image.width), _pixels(box[1] + box[3], image.width)
    x, y = math.floor(left), math.floor(top)
    cropped = image.crop((x, y, math.ceil(right), math.ceil(bottom)))
    edges = (left - x, top - y, right - x, bottom - y)
    return np.asarray(cropped.resize((size, size), Image.Resampling.BILINEAR, box=edges))


def mean_squared_error(pixels: NDArray[np.uint8], references: NDArray[np.uint8]) -> float:
    """Mean squared difference of two arrays of pixels of the same shape."""
    assert pixels.shape == references.shape, f"shapes differ: {pixels.shape}, {references.shape}"
    return float(np.mean(np.square(pixels.astype(np.float64) - references)))


def to_psnr(mse: float) -> float:
    """A mean squared error of 8-bit values in dB; infinite for 0."""
    return 10 * math.log10(255**2 / mse) if mse > 0 else math.inf


@lru_cache(maxsize=512)
def open_original(path: Path) -> Image.Image:
    """An original image as RGB, kept in memory since it is needed at every size."""
    with Image.open(path) as image:
        return image.convert("RGB")


def _pixels(share: float, side: int) -> float:
    """A share of a side in pixels; whole where only rounding keeps it from being so."""
    value = share * side
    return float(round(value)) if abs(value - round(value)) < 1e-6 else value
