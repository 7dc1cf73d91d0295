"""The weights of an antialiased resize."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

pytest.importorskip("numba", reason="Numba is not installed")

from respipe.backends.compiled.filters import reach, resize_filter

lengths, sizes = st.integers(1, 300), st.integers(1, 70)


def hull_of(start: float, extent: float) -> tuple[int, int]:
    return int(np.floor(start)), int(np.ceil(start + extent))


def triangle(distances: np.ndarray) -> np.ndarray:
    return np.maximum(1 - distances, 0)


def keys(x: np.ndarray) -> np.ndarray:
    return np.select([x < 1, x < 2], [1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * (x**3 - 5 * x**2 + 8 * x - 4)], 0)


@given(
    length=lengths, size=sizes, start=st.floats(-40, 300), extent=st.floats(0.5, 400), flip=st.booleans(),
    cubic=st.booleans(),
)  # fmt: skip
def test_weights_are_those_of_a_stretched_filter(
    length: int, size: int, start: float, extent: float, flip: bool, cubic: bool
) -> None:
    hull_start, hull_stop = hull_of(start, extent)
    found = resize_filter(start, extent, hull_start, hull_stop, length, size, flip, cubic)
    scale = max(extent / size, 1.0)
    centers = start + (np.arange(size) + 0.5) * extent / size
    places = np.arange(hull_start, hull_stop) + 0.5
    expected = (keys if cubic else triangle)(np.abs(places - centers[:: -1 if flip else 1, None]) / scale)
    expected /= expected.sum(1, keepdims=True)
    inside = (places > 0) & (places < length)
    columns = np.zeros((size, length))
    for row, first, weights in zip(columns, *found, strict=True):
        row[first : first + len(weights)] = weights
    np.testing.assert_allclose(columns[:, places[inside].astype(int)], expected[:, inside], atol=1e-4)
    assert columns.sum() == pytest.approx(expected[:, inside].sum(), abs=1e-2)


@given(length=lengths, size=sizes, start=st.integers(-40, 300), extent=st.integers(1, 400), flip=st.booleans())
def test_windows_lie_inside_the_image_and_the_hull(length: int, size: int, start: int, extent: int, flip: bool) -> None:
    found = resize_filter(start, extent, start, start + extent, length, size, flip)
    low, high = reach(found)
    assert (low, high) == (found.first.min(), (found.first + found.weights.shape[1]).max())
    assert low >= 0
    assert high <= length
    if start < length and start + extent > 0:
        assert low >= start
        assert high <= start + extent
    else:
        assert not found.weights.any()


@given(length=lengths, size=sizes, extent=st.integers(1, 300))
def test_flipped_weights_are_the_others_mirrored(length: int, size: int, extent: int) -> None:
    assume(extent <= length)
    one, other = (resize_filter(0, extent, 0, extent, length, size, flip) for flip in (False, True))
    np.testing.assert_array_equal(one.first, other.first[::-1])
    np.testing.assert_array_equal(one.weights, other.weights[::-1])
