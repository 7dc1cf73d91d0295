from __future__ import annotations

import math

import numpy as np
import pytest

import respipe
from respipe.cost.apparent_size import apparent_size_ratio, mean_crop_side, suggest_test_size
from respipe.sampling import CenterCrop, RandomResizedCrop


def test_numbers_of_the_paper() -> None:
    low, high = math.sqrt(0.08), 1.0
    assert low == pytest.approx(0.2828, abs=1e-4)
    assert mean_crop_side((0.08, 1.0)) == pytest.approx(2 / 3 * (high**3 - low**3) / (high**2 - low**2))
    assert mean_crop_side((0.08, 1.0)) == pytest.approx(0.70824, abs=5e-6)
    assert apparent_size_ratio(224) == pytest.approx(0.8094, abs=5e-5)  # the paper says about 0.80
    assert mean_crop_side() * 1.15 == pytest.approx(0.8145, abs=5e-5)
    suggestion = suggest_test_size(224)
    assert suggestion.size == 288
    assert suggestion.exact == pytest.approx(276.7, abs=0.1)
    assert suggestion.zoom == pytest.approx(1.25, abs=0.02)  # 1 / 0.80
    assert round(224 * 1.25 / 32) * 32 == suggestion.size


def test_mean_side_is_that_of_drawn_crops() -> None:
    sides = np.full(20_000, 1000)
    uniforms = np.random.default_rng(0).random((10, 20_000, 4))
    boxes = RandomResizedCrop((0.2, 0.7), ratio=(1, 1)).boxes(sides, sides, size=1, draws=uniforms.__getitem__)
    assert mean_crop_side((0.2, 0.7)) == pytest.approx(boxes[:, 2].mean() / 1000, abs=2e-3)


def test_one_area_has_its_own_side() -> None:
    assert mean_crop_side((0.25, 0.25)) == pytest.approx(0.5)
    assert mean_crop_side((1, 1)) == pytest.approx(1)


@pytest.mark.parametrize("test_size", [96, 224, 256, 288, 448])
def test_ratio_grows_with_the_side_that_evaluation_resizes_to(test_size: int) -> None:
    resized = int(CenterCrop().resized_side(np.array([test_size]))[0])
    assert apparent_size_ratio(224, test_size) == pytest.approx(mean_crop_side() * resized / 224)


def test_whole_images_in_training_and_evaluation_look_alike() -> None:
    suggestion = suggest_test_size(160, area=(1, 1), crop_ratio=1)
    assert (suggestion.ratio, suggestion.size) == (pytest.approx(1), 160)
    assert "objects look as large. At 160" in suggestion.reason


@pytest.mark.parametrize(
    ("train_size", "stride", "crop_ratio", "expected"), [(128, 32, 7 / 8, 160), (32, 4, 1, 44), (32, 8, 1, 48)]
)
def test_suggestion_is_a_multiple_of_the_stride(train_size: int, stride: int, crop_ratio: float, expected: int) -> None:
    assert suggest_test_size(train_size, stride=stride, crop_ratio=crop_ratio).size == expected


def test_the_reason_names_what_it_follows_from() -> None:
    assert suggest_test_size(224).reason == (
        "Trained at 224 px on crops of 8% to 100% of an image's area; in evaluation at 224 px objects look 0.81 times "
        "as large on average. At 224 / 0.809 = 277 px they look as large as in training; 288 px is the nearest "
        "multiple of the model's stride of 32 px."
    )


def test_both_are_found_under_cost() -> None:
    assert respipe.cost.apparent_size_ratio is apparent_size_ratio
    assert respipe.cost.suggest_test_size is suggest_test_size


@pytest.mark.parametrize("area", [(0, 1), (0.5, 0.2), (0.08, 1.5)])
def test_areas_are_checked(area: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="`area` must be two areas"):
        mean_crop_side(area)


def test_sizes_and_ratio_are_checked() -> None:
    with pytest.raises(ValueError, match="`train_size` must be at least 1"):
        apparent_size_ratio(0)
    with pytest.raises(ValueError, match="`crop_ratio` must be above 0"):
        apparent_size_ratio(224, crop_ratio=1.2)
    with pytest.raises(ValueError, match="`stride` must be at least 1"):
        suggest_test_size(224, stride=0)
