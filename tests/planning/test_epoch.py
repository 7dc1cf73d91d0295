from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from respipe.planning import draws as images
from respipe.planning import epoch as epochs
from respipe.rng import Stream, draws
from respipe.sampling import (
    BatchPlan,
    CenterCrop,
    Crop,
    EpochPlan,
    RandomCrop,
    RandomResizedCrop,
    SamplingPolicy,
    WholeImage,
    plan_epoch,
)
from respipe.schedules import TRD, Constant, LowMode, MixSize, Progressive, RSNet, Schedule, Step

N = 103
rng = np.random.default_rng(0)
HEIGHTS = rng.integers(40, 90, N, dtype=np.int32)
WIDTHS = rng.integers(40, 90, N, dtype=np.int32)


@dataclass(frozen=True)
class Uneven:
    """Steps that differ in size, batch size and duplicates; one of several sizes."""

    base_size: int = 64
    sizes: tuple[int, ...] = (64, 48, 32)

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> list[Step]:
        return [
            Step((64,), batch_size),
            Step((32,), 2 * batch_size, duplicates=3),
            Step((48, 64), batch_size, duplicates=2),
            Step((32,), batch_size, mode="low"),
        ]


def plan(schedule: Schedule | None = None, **changes: Any) -> EpochPlan:
    arguments: dict[str, Any] = {
        "epoch": 2,
        "heights": HEIGHTS,
        "widths": WIDTHS,
        "batch_size": 8,
    }
    arguments |= {name: changes.pop(name) for name in arguments if name in changes}
    return plan_epoch(schedule or Constant(64), SamplingPolicy(**({"seed": 5} | changes)), **arguments)


def plan_evaluation(schedule: Schedule, *, crop: Crop, **arguments: Any) -> EpochPlan:
    return plan_epoch(schedule, SamplingPolicy(training=False, crop=crop), epoch=0, **arguments)


def same(a: BatchPlan, b: BatchPlan) -> bool:
    return (
        (a.step, a.epoch, a.number) == (b.step, b.epoch, b.number)
        and np.array_equal(a.indices, b.indices)
        and np.array_equal(a.boxes, b.boxes)
        and np.array_equal(a.flips, b.flips)
    )


def images_by_address(plan: EpochPlan) -> dict[tuple[int, int], tuple[list[float], bool]]:
    """Box and flip of every image, by sample number and copy number."""
    found: dict[tuple[int, int], tuple[list[float], bool]] = {}
    for batch in plan:
        for row, index in enumerate(batch.indices.tolist()):
            copy = row % batch.step.duplicates
            assert (index, copy) not in found
            found[index, copy] = batch.boxes[row].tolist(), bool(batch.flips[row])
    return found


def test_epoch_visits_samples_at_most_once_in_random_order() -> None:
    indices = np.concatenate([batch.indices for batch in plan()])
    assert len(plan()) == 12
    assert indices.dtype == np.int64
    assert len(set(indices.tolist())) == 96
    assert set(indices.tolist()) <= set(range(N))
    assert indices.tolist() != sorted(indices.tolist())


def test_epoch_without_shuffling_visits_the_first_samples_in_order() -> None:
    assert np.concatenate([batch.indices for batch in plan(shuffle="none")]).tolist() == list(range(96))


def test_batches_know_their_place() -> None:
    uneven = Uneven()
    for number, batch in enumerate(plan(uneven)):
        assert (batch.number, batch.epoch) == (number, 2)
        assert batch.step == uneven.steps(2, num_samples=N, batch_size=8)[number]
        assert len(batch) == batch.step.num_images


def test_copies_of_a_sample_are_adjacent_and_differ() -> None:
    batch = plan(Uneven())[1]
    grouped = batch.indices.reshape(-1, 3)
    assert (grouped == grouped[:, :1]).all()
    assert len(set(grouped[:, 0].tolist())) == 16
    boxes = batch.boxes.reshape(-1, 3, 4)
    assert (boxes[:, 0] != boxes[:, 1]).any(axis=1).all()
    assert (boxes[:, 0] != boxes[:, 2]).any(axis=1).all()


def test_box_and_flip_come_from_the_samples_own_draws() -> None:
    for (index, copy), (box, flip) in images_by_address(plan(Uneven())).items():

        def uniforms(stream: Stream, word: int, index: int = index, copy: int = copy) -> NDArray[np.float64]:
            return draws(5, stream, epoch=2, start=index, count=1, word=word, duplicate=copy)

        rows = slice(index, index + 1)
        expected = RandomResizedCrop().boxes(
            HEIGHTS[rows], WIDTHS[rows], size=64, draws=lambda word, uniforms=uniforms: uniforms(Stream.CROP, word)
        )
        assert box == expected[0].tolist()
        assert flip == (uniforms(Stream.FLIP, 0)[0, 0] < 0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"shuffle": "none"},
        {"batch_size": 31},
        {"schedule": TRD(128, 32, 0.5, unit="step")},
        {"heights": HEIGHTS[:60], "widths": WIDTHS[:60]},
    ],
    ids=str,
)
def test_box_and_flip_depend_on_nothing_else(changes: dict[str, Any]) -> None:
    ours, others = images_by_address(plan()), images_by_address(plan(**changes))
    shared = ours.keys() & others.keys()
    assert len(shared) > 30
    assert all(ours[address] == others[address] for address in shared)


def test_plan_is_the_same_for_any_block_length(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(plan(Uneven()))
    monkeypatch.setattr(images, "_BLOCK", 7)
    assert all(same(a, b) for a, b in zip(plan(Uneven()), expected, strict=True))


@pytest.mark.parametrize("change", [{"seed": 6}, {"epoch": 3}], ids=str)
def test_seed_and_epoch_change_order_boxes_and_flips(change: dict[str, Any]) -> None:
    ours, others = plan(), plan(**change)
    assert ours.samples.tolist() != others.samples.tolist()
    ours, others = plan(shuffle="none"), plan(shuffle="none", **change)
    assert (ours.boxes != others.boxes).any(axis=1).mean() > 0.9
    assert 0.3 < (ours.flips != others.flips).mean() < 0.7


@pytest.mark.parametrize(("probability", "low", "high"), [(0, 0, 0), (1, 1, 1), (0.25, 0.21, 0.29)])
def test_flips_have_the_given_probability(probability: float, low: float, high: float) -> None:
    side = np.full(2000, 8)
    flips = plan(heights=side, widths=side, crop=WholeImage(), flip_probability=probability).flips
    assert low <= flips.mean() <= high


@pytest.mark.parametrize("probability", [-0.1, 1.1])
def test_flip_probability_is_checked(probability: float) -> None:
    with pytest.raises(ValueError, match="`flip_probability` must lie between 0 and 1"):
        plan(flip_probability=probability)


def test_crop_is_told_the_largest_size_of_each_step() -> None:
    sizes = [64, 32, 64, 32]
    for batch, size in zip(plan(Uneven(), crop=CenterCrop()), sizes, strict=True):
        expected = CenterCrop().boxes(
            HEIGHTS[batch.indices], WIDTHS[batch.indices], size=size, draws=lambda word: np.zeros((0, 4))
        )
        assert np.array_equal(batch.boxes, expected)


@pytest.mark.parametrize("crop", [CenterCrop(), RandomResizedCrop()], ids=repr)
def test_evaluation_crops_each_of_several_sizes_as_if_it_were_alone(crop: Crop) -> None:
    arguments: dict[str, Any] = {"heights": HEIGHTS, "widths": WIDTHS, "batch_size": 40, "crop": crop}
    together = plan_evaluation(RSNet((96, 50, 32)), **arguments)
    alone = [plan_evaluation(Constant(size), **arguments) for size in (96, 50, 32)]
    assert len(together) == 3
    for number, batch in enumerate(together):
        assert np.array_equal(batch.boxes, alone[0][number].boxes)
        assert np.array_equal(batch.boxes_by_size(), np.stack([plan[number].boxes for plan in alone], axis=1))
    parts = [together.local(1, rank=rank, world_size=3).boxes_by_size() for rank in range(3)]
    assert np.array_equal(np.concatenate(parts), together[1].boxes_by_size())


def test_training_crops_all_sizes_of_a_step_alike() -> None:
    batch = plan(RSNet((64, 32)), crop=CenterCrop())[0]
    assert batch.size_boxes is None
    assert np.array_equal(batch.boxes_by_size(), np.stack([batch.boxes] * 2, axis=1))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_together_hold_the_global_batch(world_size: int) -> None:
    epoch = plan(Uneven())
    for number, batch in enumerate(epoch):
        parts = [epoch.local(number, rank=rank, world_size=world_size) for rank in range(world_size)]
        assert {len(part) for part in parts} == {len(batch) // world_size}
        assert all(part.step == batch.step for part in parts)
        assert np.concatenate([part.indices for part in parts]).tolist() == batch.indices.tolist()
        assert np.concatenate([part.boxes for part in parts]).tolist() == batch.boxes.tolist()
        assert np.concatenate([part.flips for part in parts]).tolist() == batch.flips.tolist()


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
@pytest.mark.parametrize("schedule", [Constant(64), TRD(64, 32, 0.5), RSNet((64, 32))], ids=repr)
def test_sixty_four_ranks_have_equal_steps_disjoint_samples_and_the_batches_of_one(
    schedule: Schedule, shuffle: str
) -> None:
    heights, widths = np.random.default_rng(0).integers(40, 200, (2, 1000))
    epoch = plan(schedule, heights=heights, widths=widths, batch_size=128, shuffle=shuffle)
    seen: list[NDArray[np.int64]] = []
    for number, batch in enumerate(epoch):
        parts = [epoch.local(number, rank=rank, world_size=64) for rank in range(64)]
        assert all(part.step == batch.step and len(part) == len(batch) // 64 for part in parts)
        for name in ("indices", "boxes", "flips", "copies"):
            assert np.array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(batch, name))
        seen += [np.unique(part.indices) for part in parts]
    assert len(np.unique(np.concatenate(seen))) == sum(map(len, seen))


def test_ranks_get_all_copies_of_a_sample() -> None:
    part = plan(Uneven()).local(1, rank=1, world_size=4)
    assert np.bincount(part.indices)[np.unique(part.indices)].tolist() == [3] * 4


@pytest.mark.parametrize("number", [-1, 12])
def test_steps_outside_the_epoch_are_refused(number: int) -> None:
    with pytest.raises(IndexError, match="must be a step from 0 to 11"):
        plan()[number]


def test_dataset_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="`batch_size` must be at most"):
        plan(batch_size=N + 1)


@given(num_samples=st.integers(1, 60), batch_size=st.integers(1, 20), world_size=st.integers(1, 7))
def test_evaluation_sees_every_sample_once(num_samples: int, batch_size: int, world_size: int) -> None:
    heights, widths = HEIGHTS[:num_samples], WIDTHS[:num_samples]
    evaluation = plan_evaluation(Constant(32), heights=heights, widths=widths, batch_size=batch_size, crop=CenterCrop())
    assert len(evaluation) == -(-num_samples // batch_size)
    seen: list[int] = []
    for number, batch in enumerate(evaluation):
        parts = [evaluation.local(number, rank=rank, world_size=world_size) for rank in range(world_size)]
        lengths = [len(part) for part in parts]
        assert max(lengths) - min(lengths) <= 1
        assert sum(lengths) == len(batch) == batch.step.batch_size
        seen += [index for part in parts for index in part.indices.tolist()]
        assert not batch.flips.any()
    assert seen == list(range(num_samples))


def test_evaluation_crops_by_the_steps_size() -> None:
    evaluation = plan_evaluation(Constant(32), heights=HEIGHTS, widths=WIDTHS, batch_size=50, crop=CenterCrop())
    expected = CenterCrop().boxes(HEIGHTS, WIDTHS, size=32, draws=lambda word: np.zeros((0, 4)))
    assert np.array_equal(evaluation.boxes, expected)


@pytest.mark.parametrize("schedule", [Uneven(), pytest.param(None, id="short")])
def test_evaluation_refuses_schedules_that_change_the_batch(schedule: Schedule | None) -> None:
    class Short(Uneven):
        def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> list[Step]:
            return [Step((64,), batch_size)] * (num_samples // batch_size - 1)

    with pytest.raises(ValueError, match="`schedule` must have 13 steps of 8 samples without duplicates"):
        plan_evaluation(schedule or Short(), heights=HEIGHTS, widths=WIDTHS, batch_size=8, crop=CenterCrop())


@pytest.mark.parametrize(("num_samples", "batch_size"), [(0, 4), (4, 0)])
def test_evaluation_of_nothing_is_refused(num_samples: int, batch_size: int) -> None:
    side = HEIGHTS[:num_samples]
    with pytest.raises(ValueError, match="`batch_size` must be at"):
        plan_evaluation(Constant(32), heights=side, widths=side, batch_size=batch_size, crop=CenterCrop())


def digest(epoch: EpochPlan) -> str:
    parts = (epoch.samples.astype("<i8"), epoch.boxes.astype("<f8"), epoch.flips)
    steps = repr(list(epoch.steps)).encode()
    return hashlib.sha256(b"".join([*(part.tobytes() for part in parts), steps])).hexdigest()[:16]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": Constant(64)}, "dcd472adb0f98178"),
        ({"schedule": Uneven(), "crop": RandomResizedCrop(scale=(0.3, 1), ratio=(0.2, 7))}, "2f1bdeca6ea36fcb"),
        ({"schedule": Uneven(), "crop": RandomCrop(32, padding=4)}, "d9fa26f290d4048a"),
        ({"schedule": Uneven(), "crop": CenterCrop(0.9)}, "4d015a9e701ceb47"),
        ({"schedule": Uneven(), "crop": WholeImage(), "flip_probability": 0.3, "seed": 2**64 - 1}, "8cad7a7fbaf71786"),
        ({"schedule": MixSize("S28", seed=3), "epoch": 7}, "3ba67752f05c7aab"),
        ({"schedule": TRD(64, (32, 48), 0.5, unit="step", seed=4), "epoch": 9}, "56366626e2cf29f7"),
        ({"schedule": LowMode(64, seed=5), "epoch": 1}, "b8ad9b0cbbcb4437"),
        ({"schedule": RSNet((64, 48, 32))}, "77fa09a9137fac63"),
        ({"schedule": Progressive(32, 64, start_epoch=0, end_epoch=9, multiple=8)}, "25a1c2621e0fd252"),
    ],
    ids=["resized", "wide", "padded", "centred", "whole", "mixsize", "trd", "lowmode", "rsnet", "progressive"],
)
def test_plans_are_the_same_on_every_machine(changes: dict[str, Any], expected: str) -> None:
    # Only what IEEE 754 defines to the last bit goes into them, on x86-64 as on aarch64: +, -, *, / and square roots,
    # each rounded on its own. No exponential or logarithm of the platform's, and no sum over an array.
    assert digest(plan(**changes)) == expected


def streams(epoch: EpochPlan, world_size: int) -> list[list[int]]:
    """The samples that each rank uses in an epoch, in order."""
    return [
        np.concatenate(
            [epoch.local(number, rank=rank, world_size=world_size).indices for number in range(len(epoch))]
        ).tolist()
        for rank in range(world_size)
    ]  # fmt: skip


def test_repeats_follow_each_other_and_ranks_take_them_in_turn() -> None:
    # The stream of FixRes' sampler for six samples, three repeats and two ranks, before it is filled up.
    sides = np.full(12, 50)
    epoch = plan(heights=sides, widths=sides, batch_size=4, repeats=3, shuffle="none")
    assert streams(epoch, 1) == [[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]]
    assert streams(epoch, 2) == [[0, 0, 1, 2, 2, 3], [0, 1, 1, 2, 3, 3]]


def test_repeats_change_neither_the_number_of_steps_nor_that_of_images() -> None:
    epoch = plan(repeats=3)
    assert [len(batch) for batch in epoch] == [len(batch) for batch in plan()]
    (stream,) = streams(epoch, 1)
    assert len(stream) == 96
    assert [len(set(stream[start : start + 3])) for start in range(0, 96, 3)] == [1] * 32
    assert len(set(stream)) == 32
    assert stream[::3] == np.concatenate([batch.indices for batch in plan()]).tolist()[:32]


def test_repeats_are_cropped_each_on_its_own_and_the_first_as_without() -> None:
    batches = list(plan(repeats=3))
    indices, boxes = (np.concatenate(arrays) for arrays in zip(*((b.indices, b.boxes) for b in batches), strict=True))
    boxes = boxes.reshape(-1, 3, 4)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (boxes[:, first] != boxes[:, second]).any(axis=1).mean() > 0.95
    plain = images_by_address(plan(Constant(64), batch_size=1))
    assert all(plain[index, 0][0] == boxes[row, 0].tolist() for row, index in enumerate(indices[::3].tolist()))


def test_repeats_of_a_sample_in_steps_of_different_kind_have_boxes_of_their_own_step() -> None:
    epoch = plan(Uneven(), repeats=3)
    boxes = dict[int, set[tuple[float, ...]]]()
    counts = dict[int, int]()
    for batch in epoch:
        for index, box in zip(batch.indices.tolist(), batch.boxes.tolist(), strict=True):
            boxes.setdefault(index, set()).add(tuple(box))
            counts[index] = counts.get(index, 0) + 1
    # The 40 samples of the steps begin no new sample at 8, where one has 2 repeats of 1 copy and a third of 3 copies.
    assert counts[int(epoch[0].indices[-1])] == 2 * 1 + 1 * 3
    assert len(boxes[int(epoch[0].indices[-1])]) == 5
    centred = plan(Uneven(), crop=CenterCrop(), repeats=3, heights=np.full(N, 90), widths=np.full(N, 90))
    for batch in centred:
        (box,) = {tuple(box) for box in batch.boxes.tolist()}
        size = max(batch.step.sizes)
        assert box[2] == pytest.approx(90 * size / (8 * size // 7))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_divide_repeated_batches_without_rest(world_size: int) -> None:
    epoch = plan(Uneven(), repeats=3)
    for number, batch in enumerate(epoch):
        parts = [epoch.local(number, rank=rank, world_size=world_size) for rank in range(world_size)]
        copies = batch.step.duplicates
        for rank, part in enumerate(parts):
            rows = np.arange(len(batch)).reshape(-1, copies)[rank::world_size].ravel()
            assert np.array_equal(part.indices, batch.indices[rows])
            assert np.array_equal(part.boxes, batch.boxes[rows])
            assert np.array_equal(part.flips, batch.flips[rows])


def test_repeats_must_be_a_number() -> None:
    with pytest.raises(ValueError, match="`repeats` must be at least 1"):
        plan(repeats=0)


def test_plans_of_evaluations_are_the_same_on_every_machine() -> None:
    evaluation = plan_evaluation(Constant(48), heights=HEIGHTS, widths=WIDTHS, batch_size=50, crop=CenterCrop())
    assert digest(evaluation) == "5de5747af37463c8"


# Datasets of more samples than an epoch is drawn for ahead of time


@pytest.mark.parametrize("changes", [{}, {"repeats": 2, "shuffle": "none"}, {"flip_probability": 0}], ids=str)
def test_batches_drawn_when_asked_for_have_the_boxes_and_flips_of_a_whole_epoch(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"shuffle": "none", **changes}
    whole = plan(Uneven(), **changes)
    monkeypatch.setattr(epochs, "LARGE", N - 1)
    lazy = plan(Uneven(), **changes)
    assert not len(lazy.boxes)
    assert len(lazy) == len(whole)
    for one, other in zip(lazy, whole, strict=True):
        assert same(one, other)
        assert np.array_equal(one.copies, other.copies)


@pytest.mark.parametrize("changes", [{}, {"shuffle": "blocks"}, {"indices": np.arange(5, 100)}], ids=str)
def test_ranks_share_the_batches_of_a_large_dataset(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = plan(**changes)
    monkeypatch.setattr(epochs, "LARGE", N - 1)
    lazy = plan(**changes)
    assert [batch.indices.tolist() for batch in lazy] != [batch.indices.tolist() for batch in whole]
    seen = [index for batch in lazy for index in batch.indices.tolist()]
    assert len(set(seen)) == len(seen) == 8 * len(lazy)
    for world_size in (1, 2, 4):
        for number, batch in enumerate(lazy):
            parts = [lazy.local(number, rank=rank, world_size=world_size) for rank in range(world_size)]
            assert np.array_equal(np.concatenate([part.indices for part in parts]), batch.indices)
            assert np.array_equal(np.concatenate([part.boxes for part in parts]), batch.boxes)


def test_weighted_and_evaluated_samples_are_planned_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[dict[str, Any]] = [{"weights": np.arange(N)}, {"training": False, "flip_probability": 0}]
    before = [plan(**case) for case in cases]
    monkeypatch.setattr(epochs, "LARGE", N - 1)
    for case, other in zip(cases, before, strict=True):
        assert all(same(a, b) for a, b in zip(plan(**case), other, strict=True))
