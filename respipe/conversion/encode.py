"""Encoding images as JPEGs whose crops can be cut out of the compressed bytes."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from respipe.conversion.settings import ConversionSettings, Subsampling
from respipe.jpeg.index import fitting_interval, with_index
from respipe.jpeg.quantization import quantization_tables

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
