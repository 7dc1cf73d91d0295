from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from respipe.rng import Stream, draws
from respipe.sampling import CenterCrop, RandomCrop, ShiftedCenterCrop, WholeImage


def no_draws(_word: int) -> NDArray[np.float64]:
    raise AssertionError("nothing is random here")


def sides(*values: int) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


def test_whole_image_is_the_image() -> None:
    boxes = WholeImage().boxes(sides(10, 7), sides(20, 7), size=224, draws=no_draws)
    assert boxes.dtype == np.float64
    assert boxes.tolist() == [[0, 0, 10, 20], [0, 0, 7, 7]]


@pytest.mark.parametrize(
    ("size", "resized"),
    [(96, 109), (128, 146), (144, 164), (160, 182), (192, 219), (224, 256), (256, 292), (288, 329), (320, 365),
     (352, 402), (384, 438), (416, 475), (448, 512), (480, 548)],
)  # fmt: skip
def test_evaluation_resizes_to_eight_sevenths(size: int, resized: int) -> None:
    assert CenterCrop().resized_side(np.array(size)) == resized


def test_evaluation_resizes_to_eight_sevenths_rounded_down_at_any_size() -> None:
    size = np.arange(1, 2000)
    assert np.array_equal(CenterCrop().resized_side(size), [8 * side // 7 for side in size.tolist()])


@pytest.mark.parametrize(("ratio", "size", "resized"), [(0.9, 90, 100), (0.7, 7, 10), (0.95, 19, 20), (1, 224, 224)])
def test_ratio_is_the_decimal_that_was_written(ratio: float, size: int, resized: int) -> None:
    assert CenterCrop(ratio).resized_side(np.array(size)) == resized


@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    size=st.integers(1, 600),
    ratio=st.sampled_from([7 / 8, 0.9, 1.0, 0.5]),
)
def test_center_crop_is_where_resize_and_center_crop_put_it(height: int, width: int, size: int, ratio: float) -> None:
    (box,) = CenterCrop(ratio).boxes(sides(height), sides(width), size=size, draws=no_draws)
    resized = math.floor(size / Fraction(str(ratio)))
    short = min(height, width)
    top, left, box_height, box_width = box
    assert box_height == box_width == pytest.approx(size * short / resized)
    # torchvision: the longer side is rounded down, the offset rounded to whole pixels; both in resized pixels.
    scale = resized / short
    assert top * scale == pytest.approx(round((int(resized * height / short) - size) / 2), abs=1.001)
    assert left * scale == pytest.approx(round((int(resized * width / short) - size) / 2), abs=1.001)
    assert top + box_height / 2 == pytest.approx(height / 2)
    assert left + box_width / 2 == pytest.approx(width / 2)
    assert min(top, left) >= -1e-9


def test_center_crop_takes_a_size_for_each_image() -> None:
    heights, widths = sides(300, 300, 200), sides(400, 400, 100)
    together = CenterCrop().boxes(heights, widths, size=np.array([224, 96, 128]), draws=no_draws)
    for row, size in enumerate([224, 96, 128]):
        alone = CenterCrop().boxes(heights[row : row + 1], widths[row : row + 1], size=size, draws=no_draws)
        assert together[row].tolist() == alone[0].tolist()


@pytest.mark.parametrize("ratio", [0, -0.5, 1.1, float("nan")])
def test_center_crop_ratio_must_be_a_share(ratio: float) -> None:
    with pytest.raises(ValueError, match="`ratio` must be above 0 and at most 1"):
        CenterCrop(ratio)


def shifted_lefts(height: int, width: int, size: int, count: int) -> NDArray[np.float64]:
    """Left edges of shifted crops, in pixels of the resized image."""
    boxes = ShiftedCenterCrop().boxes(
        np.full(count, height), np.full(count, width), size=size,
        draws=lambda word: draws(0, Stream.CROP, epoch=0, count=count, word=word),
    )  # fmt: skip
    (centred,) = CenterCrop().boxes(sides(height), sides(width), size=size, draws=no_draws)
    assert (boxes[:, [0, 2, 3]] == centred[[0, 2, 3]]).all()
    assert boxes[:, 1].min() >= 0
    assert (boxes[:, 1] + boxes[:, 3]).max() <= width
    resized = 8 * size // 7 * width // min(height, width)
    return boxes[:, 1] * resized / width


def test_shifted_crop_is_half_as_often_at_each_other_column_as_in_the_middle() -> None:
    # 256 x 256 for a crop of 224: j = 16, u is one of 0..16.
    lefts, counts = np.unique(np.rint(shifted_lefts(512, 512, 224, 17_000)), return_counts=True)
    assert lefts.tolist() == list(range(33))
    assert counts[16] == pytest.approx(1000, abs=120)
    assert np.delete(counts, 16).tolist() == pytest.approx([500] * 32, abs=90)


def test_shifted_crop_moves_on_whole_pixels_of_the_resized_image() -> None:
    lefts = shifted_lefts(300, 431, 224, 500)
    assert np.abs(lefts - np.rint(lefts)).max() < 1e-9
    assert (lefts.min(), lefts.max()) == (0, pytest.approx(256 * 431 // 300 - 224))


@pytest.mark.parametrize(("width", "free", "last"), [(36, 8, 8), (37, 9, 8), (39, 11, 11), (32, 4, 4)])
def test_shift_rounds_half_to_even_and_stays_within_the_image(width: int, free: int, last: int) -> None:
    # 32 px of height for a crop of 28. Of 9 free columns j is 4, which leaves one out; of 11 it is 6, one too many.
    assert width - 28 == free
    lefts = np.rint(shifted_lefts(32, width, 28, 400))
    assert (lefts.min(), lefts.max()) == (0, last)


def test_shifted_crop_of_a_portrait_has_the_room_of_the_shorter_side() -> None:
    lefts = shifted_lefts(500, 375, 384, 400)  # 438 px wide: no black bars
    assert (lefts.min(), np.rint(lefts.max())) == (0, 54)


def test_shifted_crop_takes_a_size_for_each_image() -> None:
    heights, widths = sides(300, 300, 200), sides(400, 400, 100)
    uniforms = draws(0, Stream.CROP, epoch=0, count=3)
    together = ShiftedCenterCrop().boxes(heights, widths, size=np.array([224, 96, 128]), draws=lambda _: uniforms)
    for row, size in enumerate([224, 96, 128]):
        rows = slice(row, row + 1)
        alone = ShiftedCenterCrop().boxes(heights[rows], widths[rows], size=size, draws=lambda _, r=rows: uniforms[r])
        assert together[row].tolist() == alone[0].tolist()


def random_crop_boxes(crop: RandomCrop, height: int, width: int, count: int) -> NDArray[np.float64]:
    return crop.boxes(
        np.full(count, height),
        np.full(count, width),
        size=16,
        draws=lambda word: draws(0, Stream.CROP, epoch=0, count=count, word=word),
    )


def test_random_crop_reaches_every_offset_equally() -> None:
    boxes = random_crop_boxes(RandomCrop(32, padding=4), 32, 34, 9000)
    assert (boxes[:, 2:] == 32).all()
    # Expected 1000 of each of 9 rows and 818 of each of 11 columns, standard deviations 30 and 27.
    tops, counts = np.unique(boxes[:, 0], return_counts=True)
    assert tops.tolist() == list(range(-4, 5))
    assert counts.tolist() == pytest.approx([1000] * 9, abs=120)
    lefts, counts = np.unique(boxes[:, 1], return_counts=True)
    assert lefts.tolist() == list(range(-4, 7))
    assert counts.tolist() == pytest.approx([9000 / 11] * 11, abs=110)
    assert abs(np.corrcoef(boxes[:, 0], boxes[:, 1])[0, 1]) < 0.04


def test_random_crop_without_room_is_the_image() -> None:
    assert random_crop_boxes(RandomCrop(32), 32, 32, 2).tolist() == [[0, 0, 32, 32]] * 2


def test_random_crop_must_fit_into_the_padded_image() -> None:
    assert random_crop_boxes(RandomCrop(32, padding=2), 28, 40, 1)[0, 0] == -2
    with pytest.raises(ValueError, match=r"`size` must be at most 31, .* got 32"):
        RandomCrop(32, padding=2).boxes(sides(50, 27), sides(50, 40), size=16, draws=no_draws)


@pytest.mark.parametrize(("size", "padding", "field"), [(0, 0, "size"), (32, -1, "padding")])
def test_random_crop_fields_are_checked(size: int, padding: int, field: str) -> None:
    with pytest.raises(ValueError, match=f"`{field}` must be at least"):
        RandomCrop(size, padding)
