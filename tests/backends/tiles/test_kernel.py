"""Whole images through the tile decoder, against Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from respipe.backends.reference import crop_and_resize
from respipe.backends.routing import hull
from tests.backends.tiles.jpegs import SUBSAMPLINGS, decode_crops, encode, noise
from tests.memory_dataset import smooth_image


def decode(
    data: NDArray[np.uint8], shape: tuple[int, int], boxes: NDArray[np.float64], sizes: list[int], *, flip: bool = False
) -> list[NDArray[np.uint8]]:
    """(S, S, 3) uint8 at each size: a crop of one image, whose box at each size is given."""
    hulls = hull(boxes)
    start, stop = hulls[:, :2].min(0), (hulls[:, :2] + hulls[:, 2:]).max(0)
    covers = np.concatenate([start, stop - start])[None]
    outputs = tuple(np.full((1, size, size, 3), 77, np.uint8) for size in sizes)
    assert decode_crops([data], np.array([shape]), boxes[None], hulls[None], covers, np.array([flip]), outputs) == -1
    return [output[0] for output in outputs]


def expect(data: NDArray[np.uint8], box: NDArray[np.float64], size: int, *, flip: bool = False) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data.tobytes())).convert("RGB")
    return crop_and_resize(image, box, hull(box[None])[0], size=size, flip=flip)


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@settings(max_examples=60, deadline=None)
@given(draw=st.data())
def test_any_crop_of_any_image_is_pillows(subsampling: str, draw: st.DataObject) -> None:
    shape = draw.draw(st.integers(1, 90)), draw.draw(st.integers(1, 90))
    data = encode(smooth_image(*shape, seed=shape[0]), subsampling=subsampling, interval=draw.draw(st.integers(1, 5)))
    corner = [draw.draw(st.floats(-20, side - 0.5)) for side in shape]
    box = np.array([*corner, *(draw.draw(st.floats(1, side + 20)) for side in shape)])
    size, flip = draw.draw(st.integers(1, 80)), draw.draw(st.booleans())
    (found,) = decode(data, shape, box[None], [size], flip=flip)
    difference = np.abs(found.astype(int) - expect(data, box, size, flip=flip))
    assert difference.mean() <= 1
    # At the edge to what is black, colours out of range are clipped after resizing, by Pillow before.
    assert np.percentile(difference, 90) <= 2


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("height", [1, 4, 5, 40])
@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_chroma_of_narrow_images_is_upsampled_as_libjpeg_does(subsampling: str, height: int, width: int) -> None:
    data = encode(noise(height, width), subsampling=subsampling)
    box = np.array([[0, 0, height, width]], np.float64)
    (found,) = decode(data, (height, width), box, [40])
    difference = np.abs(found.astype(int) - expect(data, box[0], 40))
    # Colours out of range are clipped after resizing, by Pillow before: on noise that shows, rarely.
    assert np.percentile(difference, 75) <= 3


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
def test_a_crop_beside_another_that_alone_meets_the_image_is_black(subsampling: str) -> None:
    data = encode(smooth_image(40, 50, seed=0), subsampling=subsampling)
    boxes = np.array([[5, 5, 30, 30], [5, 60, 30, 30], [-50, 5, 30, 30]], np.float64)
    some, right, above = decode(data, (40, 50), boxes, [16, 16, 24])
    assert some.any()
    assert not right.any()
    assert not above.any()


@pytest.mark.parametrize("value", [0, 1, 127, 254, 255])
@pytest.mark.parametrize("size", [1, 3, 56, 224])
@pytest.mark.parametrize("shape", [(1, 1), (16, 1200), (700, 16), (90, 90)])
def test_an_image_of_one_grey_keeps_it(shape: tuple[int, int], size: int, value: int) -> None:
    data = encode(Image.new("RGB", (shape[1], shape[0]), (value,) * 3), interval=4)
    (found,) = decode(data, shape, np.array([[0, 0, *shape]], np.float64), [size])
    # Rounding adds up over the samples of a pixel: to a level where it draws on hundreds.
    reduction = max(shape) / size
    assert np.abs(found.astype(int) - value).max() <= (0 if reduction < 60 else np.ceil(reduction / 300))


@pytest.mark.parametrize("size", [1, 5, 31, 33, 64])
def test_nothing_is_written_beside_the_output(size: int) -> None:
    shape = 50, 60
    data = encode(smooth_image(*shape, seed=3))
    box = np.array([[3, 4, 40, 45]], np.float64)
    around = np.full((3, size, size, 3), 77, np.uint8)
    hulls = hull(box)
    flips = np.array([False])
    assert decode_crops([data], np.array([shape]), box[None], hulls[None], hulls, flips, (around[1:2],)) == -1
    assert (around[[0, 2]] == 77).all()
    assert np.abs(around[1].astype(int) - expect(data, box[0], size)).mean() <= 1
