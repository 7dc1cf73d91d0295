"""Resizing of planes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from respipe.backends.compiled.filters import Filter, resize_filter
from respipe.backends.tiles.resize import Rows, resize_columns, resize_rows
from respipe.backends.tiles.simd import BAND, PIXELS
from respipe.backends.tiles.taps import Taps, chroma_filter, fixed_point
from tests.backends.tiles.jpegs import upsampling


def matrix(taps: Filter, length: int) -> NDArray[np.float64]:
    """(S, length): what each output pixel takes of each sample."""
    rows = np.zeros((len(taps.first), length))
    for row, first, weights in zip(rows, *taps, strict=True):
        assert first >= 0
        row[first : first + len(weights)] = weights
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
    luma = resize_filter(start, extent, *hull, length, size, False)
    chroma = chroma_filter(luma, ratio, -(-length // ratio), False)
    expected = matrix(luma, length) @ upsampling(length, ratio)
    np.testing.assert_allclose(matrix(chroma, -(-length // ratio)), expected, atol=1e-5)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [1, 7, 8, 13, 16, 24, 40])
def test_rows_and_columns_are_weighed_as_the_filters_say(size: int, flip: bool) -> None:
    top, left, bands, width = 16, 8, 5, 48
    image = np.random.default_rng(size).integers(0, 256, (top + BAND * bands, left + width)).astype(np.float64)
    samples = image[top:, left:].astype(np.uint8).reshape(bands, BAND, width).transpose(0, 2, 1).ravel()
    vertical = resize_filter(19.5, 90.25, 19, 110, len(image), size, False)
    horizontal = resize_filter(9.25, 40.5, 9, 50, image.shape[1], size, flip)
    rows = np.zeros((BAND * bands, -(-size // PIXELS) * PIXELS), np.uint16)
    resize_rows(samples.copy(), width, top, left, vertical, fixed_point(horizontal, 0), 0, 1, rows)
    luma = Rows(rows, top, fixed_point(vertical, 0))
    out = np.zeros((size, size, 3), np.uint8)
    resize_columns(luma, luma, True, out)
    unflipped = resize_filter(9.25, 40.5, 9, 50, image.shape[1], size, False)
    expected = matrix(vertical, len(image)) @ image @ matrix(unflipped, image.shape[1]).T
    for channel in range(3):
        found = out[..., ::-1, channel] if flip else out[..., channel]
        np.testing.assert_allclose(found, expected, atol=0.56)


@pytest.mark.parametrize("size", [4, 16, 20])
def test_colours_are_converted_and_rounded(size: int) -> None:
    colours = [(0, 128, 128), (100, 178, 98), (255, 128, 128), (76.245, 84.97, 255), (149.685, 43.53, 20.77)]
    colours += [(0, 0, 0), (255, 255, 255), (255, 0, 0), (0, 255, 255), (128, 255, 0)]
    values = np.resize(np.array(colours, np.float32), (size, 3))
    padded = -(-size // PIXELS) * PIXELS
    identity = Taps(np.arange(size), np.full((size, 1), 0xFFFFFFFF, np.uint32), np.full(size, 0x10001, np.uint32))
    rows = np.zeros((3, size, padded), np.uint16)
    rows[:, :, :size] = np.rint(256 * values.T[:, None]).clip(0, 0xFF00)
    chroma = rows[1:].reshape(2, size, -1, PIXELS).transpose(1, 2, 0, 3).reshape(size, -1)
    out = np.zeros((size, size, 3), np.uint8)
    resize_columns(Rows(rows[0].copy(), 0, identity), Rows(chroma, 0, identity), False, out)
    to_rgb = np.array([[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]])  # ITU-T T.871
    expected = ((values - [0, 128, 128]) @ to_rgb.T).clip(0, 255)
    np.testing.assert_allclose(out, np.broadcast_to(expected, out.shape), atol=0.6)
