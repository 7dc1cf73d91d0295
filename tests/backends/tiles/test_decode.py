"""The planes that the tile decoder makes, against libjpeg's."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from respipe.backends.tiles.dct import quantized_cosines
from respipe.backends.tiles.decode import Region, covering_region, decode_region, lay_out_planes
from respipe.backends.tiles.entropy import SLACK, standard_lookup
from respipe.backends.tiles.simd import BAND
from respipe.jpeg.compiled_header import read_layout, read_quantizers
from tests.backends.tiles.jpegs import SUBSAMPLINGS, encode, noise, upsampling

LOOKUP = standard_lookup()


def decode(data: NDArray[np.uint8], region: Region | None = None) -> list[NDArray[np.uint8]] | None:
    """The planes of a region, by default of all, as arrays of rows; None where the data is damaged."""
    layout = read_layout(data)
    region = region or Region(0, 0, layout.rows, layout.columns)
    quantizers, cosines = np.zeros(192, np.float32), np.zeros(1536, np.float32)
    assert read_quantizers(data, layout, quantizers)
    quantized_cosines(quantizers, cosines)
    planes = lay_out_planes(layout, region)
    samples = np.full(planes.end, 77, np.uint8)
    coded, block = np.zeros(len(data) + SLACK, np.uint8), np.zeros(64, np.float32)
    if not decode_region(data, layout, region, cosines, LOOKUP, coded, block, samples):
        return None
    parts = [(0, planes.blue, planes.luma_columns)]
    if layout.components == 3:
        parts += [(planes.blue, planes.red, planes.chroma_columns), (planes.red, planes.end, planes.chroma_columns)]
    heights = [layout.mcu_height, 8, 8]
    return [
        samples[start:end]
        .reshape(-1, columns, BAND)
        .transpose(0, 2, 1)
        .reshape(-1, columns)[: (region.bottom - region.top) * height]
        for (start, end, columns), height in zip(parts, heights, strict=False)
    ]


def as_shown(plane: NDArray[np.uint8], ratios: tuple[int, int], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """A plane at the size of the image, as libjpeg upsamples it."""
    rows, columns = (upsampling(side, ratio) for side, ratio in zip(shape, ratios, strict=True))
    return rows @ plane[: rows.shape[1], : columns.shape[1]] @ columns.T


def decode_with_libjpeg(data: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Y, and Cb and Cr upsampled."""
    image = Image.open(io.BytesIO(data.tobytes()))
    image.draft("L" if image.mode == "L" else "YCbCr", image.size)
    return [np.asarray(channel) for channel in image.split()]


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@settings(max_examples=100)
@given(draw=st.data())
def test_planes_are_libjpegs_to_one_level(subsampling: str, draw: st.DataObject) -> None:
    # libjpeg repeats the chroma of images of up to four columns instead of interpolating it.
    height, width = draw.draw(st.integers(1, 70)), draw.draw(st.integers(5, 100))
    contrast = draw.draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    data = encode(
        noise(height, width, contrast=contrast),
        subsampling=subsampling,
        interval=draw.draw(st.integers(1, 9)),
        quality=draw.draw(st.sampled_from([1, 30, 75, 90, 100])),
    )
    planes, layout = decode(data), read_layout(data)
    assert planes is not None
    ratios = [(1, 1), *[(layout.mcu_height // 8, layout.mcu_width // 8)] * 2]
    for ratio, found, expected in zip(ratios, planes, decode_with_libjpeg(data), strict=False):
        # Two roundings, of the transform and of upsampling.
        assert np.abs(as_shown(found, ratio, expected.shape) - expected).max() < (1.01 if ratio == (1, 1) else 2)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@settings(max_examples=50)
@given(draw=st.data())
def test_a_region_is_that_part_of_all(subsampling: str, draw: st.DataObject) -> None:
    data = encode(noise(90, 130), subsampling=subsampling, interval=draw.draw(st.integers(1, 9)))
    layout = read_layout(data)
    top, left = draw.draw(st.integers(0, layout.rows - 1)), draw.draw(st.integers(0, layout.columns - 1))
    region = Region(
        top, left, draw.draw(st.integers(top + 1, layout.rows)), draw.draw(st.integers(left + 1, layout.columns))
    )
    whole, part = decode(data), decode(data, region)
    assert whole is not None
    assert part is not None
    sides = [(layout.mcu_height, layout.mcu_width), (8, 8), (8, 8)]
    for (high, wide), all_of_it, some in zip(sides, whole, part, strict=False):
        rows = slice(region.top * high, region.bottom * high)
        np.testing.assert_array_equal(some, all_of_it[rows, region.left * wide : region.right * wide])


def test_a_region_reaches_as_far_as_upsampling_looks() -> None:
    layout = read_layout(encode(noise(100, 120)))  # MCUs of 16 x 16
    assert covering_region(layout, 17, 17, 31, 63) == Region(0, 0, 3, 5)
    assert covering_region(layout, 18, 18, 30, 62) == Region(1, 1, 2, 4)
    assert covering_region(layout, 0, 0, 100, 120) == Region(0, 0, 7, 8)


@pytest.mark.parametrize(
    "options",
    [{"optimize": True}, {"subsampling": "4:4:4", "keep_rgb": True, "optimize": True}, {"qtables": "web_low"}],
)
def test_only_the_standard_huffman_tables_are_taken(options: dict[str, object]) -> None:
    data = encode(noise(40, 50), **options)  # type: ignore[arg-type]
    taken = read_quantizers(data, read_layout(data), np.zeros(192, np.float32))
    assert taken == ("optimize" not in options)


def test_quantisation_tables_are_those_of_the_file() -> None:
    data = encode(noise(16, 16), quality=35)
    quantizers = np.zeros(192, np.float32)
    assert read_quantizers(data, read_layout(data), quantizers)
    position = data.tobytes().index(b"\xff\xdb")
    np.testing.assert_array_equal(quantizers[:64], data[position + 5 : position + 69])


def interval_places(data: NDArray[np.uint8]) -> list[tuple[int, int]]:
    layout = read_layout(data)
    starts, ends = [layout.scan], list[int]()
    for at in range(layout.scan, len(data) - 1):
        if data[at] == 0xFF and data[at + 1] != 0:
            ends.append(at)
            starts.append(at + 2)
    return list(zip(starts, ends, strict=False))


@pytest.mark.parametrize("number", [0, 5, 11])
def test_an_interval_that_ends_early_is_damage(number: int) -> None:
    data = encode(noise(64, 48)).copy()
    start, end = interval_places(data)[number]
    data[(start + end) // 2 : end] = 0b10101010  # ends of blocks, of which there are only so many
    assert decode(data) is None


def test_an_interval_with_bits_left_over_is_damage() -> None:
    data = encode(noise(64, 48, contrast=0.1)).copy()
    start, end = interval_places(data)[3]
    data[start:end] = 0  # means of two bits and no end: every block is full long before the bytes are used up
    assert decode(data) is None


def test_a_code_that_does_not_exist_is_damage() -> None:
    data = encode(noise(64, 48)).copy()
    start, _ = interval_places(data)[7]
    data[start : start + 4] = (0xFF, 0x00, 0xFF, 0x00)
    assert decode(data) is None
