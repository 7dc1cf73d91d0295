"""One image at all its stored resolutions, as JPEGs whose crops can be cut out of the compressed bytes."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from respipe.conversion.settings import ConversionSettings, Subsampling
from respipe.jpeg.index import fitting_interval, with_index
from respipe.jpeg.quantization import quantization_tables
from respipe.storage.beton.pages import Pyramid, StoredImage
from respipe.storage.upright import DecodedImage, decode

_MCU_WIDTHS: dict[Subsampling, int] = {"4:4:4": 8, "4:2:2": 16, "4:2:0": 16}


def encode(image: Image.Image, settings: ConversionSettings) -> tuple[bytes, bool]:
    """Encode an RGB image as a baseline JPEG.

    Returns:
        the JPEG, and whether it is tiled: it has restart markers, the index of them
        (:mod:`respipe.jpeg.index`), and the standard Huffman tables.
    """
    options: dict[str, Any] = {
        "qtables": quantization_tables(settings.quality_of(max(image.size))),
        "subsampling": settings.subsampling,
    }
    if settings.restart_interval:
        columns = -(-image.width // _MCU_WIDTHS[settings.subsampling])
        options["restart_marker_blocks"] = fitting_interval(columns, settings.restart_interval)
    buffer = io.BytesIO()
    # Pillow takes the standard Huffman tables unless told to optimize them.
    image.save(buffer, "JPEG", **options)
    data = buffer.getvalue()
    if not settings.restart_interval:
        return data, False
    indexed = with_index(data)
    return indexed, indexed is not data


# A JPEG that is longer than its pixels plus this carries mostly other things: not worth keeping as it is.
_METADATA_ALLOWANCE = 64 << 10

# Of Pillow's filters this one keeps most of what an antialiased resize of the original's crop would show.
_FILTER = Image.Resampling.LANCZOS


def build_pyramid(data: bytes, settings: ConversionSettings) -> Pyramid:
    """Decode a source image once and encode each level, none of them made from lossy ones.

    With ``settings.keep`` the source's own pixels or bytes become the first level where they fit it and any decoder
    can be expected to read them. Of other images that fit it "pixels" keeps 50 dB, as much as JPEG can.

    Raises:
        BrokenImageError: the source cannot be decoded.
    """
    decoded = decode(data, collect_warnings=True)
    image = decoded.image
    longest = max(image.size)
    fits = longest <= settings.levels[0]
    kept = _kept(data, decoded, settings) if fits else None
    traits = list(decoded.traits) if fits else [*decoded.traits, f"larger than {settings.levels[0]} px"]
    images: list[StoredImage] = []
    pixels = [image]
    for level in settings.levels:
        if images and longest <= level:
            images.append(images[-1])
        elif kept is not None and not images:
            images.append(kept)
        elif fits and not images and settings.keep == "pixels":
            images.append(_encoded(image, replace(settings, quality=100, subsampling="4:4:4")))
            traits.append("stored at quality 100")
        else:
            pixels.append(_reduced(pixels, level))
            images.append(_encoded(pixels[-1], settings))
    return Pyramid(
        images=tuple(images),
        original=(image.height, image.width),
        kept=kept is not None,
        traits=tuple(traits),
        warnings=decoded.warnings,
    )


def _kept(data: bytes, decoded: DecodedImage, settings: ConversionSettings) -> StoredImage | None:
    """The first level made of a source that fits it without loss, or None where that cannot or is not to be done."""
    image = decoded.image
    max_bytes = 3 * image.width * image.height + _METADATA_ALLOWANCE
    if settings.keep == "nothing" or not decoded.keepable:
        return None
    if settings.keep == "bytes":
        return _stored(data, image, tiled=False) if len(data) <= max_bytes else None
    from respipe.jpeg.transcode import TranscodeError, transcode  # compiled, which others need not wait for

    try:
        transcoded, tiled = transcode(data, restart_interval=settings.restart_interval, max_bytes=max_bytes)
    except TranscodeError:
        return None
    again = decode(transcoded)
    if again.warnings or not np.array_equal(np.asarray(again.image), np.asarray(image)):
        return None
    return _stored(transcoded, image, tiled=tiled)


def _reduced(pixels: Sequence[Image.Image], level: int) -> Image.Image:
    """An image reduced to a level. ``pixels`` are the whole image first, then the levels before."""
    scale = level / max(pixels[0].size)
    if scale >= 1:
        return pixels[0]
    width, height = (max(1, round(side * scale)) for side in pixels[0].size)
    # From a level half as large again the result is as sharp (within 0.03 dB) as from the whole image, and made faster.
    origin = next((image for image in reversed(pixels) if 2 * max(image.size) >= 3 * level), pixels[0])
    return origin.resize((width, height), _FILTER)


def _encoded(image: Image.Image, settings: ConversionSettings) -> StoredImage:
    data, tiled = encode(image, settings)
    return _stored(data, image, tiled=tiled)


def _stored(data: bytes, image: Image.Image, *, tiled: bool) -> StoredImage:
    return StoredImage(data=data, height=image.height, width=image.width, checksum=zlib.crc32(data), tiled=tiled)
