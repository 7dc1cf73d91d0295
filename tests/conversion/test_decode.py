from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from respipe.conversion.decode import BrokenImageError, decode
from respipe.jpeg.header import read_header
from tests.memory_dataset import smooth_image

HEIGHT, WIDTH = 40, 64


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture() -> Image.Image:
    return smooth_image(HEIGHT, WIDTH, seed=3)


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def with_alpha() -> Image.Image:
    image = picture()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("data", "traits", "keepable"),
    [
        (encoded(picture()), (), True),
        (encoded(picture(), subsampling="4:4:4"), (), True),
        (encoded(picture().convert("L")), ("grayscale",), True),
        (encoded(picture(), progressive=True), ("progressive",), False),
        (encoded(picture(), exif=rotated()), ("EXIF-rotated",), False),
        (encoded(picture(), keep_rgb=True), ("RGB JPEG",), False),
        (encoded(picture().convert("CMYK")), ("CMYK",), False),
        (encoded(picture(), "PNG"), ("PNG",), False),
        (encoded(picture().convert("L"), "PNG"), ("PNG", "grayscale"), False),
        (encoded(picture().quantize(), "PNG"), ("PNG", "palette"), False),
        (encoded(with_alpha(), "PNG"), ("PNG", "alpha"), False),
        (encoded(with_alpha().convert("LA"), "PNG"), ("PNG", "grayscale", "alpha"), False),
        (encoded(sixteen_bits(), "PNG"), ("PNG", "grayscale", "16-bit"), False),
        (encoded(picture(), "PNG", exif=rotated()), ("PNG", "EXIF-rotated"), False),
        (encoded(picture(), "WEBP", lossless=True), ("WEBP",), False),
        (encoded(picture(), "BMP"), ("BMP",), False),
        (encoded(picture(), "PPM"), ("PPM",), False),
    ],
)
def test_every_kind_becomes_upright_rgb(data: bytes, traits: tuple[str, ...], keepable: bool) -> None:
    decoded = decode(data)
    assert decoded.traits == traits
    assert decoded.keepable is keepable
    assert decoded.warnings == ()
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image)
        if image.mode == "I;16":
            expected = picture().convert("L")
    assert decoded.image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded.image), np.asarray(expected.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("part", [0.02, 0.3, 0.7, 0.95])
def test_files_cut_off_are_broken(kind: str, part: float) -> None:
    data = encoded(picture(), kind)
    with pytest.raises(BrokenImageError):
        decode(data[: int(part * len(data))])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html>not found</html>", "no image of a known format"),
        (b"\xff\xd8\xff\xe0", "."),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
    ],
)
def test_what_is_no_image_is_broken(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenImageError, match=reason):
        decode(data)


def test_scan_that_ends_too_early_is_broken_though_an_end_marker_follows() -> None:
    data = encoded(picture())
    middle = (read_header(data).scan_start + len(data)) // 2
    with pytest.raises(BrokenImageError, match="premature end"):
        decode(data[:middle] + b"\xff\xd9")


def test_what_libjpeg_only_warns_of_is_told_and_never_kept() -> None:
    data = encoded(picture())
    decoded = decode(data[:-2] + b"extra" + data[-2:])
    assert len(decoded.warnings) == 1
    assert "extraneous bytes" in decoded.warnings[0]
    assert not decoded.keepable
    np.testing.assert_array_equal(np.asarray(decoded.image), np.asarray(decode(data).image))


def test_bytes_that_follow_the_image_do_no_harm() -> None:
    assert decode(encoded(picture()) + b"what a camera appends").keepable


def test_images_too_large_to_be_meant_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH // 2 - 1)
    for kind in ("JPEG", "PNG"):
        with pytest.raises(BrokenImageError, match="decompression bomb"):
            decode(encoded(picture(), kind))


@given(st.integers(0, 2), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=20))
def test_damage_gives_an_image_or_the_one_error(kind: int, changes: list[tuple[float, int]]) -> None:
    data = bytearray(encoded(picture(), ("JPEG", "PNG", "WEBP")[kind]))
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    try:
        decoded = decode(bytes(data))
    except BrokenImageError as error:
        reason = str(error)
        assert reason
    else:
        assert decoded.image.mode == "RGB"
