"""The inverse transform of single blocks."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from respipe.backends.tiles.dct import BASIS, COLUMNS, flat_pixel, quantized_cosines, store_block
from respipe.backends.tiles.simd import BAND


def transformed(block: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(y, x): the pixels that a block becomes, within a plane of which nothing else may change."""
    plane = np.full((3, 8, BAND), 77, np.uint8)  # as many columns on each side
    store_block(block, plane.reshape(-1), plane[0].size + 8)
    pixels = plane[1, :, 8:16].copy()
    plane[1, :, 8:16] = 77
    assert (plane == 77).all()
    assert not block.any()
    return pixels.T


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_transformed_rounded_and_clipped(seed: int) -> None:
    columns = np.random.default_rng(seed).normal(0, 200, (8, 8)).astype(np.float32)  # [frequency][y]
    expected = np.clip(columns.T.astype(np.float64) @ BASIS.reshape(8, 8) + 128, 0, 255)
    np.testing.assert_allclose(transformed(columns.ravel().copy()), expected, atol=0.51)


@pytest.mark.parametrize(("mean", "pixel"), [(1e12, 255), (-1e12, 0), (0, 128), (8**0.5, 129)])
def test_numbers_out_of_range_are_clipped(mean: float, pixel: int) -> None:
    block = np.zeros(64, np.float32)
    block[:8] = mean
    assert (transformed(block) == pixel).all()
    assert flat_pixel(np.float32(mean)) == pixel


def test_a_coefficient_adds_its_quantised_cosine() -> None:
    quantizers = np.arange(1, 193, dtype=np.float32)
    cosines = np.full(1536, 9, np.float32)
    quantized_cosines(quantizers, cosines)
    rows = cosines.reshape(3, 64, 8)
    # In zigzag order the third coefficient is the first vertical one.
    np.testing.assert_allclose(rows[1, 2], 67 * BASIS[8:16], rtol=1e-6)
    assert COLUMNS[:6].tolist() == [0, 8, 0, 0, 8, 16]
