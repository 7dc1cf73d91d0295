"""Masks: images of one channel with a class or an instance for each pixel, which no filter may blend."""

from __future__ import annotations

import io
import re

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_NAME = re.compile(r"(.*[\W_])?(masks?|seg|segmentation|labelmap)(\.png)?", re.IGNORECASE)


def is_mask_name(name: str) -> bool:
    """Whether a field of encoded bytes is a mask, by what it is called: "mask", "road_mask", "seg.png"."""
    return _NAME.fullmatch(name) is not None


def read_mask(data: bytes) -> NDArray[np.uint8]:
    """Decode a mask.

    Args:
        data: a PNG or another lossless image of one channel of at most 8 bits.

    Returns:
        (H, W) uint8; the numbers of the colours of a palette, and 0 and 1 of one bit.

    Raises:
        ValueError: it is none.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP")) as image:
            if image.mode not in ("L", "P", "1"):
                raise ValueError(f"a mask must have one channel of at most 8 bits; it has the mode {image.mode}")
            return np.asarray(image, np.uint8)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"a mask must be a whole PNG: {error}") from error


def write_mask(mask: NDArray[np.uint8] | NDArray[np.bool_]) -> bytes:
    """Encode a (H, W) mask of uint8, or of bool as 0 and 1, as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def fitted_mask(data: bytes, original: tuple[int, int], stored: tuple[int, int]) -> bytes:
    """A mask at the size that its image is stored at.

    Args:
        data: the mask, upright and as large as the image was.
        original: height and width in pixels of the upright image that is converted.
        stored: those of its largest level.

    Returns:
        a PNG of the nearest pixels.

    Raises:
        ValueError: it is no mask, or not of the image's size.
    """
    mask = read_mask(data)
    if mask.shape != original:
        found, wanted = (f"{width} x {height} px" for height, width in (mask.shape, original))
        raise ValueError(f"a mask must have its image's size, {wanted}, upright; it has {found}")
    return write_mask(crop_mask(mask, (0.0, 0.0, float(original[0]), float(original[1])), stored))


def crop_mask(
    mask: NDArray[np.uint8], box: tuple[float, float, float, float], size: tuple[int, int], *, flip: bool = False
) -> NDArray[np.uint8]:
    """The crop of a mask by the nearest pixel: that under the centre of each pixel of the result.

    Args:
        mask: (H, W) uint8.
        box: top, left, height, width in pixels. What lies outside the mask is 0.
        size: height and width of the result in pixels.
        flip: whether the result is mirrored.
    """
    rows, columns = (
        np.floor(start + (np.arange(count) + 0.5) * (length / count)).astype(np.int64)
        for start, length, count in zip(box[:2], box[2:], size, strict=True)
    )
    columns = columns[::-1] if flip else columns
    height, width = mask.shape
    found = mask[rows.clip(0, height - 1)[:, None], columns.clip(0, width - 1)]
    found[(rows < 0) | (rows >= height)] = 0
    found[:, (columns < 0) | (columns >= width)] = 0
    return found
