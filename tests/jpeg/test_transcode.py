from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from respipe.conversion.pyramid import build_pyramid
from respipe.conversion.settings import ConversionSettings
from respipe.jpeg.header import JpegError, read_header, segments
from respipe.jpeg.huffman import AC_LUMA, DC_LUMA
from respipe.jpeg.index import read_index
from respipe.jpeg.transcode import TranscodeError, transcode
from tests.memory_dataset import smooth_image

_ROOM = 1 << 18


def encoded(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def noise(height: int, width: int, *, seed: int) -> Image.Image:
    """An image with coefficients of every size."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    noisy=st.booleans(),
    mode=st.sampled_from(["RGB", "L"]),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    quality=st.sampled_from([5, 75, 95, 100]),
    optimize=st.booleans(),
    source_interval=st.integers(0, 7),
    restart_interval=st.integers(1, 9),
)
def test_transcoded_image_has_the_same_pixels_and_an_index(
    height: int,
    width: int,
    noisy: bool,
    mode: str,
    subsampling: str,
    quality: int,
    optimize: bool,
    source_interval: int,
    restart_interval: int,
) -> None:
    image = (noise if noisy else smooth_image)(height, width, seed=height).convert(mode)
    options = {"quality": quality, "optimize": optimize, "restart_marker_blocks": source_interval}
    data = encoded(image, subsampling=subsampling, **options)
    result, tiled = transcode(data, restart_interval=restart_interval, max_bytes=_ROOM)
    np.testing.assert_array_equal(pixels(result), pixels(data))
    header, offsets = read_header(result), read_index(result)
    assert tiled
    assert offsets is not None
    assert len(offsets) == header.num_intervals + 1
    assert header.plain
    assert header.sampling == read_header(data).sampling
    assert 1 <= header.restart_interval <= restart_interval
    # What is transcoded already stays as it is.
    assert transcode(result, restart_interval=restart_interval, max_bytes=_ROOM) == (result, True)


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
def test_every_plain_sampling_is_taken(subsampling: str) -> None:
    image = np.asarray(smooth_image(50, 75, seed=1))
    colorspace = "Gray" if subsampling == "Gray" else "RGB"
    image = np.ascontiguousarray(image[:, :, :1]) if subsampling == "Gray" else image
    data = simplejpeg.encode_jpeg(image, quality=95, colorspace=colorspace, colorsubsampling=subsampling)
    result, tiled = transcode(data, restart_interval=2, max_bytes=_ROOM)
    assert tiled
    np.testing.assert_array_equal(pixels(result), pixels(data))


def test_largest_differences_of_means_are_coded() -> None:
    board = np.kron(np.indices((4, 6)).sum(axis=0) % 2 * 255, np.ones((8, 8))).astype(np.uint8)
    data = encoded(Image.fromarray(board), quality=100, optimize=True)
    result, _ = transcode(data, restart_interval=6, max_bytes=_ROOM)
    np.testing.assert_array_equal(pixels(result), pixels(data))


def test_tables_are_the_standard_ones_and_metadata_is_gone() -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = encoded(smooth_image(40, 60, seed=2), optimize=True, exif=exif, comment="a comment", quality=93)
    result, _ = transcode(data, restart_interval=2, max_bytes=_ROOM)
    found = [(marker, result[start:end]) for marker, start, end in segments(result)]
    assert [marker for marker, _ in found] == [0xE0, 0xEA, 0xDB, 0xDB, 0xC0, 0xC4, 0xC4, 0xC4, 0xC4, 0xDD, 0xDA]
    huffman = {body[0]: body[1:] for marker, body in found if marker == 0xC4}
    assert huffman[0x00] == DC_LUMA.counts.tobytes() + DC_LUMA.symbols.tobytes()
    assert huffman[0x10] == AC_LUMA.counts.tobytes() + AC_LUMA.symbols.tobytes()
    with Image.open(io.BytesIO(data)) as source, Image.open(io.BytesIO(result)) as opened:
        assert opened.quantization == source.quantization


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (encoded(smooth_image(20, 30, seed=0), progressive=True), "it is progressive"),
        (encoded(smooth_image(20, 30, seed=0), keep_rgb=True), "rgb"),
        (encoded(smooth_image(20, 30, seed=0).convert("CMYK")), "cmyk"),
    ],
)
def test_other_jpegs_are_refused(data: bytes, what: str) -> None:
    with pytest.raises(TranscodeError, match=what):
        transcode(data, restart_interval=2, max_bytes=_ROOM)


def test_jpeg_of_several_scans_is_refused() -> None:
    cut = bytearray(encoded(smooth_image(20, 30, seed=0)))
    place = next(start for marker, start, _ in segments(cut) if marker == 0xDA)
    cut[place] = 1
    with pytest.raises(TranscodeError, match="several scans"):
        transcode(bytes(cut), restart_interval=2, max_bytes=_ROOM)


def test_result_without_room_is_refused() -> None:
    data = encoded(noise(64, 64, seed=0), quality=100)
    with pytest.raises(TranscodeError, match="more than 4000 bytes"):
        transcode(data, restart_interval=2, max_bytes=4000)


def test_missing_table_is_refused() -> None:
    data = encoded(smooth_image(20, 30, seed=0))
    start = next(start for marker, start, _ in segments(data) if marker == 0xC4)
    with pytest.raises(TranscodeError, match="table is missing"):
        transcode(data[:start] + b"\x02" + data[start + 1 :], restart_interval=2, max_bytes=_ROOM)


@given(st.integers(0, 1 << 20), st.integers(0, 255), st.integers(0, 20), st.sampled_from([0, 1, 2]))
def test_damage_is_refused_or_changes_nothing(place: int, value: int, length: int, source: int) -> None:
    options: dict[str, Any] = ({}, {"optimize": True, "subsampling": "4:4:4"}, {"restart_marker_blocks": 3})[source]
    data = bytearray(encoded(smooth_image(40, 56, seed=source), **options))
    place %= len(data)
    data[place : place + length] = bytes([value])
    try:
        result, _ = transcode(bytes(data), restart_interval=2, max_bytes=_ROOM)
    except (TranscodeError, JpegError):
        return
    try:
        expected = simplejpeg.decode_jpeg(bytes(data))
    except ValueError:
        return  # conversion would not have come so far
    np.testing.assert_array_equal(simplejpeg.decode_jpeg(result), expected)


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9, 0.99])
def test_scan_that_is_cut_off_is_refused(cut: float) -> None:
    data = encoded(smooth_image(80, 112, seed=3), quality=95)
    start = read_header(data).scan_start
    with pytest.raises(TranscodeError, match="damaged"):
        transcode(data[: start + int(cut * (len(data) - start))] + b"\xff\xd9", restart_interval=2, max_bytes=_ROOM)


def test_pyramid_keeps_the_pixels_of_images_that_fit() -> None:
    settings = ConversionSettings(levels=(128, 64), keep="pixels")
    data = encoded(smooth_image(100, 120, seed=4), quality=97, subsampling="4:4:4", optimize=True)
    pyramid = build_pyramid(data, settings)
    first = pyramid.images[0]
    assert pyramid.kept
    assert all(image.tiled for image in pyramid.images)
    assert first.checksum == zlib.crc32(first.data)
    np.testing.assert_array_equal(pixels(first.data), pixels(data))


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}],
    ids=["progressive", "rotated"],
)
def test_pyramid_encodes_what_cannot_be_transcoded(options: dict[str, Any]) -> None:
    data = encoded(smooth_image(100, 120, seed=5), **options)
    pyramid = build_pyramid(data, ConversionSettings(levels=(128, 64), keep="pixels"))
    assert not pyramid.kept
    assert all(image.tiled for image in pyramid.images)
    large = build_pyramid(encoded(smooth_image(100, 140, seed=5)), ConversionSettings(levels=(128,), keep="pixels"))
    assert not large.kept
