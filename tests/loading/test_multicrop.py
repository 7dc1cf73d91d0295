"""Several crops of each sample: each drawn, placed, flipped and augmented on its own, and resumed like any batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from respipe.augment import AugMix, ColorJitter, Mixing, RandAugment, RandomErasing, Solarize, ThreeAugment
from respipe.augment.operations import resolve
from respipe.errors import StateMismatchError
from respipe.sampling import CenterCrop, RandomCrop, ResizedCenterCrop, WholeImage, class_balanced
from respipe.schedules import TRD, Constant, MixSize, MultiCrop, RSNet, Schedule, Step, View
from respipe.storage.fields import Column
from respipe.storage.masks import write_mask
from tests.loaders import flat, make
from tests.memory_dataset import MemoryDataset

DINO = MultiCrop([View(32, 2, scale=(0.32, 1.0)), View(16, 3, scale=(0.05, 0.32))])
EVERYTHING = MultiCrop(
    [
        View(TRD(32, 24, 0.5, unit="step"), scale=(0.3, 1.0), augment=(RandAugment(2, 9), RandomErasing(0.5))),
        View(TRD(32, 24, 0.5, unit="step"), scale=(0.3, 1.0)),
        View(16, 2, crop=RandomCrop(20, padding=2), augment=()),
    ]
)
WEIGHTS = np.arange(24) % 5 / 2
COPIES = MixSize({32: 0.4, 16: 0.6}, base_size=32, grow="duplicates", batch_multiple=4)


@pytest.fixture(scope="module")
def dataset() -> MemoryDataset:
    made = MemoryDataset([(40, 50), (48, 36)] * 12, fractions=(0.5,))
    masks = [write_mask(np.full(((40, 50), (48, 36))[i % 2], i, np.uint8)) for i in range(24)]
    made.fields = {**made.fields, "mask": Column(kind="mask", values=masks)}
    return made


def raw(dataset: MemoryDataset, schedule: Schedule, **options: Any) -> list[Any]:
    with make(dataset, schedule, dtype=torch.uint8, normalize=None, **options) as loader:
        return list(loader)


class Copies:
    """Independent copies of each sample, of one size."""

    base_size, sizes = 24, (24,)

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> list[Step]:
        return [Step((24,), batch_size, duplicates=3)] * (num_samples // batch_size)


def test_images_are_a_tuple_with_a_tensor_for_each_crop(dataset: MemoryDataset) -> None:
    with make(dataset, DINO) as loader:
        shapes = {tuple(image.shape for image in next(loader.warmup_shapes()))}
        for images, labels, plan in loader:
            assert isinstance(images, tuple)
            assert all(image.is_contiguous(memory_format=torch.channels_last) for image in images)
            assert len({image.numpy().tobytes() for image in images}) == 5
            assert [len(view) for view in plan.views] == [8, 12]
            assert len(labels) == len(plan) == 4
            shapes.add(tuple(image.shape for image in images))
    assert shapes == {((4, 3, 32, 32),) * 2 + ((4, 3, 16, 16),) * 3}


@pytest.mark.parametrize("options", [{}, {"repeats": 2}, {"weights": WEIGHTS}, {"augment": ColorJitter(0.5)}])
def test_a_single_view_is_what_a_schedule_of_that_size_shows(dataset: MemoryDataset, options: dict[str, Any]) -> None:
    one = raw(dataset, MultiCrop([View(24)]), **options)
    for (images, _, plan), (wanted, _, wanted_plan) in zip(one, raw(dataset, Constant(24), **options), strict=True):
        assert torch.equal(images, wanted)
        assert np.array_equal(plan.boxes, wanted_plan.boxes)


def test_crops_of_a_view_are_those_of_as_many_copies_of_its_sample(dataset: MemoryDataset) -> None:
    several = raw(dataset, MultiCrop([View(24, 2), View(24)]), augment=ColorJitter(0.5))
    for (images, _, plan), (copies, _, wanted) in zip(
        several, raw(dataset, Copies(), augment=ColorJitter(0.5)), strict=True
    ):
        for number, image in enumerate(images):
            assert torch.equal(image, copies[number::3])
        assert np.array_equal(plan.boxes_by_size().reshape(-1, 4), wanted.boxes)


def test_every_view_has_its_own_crop_flips_and_augmentation(dataset: MemoryDataset) -> None:
    schedule = MultiCrop([View(32, 2, scale=(0.5, 1.0)), View(16, scale=(0.05, 0.2), augment=Solarize(128))])
    flips = list[np.ndarray]()
    for images, _, plan in raw(dataset, schedule):
        large, small = plan.views
        area = np.array([40 * 50 if index % 2 == 0 else 48 * 36 for index in plan.indices])
        assert (large.boxes[:, 2:].prod(axis=1) > 0.45 * np.tile(area, 2)).all()
        assert (small.boxes[:, 2:].prod(axis=1) < 0.22 * area).all()
        assert large.augmentation is None and small.augmentation is not None
        flips.append(np.stack([*large.flips.reshape(2, -1), small.flips]))
        (before,) = raw(dataset, replace(schedule, views=(*schedule.views[:1], View(16, scale=(0.05, 0.2)))))[
            plan.number
        ][0][2:]
        wanted = before.permute(0, 2, 3, 1).numpy().copy()
        resolve(small.augmentation, 16, (0, 0, 0)).augment(wanted, 0, len(wanted))
        assert np.array_equal(images[2].permute(0, 2, 3, 1).numpy(), wanted)
    assert len(np.unique(np.concatenate(flips, axis=1), axis=1).T) > 4


def test_each_crop_is_read_from_the_smallest_level_that_serves_it(dataset: MemoryDataset) -> None:
    schedule = MultiCrop([View(40, crop=WholeImage()), View(16, crop=WholeImage())])
    for (large, small), _, plan in raw(dataset, schedule, flip_probability=0):
        for size, images in ((40, large), (16, small)):
            alone = raw(dataset, Constant(size), crop=WholeImage(), flip_probability=0)[plan.number][0]
            assert torch.equal(images, alone)


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (EVERYTHING, {"augment": (ColorJitter(0.3), RandomErasing(0.5)), "weights": WEIGHTS}),
        (EVERYTHING, {"augment": RandAugment(), "mixup": Mixing(0.8, 1.0, mode="elem"), "repeats": 2}),
        (MultiCrop([View(MixSize({32: 0.4, 16: 0.6}, base_size=32, grow="both", batch_multiple=4), 2)]), {}),
        (
            RSNet((32, 24, 24), own_crops=True),
            {"mixup": 0.8, "cutmix": 1.0, "augment": RandAugment(), "weights": WEIGHTS},
        ),
        (RSNet((32, 24)), {"mixup": 0.8, "augment": (RandAugment(), RandomErasing(0.5)), "weights": WEIGHTS}),
        (RSNet((32, 24), own_crops=True), {"cutmix": 1.0, "weights": class_balanced(np.arange(24) // 9)}),
        (COPIES, {"mixup": Mixing(0.8, 1.0, mode="pair"), "augment": AugMix(), "weights": WEIGHTS}),
        (COPIES, {"indices": range(1, 24, 2), "augment": ThreeAugment(), "weights": WEIGHTS}),
        (
            DINO,
            {
                "augment": (ColorJitter(0.3), RandomErasing()),
                "fields": ("label", "mask"),
                "weights": WEIGHTS,
                "batch_size": 6,
            },
        ),
    ],
)
def test_a_run_with_everything_resumes_bit_for_bit_on_any_number_of_ranks(
    dataset: MemoryDataset, schedule: Schedule, options: dict[str, Any]
) -> None:
    with make(dataset, schedule, **options) as whole:
        batches, second = flat(iter(whole)), flat(iter(whole))
    assert batches[0] != second[0] and len(batches) > 1
    for step in range(1, len(batches)):
        begun = make(dataset, schedule, num_threads=1, **options)
        iterator = iter(begun)
        for _ in range(step):
            next(iterator)
        resumed = make(dataset, schedule, **options)
        resumed.load_state_dict(begun.state_dict())
        assert flat(iter(resumed)) == batches[step:]
    if "repeats" in options:
        return  # whose ranks take samples in turn
    parts = [list(make(dataset, schedule, rank=rank, world_size=2, **options)) for rank in range(2)]
    for batch, first, other in zip(make(dataset, schedule, **options), *parts, strict=True):
        for one, low, high in zip(*map(tensors_of, (batch, first, other)), strict=True):
            assert torch.equal(torch.cat([low, high]), one)


def tensors_of(batch: tuple[Any, ...]) -> list[torch.Tensor]:
    """Images, labels and masks of a batch."""
    images, labels, _ = batch
    several = [images, *(labels.values() if isinstance(labels, dict) else (labels,))]
    return [tensor for one in several for tensor in (one if isinstance(one, tuple) else (one,))]


def test_a_run_goes_on_with_another_backend() -> None:
    dataset = MemoryDataset([(40, 50), (48, 36)] * 6, fractions=(0.5,), tiled=True)
    options: dict[str, Any] = {"weights": WEIGHTS[:12]}
    wanted = raw(dataset, DINO, **options)
    with make(dataset, DINO, **options) as begun:
        next(iter(begun))
        state = begun.state_dict()
    with make(dataset, DINO, backend="tiles", num_threads=3, dtype=torch.uint8, normalize=None, **options) as resumed:
        resumed.load_state_dict(state)
        for batch, expected in zip(resumed, wanted[1:], strict=True):
            assert np.array_equal(batch[2].boxes_by_size(), expected[2].boxes_by_size())
            *images, labels = tensors_of(batch)
            *others, same = tensors_of(expected)
            assert torch.equal(labels, same)
            for one, other in zip(images, others, strict=True):
                assert (one.int() - other.int()).abs().float().mean() < 1


def test_a_view_sees_beyond_its_crop_where_that_asks_for_it(dataset: MemoryDataset) -> None:
    schedule = MultiCrop([View(24, crop=ResizedCenterCrop(0.8)), View(24, crop=CenterCrop(0.8))])
    for crop in (CenterCrop(0.8), ResizedCenterCrop(0.8)):
        for images, _, plan in raw(dataset, schedule, flip_probability=0, crop=crop):
            shown = [
                raw(dataset, Constant(24), flip_probability=0, crop=view.crop)[plan.number][0]
                for view in schedule.views
            ]
            assert all(map(torch.equal, images, shown)) and not torch.equal(*images)
            assert [view.context for view in plan.views] == [True, False]
        own = raw(dataset, MultiCrop([View(24), View(16)]), flip_probability=0, crop=crop)
        assert torch.equal(own[0][0][0], raw(dataset, Constant(24), flip_probability=0, crop=crop)[0][0])


def test_other_views_are_another_run(dataset: MemoryDataset) -> None:
    state = make(dataset, DINO).state_dict()
    with pytest.raises(StateMismatchError):
        make(dataset, MultiCrop((*DINO.views, View(16, augment=Solarize(128))))).load_state_dict(state)
    with pytest.raises(StateMismatchError):
        make(dataset, RSNet((32, 16), own_crops=True)).load_state_dict(make(dataset, RSNet((32, 16))).state_dict())


def test_a_damaged_sample_is_replaced_in_every_crop() -> None:
    dataset = MemoryDataset([(40, 50), (48, 36)] * 4)
    dataset.damage(5)
    seen = 0
    for images, labels, plan in raw(dataset, DINO, on_corrupt="quarantine", augment=ColorJitter(0.5)):
        assert 5 not in plan.indices and len(labels) == 4
        for view, kind in zip(plan.views, plan.step.views, strict=True):
            assert np.array_equal(view.indices, np.tile(plan.indices, kind.count))
        assert [len(image) for image in images] == [4] * 5
        seen += 1
    assert seen == 2


def test_evaluation_shows_images_as_they_are(dataset: MemoryDataset) -> None:
    own, shared = (raw(dataset, RSNet((32, 16), own_crops=one), training=False) for one in (True, False))
    assert all(
        torch.equal(a, b) for one, other in zip(own, shared, strict=True) for a, b in zip(one[0], other[0], strict=True)
    )
    with pytest.raises(ValueError, match="in evaluation"):
        make(dataset, DINO, training=False)


def test_views_that_cannot_be_drawn_are_refused_at_once(dataset: MemoryDataset) -> None:
    with pytest.raises(TypeError, match="`augment`"):
        make(dataset, MultiCrop([View(32, augment=lambda images: images)]))
    with pytest.raises(TypeError, match="`crop`"):
        make(dataset, MultiCrop([View(32, crop=CenterCrop)]))
