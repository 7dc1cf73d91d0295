"""Decoding a source image of any kind, strictly: what is damaged must be found now, not during training."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any, cast

import simplejpeg
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from respipe.jpeg.header import JpegError, JpegHeader, is_complete, read_header
from respipe.storage.upright import FORMATS, UNREADABLE, upright_rgb

# libjpeg's words for a scan that ends before the image does; the rest would be gray.
_LOST = "premature end of data"


class BrokenImageError(ValueError):
    """The bytes are no image, or not all of one. The message is the reason alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodedImage:
    """A source image as pixels.

    Args:
        image: upright RGB.
        traits: what made it differ from a plain RGB JPEG, for the report: "CMYK", "EXIF-rotated", "PNG", ...
        warnings: what the decoder complained about before it went on all the same.
        keepable: whether the encoded bytes may be stored as they are.
    """

    image: Image.Image
    traits: tuple[str, ...]
    warnings: tuple[str, ...]
    keepable: bool


def decode(data: bytes) -> DecodedImage:
    """Decode a whole image.

    JPEGs go through libjpeg-turbo with its warnings turned into findings: damage inside a scan is no error to libjpeg,
    and Pillow does not tell of it.

    Raises:
        BrokenImageError: it is empty, cut off, damaged beyond decoding, or no image.
    """
    if not data:
        raise BrokenImageError("the file is empty")
    found: list[str] = []
    try:
        header = read_header(data) if data.startswith(b"\xff\xd8") else None
    except JpegError as error:
        header = None
        found.append(str(error))
    if header is not None:
        if not is_complete(data, header):
            found.append("the end marker is missing")
        image = _decode_strictly(data, header, found)
        if image is not None:
            keepable = header.plain and not found
            return DecodedImage(image=image, traits=_jpeg_traits(header), warnings=tuple(found), keepable=keepable)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image, traits = _decode_with_pillow(data)
    found.extend(str(warning.message) for warning in caught)
    return DecodedImage(image=image, traits=traits, warnings=tuple(found), keepable=False)


def _decode_strictly(data: bytes, header: JpegHeader, found: list[str]) -> Image.Image | None:
    """Decode a JPEG unless libjpeg-turbo complains or cannot convert it to RGB; its complaint goes to ``found``.

    Raises:
        BrokenImageError: part of the image is missing.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if header.colour not in ("gray", "ycbcr", "rgb") or header.precision != 8 or header.coding == "other":
        return None
    if limit is not None and header.height * header.width > limit:
        return None  # Pillow decides whether it is too large
    try:
        pixels = cast("Any", simplejpeg.decode_jpeg(data, colorspace="RGB"))
    except ValueError as error:
        if _LOST in str(error):
            raise BrokenImageError(str(error)) from error
        found.append(str(error))
        return None
    image = Image.fromarray(pixels)
    if not header.upright:
        image.getexif()[ExifTags.Base.Orientation] = header.orientation
        image = ImageOps.exif_transpose(image)
    return image


def _jpeg_traits(header: JpegHeader) -> tuple[str, ...]:
    traits = {
        "grayscale": header.colour == "gray",
        "RGB JPEG": header.colour == "rgb",
        "progressive": header.coding == "progressive",
        "EXIF-rotated": not header.upright,
    }
    return tuple(trait for trait, has in traits.items() if has)


def _decode_with_pillow(data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            traits = _traits(opened)
            rgb = upright_rgb(opened)
            if opened.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9):
                traits.append("EXIF-rotated")
    except UnidentifiedImageError as error:
        # Pillow's own message names an object in memory, another one in every run.
        raise BrokenImageError("it is no image of a known format") from error
    except UNREADABLE as error:
        raise BrokenImageError(str(error) or type(error).__name__) from error
    return rgb, tuple(traits)


def _traits(opened: Image.Image) -> list[str]:
    mode = opened.mode
    traits = {
        opened.format or "other": opened.format not in ("JPEG", "MPO"),
        "CMYK": mode == "CMYK",
        "grayscale": mode in ("1", "L", "LA") or mode.startswith("I"),
        "16-bit": mode.startswith("I") or ";16" in str(getattr(opened, "tile", "")),
        "alpha": mode in ("LA", "PA", "RGBA") or "transparency" in opened.info,
        "palette": mode in ("P", "PA"),
        "progressive": bool(opened.info.get("progressive")),
    }
    return [trait for trait, has in traits.items() if has]
