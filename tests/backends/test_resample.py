"""The compiled resize against Pillow's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from respipe.backends.reference import crop_and_resize
from respipe.backends.routing import hull
from tests.memory_dataset import smooth_image

resample = pytest.importorskip("respipe.backends.compiled.resample", reason="Numba is not installed").resample

side = st.integers(1, 90)


def resized(image: np.ndarray, box: np.ndarray, *, size: int, flip: bool) -> np.ndarray:
    out = np.full((size, size, 3), 77, np.uint8)
    resample(image, box, hull(box[None])[0], flip, out)
    return out


@settings(max_examples=200, deadline=None)
@given(height=side, width=side, size=st.integers(1, 70), flip=st.booleans(), data=st.data())
def test_equals_pillow_to_within_one_grey_level(
    height: int, width: int, size: int, flip: bool, data: st.DataObject
) -> None:
    image = smooth_image(height, width, seed=height * 100 + width)
    fraction = st.floats(0, 1, width=32)
    box_height, box_width = (max(1.0, data.draw(fraction) * length) for length in (height, width))
    top, left = data.draw(fraction) * (height - box_height), data.draw(fraction) * (width - box_width)
    box = np.array([top, left, box_height, box_width])
    expected = crop_and_resize(image, box, hull(box[None])[0], size=size, flip=flip)
    found = resized(np.array(image), box, size=size, flip=flip)
    assert np.abs(found.astype(int) - expected).max() <= 1


@settings(max_examples=100, deadline=None)
@given(top=st.integers(-6, 6), left=st.integers(-6, 6), size=st.sampled_from([5, 8, 16, 24]))
def test_black_lies_outside_the_image(top: int, left: int, size: int) -> None:
    image = smooth_image(16, 16, seed=1)
    box = np.array([top, left, 16, 16], np.float64)
    expected = crop_and_resize(image, box, hull(box[None])[0], size=size, flip=False)
    assert np.abs(resized(np.array(image), box, size=size, flip=False).astype(int) - expected).max() <= 1


def test_a_box_wholly_outside_the_image_is_black() -> None:
    box = np.array([20.0, 20.0, 8.0, 8.0])
    assert not resized(np.full((16, 16, 3), 255, np.uint8), box, size=4, flip=False).any()


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
def test_a_flat_image_stays_flat(value: int) -> None:
    box = np.array([0.3, 0.7, 40.1, 30.9])
    assert (resized(np.full((50, 40, 3), value, np.uint8), box, size=13, flip=True) == value).all()
