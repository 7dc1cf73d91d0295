"""Any number of ranks: the same global batches, the same number of steps on all, and runs that change the number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from respipe.planning.run import RunPlan
from respipe.sampling import SamplingPolicy
from respipe.schedules import Constant, MixSize, MultiCrop, RSNet, Schedule
from respipe.storage.dataset import Dataset
from tests.loader_ranks import NUM_EPOCHS, evaluation_loader, share, training_loader
from tests.loaders import make
from tests.memory_dataset import MemoryDataset
from tests.schedules.test_contract import ALL
from tests.torchrun import torchrun

SAVED_AFTER = 8


def test_a_run_saved_on_four_ranks_continues_on_two_and_on_one(tmp_path: Path) -> None:
    with training_loader() as loader:
        expected = [share(batch) for _ in range(NUM_EPOCHS) for batch in loader]
    with evaluation_loader() as loader:
        evaluated = [share(batch) for batch in loader]

    def run(num_processes: int, state: dict[str, Any] | None, num_batches: int) -> dict[str, Any]:
        target = tmp_path / f"{num_processes}.json"
        torchrun("tests.loader_ranks", target, json.dumps(state), num_batches, num_processes=num_processes)
        return json.loads(target.read_text())

    on_four = run(4, None, SAVED_AFTER)
    assert on_four["batches"] == expected[:SAVED_AFTER]
    assert on_four["evaluated"] == evaluated
    state, *others = on_four["states"]
    assert others == [state] * 3
    assert len(json.dumps(state)) < 1024

    on_two = run(2, state, 1000)
    assert on_two["batches"] == expected[SAVED_AFTER:]
    assert on_two["evaluated"] == evaluated

    with training_loader() as loader:
        loader.load_state_dict(state)
        alone = [share(batch) for _ in range(loader.epoch, NUM_EPOCHS) for batch in loader]
    assert alone == expected[SAVED_AFTER:]


@pytest.fixture(scope="module")
def dataset() -> MemoryDataset:
    return MemoryDataset([(8 + i % 5, 8 + i % 3) for i in range(107)])


def plan_for(schedule: Schedule, dataset: Dataset, *, training: bool, batch_size: int, of: int) -> RunPlan:
    return RunPlan(
        schedule,
        dataset,
        SamplingPolicy(training=training),
        batch_size=batch_size,
        world_size=of,
    )


def steps_of(schedule: Schedule, dataset: Dataset, *, rank: int, of: int) -> list[Any]:
    """What decides how a rank takes part in each step of each epoch; at the end why it went no further, if so."""
    epochs: list[Any] = []
    try:
        plan = plan_for(schedule, dataset, training=True, batch_size=8, of=of)
        for epoch in range(14):
            steps = [
                (batch.number, batch.step, len(batch))
                for batch in plan.local_batches(epoch, 0, rank=rank, world_size=of)
            ]
            assert len(steps) == plan.num_steps(epoch)
            epochs.append(steps)
    except ValueError as error:
        epochs.append(str(error))
    return epochs


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_all_ranks_take_the_same_steps(schedule: Schedule, world_size: int, dataset: MemoryDataset) -> None:
    # So no rank takes part in a collective that another leaves out, and none fails alone.
    alone = steps_of(schedule, dataset, rank=0, of=1)
    first, *others = (steps_of(schedule, dataset, rank=rank, of=world_size) for rank in range(world_size))
    assert others == [first] * (world_size - 1)
    if isinstance(first[-1], str):
        views = (view.size for view in schedule.views) if isinstance(schedule, MultiCrop) else (schedule,)
        assert any(isinstance(one, MixSize) and (one.batch_multiple or 1) % world_size for one in views)
        assert f"{world_size} ranks can share equally" in first.pop()
    else:
        assert len(first) == len(alone) == 14
    for shared, whole in zip(first, alone, strict=False):
        assert shared == [(number, step, count // world_size) for number, step, count in whole]


@pytest.mark.parametrize("num_samples", [1, 7, 107])
@pytest.mark.parametrize("batch_size", [1, 6, 50])
@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_all_ranks_take_the_same_steps_of_an_evaluation(num_samples: int, batch_size: int, world_size: int) -> None:
    dataset = MemoryDataset([(8, 8)] * num_samples)
    plan = plan_for(Constant(8), dataset, training=False, batch_size=batch_size, of=world_size)
    batches = [list(plan.local_batches(0, 0, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert {len(part) for part in batches} == {plan.num_steps(0)} == {-(-num_samples // batch_size)}
    for parts in zip(*batches, strict=True):
        assert len({part.step for part in parts}) == 1
    seen = [index for part in batches for batch in part for index in batch.indices.tolist()]
    assert sorted(seen) == list(range(num_samples))


@pytest.mark.parametrize("num_samples", [1, 7, 12])
def test_padded_shares_are_equal_and_hold_every_sample_once(num_samples: int) -> None:
    dataset = MemoryDataset([(8 + i, 12) for i in range(num_samples)])
    options: dict[str, Any] = {"training": False, "batch_size": 6, "pad_shares": True}
    schedule = RSNet((16, 8))
    plain = list(make(dataset, schedule, **options | {"pad_shares": False}))
    for world_size in (1, 2, 3):
        ranks = [make(dataset, schedule, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
        assert {loader.num_samples for loader in ranks} == {num_samples}
        shapes = {tuple(map(len, next(loader.warmup_shapes()))) for loader in ranks}
        assert shapes == {(6 // world_size,) * 2}
        for (images, labels, _), *parts in zip(plain, *ranks, strict=True):
            assert {len(part[1]) for part in parts} == {6 // world_size}
            real = torch.cat([mask for _, _, mask, _ in parts])
            assert real.tolist() == [row < len(labels) for row in range(6)]
            assert torch.equal(torch.cat([part[1] for part in parts])[real], labels)
            for number, image in enumerate(images):
                shown = torch.cat([part[0][number] for part in parts])
                assert torch.equal(shown[real], image)
                assert torch.equal(shown, image[torch.arange(6) % len(image)])


def test_a_damaged_sample_of_a_padded_share_is_not_real() -> None:
    dataset = MemoryDataset([(16, 12)] * 7)
    dataset.damage(5)
    options: dict[str, Any] = {"training": False, "batch_size": 4, "pad_shares": True, "on_corrupt": "quarantine"}
    for _ in range(2):  # found damaged, and known to be
        seen = [
            plan.indices[mask].tolist()
            for rank in (0, 1)
            for _, labels, mask, plan in make(dataset, Constant(8), rank=rank, world_size=2, **options)
            if len(labels) == len(mask) == 2
        ]
        assert seen == [[0, 1], [4], [2, 3], [6]]


def test_shares_are_padded_in_evaluation_only() -> None:
    dataset = MemoryDataset([(16, 12)] * 7)
    with pytest.raises(ValueError, match="`pad_shares` must be False in training"):
        make(dataset, pad_shares=True)
    with pytest.raises(ValueError, match="multiple of the number of ranks"):
        make(dataset, Constant(8), training=False, pad_shares=True, batch_size=5, rank=0, world_size=2)
