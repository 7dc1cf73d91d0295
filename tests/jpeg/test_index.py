from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from respipe.jpeg.header import JpegError, read_header
from respipe.jpeg.index import (
    MARKER,
    OFFSET_BYTES,
    SIGNATURE,
    fitting_interval,
    read_index,
    with_index,
)
from tests.memory_dataset import smooth_image

_PLACE = 20
"""Where the index begins: after SOI and a JFIF segment of 18 bytes."""


def encoded(height: int, width: int, *, mode: str = "RGB", interval: int = 2, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = smooth_image(height, width, seed=height).convert(mode)
    image.save(buffer, "JPEG", **{"subsampling": "4:2:0", **options}, restart_marker_blocks=interval)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


@given(st.integers(1, 300), st.integers(1, 300))
def test_interval_is_the_largest_that_divides_a_row(num_columns: int, wanted: int) -> None:
    divisors = [number for number in range(1, num_columns + 1) if num_columns % number == 0]
    assert fitting_interval(num_columns, wanted) == max(number for number in divisors if number <= wanted)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize(("height", "width", "interval"), [(40, 70, 1), (96, 64, 2), (33, 129, 5), (1, 1, 1)])
def test_index_tells_where_each_interval_lies(
    mode: str, subsampling: str, height: int, width: int, interval: int
) -> None:
    data = encoded(height, width, mode=mode, subsampling=subsampling, interval=interval)
    indexed = with_index(data)
    header = read_header(indexed)
    offsets = read_index(indexed)
    assert offsets is not None
    scan = indexed[header.scan_start :]
    assert scan == data[read_header(data).scan_start :]
    assert offsets[0] == 0
    assert offsets[-1] == len(scan)
    assert len(offsets) == header.num_intervals + 1
    for number, end in enumerate(offsets[1:].tolist()):
        marker = 0xD9 if number == len(offsets) - 2 else 0xD0 + number % 8
        assert scan[end - 2 : end] == bytes((0xFF, marker))
    np.testing.assert_array_equal(pixels(indexed), pixels(data))


def test_index_comes_after_jfif_as_one_segment() -> None:
    data = encoded(40, 70)
    indexed = with_index(data)
    count = read_header(data).num_intervals
    assert indexed[:_PLACE] == data[:_PLACE]
    length = 2 + len(SIGNATURE) + OFFSET_BYTES * (count + 1)
    assert indexed[_PLACE:].startswith(bytes((0xFF, MARKER)) + length.to_bytes(2, "big") + SIGNATURE)
    assert indexed[_PLACE + 2 + length :] == data[_PLACE:]


def test_jpeg_without_the_promised_markers_is_refused() -> None:
    data = encoded(40, 70)
    with pytest.raises(JpegError, match="markers in its scan"):
        with_index(data[:-2])
    with pytest.raises(JpegError, match="markers in its scan"):
        with_index(data.replace(b"\xff\xd1", b"\xff\xd2", 1))
    with pytest.raises(JpegError, match="markers in its scan where 0 are expected"):
        with_index(encoded(40, 70, interval=0))
    with pytest.raises(JpegError, match="begins with"):
        with_index(b"no JPEG")


def test_index_that_no_segment_can_hold_is_left_out() -> None:
    data = encoded(1200, 1200, interval=1, subsampling="4:4:4", quality=20)
    assert read_header(data).num_intervals == 22500
    assert with_index(data) is data
    assert read_index(data) is None


def test_index_of_another_image_is_not_taken() -> None:
    one, other = with_index(encoded(40, 70)), encoded(40, 120)
    length = int.from_bytes(one[_PLACE + 2 : _PLACE + 4], "big")
    foreign = other[:_PLACE] + one[_PLACE : _PLACE + 2 + length] + other[_PLACE:]
    assert read_index(one) is not None
    assert read_index(foreign) is None


def test_other_segments_are_not_mistaken_for_an_index() -> None:
    indexed = with_index(encoded(40, 70))
    length = int.from_bytes(indexed[_PLACE + 2 : _PLACE + 4], "big")
    index = indexed[_PLACE : _PLACE + 2 + length]
    plain = indexed[:_PLACE] + indexed[_PLACE + len(index) :]
    # A comment that quotes an index, as the thumbnail of a tiled image might, and an APP10 segment of someone else.
    comment = b"\xff\xfe" + (2 + len(index)).to_bytes(2, "big") + index
    assert read_index(plain[:_PLACE] + comment + plain[_PLACE:]) is None
    theirs = bytes((0xFF, MARKER, 0, 6)) + b"AROT"
    assert read_index(plain[:_PLACE] + theirs + plain[_PLACE:]) is None
    assert read_index(indexed[:_PLACE] + theirs + indexed[_PLACE:]) is not None


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_damage_gives_an_error_no_index_or_numbers(place: int, value: int) -> None:
    data = bytearray(with_index(encoded(40, 70)))
    place %= read_header(data).scan_start
    data[place] = value
    try:
        offsets = read_index(bytes(data))
    except JpegError:
        return
    assert offsets is None or len(offsets) == read_header(bytes(data)).num_intervals + 1
