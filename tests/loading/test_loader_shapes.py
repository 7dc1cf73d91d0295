"""The loader under schedules whose batches differ in shape: copies, ranks, warming up, memory."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from respipe.loading.prefetch import BoundedBuffer
from respipe.sampling import RandomCrop
from respipe.schedules import TRD, Constant, MixSize, Progressive, Schedule
from tests.loaders import Mixed, make
from tests.memory_dataset import MemoryDataset


@pytest.fixture
def dataset() -> MemoryDataset:
    return MemoryDataset([(40 + 3 * i % 17, 60 - 5 * i % 23) for i in range(21)], fractions=(0.5,))


def test_copies_of_a_sample_are_adjacent_crops_of_their_own_with_its_label(dataset: MemoryDataset) -> None:
    with make(dataset, MixSize("S28", grow="duplicates"), normalize=None, dtype=torch.uint8) as loader:
        for images, labels, spec in loader:
            copies = spec.step.duplicates
            assert len(images) == len(labels) == spec.step.batch_size * copies
            assert labels.tolist() == dataset.labels[spec.indices].tolist()
            for start in range(0, len(images), copies):
                group = slice(start, start + copies)
                assert len(set(spec.indices[group].tolist())) == 1
                assert len({image.numpy().tobytes() for image in images[group]}) == copies
        assert {step.duplicates for step in loader.schedule.steps(0, num_samples=21, batch_size=4)} >= {1, 2, 4}


def test_a_copy_depends_on_its_sample_and_number_alone(dataset: MemoryDataset) -> None:
    """Its crop, not its pixels: another schedule shows it at another size."""

    def crops(schedule: Schedule, **options: Any) -> dict[tuple[int, int], tuple[list[float], bool]]:
        found = {}
        with make(dataset, schedule, **options) as loader:
            for _, _, spec in loader:
                for row, index in enumerate(spec.indices.tolist()):
                    copy = row % spec.step.duplicates
                    found[index, copy] = (spec.boxes[row].tolist(), bool(spec.flips[row]))
        return found

    few = crops(MixSize({32: 1.0}, base_size=32, duplicates=2))
    many = crops(MixSize({16: 1.0}, base_size=32, grow="duplicates", seed=5), batch_size=3)
    assert {copy for _, copy in few} == {0, 1}
    assert {copy for _, copy in many} == {0, 1, 2, 3}
    assert few == {key: many[key] for key in few}
    boxes = [box for box, _ in many.values()]
    assert sum(boxes.count(box) == 1 for box in boxes) > len(boxes) / 2


def test_steps_of_a_run_and_their_mean_batch_are_those_that_come(dataset: MemoryDataset) -> None:
    schedule = MixSize("S28", weighting="steps", batch_multiple=1)
    with make(dataset, schedule, batch_size=2) as loader:
        lengths = list[int]()
        for _ in range(4):
            mean = loader.mean_batch_size
            sizes = [spec.step.batch_size for _, _, spec in loader]
            assert mean == sum(sizes) / len(sizes)
            lengths.append(len(sizes))
        assert len(set(lengths)) > 1
        assert loader.total_steps(4) == sum(lengths)
    with make(dataset, Constant(16), batch_size=8, training=False) as loader:
        assert (loader.mean_batch_size, loader.total_steps(2)) == (7.0, 6)


def test_warmup_shapes_are_those_of_the_batches_largest_first(dataset: MemoryDataset) -> None:
    with make(dataset, Mixed(), rank=1, world_size=2, dtype=torch.bfloat16) as loader:
        batches = [images for images, _, _ in loader]
        shapes = [
            [tuple(image.shape) for image in (images if isinstance(images, tuple) else (images,))] for images in batches
        ]
        warmup = list(loader.warmup_shapes())
    found = [[tuple(image.shape) for image in (one if isinstance(one, tuple) else (one,))] for one in warmup]
    assert found == [[(6, 3, 32, 32)], [(8, 3, 16, 16)], [(2, 3, 32, 32)], [(2, 3, 24, 24), (2, 3, 16, 16)]]
    assert sorted(found) == sorted(shapes)
    assert all(
        torch.is_tensor(one) == torch.is_tensor(other) for one, other in zip(warmup[:1], batches[3:], strict=True)
    )
    assert warmup[0].dtype == batches[0].dtype
    assert warmup[0].is_contiguous(memory_format=torch.channels_last)


def test_warmup_shapes_of_later_epochs_are_found(dataset: MemoryDataset) -> None:
    schedule = Progressive(16, 48, start_epoch=2, end_epoch=6, multiple=16)
    with make(dataset, schedule) as loader:
        assert [len(list(loader.warmup_shapes(max_epochs))) for max_epochs in (3, 4, 1000)] == [1, 2, 3]
        loader.set_epoch(6)
        assert [tuple(images.shape) for images in loader.warmup_shapes(5)] == [(4, 3, 48, 48)]
    with make(dataset, TRD(32, 16, 0.5)) as loader:
        assert [len(images) for images in loader.warmup_shapes()] == [4, 4]


@pytest.mark.filterwarnings("error")
def test_warmup_past_the_recompile_limit_warns(dataset: MemoryDataset) -> None:
    import torch._dynamo.config as config

    with config.patch(recompile_limit=8):  # some trainers raise it when they are imported
        with make(dataset, TRD(32, range(25, 32), 0.5)) as loader:
            loader.warmup_shapes()
        with (
            make(dataset, TRD(32, range(24, 32), 0.5)) as loader,
            pytest.warns(UserWarning, match="recompiled for"),
        ):
            loader.warmup_shapes()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # The largest batch of each schedule, in float32, three times; and what was asked for.
        ({}, 3 * 4 * 3 * 32**2 * 4),
        ({"dtype": torch.bfloat16, "num_prefetch": 5}, 5 * 4 * 3 * 32**2 * 2),
        ({"schedule": Mixed()}, 3 * 12 * 3 * 32**2 * 4),
        ({"schedule": Mixed(), "rank": 1, "world_size": 4}, 3 * 3 * 3 * 32**2 * 4),
        ({"prefetch_bytes": 1000}, 1000),
        ({"training": False, "schedule": Constant(16), "batch_size": 16}, 3 * 16 * 3 * 16**2 * 4),
    ],
)
def test_prefetching_is_bounded_by_the_memory_of_the_largest_batch(
    dataset: MemoryDataset, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: int
) -> None:
    capacities = list[int]()

    class Observed(BoundedBuffer[Any]):
        def __init__(self, capacity: int) -> None:
            capacities.append(capacity)
            super().__init__(capacity)

        def put(self, item: Any, size: int, **options: Any) -> bool:
            added = super().put(item, size, **options)
            assert self._total <= capacities[-1] or self._total == size
            return added

    monkeypatch.setattr("respipe.loading.prefetch.BoundedBuffer", Observed)
    with make(dataset, **options) as loader:
        list(loader)
    assert capacities == [expected]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_together_see_the_same_mix_of_sizes(world_size: int) -> None:
    dataset = MemoryDataset([(24, 30)] * 700)
    schedule = MixSize({40: 0.25, 32: 0.25, 24: 0.5}, base_size=32, grow="both")
    options = {"batch_size": 128, "crop": RandomCrop(16)}
    with make(dataset, schedule, **options) as single:
        expected = [(spec.step, spec.indices.tolist()) for _, _, spec in single]
    assert len({step for step, _ in expected}) == 3
    parts = []
    for rank in range(world_size):
        with make(dataset, schedule, rank=rank, world_size=world_size, **options) as loader:
            parts.append([(spec.step, spec.indices.tolist()) for _, _, spec in loader])
    for part in parts:
        assert [step for step, _ in part] == [step for step, _ in expected]
    for number, (_, indices) in enumerate(expected):
        assert list(itertools.chain(*(part[number][1] for part in parts))) == indices


def test_batches_that_the_ranks_cannot_share_are_refused_before_the_first_epoch(dataset: MemoryDataset) -> None:
    # 40 px comes in the third epoch, 16 px and a batch of 8 in the first.
    schedule = MixSize({40: 0.5, 16: 0.5}, base_size=16, batch_multiple=1, weighting="progressive", num_epochs=4)
    with pytest.raises(
        ValueError, match=r"`batch_size` and `schedule` must give batches that 2 ranks .* got 1 .* 40 px.*multiple=2"
    ):
        make(dataset, schedule, batch_size=8, rank=0, world_size=2)


@pytest.mark.parametrize(
    ("schedule", "batch_size", "left_out"),
    [(MixSize("S28"), 4, 14), (MixSize("S28"), 1, None), (Constant(32), 4, None), (Constant(32), 11, None)],
)
def test_a_schedule_that_leaves_out_many_samples_is_warned_of(
    dataset: MemoryDataset,
    schedule: Schedule,
    batch_size: int,
    left_out: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with make(dataset, schedule, batch_size=batch_size) as loader:
        used = sum(step.batch_size for step in loader.schedule.steps(0, num_samples=21, batch_size=batch_size))
    if left_out is None:
        assert "leaves out" not in caplog.text
    else:
        assert 21 - used == left_out
        assert f"Epoch 0 leaves out {left_out} of 21 samples" in caplog.text
