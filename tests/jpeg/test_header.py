from __future__ import annotations

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from respipe.jpeg.header import JpegError, is_complete, read_header
from tests.memory_dataset import smooth_image

SAMPLING = {"4:4:4": (1, 1), "4:2:2": (2, 1), "4:2:0": (2, 2)}


def jpeg(height: int = 24, width: int = 40, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    smooth_image(height, width, seed=1).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def exif(orientation: int, order: str = "<") -> Image.Exif:
    tags = Image.Exif()
    tags.endian = order
    tags[0x010F] = "a maker whose name fills the directory"
    tags[0x0112] = orientation
    return tags


def sample_jpeg() -> bytes:
    return jpeg(exif=exif(6), progressive=True, comment=b"between")


@pytest.mark.parametrize("subsampling", SAMPLING)
@pytest.mark.parametrize("progressive", [False, True])
def test_header_says_what_the_encoder_was_told(subsampling: str, progressive: bool) -> None:
    data = jpeg(23, 41, subsampling=subsampling, progressive=progressive, restart_marker_blocks=3)
    header = read_header(data)
    assert (header.height, header.width, header.precision) == (23, 41, 8)
    assert header.coding == ("progressive" if progressive else "baseline")
    assert header.colour == "ycbcr"
    assert header.sampling == (SAMPLING[subsampling], (1, 1), (1, 1))
    assert header.restart_interval == 3
    assert header.plain is not progressive


def test_entropy_coded_bytes_begin_after_the_scan_header() -> None:
    data = jpeg()
    start = data.index(b"\xff\xda")
    assert read_header(data).scan_start == start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")


def test_colours_are_told_apart() -> None:
    assert read_header(jpeg(mode="L")).colour == "gray"
    assert read_header(jpeg(mode="L")).plain
    assert read_header(jpeg(mode="CMYK")).colour == "cmyk"
    assert not read_header(jpeg(mode="CMYK")).plain
    as_rgb = jpeg(keep_rgb=True)
    assert read_header(as_rgb).colour == "rgb"
    assert not read_header(as_rgb).plain


def test_end_marker_is_looked_for_behind_the_scan() -> None:
    thumbnail = exif(1)
    thumbnail[0x9286] = b"\xff\xd9 as in a thumbnail"
    data = jpeg(exif=thumbnail)
    header = read_header(data)
    assert data.index(b"\xff\xd9") < header.scan_start
    assert is_complete(data, header)
    assert is_complete(data + b"what a camera appends", header)
    assert not is_complete(data[:-1], header)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "begins with nothing"),
        (b"\x89PNG\r\n", "begins with 89504e47"),
        (b"\xff\xd8", "ends at byte 2"),
        (b"\xff\xd8\xff\xd9....", "marker ffd9"),
        (b"\xff\xd8 \x00\x04\x00", "byte 2 is 0x20"),
        (b"\xff\xd8\xff\xe0\xff\xff..", "ends at .* of 8|said to end"),
        (b"\xff\xd8\xff\xe0\x00\x01..", "said to end"),
        (b"\xff\xd8\xff\xda\x00\x02..", "before its frame header"),
        (b"\xff\xd8\xff\xc0\x00\x04\x08\x00\xff\xda\x00\x02", "gives no size"),
    ],
)
def test_what_is_no_jpeg_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(JpegError, match=what):
        read_header(data)


@pytest.mark.parametrize(("place", "what"), [(5, "height is .* in a DNL marker"), (7, "gives no size")])
def test_frame_without_a_size_is_refused(place: int, what: str) -> None:
    data = bytearray(jpeg())
    place += data.index(b"\xff\xc0")
    data[place : place + 2] = b"\0\0"
    with pytest.raises(JpegError, match=what):
        read_header(bytes(data))


def test_marks_that_decoders_take_differently_leave_the_colour_open() -> None:
    data = jpeg()
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\0\0\0\0"
    assert read_header(data[:2] + adobe + b"\1" + data[2:]).colour == "ycbcr"
    assert read_header(data[:2] + adobe + b"\0" + data[2:]).colour == "other"  # beside JFIF's
    assert read_header(data[:2] + adobe + b"\0" + data[20:]).colour == "rgb"


def test_every_beginning_of_a_jpeg_is_refused_or_has_the_header() -> None:
    data = sample_jpeg()
    whole = read_header(data)
    for length in range(len(data)):
        if length < whole.scan_start:
            with pytest.raises(JpegError):
                read_header(data[:length])
        else:
            assert read_header(data[:length]) == whole


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=8))
def test_changed_bytes_never_break_the_parser(changes: list[tuple[int, int]]) -> None:
    data = bytearray(sample_jpeg())
    for place, value in changes:
        data[place % len(data)] = value
    try:
        header = read_header(bytes(data))
    except JpegError:
        return
    assert 0 < header.scan_start <= len(data)
    assert header.height > 0
    assert header.width > 0


@given(st.binary(max_size=200))
def test_any_bytes_are_taken_without_other_errors(data: bytes) -> None:
    for candidate in (data, b"\xff\xd8" + data, b"\xff\xd8\xff\xe1\x00\x80Exif\0\0" + data):
        try:
            read_header(candidate)
        except JpegError:
            continue
