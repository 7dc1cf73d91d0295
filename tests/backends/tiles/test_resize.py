"""Resizing of planes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from respipe.backends.tiles.resize import (
    Taps,
    chroma_taps,
    convert_colour,
    convert_gray,
    interleave,
    luma_taps,
    resize_rows,
    weigh_rows,
)
from tests.backends.tiles.jpegs import upsampling


def matrix(taps: Taps, length: int) -> NDArray[np.float64]:
    """(S, length): what each output pixel takes of each sample."""
    rows = np.zeros((len(taps.first), length))
    for row, first, count, weights in zip(rows, *taps[:2], taps.weights, strict=True):
        row[first : first + count] = weights[:count]
    return rows


@given(
    length=st.integers(1, 60),
    size=st.integers(1, 40),
    ratio=st.sampled_from([1, 2, 4]),
    start=st.floats(-10, 50),
    extent=st.floats(0.5, 60),
)
def test_the_chroma_filter_is_upsampling_followed_by_the_luma_filter(
    length: int, size: int, ratio: int, start: float, extent: float
) -> None:
    hull = int(np.floor(start)), int(np.ceil(start + extent))
    luma = luma_taps(start, extent, *hull, length, size)
    chroma = chroma_taps(luma, ratio, -(-length // ratio))
    expected = matrix(luma, length) @ upsampling(length, ratio)
    np.testing.assert_allclose(matrix(chroma, -(-length // ratio)), expected, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [1, 7, 8, 13, 24])
def test_rows_and_columns_are_weighed_as_the_filters_say(size: int, flip: bool) -> None:
    top, left, bands, width = 16, 8, 5, 48
    image = np.random.default_rng(size).integers(0, 256, (top + 8 * bands, left + width)).astype(np.float64)
    plane = image[top:, left:].astype(np.uint8).reshape(bands, 8, width).transpose(0, 2, 1).ravel()
    vertical = luma_taps(19.5, 30.25, 19, 50, len(image), size)
    horizontal = luma_taps(9.25, 40.5, 9, 50, image.shape[1], size)
    stride = -(-size // 8) * 8
    rows = np.zeros((8 * bands, stride), np.float32)
    scratch = np.zeros(8 * width + 64, np.float32)
    resize_rows(plane.copy(), 100.0, width, top, left, vertical, horizontal, flip, scratch, rows)
    out = np.zeros((size, stride), np.float32)
    for y in range(size):
        weigh_rows(rows, top, vertical, y, out[y])
    expected = matrix(vertical, len(image)) @ (image - 100) @ matrix(horizontal, image.shape[1]).T
    np.testing.assert_allclose(out[:, :size], expected[:, ::-1] if flip else expected, atol=1e-3)


def test_colours_are_converted_and_rounded() -> None:
    luma, blueness, redness = (
        np.array(values, np.float32) for values in ([0, 100, 255, 76.245], [0, 50, 0, -43.03], [0, -30, 0, 127.5])
    )
    line, out = np.zeros(12, np.uint8), np.zeros(12, np.uint8)
    convert_colour(luma, blueness, redness, line)
    interleave(line, out)
    np.testing.assert_array_equal(out.reshape(4, 3), [[0, 0, 0], [58, 104, 189], [255, 255, 255], [255, 0, 0]])


def test_gray_has_three_equal_channels() -> None:
    line, out = np.zeros(9, np.uint8), np.zeros(9, np.uint8)
    convert_gray(np.array([-3.0, 99.5, 300.0, 1.0], np.float32), line)
    interleave(line, out)
    np.testing.assert_array_equal(out.reshape(3, 3), [[0] * 3, [100] * 3, [255] * 3])
