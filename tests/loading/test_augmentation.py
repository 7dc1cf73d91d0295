"""Augmented and mixed batches: the same on any number of threads and ranks, and after a resume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from respipe.augment import AugMix, ColorJitter, Cutout, Mixing, RandAugment, RandomErasing
from respipe.augment.operations import resolve
from respipe.errors import StateMismatchError
from respipe.schedules import Constant, RSNet
from tests.loaders import Mixed, flat, make
from tests.memory_dataset import MemoryDataset

EVERYTHING: dict[str, Any] = {
    "augment": (RandAugment(2, 9), ColorJitter(0.3, 0.3), RandomErasing(0.5)),
    "mixup": Mixing(0.8, 1.0, mode="elem", num_classes=10, label_smoothing=0.1),
}


@pytest.fixture(scope="module")
def dataset() -> MemoryDataset:
    return MemoryDataset([(40, 50), (48, 36)] * 12)


def raw(dataset: MemoryDataset, schedule: Any, **options: Any) -> list[Any]:
    with make(dataset, schedule, dtype=torch.uint8, normalize=None, **options) as loader:
        return list(loader)


def test_images_are_augmented_as_their_plan_says(dataset: MemoryDataset) -> None:
    plain = raw(dataset, Constant(24))
    for (before, _, _), (after, _, plan) in zip(plain, raw(dataset, Constant(24), augment=AugMix()), strict=True):
        wanted = before.permute(0, 2, 3, 1).numpy().copy()
        assert plan.augmentation is not None
        resolve(plan.augmentation, 24, (0, 0, 0)).augment(wanted, 0, len(wanted))
        assert np.array_equal(after.permute(0, 2, 3, 1).numpy(), wanted)
        assert not torch.equal(before, after)


def test_threads_and_ranks_change_nothing(dataset: MemoryDataset) -> None:
    whole = flat(iter(make(dataset, Constant(24), batch_size=8, **EVERYTHING)))
    assert flat(iter(make(dataset, Constant(24), batch_size=8, num_threads=5, **EVERYTHING))) == whole
    parts = [
        list(make(dataset, Constant(24), batch_size=8, rank=rank, world_size=2, **EVERYTHING)) for rank in range(2)
    ]
    for (images, labels, _), first, second in zip(
        make(dataset, Constant(24), batch_size=8, **EVERYTHING), *parts, strict=True
    ):
        assert torch.equal(torch.cat([first[0], second[0]]), images)
        assert torch.equal(torch.cat([first[1], second[1]]), labels)


def test_a_run_with_everything_resumes_bit_for_bit_at_any_step(dataset: MemoryDataset) -> None:
    whole = make(dataset, Mixed(), **EVERYTHING)
    batches = flat(iter(whole))
    second = flat(iter(whole))
    assert batches != second
    for step in range(1, len(batches)):
        begun = make(dataset, Mixed(), **EVERYTHING)
        iterator = iter(begun)
        for _ in range(step):
            next(iterator)
        resumed = make(dataset, Mixed(), **EVERYTHING)
        resumed.load_state_dict(begun.state_dict())
        assert flat(iter(resumed)) == batches[step:]


def test_another_policy_is_another_run(dataset: MemoryDataset) -> None:
    state = make(dataset, **EVERYTHING).state_dict()
    for change in ({"augment": ()}, {"augment": (RandAugment(2, 8),)}, {"mixup": 0.0}, {"mixup": 0.8, "cutmix": 1.0}):
        with pytest.raises(StateMismatchError):
            make(dataset, **(EVERYTHING | change)).load_state_dict(state)


def test_sizes_of_a_step_are_augmented_and_mixed_alike(dataset: MemoryDataset) -> None:
    options = {"augment": Cutout(16), "cutmix": 1.0, "normalize": "cifar10", "dtype": torch.float32}
    for (large, small), labels, plan in make(dataset, RSNet((32, 16)), **options):
        holes = [(images.abs() < 0.02).all(dim=1).float() for images in (large, small)]
        assert plan.augmentation is not None and holes[0].any()
        pooled = torch.nn.functional.avg_pool2d(holes[0][:, None], 2)[:, 0]
        assert (pooled - holes[1]).abs().mean() < 0.05
        assert labels.shape == (4, 3) and torch.allclose(labels.sum(dim=1), torch.ones(4))


def test_copies_of_a_sample_are_augmented_each_in_its_own_way(dataset: MemoryDataset) -> None:
    for _, _, plan in make(dataset, Mixed(), augment=ColorJitter(0.5)):
        assert plan.augmentation is not None
        assert len(np.unique(plan.augmentation.values[:, :, 0].max(axis=1))) == len(plan)
    loader = make(dataset, Constant(16), repeats=2, augment=ColorJitter(0.5))
    plans = [plan for _, _, plan in loader]
    factors = np.concatenate([plan.augmentation.values[:, :, 0].max(axis=1) for plan in plans])
    assert len(np.unique(factors)) == len(factors)


def test_what_cannot_be_augmented_or_mixed_is_refused(dataset: MemoryDataset) -> None:
    with pytest.raises(ValueError, match="evaluation"):
        make(dataset, Constant(24), training=False, augment=RandAugment())
    with pytest.raises(ValueError, match="multiples of 4"):
        make(dataset, Constant(24), batch_size=6, mixup=0.2, rank=0, world_size=2)
    for policy in (lambda images: images, RandAugment, [AugMix], None):
        with pytest.raises(TypeError, match="`augment`"):
            make(dataset, Constant(24), augment=policy)
    with pytest.raises(ValueError, match="`cutmix` must be left out"):
        make(dataset, Constant(24), mixup=Mixing(0.8), cutmix=1.0)
    with pytest.raises(ValueError, match=r"`num_classes` must be above every label.*got 2 for 0 to 2"):
        make(dataset, Constant(24), mixup=Mixing(0.8, num_classes=2))
    numbers = MemoryDataset([(24, 24)] * 4)
    numbers.labels = np.linspace(0, 1, 4)
    with pytest.raises(ValueError, match="must have labels to mix, classes or vectors"):
        make(numbers, Constant(24), mixup=0.8)
