"""What the pixels of a crop must be, by Pillow: the measure for what backends make of damaged images."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from respipe.backends.reference import crop_and_resize
from respipe.backends.routing import hull
from respipe.jpeg import cut as cutting
from respipe.jpeg.header import JpegError
from respipe.storage.upright import FORMATS

Pixels = NDArray[np.uint8]

# Largest accepted mean and 99th percentile of |pixel - expected| in grey levels. Damaged blocks have the strongest
# contrasts that JPEG can code, where rounding shows most; DALI repeats the border of a crop that reaches over the edge.
TOLERANCES = {"reference": (0, 0), "ffcv": (1, 2), "dali": (2, 26), "tiles": (1, 4), "conversion": (1, 4)}


def is_close(backend: str, found: Pixels, expected: Pixels) -> bool:
    """Whether a backend's pixels are the expected ones, but for rounding."""
    difference = np.abs(found.astype(np.int16) - expected)
    mean, most = TOLERANCES[backend]
    return bool(difference.mean() <= mean and np.percentile(difference, 99) <= most)


def overflows(found: Pixels, expected: Pixels) -> bool:
    """Whether pixels are the expected ones but for a few.

    Huge coefficients, as damaged quantisers make them, overflow the integers of libjpeg's transform, which wrap around.
    Those of ``tiles`` are floating-point numbers, which are clipped.
    """
    difference = np.abs(found.astype(np.int16) - expected)
    return bool(difference.mean() <= 6 and np.percentile(difference, 90) <= 6)


def crop_of_whole(
    data: bytes, shape: tuple[int, int], box: NDArray[np.float64], *, size: int, late: bool, tolerant: bool = False
) -> Pixels | None:
    """The crop of an image that Pillow decodes whole.

    Args:
        data: the encoded image.
        shape: its recorded height and width.
        box: (4,) ``top, left, height, width``.
        size: side of the result.
        late: resize brightness and colour, and only then make them red, green and blue, as ``tiles`` does: where
            damage makes colours that cannot be, it matters when they are clipped.
        tolerant: take what is decoded before an error that ends decoding: a decoder that stops at the last row of the
            crop does not meet what comes later.

    Returns:
        None where Pillow refuses the image, or it has another size.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = tolerant
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if late:
                opened.draft("YCbCr", None)
            upright = ImageOps.exif_transpose(opened)
            image = upright if upright.mode == "YCbCr" else upright.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    if (image.height, image.width) != shape:
        return None
    box_hull = hull(box[None])[0]
    if image.mode != "YCbCr":
        return crop_and_resize(image, box, box_hull, size=size, flip=False)
    top, left, height, width = (int(side) for side in box_hull)
    canvas = Image.new("YCbCr", (width, height), (0, 128, 128))
    canvas.paste(image, (-left, -top))
    moved = np.array([box[0] - top, box[1] - left, box[2], box[3]])
    pixels = crop_and_resize(canvas, moved, np.array([0, 0, height, width]), size=size, flip=False)
    return np.asarray(Image.fromarray(pixels, "YCbCr").convert("RGB"))


def crop_of_part(data: bytes, box: NDArray[np.float64], *, size: int, late: bool) -> Pixels | None:
    """The same of the part of a JPEG that the crop needs, cut out before Pillow decodes it; None where that fails."""
    top, left, height, width = (int(side) for side in hull(box[None])[0])
    try:
        part, (first, start, rows, columns) = cutting.cut(data, (top, left, height, width))
    except JpegError:
        return None
    moved = box - np.array([first, start, 0, 0])
    return crop_of_whole(part, (rows, columns), moved, size=size, late=late)
