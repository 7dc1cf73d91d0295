from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from respipe.jpeg.header import read_header
from respipe.storage.upright import BrokenImageError, blamed_on_image, decode, pixel_limit, plain_size, upright_size
from tests.odd_images import (
    HEIGHT,
    WIDTH,
    broken,
    encoded,
    harmless,
    jpeg_carriers,
    orientation_carriers,
    picture,
    turned,
    with_sampling,
)


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


@pytest.mark.parametrize(("data", "reason"), [pytest.param(*rest, id=name) for name, *rest in broken()])
def test_what_cannot_be_decoded_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(BrokenImageError, match=reason):
        decode(data)


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in harmless()])
def test_what_has_all_its_pixels_is_taken_as_pillow_shows_it(data: bytes) -> None:
    decoded = decode(data, collect_warnings=True)
    ImageFile.LOAD_TRUNCATED_IMAGES = True  # texts of any size
    try:
        with Image.open(io.BytesIO(data)) as image, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = image if b"eXIfabcdefgh" in data else ImageOps.exif_transpose(image)
            expected = expected.convert("RGB")
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    np.testing.assert_array_equal(np.asarray(decoded.image), np.asarray(expected))
    assert upright_size(io.BytesIO(data)) == expected.size[::-1]
    assert plain_size(data) is None  # no engine may judge it by itself


@pytest.mark.parametrize("orientation", range(10))
def test_every_carrier_of_an_orientation_turns_the_image(orientation: int) -> None:
    expected = turned(np.asarray(picture()), orientation)
    for name, data in orientation_carriers(orientation):
        decoded = decode(data, collect_warnings=True)
        np.testing.assert_array_equal(np.asarray(decoded.image), expected, name)
        assert decoded.warnings == (), name
        assert ("EXIF-rotated" in decoded.traits) is (2 <= orientation <= 8), name
        assert upright_size(io.BytesIO(data)) == expected.shape[:2], name
    plain = decode(encoded(picture()))
    expected = turned(np.asarray(plain.image), orientation)
    for name, data in jpeg_carriers(orientation):
        decoded = decode(data, collect_warnings=True)
        np.testing.assert_array_equal(np.asarray(decoded.image), expected, name)
        assert decoded.keepable is (orientation in (0, 1, 9)), name
        assert upright_size(io.BytesIO(data)) == expected.shape[:2], name
        assert plain_size(data) == (expected.shape[:2] if decoded.keepable else None), name


@pytest.mark.parametrize(
    "error", [TypeError("x"), struct.error("x"), AttributeError("x"), RecursionError("x"), KeyError()]
)
def test_whatever_decoding_raises_is_the_images_fault(error: Exception) -> None:
    with pytest.raises(BrokenImageError, match=type(error).__name__), blamed_on_image():
        raise error


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, SystemExit])
def test_what_says_nothing_of_the_image_goes_on(error: type[BaseException]) -> None:
    with pytest.raises(error), blamed_on_image():
        raise error


def test_unusual_sampling_is_no_complaint() -> None:
    for factors in ((1, 3), (2, 4)):
        decoded = decode(with_sampling(*factors), collect_warnings=True)
        assert (decoded.warnings, decoded.traits) == ((), ())


def test_frames_are_counted_and_tags_that_cannot_be_read_are_told() -> None:
    files = dict(harmless())
    for name in ("animated GIF", "animated PNG", "TIFF of pages"):
        assert "several frames" in decode(files[name]).traits, name
    assert "several frames" not in decode(files["GIF"]).traits
    assert "EXIF tags cannot be read" in decode(files["unreadable tags"]).warnings[0]
    assert "more coded data than its 32 rows need" in decode(files["fewer rows in the header"]).warnings[0]


def test_sixteen_bits_keep_their_upper_eight() -> None:
    values = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    pixels = np.asarray(decode(encoded(Image.fromarray(values), "PNG")).image)
    np.testing.assert_array_equal(pixels, np.repeat((values >> 8)[:, :, None], 3, axis=2))


def test_palette_with_transparency_shows_its_colours() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert decode(encoded(image, "PNG", transparency=b"\x00\x80")).image.getpixel((0, 0)) == (200, 100, 50)


def test_limit_of_pixels_is_the_callers() -> None:
    data = encoded(picture())
    before = Image.MAX_IMAGE_PIXELS
    with pixel_limit(HEIGHT * WIDTH):
        assert decode(data, collect_warnings=True).warnings == ()
    with pixel_limit(HEIGHT * WIDTH - 2), pytest.raises(BrokenImageError, match=r"max_pixels .--max-pixels."):
        decode(data)
    assert before == Image.MAX_IMAGE_PIXELS
    with pytest.raises(ValueError, match="`max_pixels` must be at least 1"), pixel_limit(0):
        pass


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
