"""Images of any kind as the upright RGB pixels that respipe trains on."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

# The formats images are accepted in, whatever their file name says. Pillow knows more, some of which run programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")

# Names of files with images in class folders, in lower case: those of torchvision's ``ImageFolder``, and more.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"),
    *(".jpe", ".jfif", ".apng", ".gif", ".pbm", ".pnm", ".dib", ".avif", ".jp2", ".j2k", ".jpf", ".jpx"),
)

# What Pillow raises for files that are not what they should be, depending on the format.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def most_pixels() -> int:
    """Pixels that an encoded image may have at most, by Pillow's limit: a few bytes can claim to become gigabytes."""
    limit = Image.MAX_IMAGE_PIXELS
    return 2 * limit if limit is not None else 1 << 62


def upright_rgb(image: Image.Image) -> Image.Image:
    """Rotate an image as its EXIF orientation says and convert it to RGB.

    Alpha is dropped, not blended, as torchvision's image folder does; 16-bit samples keep their upper eight bits
    (Pillow's own conversion would clip them to white).

    Raises:
        one of ``UNREADABLE``: the image cannot be decoded.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the direct way warns
    return image.convert("RGB")


def upright_size(file: BinaryIO) -> tuple[int, int]:
    """Height and width in pixels of the upright image, from its header alone.

    Raises:
        one of ``UNREADABLE``: there is no image, or none of a known format.
    """
    with Image.open(file, formats=FORMATS) as image:
        # PngImageFile.getexif would decode the image to find tags that follow the pixels.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
        width, height = image.size
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)
