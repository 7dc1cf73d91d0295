"""Resizing of planes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from respipe.backends.tiles.machine import PIXELS
from respipe.backends.tiles.resize import Plane, Taps, chroma_taps, luma_taps, resize_columns, resize_rows
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
@pytest.mark.parametrize("size", [1, 7, 8, 13, 16, 24, 40])
def test_rows_and_columns_are_weighed_as_the_filters_say(size: int, flip: bool) -> None:
    top, left, bands, width = 16, 8, 5, 48
    image = np.random.default_rng(size).integers(0, 256, (top + 8 * bands, left + width)).astype(np.float64)
    samples = image[top:, left:].astype(np.uint8).reshape(bands, 8, width).transpose(0, 2, 1).ravel()
    vertical = luma_taps(19.5, 30.25, 19, 50, len(image), size)
    horizontal = luma_taps(9.25, 40.5, 9, 50, image.shape[1], size)
    rows = np.zeros((8 * bands, -(-size // PIXELS) * PIXELS), np.float32)
    scratch = np.zeros(8 * width + 64, np.float32)
    resize_rows(samples.copy(), 100.0, width, top, left, vertical, horizontal, flip, scratch, rows)
    rows += 100  # the weights of a crop inside the image sum to one
    luma = Plane(rows, top, vertical)
    out = np.zeros((size, size, 3), np.uint8)
    resize_columns(luma, luma, luma, True, out)
    expected = matrix(vertical, len(image)) @ image @ matrix(horizontal, image.shape[1]).T
    for channel in range(3):
        found = out[..., ::-1, channel] if flip else out[..., channel]
        np.testing.assert_allclose(found, expected, atol=0.501)


@pytest.mark.parametrize("size", [4, 16, 20])
def test_colours_are_converted_and_rounded(size: int) -> None:
    colours = [(0, 0, 0), (100, 50, -30), (255, 0, 0), (76.245, -43.03, 127.5), (-9, 0, 0), (300, 0, 0)]
    values = np.resize(np.array(colours, np.float32), (size, 3))
    identity = Taps(np.arange(size), np.ones(size, np.int64), np.ones((size, 1), np.float32))
    stride = -(-size // PIXELS) * PIXELS
    rows = np.zeros((3, size, stride), np.float32)
    rows[:, :, :size] = values.T[:, None]
    luma, blueness, redness = (Plane(plane, 0, identity) for plane in rows)
    out = np.zeros((size, size, 3), np.uint8)
    resize_columns(luma, blueness, redness, False, out)
    expected = [(0, 0, 0), (58, 104, 189), (255, 255, 255), (255, 0, 0), (0, 0, 0), (255, 255, 255)]
    np.testing.assert_array_equal(out, np.broadcast_to(np.resize(expected, (size, 3)), out.shape))
