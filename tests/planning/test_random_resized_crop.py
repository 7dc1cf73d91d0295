from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms import RandomResizedCrop as Torchvision

from respipe.rng import Stream, draws
from respipe.sampling import RandomResizedCrop

COUNT = 4000


def planned(crop: RandomResizedCrop, height: int, width: int, count: int = COUNT) -> NDArray[np.float64]:
    return crop.boxes(
        np.full(count, height, dtype=np.int32),
        np.full(count, width, dtype=np.int32),
        size=224,
        draws=lambda word: draws(0, Stream.CROP, epoch=0, count=count, word=word),
    )


def torchvision_boxes(crop: RandomResizedCrop, height: int, width: int, count: int = COUNT) -> NDArray[np.float64]:
    image = torch.empty(1, height, width, dtype=torch.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rows = [Torchvision.get_params(image, list(crop.scale), list(crop.ratio)) for _ in range(count)]
    return np.array(rows, dtype=np.float64)


def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Kolmogorov-Smirnov statistic of two samples: the largest gap between their distribution functions."""
    values = np.concatenate([a, b])
    below_a = np.searchsorted(np.sort(a), values, side="right") / len(a)
    below_b = np.searchsorted(np.sort(b), values, side="right") / len(b)
    return float(np.abs(below_a - below_b).max())


@pytest.mark.parametrize(
    ("crop", "height", "width"),
    [
        (RandomResizedCrop(), 375, 500),
        (RandomResizedCrop(), 500, 333),
        (RandomResizedCrop(), 100, 400),
        (RandomResizedCrop(), 900, 200),
        (RandomResizedCrop(), 5, 4),
        (RandomResizedCrop(scale=(0.6, 0.9)), 200, 120),
        (RandomResizedCrop(ratio=(1 / 8, 6)), 300, 300),
        (RandomResizedCrop(scale=(0.25, 0.25), ratio=(1, 1)), 64, 48),
        (RandomResizedCrop(scale=(0.9, 1.0), ratio=(3, 4)), 100, 110),
    ],
    ids=str,
)
def test_boxes_are_distributed_as_torchvisions(crop: RandomResizedCrop, height: int, width: int) -> None:
    ours, theirs = planned(crop, height, width), torchvision_boxes(crop, height, width)
    # 1.95 sqrt(2 / n) is exceeded by chance once in a thousand.
    limit = 1.95 * math.sqrt(2 / COUNT)
    for column in range(4):
        assert distance(ours[:, column], theirs[:, column]) < limit
    assert distance(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]) < limit
    assert distance(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]) < limit
    assert distance(ours[:, 0] - ours[:, 1], theirs[:, 0] - theirs[:, 1]) < limit
    assert distance(ours[:, :2].sum(axis=1), theirs[:, :2].sum(axis=1)) < limit


@pytest.mark.parametrize(
    ("height", "width", "fallback"),
    [(10, 100, [0, 43, 10, 13]), (100, 10, [43, 0, 13, 10]), (30, 100, [0, 30, 30, 40]), (100, 30, [30, 0, 40, 30])],
)
def test_box_that_never_fits_falls_back_to_the_centre(height: int, width: int, fallback: list[int]) -> None:
    crop = RandomResizedCrop(scale=(1, 1))
    assert planned(crop, height, width, count=5).tolist() == [fallback] * 5
    assert torchvision_boxes(crop, height, width, count=5).tolist() == [fallback] * 5


def test_image_of_an_allowed_shape_falls_back_to_itself() -> None:
    # A single pixel is cropped to nothing wherever the area rounds to less than half a pixel.
    crop = RandomResizedCrop(scale=(0.01, 0.02))
    assert planned(crop, 1, 1, count=3).tolist() == [[0, 0, 1, 1]] * 3


def test_boxes_are_whole_pixels_within_the_image() -> None:
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(1, 700, (2, 5000), dtype=np.int32)
    boxes = RandomResizedCrop().boxes(
        heights, widths, size=112, draws=lambda word: draws(3, Stream.CROP, epoch=1, count=5000, word=word)
    )
    assert boxes.shape == (5000, 4)
    assert np.array_equal(boxes, np.round(boxes))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] >= 1).all()
    assert (boxes[:, 0] + boxes[:, 2] <= heights).all()
    assert (boxes[:, 1] + boxes[:, 3] <= widths).all()


def test_box_depends_on_its_own_row_only() -> None:
    rng = np.random.default_rng(0)
    heights, widths = rng.integers(20, 700, (2, 60))
    uniforms = {word: draws(3, Stream.CROP, epoch=1, count=60, word=word) for word in range(10)}
    together = RandomResizedCrop().boxes(heights, widths, size=112, draws=uniforms.__getitem__)
    for row in range(60):
        rows = slice(row, row + 1)
        alone = RandomResizedCrop().boxes(
            heights[rows], widths[rows], size=56, draws=lambda word, rows=rows: uniforms[word][rows]
        )
        assert alone[0].tolist() == together[row].tolist()


@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (0.01, 50), (2, 2), (1, 1e6)])
def test_aspect_ratio_is_the_exponential_of_a_uniform_logarithm(ratio: tuple[float, float]) -> None:
    # Boxes of a huge image are so large that rounding to pixels hides nothing.
    count, side = 300, 10**13
    image = np.full(count, side, dtype=np.int64)
    uniforms = draws(0, Stream.CROP, epoch=0, count=count)
    boxes = RandomResizedCrop(scale=(1e-7, 1e-7), ratio=ratio).boxes(image, image, size=8, draws=lambda word: uniforms)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    expected = [math.exp(low + (high - low) * u) for u in uniforms[:, 1].tolist()]
    assert (boxes[:, 3] / boxes[:, 2]).tolist() == pytest.approx(expected, rel=1e-6)


def test_later_attempts_are_drawn_only_where_needed() -> None:
    asked: list[int] = []

    def record(word: int) -> NDArray[np.float64]:
        asked.append(word)
        return np.full((1, 4), 0.5 if word >= 2 else 1 - 2**-53)

    # Nearly the whole area at the widest ratio is wider than this image; a good half of it, nearly square, fits.
    RandomResizedCrop(scale=(0.2, 1)).boxes(np.array([100]), np.array([110]), size=8, draws=record)
    assert asked == [0, 1, 2]


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("scale", {"scale": (0, 1)}),
        ("scale", {"scale": (0.5, 0.4)}),
        ("scale", {"scale": (0.5, 1.1)}),
        ("scale", {"scale": (0.5,)}),
        ("ratio", {"ratio": (0, 1)}),
        ("ratio", {"ratio": (2, 1)}),
        ("ratio", {"ratio": (1, float("inf"))}),
    ],
)
def test_bad_fields_are_named(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{field}` must be two"):
        RandomResizedCrop(**arguments)


def test_lists_and_whole_numbers_make_an_equal_crop() -> None:
    crop = RandomResizedCrop(scale=[1, 1], ratio=[1, 2])
    assert crop == RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 2.0))
    assert repr(crop) == "RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 2.0))"
