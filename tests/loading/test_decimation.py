from __future__ import annotations

import numpy as np
import pytest
import torch

import respipe
from respipe.loading.placement import blur_and_decimate
from respipe.schedules import Constant, LowMode
from tests.memory_dataset import MemoryDataset


def images(side: int = 16, *, channels: int = 3) -> torch.Tensor:
    made = torch.rand(4, channels, side, side, generator=torch.Generator().manual_seed(0))
    return made.to(memory_format=torch.channels_last)


def by_hand(rows: np.ndarray) -> np.ndarray:
    """The filter along the last axis of an array, and every other value kept."""
    padded = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(2, 2)], mode="reflect")
    taps = np.array([1, 4, 6, 4, 1]) / 16
    windows = np.lib.stride_tricks.sliding_window_view(padded, 5, axis=-1)
    return (windows * taps).sum(-1)[..., ::2]


def test_images_are_blurred_along_both_axes_and_every_other_pixel_is_kept() -> None:
    expected = by_hand(by_hand(images().numpy()).swapaxes(2, 3)).swapaxes(2, 3)
    found = blur_and_decimate(images(), 2)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_larger_ratios_repeat_it() -> None:
    torch.testing.assert_close(blur_and_decimate(images(), 4), blur_and_decimate(blur_and_decimate(images(), 2), 2))
    assert torch.equal(blur_and_decimate(images(), 1), images())


def test_kept_pixel_keeps_the_middle_weight_and_a_dropped_one_goes_to_its_neighbours() -> None:
    kept, dropped = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    kept[..., 4, 4] = dropped[..., 3, 4] = 1
    assert blur_and_decimate(kept, 2)[0, 0, 2, 2] == (6 / 16) ** 2
    assert blur_and_decimate(dropped, 2)[0, 0, 1:3, 2].tolist() == [4 / 16 * 6 / 16] * 2


def test_even_images_stay_and_the_finest_stripes_vanish() -> None:
    torch.testing.assert_close(blur_and_decimate(torch.full((1, 3, 8, 8), 0.7), 2), torch.full((1, 3, 4, 4), 0.7))
    stripes = torch.tensor([1.0, -1.0]).repeat(4).expand(1, 3, 8, 8)
    torch.testing.assert_close(blur_and_decimate(stripes, 2), torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(("ratio", "dtype"), [(2, torch.float32), (4, torch.float32), (2, torch.uint8)])
def test_loader_blurs_the_crops_that_it_would_show_at_full_size(ratio: int, dtype: torch.dtype) -> None:
    def batches(schedule: respipe.schedules.Schedule) -> list[tuple[torch.Tensor, torch.Tensor]]:
        data, normalize = MemoryDataset([(40, 30)] * 24), None if dtype == torch.uint8 else "imagenet"
        with respipe.Loader(
            data, schedule, batch_size=4, backend="reference", num_threads=1, dtype=dtype, normalize=normalize
        ) as loader:
            return list(loader)

    schedule = LowMode(32, ratio, downsample="blur")
    seen = set[int]()
    for (found, labels), (full, expected_labels) in zip(batches(schedule), batches(Constant(32)), strict=True):
        seen.add(found.shape[-1])
        expected = full
        if found.shape[-1] < 32:
            expected = blur_and_decimate(full.float(), ratio)
            expected = expected.round().to(dtype) if dtype == torch.uint8 else expected
        assert found.shape[-1] in schedule.sizes
        assert found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(labels, expected_labels)
    assert seen == set(schedule.sizes)


def test_spec_of_a_blurred_batch_is_its_own_step() -> None:
    schedule = LowMode(32, probability=1.0, downsample="blur")
    with respipe.Loader(
        MemoryDataset([(40, 30)] * 8), schedule, batch_size=4, backend="reference", num_threads=1, with_spec=True
    ) as loader:
        for number, (batch, _, spec) in enumerate(loader):
            assert batch.shape == (4, 3, 16, 16)
            assert spec.number == number
            assert spec.step == schedule.steps(0, num_samples=8, batch_size=4)[number]
            assert (spec.step.sizes, spec.step.mode, spec.step.decimation) == ((16,), "low", 2)


def test_blurred_and_antialiased_steps_are_small_alike_but_not_equal() -> None:
    shown = list[torch.Tensor]()
    for downsample in ("blur", "antialiased"):
        schedule = LowMode(32, probability=1.0, downsample=downsample)
        with respipe.Loader(
            MemoryDataset([(40, 30)] * 8), schedule, batch_size=4, backend="reference", num_threads=1
        ) as loader:
            shown.append(next(iter(loader))[0])
    blurred, antialiased = shown
    assert blurred.shape == antialiased.shape == (4, 3, 16, 16)
    assert 0 < (blurred - antialiased).abs().mean() < 0.5 * antialiased.std()
