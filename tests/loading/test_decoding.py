"""Damaged samples: found before or while decoding, raised or left out, and never replaced by wrong pixels."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch

from respipe.backends.base import ReadJob
from respipe.backends.pool import PooledBackend
from respipe.backends.reference import decode_part
from respipe.backends.routing import route
from respipe.errors import CorruptImageError
from respipe.loading.corruption import CorruptionGuard, OnCorrupt
from respipe.loading.decoding import decode_in_order
from respipe.loading.read_ahead import Kernel
from respipe.planning.batch import BatchPlan
from respipe.schedules.step import Step
from tests.memory_dataset import MemoryDataset


def plans(dataset: MemoryDataset, *, batch_size: int = 4, size: int = 16, decimation: int = 1) -> list[BatchPlan]:
    """Whole images in stored order."""
    level = dataset.levels[0]
    return [
        BatchPlan(
            step=Step((size,), batch_size, decimation=decimation),
            epoch=0,
            number=number,
            indices=(rows := np.arange(start, start + batch_size)),
            boxes=np.stack([0 * rows, 0 * rows, level.heights[rows], level.widths[rows]], axis=1).astype(np.float64),
            flips=rows % 2 == 0,
        )
        for number, start in enumerate(range(0, len(dataset), batch_size))
    ]


def guard(
    dataset: MemoryDataset, on_corrupt: OnCorrupt = "raise", *, budget: int = 10, training: bool = True
) -> CorruptionGuard:
    return CorruptionGuard(dataset, on_corrupt=on_corrupt, budget=budget, keep_length=training)


def decode(dataset: MemoryDataset, corruption_guard: CorruptionGuard) -> list[tuple[list[int], torch.Tensor]]:
    backend = PooledBackend("reference", dataset, decode_part, device=torch.device("cpu"), num_threads=2)
    try:
        decoded = decode_in_order(backend, dataset, corruption_guard, plans(dataset), kernel=Kernel(()))
        return [(plan.indices.tolist(), images[0]) for plan, images in decoded]
    finally:
        backend.close()


@pytest.fixture
def sound() -> dict[int, torch.Tensor]:
    """Every sample's pixels when nothing is damaged."""
    batches = decode(MemoryDataset([(40, 30)] * 12), guard(MemoryDataset([(40, 30)] * 12)))
    return {index: image for indices, images in batches for index, image in zip(indices, images, strict=True)}


def test_batches_come_in_plan_order(sound: dict[int, torch.Tensor]) -> None:
    assert list(sound) == list(range(12))


@pytest.mark.parametrize("checksums", [True, False])
def test_a_damaged_sample_is_raised_by_name(checksums: bool) -> None:
    dataset = MemoryDataset([(40, 30)] * 12, checksums=checksums)
    dataset.damage(6)
    with pytest.raises(CorruptImageError, match=r"sample 6.*folder/6\.jpg") as caught:
        decode(dataset, guard(dataset))
    assert caught.value.index == 6


@pytest.mark.parametrize("checksums", [True, False])
def test_quarantine_in_training_puts_the_next_sound_sample_in_its_place(
    checksums: bool, sound: dict[int, torch.Tensor]
) -> None:
    dataset = MemoryDataset([(40, 30)] * 12, checksums=checksums)
    for index in (0, 6, 7, 11):
        dataset.damage(index)
    quarantine = guard(dataset, "quarantine")
    batches = decode(dataset, quarantine)
    assert [indices for indices, _ in batches] == [[1, 1, 2, 3], [4, 5, 4, 4], [8, 9, 10, 8]]
    for indices, images in batches:
        for index, image in zip(indices, images, strict=True):
            assert torch.equal(image, sound[index])
    assert sorted(quarantine.damaged) == [0, 6, 7, 11]


@pytest.mark.parametrize("checksums", [True, False])
def test_quarantine_in_evaluation_shortens_the_batch(checksums: bool) -> None:
    dataset = MemoryDataset([(40, 30)] * 12, checksums=checksums)
    dataset.damage(5)
    batches = decode(dataset, guard(dataset, "quarantine", training=False))
    assert [indices for indices, _ in batches] == [[0, 1, 2, 3], [4, 6, 7], [8, 9, 10, 11]]
    assert [len(images) for _, images in batches] == [4, 3, 4]


def test_the_budget_bounds_what_is_left_out() -> None:
    dataset = MemoryDataset([(40, 30)] * 12)
    for index in (1, 5, 9):
        dataset.damage(index)
    with pytest.raises(CorruptImageError, match="sample 9"):
        decode(dataset, guard(dataset, "quarantine", budget=2))


def test_a_batch_without_a_sound_sample_is_raised() -> None:
    dataset = MemoryDataset([(40, 30)] * 12)
    for index in (4, 5, 6, 7):
        dataset.damage(index)
    with pytest.raises(CorruptImageError, match="Every sample of a batch"):
        decode(dataset, guard(dataset, "quarantine"))


def test_only_the_level_that_is_read_is_checked() -> None:
    dataset = MemoryDataset([(64, 64)] * 4, fractions=(0.5,))
    dataset.damage(2, level=0)
    assert len(decode(dataset, guard(dataset))) == 1  # 16 px crops are read from the 32 px level
    dataset.damage(2, level=1)
    with pytest.raises(CorruptImageError, match="sample 2"):
        decode(dataset, guard(dataset))


@pytest.mark.parametrize(("arguments", "field"), [({"on_corrupt": "skip"}, "on_corrupt"), ({"budget": -1}, "budget")])
def test_wrong_arguments_are_refused(arguments: dict[str, object], field: str) -> None:
    dataset = MemoryDataset([(8, 8)])
    with pytest.raises(ValueError, match=field):
        CorruptionGuard(
            dataset,
            **({"on_corrupt": "raise", "budget": 1, "keep_length": True} | arguments),  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("checksums", [True, False])
def test_images_to_be_decimated_come_large_with_their_own_plan_also_around_damage(
    checksums: bool, sound: dict[int, torch.Tensor]
) -> None:
    dataset = MemoryDataset([(40, 30)] * 12, checksums=checksums)
    dataset.damage(5)
    backend = PooledBackend("reference", dataset, decode_part, device=torch.device("cpu"), num_threads=2)
    try:
        planned = plans(dataset, size=8, decimation=2)
        decoded = list(decode_in_order(backend, dataset, guard(dataset, "quarantine"), planned, kernel=Kernel(())))
    finally:
        backend.close()
    assert all(plan.step == Step((8,), 4, decimation=2) for plan, _ in decoded)
    found = {i: one for plan, (images,) in decoded for i, one in zip(plan.indices.tolist(), images, strict=True)}
    assert found.keys() == sound.keys() - {5}
    assert all(torch.equal(one, sound[index]) for index, one in found.items())


class CountingBackend(PooledBackend):
    """Remembers the most batches that were in flight at once, and how many were at each ``collect``."""

    def __init__(self, dataset: MemoryDataset) -> None:
        super().__init__("reference", dataset, decode_part, device=torch.device("cpu"), num_threads=2)
        self.in_flight = self.most = 0

    def submit(self, job: ReadJob) -> None:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        super().submit(job)

    def collect(self) -> tuple[torch.Tensor, ...]:
        self.in_flight -= 1
        return super().collect()


@pytest.mark.parametrize(("size", "most"), [(8, 8), (512, 4), (1024, 2)])
def test_more_batches_are_in_flight_the_smaller_they_are(size: int, most: int) -> None:
    dataset = MemoryDataset([(40, 30)] * 48)
    with closing(CountingBackend(dataset)) as backend:
        planned = plans(dataset, size=size)
        assert backend.room(route(dataset, planned[0])) == most
        found = [plan for plan, _ in decode_in_order(backend, dataset, guard(dataset), planned, kernel=Kernel(()))]
        assert (backend.most, backend.in_flight) == (most, 0)
    assert [plan.number for plan in found] == list(range(12))
