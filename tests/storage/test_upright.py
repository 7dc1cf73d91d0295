from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from respipe.storage.upright import UNREADABLE, upright_rgb, upright_size
from tests.memory_dataset import smooth_image


def encoded(image: Image.Image, kind: str, **options: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_upright_image(kind: str, orientation: int) -> None:
    file = encoded(smooth_image(24, 40, seed=0), kind, exif=oriented(orientation))
    with Image.open(file) as image:
        width, height = ImageOps.exif_transpose(image).size
    file.seek(0)
    assert upright_size(file) == (height, width)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_size_of_every_mode(mode: str) -> None:
    assert upright_size(encoded(smooth_image(24, 40, seed=0).convert(mode), "PNG")) == (24, 40)


def test_sixteen_bits_keep_their_upper_eight() -> None:
    values = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    with Image.open(encoded(Image.fromarray(values), "PNG")) as image:
        pixels = np.asarray(upright_rgb(image))
    np.testing.assert_array_equal(pixels, np.repeat((values >> 8)[:, :, None], 3, axis=2))


def test_alpha_is_dropped_not_blended() -> None:
    colour = smooth_image(8, 8, seed=0)
    image = colour.copy()
    image.putalpha(Image.new("L", (8, 8), 3))
    with Image.open(encoded(image, "PNG")) as opened:
        np.testing.assert_array_equal(np.asarray(upright_rgb(opened)), np.asarray(colour))


def test_palette_with_transparency_shows_its_colours() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    with Image.open(encoded(image, "PNG", transparency=b"\x00\x80")) as opened:
        assert upright_rgb(opened).getpixel((0, 0)) == (200, 100, 50)


@pytest.mark.parametrize(
    "data", [b"", b"no image", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(UNREADABLE):
        upright_size(io.BytesIO(data))
