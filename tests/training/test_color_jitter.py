"""Colour jitter: torchvision's arithmetic, drawn for each image, on values as the model takes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.transforms.v2 import functional as F

import respipe
from respipe.normalization import PRESETS
from respipe.training.batches import ColorJitter
from tests.loaders import make
from tests.memory_dataset import MemoryDataset

LABELS = torch.zeros(64, dtype=torch.int64)
CHANGES = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)


def pixels(count: int = 64, size: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, size, size, generator=generator).to(memory_format=torch.channels_last)


def jitter(images: Any, *, seed: int = 1, normalize: Any = None, strength: float = 0.5) -> Any:
    torch.manual_seed(seed)
    transform = ColorJitter(brightness=strength, contrast=strength, saturation=strength, normalize=normalize)
    result, labels = transform(images, LABELS)
    assert labels is LABELS
    return result


def test_each_image_is_changed_as_torchvision_would_by_its_own_factors_in_its_own_order() -> None:
    images = pixels()
    torch.manual_seed(1)
    factors = 0.5 + torch.rand(64, 3)
    order = torch.rand(64, 3).argsort(dim=1)
    expected = images.clone()
    for row in range(64):
        for change in order[row].tolist():
            expected[row] = CHANGES[change](expected[row], factors[row, change].item())
    assert {tuple(row) for row in order.tolist()} == {
        (0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)
    }  # fmt: skip
    torch.testing.assert_close(jitter(images), expected)


def test_one_change_alone_stays_within_its_reach() -> None:
    torch.manual_seed(0)
    images = torch.full((2000, 3, 1, 1), 0.5)
    changed, _ = ColorJitter(brightness=0.3, normalize=None)(images, LABELS)
    factors = changed[:, 0, 0, 0] / 0.5
    assert 0.7 <= factors.min() < 0.705
    assert 1.295 < factors.max() <= 1.3
    assert factors.mean() == pytest.approx(1, abs=0.02)


def test_strength_above_one_gives_no_negative_factor() -> None:
    torch.manual_seed(0)
    changed, _ = ColorJitter(brightness=2, normalize=None)(torch.full((500, 3, 1, 1), 0.3), LABELS)
    assert changed.min() >= 0
    assert changed.max() == pytest.approx(0.9, abs=0.01)


def test_nothing_changes_at_strength_zero() -> None:
    images = pixels()
    torch.testing.assert_close(jitter(images, strength=0), images)


def test_normalised_images_are_changed_as_their_pixels_would_be() -> None:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in PRESETS["imagenet"])
    images = (pixels() - mean) / std
    changed = jitter(images, normalize="imagenet")
    torch.testing.assert_close(changed * std + mean, jitter(pixels()), atol=1e-6, rtol=1e-5)
    assert changed.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(jitter(images, normalize=PRESETS["imagenet"]), changed)


def test_dtypes_stay() -> None:
    raw = (pixels() * 255).round().to(torch.uint8)
    changed = jitter(raw)
    assert changed.dtype == torch.uint8
    assert (changed - jitter(raw / 255) * 255).abs().max() <= 0.5 + 1e-3
    half = jitter(pixels().bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), jitter(pixels()), atol=0.02, rtol=0)


def test_images_given_stay() -> None:
    images = pixels()
    jitter(images)
    assert torch.equal(images, pixels())


def test_sizes_of_a_sample_are_changed_alike() -> None:
    large, small = jitter((torch.full((64, 3, 8, 8), 0.4), torch.full((64, 3, 4, 4), 0.4)))
    assert torch.allclose(large[:, :, 0, 0], small[:, :, 0, 0])
    assert large[:, 0, 0, 0].std() > 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"brightness": -0.1}, "`brightness` must be at least 0"),
        ({"saturation": float("inf")}, "`saturation` must be at least 0"),
        ({"normalize": "imagnet"}, "'imagnet'"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ColorJitter(**arguments)


def test_raw_pixels_are_not_taken_for_normalised_ones() -> None:
    with pytest.raises(ValueError, match="`normalize` must be None for uint8"):
        ColorJitter()(torch.zeros(1, 3, 2, 2, dtype=torch.uint8), LABELS)


def test_loader_jitters_the_same_way_after_a_resume() -> None:
    dataset = MemoryDataset([(40, 40)] * 12)
    transform = respipe.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3)
    with make(dataset, batch_transform=transform) as loader, make(dataset, batch_transform=transform) as other:
        iterator = iter(loader)
        next(iterator)
        other.load_state_dict(loader.state_dict())
        assert torch.equal(next(iterator)[0], next(iter(other))[0])
