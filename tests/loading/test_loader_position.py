"""Where a loader stands: the end of an epoch, superseded iterations, peeking, ranks that appear late, pickling."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
import time
from typing import Any

import numpy as np
import pytest
import torch

import respipe
from respipe.errors import StateMismatchError
from respipe.loading.loader import Loader
from respipe.model.resnet_cifar import ResNetCifar
from respipe.planning.batch import BatchPlan
from respipe.schedules import Constant, MixSize
from tests.loaders import flat, make
from tests.memory_dataset import MemoryDataset


@pytest.fixture
def dataset() -> MemoryDataset:
    return MemoryDataset([(24 + 3 * i % 17, 40 - 5 * i % 23) for i in range(21)])


def place(loader: Loader) -> tuple[int, int]:
    return loader.epoch, loader.step


# The end of an epoch


def test_the_last_batch_ends_the_epoch_also_in_the_loops_last_body(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        assert loader.last is None
        found = [(place(loader), loader.last, loader.state_dict()["step"]) for _ in loader]
        assert found == [
            ((0, 1), (0, 0), 1),
            ((0, 2), (0, 1), 2),
            ((0, 3), (0, 2), 3),
            ((0, 4), (0, 3), 4),
            ((1, 0), (0, 4), 0),
        ]


def test_taking_as_many_batches_as_an_epoch_has_walks_through_the_epochs(dataset: MemoryDataset) -> None:
    schedule = MixSize("S28", weighting="steps", batch_multiple=1)
    with make(dataset, schedule, batch_size=2) as loader:
        lengths, epochs = list[int](), list[set[int]]()
        for _ in range(4):
            lengths.append(len(loader))
            epochs.append({spec.epoch for _, _, spec in itertools.islice(loader, len(loader))})
        assert epochs == [{0}, {1}, {2}, {3}]
        assert lengths == [loader.num_steps(epoch) for epoch in range(4)]
        assert len(set(lengths)) > 1


def test_naming_the_next_epoch_in_the_last_body_lets_the_loop_end(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        for number, _ in enumerate(loader):
            if number == 4:
                loader.set_epoch(1)
        assert place(loader) == (1, 0)
        for number, _ in enumerate(loader):
            if number == 4:
                loader.set_epoch(7)
        assert place(loader) == (7, 0)


# Superseded iterations


def test_the_older_of_two_iterations_raises(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        with pytest.raises(RuntimeError, match="another iteration of the same loader has begun"):
            list(zip(loader, loader, strict=False))
        older = iter(loader)
        next(older)
        newer = flat(iter(loader))
        with pytest.raises(RuntimeError, match="Build a second loader"):
            next(older)
        assert [batch[4] for batch in newer] == [0, 1, 2, 3, 4]


def test_a_batch_taken_aside_in_a_loop_is_not_overlooked(dataset: MemoryDataset) -> None:
    with make(dataset) as loader, pytest.raises(RuntimeError, match="another iteration"):
        for _ in loader:
            next(iter(loader))


@pytest.mark.parametrize("started", [False, True])
def test_an_iteration_raises_once_another_epoch_or_position_was_chosen(dataset: MemoryDataset, started: bool) -> None:
    with make(dataset) as loader:
        state = loader.state_dict() | {"step": 3}
        for move, why in (
            (lambda: loader.set_epoch(4), "set_epoch"),
            (lambda: loader.load_state_dict(state), "load_state_dict"),
        ):
            stale = iter(loader)
            if started:
                next(stale)
            move()
            expected = loader.state_dict()
            for _ in range(2):
                with pytest.raises(RuntimeError, match=why):
                    next(stale)
            assert loader.state_dict() == expected


def test_an_iteration_that_is_through_is_through(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        batches = iter(loader)
        assert len(list(itertools.islice(batches, 5))) == 5
        list(loader)
        assert next(batches, None) is None


@pytest.mark.parametrize("returned", [None, torch.zeros(1), (1, 2, 3)])
def test_a_batch_transform_that_returns_no_pair_is_told(dataset: MemoryDataset, returned: object) -> None:
    with (
        make(dataset, batch_transform=lambda images, labels: returned) as loader,
        pytest.raises(TypeError, match=r"`batch_transform` must return \(images, labels\)"),
    ):
        next(iter(loader))


@pytest.mark.parametrize(("epoch", "error"), [(2**70, ValueError), (True, TypeError), (-1, ValueError)])
def test_an_epoch_out_of_reach_is_refused(dataset: MemoryDataset, epoch: int, error: type[Exception]) -> None:
    with make(dataset) as loader, pytest.raises(error, match="`epoch` must be"):
        loader.set_epoch(epoch)


def test_an_error_in_the_batch_transform_does_not_leave_its_batch_out(dataset: MemoryDataset) -> None:
    calls = itertools.count()

    def fail_once(images: Any, labels: torch.Tensor) -> Any:
        if next(calls) == 1:
            raise ZeroDivisionError
        return images, labels

    with make(dataset, batch_transform=fail_once) as loader:
        batches = iter(loader)
        next(batches)
        with pytest.raises(ZeroDivisionError):
            next(batches)
        assert loader.step == 1
        assert next(batches, None) is None


# Peeking and resuming


def test_a_resumed_position_survives_any_number_of_iterators(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        expected = flat(iter(loader))
        state = loader.state_dict() | {"epoch": 0, "step": 3}
        loader.load_state_dict(state)
        iter(loader)
        kept = [iter(loader) for _ in range(3)]
        assert loader.state_dict() == state
        assert flat(kept[-1]) == expected[3:]


def test_looking_at_a_loader_changes_nothing(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        expected = flat(iter(loader))
        loader.load_state_dict(loader.state_dict() | {"epoch": 0, "step": 2})
        batches = iter(loader)
        found = flat(itertools.islice(batches, 1))
        state = loader.state_dict()
        for look in (len, repr, bool, lambda one: one.total_steps(3), lambda one: list(one.warmup_shapes())):
            look(loader)
        for name in ("batch_sizes", "average_batch_size", "mean_batch_size", "wait_share", "drop_last", "last"):
            getattr(loader, name)
        for door in (loader, loader.sampler, loader.batch_sampler, loader.batch_sampler.sampler):
            door.set_epoch(0)
        assert loader.state_dict() == state
        assert found + flat(batches) == expected[2:]


def test_what_a_loader_says_of_itself(dataset: MemoryDataset) -> None:
    with make(dataset, MixSize("S28", batch_multiple=2), batch_size=2, rank=1, world_size=2) as loader:
        sizes = [step.batch_size for step in loader.schedule.steps(0, num_samples=21, batch_size=2)]
        assert list(loader.batch_sizes) == sizes
        assert loader.average_batch_size == loader.mean_batch_size == sum(sizes) / len(sizes)
        assert loader.sampler.batch_size == 1
        assert loader.batch_sampler.batch_sizes == tuple(size // 2 for size in sizes)
        assert loader.batch_sampler.average_batch_size == loader.average_batch_size / 2
        assert len(loader.batch_sampler) == len(loader)
        text = repr(loader)
        assert all(part in text for part in ("memory.beton", "21 samples", "MixSize(", "batch_size=2", "rank 1 of 2"))


def test_the_share_of_waiting_tells_slow_data_from_slow_training(dataset: MemoryDataset) -> None:
    def slow(images: Any, labels: torch.Tensor) -> Any:
        time.sleep(0.05)
        return images, labels

    with make(dataset) as loader:
        assert loader.wait_share == 0
        for _ in loader:
            time.sleep(0.2)
        assert 0 <= loader.wait_share < 0.5
    # A transform runs in the training thread, and so counts as training.
    with make(dataset, batch_transform=slow) as loader:
        list(loader)
        assert 0 <= loader.wait_share <= 1


# Ranks


def test_the_environment_decides_where_no_group_is(dataset: MemoryDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(dataset) as loader, make(dataset, rank=0, world_size=1) as alone:
        whole = flat(iter(alone))
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert [batch[5] for batch in flat(iter(loader))] == [batch[5][2:] for batch in whole]
        alone.set_epoch(0)
        assert flat(iter(alone)) == whole  # what was said wins


def test_ranks_that_change_are_noticed_by_the_next_batch(
    dataset: MemoryDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(dataset) as loader:
        batches = iter(loader)
        next(batches)
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(RuntimeError, match="began as rank 0 of 1"):
            next(batches)
        assert len(next(iter(loader))[1]) == 2


def test_ranks_that_cannot_share_the_batch_are_an_error_when_iterating(
    dataset: MemoryDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(dataset) as loader:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "3")
        with pytest.raises(ValueError, match="multiple of the number of ranks"):
            list(loader)


def test_half_an_environment_is_an_error(dataset: MemoryDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(dataset) as loader:
        monkeypatch.setenv("RANK", "1")
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        with pytest.raises(ValueError, match="RANK and WORLD_SIZE must be"):
            iter(loader)


def test_what_must_reduce_over_ranks_needs_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    model = ResNetCifar(8, width=4, num_classes=2)
    with pytest.raises(RuntimeError, match=r"`evaluate` must reach the other ranks.*init_process_group"):
        respipe.evaluate(model, "nowhere", 32)
    with pytest.raises(RuntimeError, match="`calibrate_batchnorm` must reach the other ranks"):
        respipe.calibrate_batchnorm(model, [torch.zeros(2, 3, 32, 32)], num_batches=1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    respipe.calibrate_batchnorm(model, [torch.rand(2, 3, 32, 32)], num_batches=1)


# Copies


def test_a_loader_is_neither_pickled_nor_copied(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        for take in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="Build it in the process that uses it"):
                take(loader)


def test_a_plan_is_immutable_plain_data(dataset: MemoryDataset) -> None:
    with make(dataset) as loader:
        _, _, plan = next(iter(loader))
    assert isinstance(plan, BatchPlan)
    assert not hasattr(plan, "__dataclass_fields__")  # or Lightning would take it apart
    with pytest.raises(AttributeError, match="cannot be changed"):
        plan.epoch = 3
    other = pickle.loads(pickle.dumps(plan))
    assert np.array_equal(other.boxes, plan.boxes)
    assert (other.step, len(other)) == (plan.step, len(plan))
    assert plan.replace(epoch=3).epoch == 3


def test_a_dataset_is_closed_by_whoever_opened_it(jpeg_folder: Any) -> None:
    with respipe.Loader(jpeg_folder, Constant(16), batch_size=4, backend="reference") as loader:
        dataset = loader.dataset
        for _ in range(2):
            with make(dataset) as other:
                assert len(list(other)) == len(dataset) // 4


# Batch transforms


def test_whatever_a_batch_transform_draws_from_is_seeded_and_restored(dataset: MemoryDataset) -> None:
    drawn = list[tuple[float, float, float]]()

    def draw(images: Any, labels: torch.Tensor) -> Any:
        drawn.append((torch.rand(1).item(), float(np.random.rand()), random.random()))  # noqa: NPY002
        return images, labels

    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    with make(dataset, batch_transform=draw) as loader:
        before = states()
        list(loader)
        assert states() == before
        np.random.seed(3)  # noqa: NPY002
        random.seed(4)
        torch.manual_seed(5)
        loader.load_state_dict(loader.state_dict() | {"epoch": 0, "step": 2})
        list(loader)
    assert drawn[5:] == drawn[2:5]
    assert all(len(set(numbers)) == 5 for numbers in zip(*drawn[:5], strict=True))
    with make(dataset, batch_transform=draw, rank=1, world_size=2) as other:
        next(iter(other))
    assert drawn[-1] != drawn[0]


def test_a_large_dataset_resumes_where_it_was_and_not_from_a_small_ones_state(
    dataset: MemoryDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(dataset) as loader:
        small = loader.state_dict()
    monkeypatch.setattr("respipe.planning.epoch.LARGE", 20)
    with make(dataset) as loader:
        batches = iter(loader)
        next(batches)
        state = loader.state_dict()
        expected = [spec.indices.tolist() for _, _, spec in batches]
    with make(dataset) as loader:
        loader.load_state_dict(state)
        assert [spec.indices.tolist() for _, _, spec in loader] == expected
        with pytest.raises(StateMismatchError, match="order=cipher"):
            loader.load_state_dict(small)
