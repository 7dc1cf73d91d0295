"""Crops cut out of compressed bytes, against decoding the whole image."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from respipe.jpeg.header import JpegError, read_header
from respipe.jpeg.index import MARKER, OFFSET_BYTES, SIGNATURE, with_index
from tests.backends.fuzzing import damaged
from tests.engines import needs_dali

cutting = pytest.importorskip("respipe.jpeg.cut", reason="Numba is not installed")

Box = tuple[int, int, int, int]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]

SUBSAMPLINGS = {"4:4:4": (8, 8), "4:2:2": (8, 16), "4:2:0": (16, 16), "gray": (8, 8)}
"""Height and width of an MCU."""
OPENCV_SUBSAMPLINGS = {"4:4:0": (16, 8), "4:1:1": (8, 32)}


def encode(
    height: int, width: int, *, subsampling: str = "4:2:0", interval: int = 1, indexed: bool = True, **options: Any
) -> bytes:
    """A JPEG of noise, so that every pixel tells, with restart markers and with or without their index."""
    rng = np.random.default_rng([height, width])
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    if subsampling in OPENCV_SUBSAMPLINGS:
        data = _encode_with_opencv(image, subsampling, interval)
    else:
        buffer = io.BytesIO()
        if subsampling == "gray":
            image = image.convert("L")
        else:
            options["subsampling"] = subsampling
        image.save(buffer, "JPEG", quality=90, restart_marker_blocks=interval, **options)
        data = buffer.getvalue()
    return with_index(data) if indexed else data


def _encode_with_opencv(image: Image.Image, subsampling: str, interval: int) -> bytes:
    cv2 = pytest.importorskip("cv2")
    factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{subsampling.replace(':', '')}")
    flags = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, factor, cv2.IMWRITE_JPEG_RST_INTERVAL, interval]
    return cv2.imencode(".jpg", np.asarray(image), flags)[1].tobytes()


def with_pillow(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def with_simplejpeg(data: bytes) -> Pixels:
    return simplejpeg.decode_jpeg(data)


def with_opencv(data: bytes) -> Pixels:
    cv2 = pytest.importorskip("cv2")
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def with_dali(data: bytes) -> Pixels:
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline() -> Any:
        return fn.decoders.image(fn.external_source(lambda: [np.frombuffer(data, np.uint8)]))

    pipe = pipeline()
    pipe.build()
    return np.array(pipe.run()[0].at(0))


DECODERS: list[Any] = [with_pillow, with_simplejpeg, with_opencv, pytest.param(with_dali, marks=needs_dali)]


def assert_cut_shows_the_box(data: bytes, box: Box, decode: Callable[[bytes], Pixels]) -> Box:
    """Returns the part of the picture that the cut shows."""
    small, part = cutting.cut(data, box)
    top, left, height, width = part
    whole, shown = decode(data), decode(small)
    assert shown.shape == (height, width, 3)
    rows = slice(max(box[0], 0), min(box[0] + box[2], len(whole)))
    columns = slice(max(box[1], 0), min(box[1] + box[3], whole.shape[1]))
    inside = shown[max(rows.start - top, 0) : rows.stop - top, max(columns.start - left, 0) : columns.stop - left]
    if rows.start < rows.stop and columns.start < columns.stop:
        np.testing.assert_array_equal(inside, whole[rows, columns])
    return part


def draw_jpeg(draw: st.DataObject, subsampling: str, mcu: tuple[int, int]) -> tuple[bytes, int, int]:
    height, width = draw.draw(st.integers(1, 100)), draw.draw(st.integers(1, 150))
    columns = -(-width // mcu[1])
    divisors = [interval for interval in range(1, columns + 1) if columns % interval == 0]
    multiples = [2 * columns, 3 * columns]
    interval = draw.draw(st.sampled_from(divisors + multiples))
    indexed = draw.draw(st.booleans())
    return encode(height, width, subsampling=subsampling, interval=interval, indexed=indexed), height, width


def draw_box(draw: st.DataObject, height: int, width: int) -> Box:
    top, left = draw.draw(st.integers(-20, height + 20)), draw.draw(st.integers(-20, width + 20))
    return top, left, draw.draw(st.integers(1, height + 10)), draw.draw(st.integers(1, width + 10))


@pytest.mark.parametrize("decode", [with_pillow, with_simplejpeg])
@pytest.mark.parametrize("subsampling", [*SUBSAMPLINGS, *OPENCV_SUBSAMPLINGS])
@settings(max_examples=150)
@given(draw=st.data())
def test_pixels_in_the_box_are_those_of_the_whole_image(
    decode: Callable[[bytes], Pixels], subsampling: str, draw: st.DataObject
) -> None:
    mcu = (SUBSAMPLINGS | OPENCV_SUBSAMPLINGS)[subsampling]
    data, height, width = draw_jpeg(draw, subsampling, mcu)
    box = draw_box(draw, height, width)
    assert_cut_shows_the_box(data, box, decode)


@pytest.mark.parametrize("decode", [with_pillow, with_simplejpeg])
@pytest.mark.parametrize(("height", "width"), [(70, 50), (34, 33), (17, 34), (35, 35), (36, 36), (37, 37), (65, 72)])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_every_single_pixel_is_that_of_the_whole_image(
    subsampling: str, height: int, width: int, decode: Callable[[bytes], Pixels]
) -> None:
    data = encode(height, width, subsampling=subsampling)
    for row in range(height):
        assert_cut_shows_the_box(data, (row, row * width // height, 1, 1), decode)
    for column in range(width):
        assert_cut_shows_the_box(data, (column * height // width, column, 1, 1), decode)


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_every_decoder_opens_a_cut(subsampling: str, decode: Callable[[bytes], Pixels]) -> None:
    data = encode(90, 130, subsampling=subsampling)
    for box in [(20, 35, 30, 41), (0, 0, 1, 1), (89, 129, 1, 1), (50, -10, 90, 40)]:
        assert_cut_shows_the_box(data, box, decode)


@pytest.mark.parametrize(
    ("box", "part"),
    [
        ((17, 17, 14, 46), (16, 0, 16, 64)),  # the next tile begins at row 32, and at column 64 and at column 0
        ((16, 17, 14, 46), (0, 0, 32, 64)),  # looks at the row above
        ((17, 17, 15, 47), (16, 0, 32, 96)),  # looks at the row below and at the column to the right
        ((33, 33, 1000, 1000), (32, 32, 68, 88)),
        ((-50, -70, 10, 10), (0, 0, 16, 32)),
        ((500, -70, 10, 10), (96, 0, 4, 32)),
        ((20, 500, 10, 10), (16, 96, 16, 24)),
    ],
)
def test_a_cut_shows_no_more_tiles_than_it_needs(box: Box, part: Box) -> None:
    data = encode(100, 120, interval=2)  # tiles of 16 x 32 pixels
    small, found = cutting.cut(data, box)
    assert found == part
    assert len(small) < len(data)


@pytest.mark.parametrize("interval", [1, 2, 4, 8, 16])
def test_an_index_changes_nothing_but_the_search(interval: int) -> None:
    data, plain = (encode(100, 120, interval=interval, indexed=indexed) for indexed in (True, False))
    for box in [(30, 40, 30, 40), (70, 100, 30, 20), (0, 0, 5, 5)]:
        assert cutting.cut(data, box) == cutting.cut(plain, box)


@pytest.mark.parametrize(
    "data",
    [
        encode(60, 80, interval=0, indexed=False),
        encode(60, 80, interval=3),  # five MCUs in a row
        encode(60, 80, interval=6),
        encode(60, 80, interval=20),  # one interval
        encode(60, 80, interval=1, indexed=False, progressive=True),
    ],
)
def test_a_jpeg_without_a_grid_of_intervals_comes_back_whole(data: bytes) -> None:
    small, part = cutting.cut(data, (10, 10, 5, 5))
    assert small is data
    assert part == (0, 0, 60, 80)


def test_a_crop_of_everything_comes_back_whole() -> None:
    data = encode(60, 80)
    assert cutting.cut(data, (1, 1, 60, 79)) == (data, (0, 0, 60, 80))


def test_metadata_that_decoding_does_not_need_are_left_out() -> None:
    data = encode(60, 80, comment=b"x" * 1000, icc_profile=b"y" * 1000, exif=b"Exif\x00\x00" + b"z" * 1000)
    assert cutting.cut(data, (10, 10, 5, 5)) == cutting.cut(encode(60, 80), (10, 10, 5, 5))


@pytest.mark.parametrize("decode", [with_pillow, with_simplejpeg])
def test_what_tells_the_colours_is_kept(decode: Callable[[bytes], Pixels]) -> None:
    data = encode(60, 80, subsampling="4:4:4", keep_rgb=True)
    assert read_header(data).colour == "rgb"
    assert_cut_shows_the_box(data, (30, 30, 10, 10), decode)


def test_restart_interval_and_marker_numbers_are_those_of_a_jpeg() -> None:
    small, part = cutting.cut(encode(100, 120, interval=2), (33, 33, 1000, 1000))
    header = read_header(small)
    assert (header.height, header.width) == part[2:]
    assert header.restart_interval == 2
    with_index(small)  # refuses markers in another order


def offset_place(data: bytes, number: int) -> int:
    return data.index(bytes((0xFF, MARKER))) + 4 + len(SIGNATURE) + OFFSET_BYTES * number


@pytest.mark.parametrize("number", [5, 6, 7])
@pytest.mark.parametrize("change", [-1, 1, 100])
def test_an_index_that_misses_the_markers_is_damage(number: int, change: int) -> None:
    data = bytearray(encode(60, 80))  # tiles 6 and 12 are cut out
    place = offset_place(data, number)
    data[place : place + 2] = (int.from_bytes(data[place : place + 2], "little") + change).to_bytes(2, "little")
    box = (17, 17, 30, 14)
    if number == 5:
        assert cutting.cut(bytes(data), box) == cutting.cut(encode(60, 80), box)
    else:
        with pytest.raises(JpegError, match="restart markers"):
            cutting.cut(bytes(data), box)


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("number", [0, 5, 6, 11])
def test_a_restart_marker_that_is_gone_is_damage(number: int, indexed: bool) -> None:
    data = encode(60, 80, indexed=indexed)  # tiles 6, 7, 11 and 12
    scan = read_header(data).scan_start
    marks = [at for at in range(scan, len(data) - 1) if data[at] == 0xFF and data[at + 1]]
    broken = bytearray(data)
    broken[marks[number] : marks[number] + 2] = b"\x12\x34"
    box = (17, 17, 30, 30)
    if indexed and number == 0:
        assert cutting.cut(bytes(broken), box) == cutting.cut(data, box)
    else:
        with pytest.raises(JpegError, match="restart markers"):
            cutting.cut(bytes(broken), box)


@pytest.mark.parametrize("indexed", [True, False])
def test_bytes_that_end_early_are_damage_where_they_are_needed(indexed: bool) -> None:
    data = encode(60, 80, indexed=indexed)
    half = data[: (read_header(data).scan_start + len(data)) // 2]
    assert cutting.cut(half, (0, 0, 5, 5)) == cutting.cut(data, (0, 0, 5, 5))
    with pytest.raises(JpegError, match="restart markers"):
        cutting.cut(half, (50, 50, 5, 5))


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xd8", b"RIFF" + bytes(100), encode(60, 80)[:300]])
def test_what_is_no_jpeg_is_refused(data: bytes) -> None:
    with pytest.raises(JpegError):
        cutting.cut(data, (0, 0, 5, 5))


def test_a_box_has_four_sides() -> None:
    with pytest.raises(ValueError, match=r"`box` must be 4 whole numbers, top, left, height, width; got \(1, 2, 3\)"):
        cutting.cut(encode(60, 80), (1, 2, 3))


@pytest.mark.parametrize("indexed", [True, False])
def test_damage_gives_an_error_or_a_jpeg_of_the_size_told(indexed: bool) -> None:
    outcomes = set[str]()
    for seed, data in enumerate(damaged(encode(60, 80, indexed=indexed), count=2000)):
        box = tuple(np.random.default_rng(seed).integers(-10, 90, 4).tolist())
        try:
            small, (_, _, height, width) = cutting.cut(data, box)
        except JpegError:
            outcomes.add("refused")
        else:
            header = read_header(small)
            assert (header.height, header.width) == (height, width)
            assert small is data or small.endswith(b"\xff\xd9")
            outcomes.add("whole" if small is data else "cut")
    assert outcomes == {"refused", "whole", "cut"}


def test_no_damage_makes_it_read_or_write_outside_its_arrays() -> None:
    command = [
        sys.executable,
        "-m",
        "tests.backends.fuzzing",
        encode(40, 50).hex(),
        encode(40, 50, indexed=False).hex(),
    ]
    result = subprocess.run(
        command, env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) == {"CUT", "WHOLE", "DAMAGED"}
