from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from respipe.cost.usage import usage
from respipe.schedules import Constant, MixSize, Schedule, Step
from respipe.schedules.sequence import tally
from respipe.schedules.step_budget import relative_budget

CIFAR = {"num_samples": 50_000, "batch_size": 64}
IMAGENET = {"num_samples": 1_281_167, "batch_size": 256}


def counts_of(schedule: Schedule, **run: int) -> dict[int, int]:
    """Steps of each size in the first epoch."""
    return {step.sizes[0]: count for step, count in tally(schedule.steps(0, **run)).items()}


def num_steps(schedule: Schedule, num_epochs: int, **run: int) -> int:
    return usage(schedule, num_epochs=num_epochs, **run).num_steps


def size_of(schedule: MixSize, epoch: int, num_samples: int = 1000, batch_size: int = 2) -> int:
    """The only size of an epoch."""
    (step,) = set(schedule.steps(epoch, num_samples=num_samples, batch_size=batch_size))
    return step.sizes[0]


# The paper's Table 1. Its step counts are rounded to thousands.


@pytest.mark.parametrize(
    ("schedule", "num_epochs", "run", "expected"),
    [
        (Constant(32), 200, CIFAR, 156_200),
        (Constant(32), 600, CIFAR, 468_600),
        (Constant(224), 90, IMAGENET, 450_360),
        (Constant(224), 200, IMAGENET, 1_000_800),
        (MixSize("S28", rounding="pow2_ceil"), 200, CIFAR, 109_200),
        (MixSize("S28", rounding="pow2_ceil"), 600, CIFAR, 327_600),
        (MixSize("S144", rounding="pow2_ceil"), 90, IMAGENET, 168_750),
        (MixSize("S144", rounding="pow2_ceil"), 200, IMAGENET, 375_000),
        (MixSize("S28", grow="duplicates"), 200, CIFAR, 156_000),
        (MixSize("S144", grow="duplicates"), 90, IMAGENET, 450_180),
        (MixSize("S144", grow="duplicates"), 200, IMAGENET, 1_000_400),
    ],
    ids=lambda value: "" if isinstance(value, dict) else str(value),
)
def test_numbers_of_steps_are_those_of_the_papers_table(
    schedule: Schedule, num_epochs: int, run: dict[str, int], expected: int
) -> None:
    assert num_steps(schedule, num_epochs, **run) == expected


def test_steps_of_each_size_are_whole_batches_of_its_quota() -> None:
    assert counts_of(MixSize("S28", rounding="pow2_ceil"), **CIFAR) == {40: 156, 32: 234, 24: 117, 16: 39}
    assert counts_of(MixSize("S144", rounding="pow2_ceil"), **IMAGENET) == {256: 500, 224: 500, 128: 750, 96: 125}
    assert counts_of(MixSize("S28", grow="duplicates"), **CIFAR) == {40: 156, 32: 234, 24: 234, 16: 156}


@pytest.mark.parametrize(
    ("schedule", "run", "expected"),
    [
        (MixSize("S28-code", batch_multiple=1), CIFAR, 761),
        (MixSize("S28", batch_multiple=1), CIFAR, 647),
        (MixSize("S28-code", batch_multiple=1, grow="duplicates"), CIFAR, 981),
        (MixSize("S144", batch_multiple=4), IMAGENET, 2317),
    ],
)
def test_rounding_as_in_the_released_code_gives_its_numbers_of_steps(
    schedule: MixSize, run: dict[str, int], expected: int
) -> None:
    assert num_steps(schedule, 1, **run) == expected


@pytest.mark.parametrize(
    ("regime", "batch_compute", "duplicates_compute", "mean_duplicates"),
    [
        ("S144", 0.46327, 1.0020, 3.0),
        ("S28", 0.83125, 1.15, 1.9),
        # A sample at 320 px takes its full time, although its batch is smaller.
        ("S208", 0.94898, 1.1388, 1.7),
        ("S224", 1.07619, 1.2313, 1.4),
    ],
)
def test_compute_of_an_epoch_and_mean_copies_follow_from_the_probabilities(
    regime: str, batch_compute: float, duplicates_compute: float, mean_duplicates: float
) -> None:
    """Against an epoch at the base size. The samples left out of incomplete batches are worth up to 0.5 %."""

    def compute(schedule: MixSize) -> float:
        used = usage(schedule, num_epochs=1, **run)
        return used.area(schedule.base_size)[0] / run["num_samples"]

    run = CIFAR if regime == "S28" else IMAGENET
    for rounding in ("exact", "pow2_ceil"):
        assert compute(MixSize(regime, rounding=rounding)) == pytest.approx(batch_compute, rel=5e-3)
    copies = MixSize(regime, grow="duplicates")
    assert compute(copies) == pytest.approx(duplicates_compute, rel=2e-3)
    steps = tally(copies.steps(0, **run))
    samples = sum(count * step.batch_size for step, count in steps.items())
    images = sum(count * step.num_images for step, count in steps.items())
    assert images / samples == pytest.approx(mean_duplicates, rel=1e-3)


@pytest.mark.parametrize(("regime", "expected"), [("S144", 1.0020), ("S28", 1.15), ("S208", 1.0335), ("S224", 1.0910)])
def test_mean_budget_of_a_drawn_step_with_copies_is_the_published_one(regime: str, expected: float) -> None:
    schedule = MixSize(regime, grow="duplicates", weighting="steps", batch_multiple=1)
    budgets = {
        step.sizes[0]: relative_budget(step, base_size=schedule.base_size, base_images=64)
        for step in schedule._kinds(64)
    }
    mean = sum(float(share) * budgets[size] for size, share in schedule.probabilities().items())
    assert mean == pytest.approx(expected, abs=5e-5)


def test_two_copies_at_the_base_size_average_as_published() -> None:
    steps = tally(MixSize("S224", grow="duplicates", duplicates=2).steps(0, **IMAGENET))
    samples = sum(count * step.batch_size for step, count in steps.items())
    assert sum(count * step.num_images for step, count in steps.items()) / samples == pytest.approx(2.667, abs=1e-3)


# Order and epochs


def test_sizes_come_in_another_order_every_epoch_but_as_often() -> None:
    schedule = MixSize("S28")
    epochs = [[step.sizes[0] for step in schedule.steps(epoch, **CIFAR)] for epoch in range(3)]
    assert Counter(epochs[0]) == Counter(epochs[1]) == Counter(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    other_seed = [step.sizes[0] for step in MixSize("S28", seed=1).steps(0, **CIFAR)]
    assert other_seed != epochs[0]
    # Each size is spread over the whole epoch: its steps lie around the middle on average.
    for size in schedule.sizes:
        places = [number for number, found in enumerate(epochs[0]) if found == size]
        assert np.mean(places) == pytest.approx(len(epochs[0]) / 2, rel=0.2)


def test_drawn_steps_have_their_probabilities_and_use_up_the_samples() -> None:
    schedule = MixSize("S144", weighting="steps")
    counts, lengths = Counter[int](), set[int]()
    for epoch in range(5):
        steps = schedule.steps(epoch, **IMAGENET)
        counts.update(step.sizes[0] for step in steps)
        lengths.add(len(steps))
        left = IMAGENET["num_samples"] - sum(step.batch_size for step in steps)
        assert 0 <= left < 1392
    total = counts.total()
    for size, share in schedule.probabilities().items():
        assert counts[size] / total == pytest.approx(float(share), abs=0.02)
    assert len(lengths) > 1
    # N over the mean batch by probability: 145 thousand steps in 90 epochs.
    assert 90 * total / 5 == pytest.approx(145_000, rel=0.02)


@pytest.mark.parametrize(
    ("regime", "num_epochs", "expected"),
    [
        ("S144", 90, {96: 18, 128: 54, 224: 9, 256: 9}),
        ("S28", 200, {16: 40, 24: 60, 32: 60, 40: 40}),
        ("S28", 1, {32: 1}),
        ("S28", 3, {32: 1, 24: 1, 40: 1}),
    ],
)
@pytest.mark.parametrize("weighting", ["epochs", "progressive"])
def test_epochs_have_exact_quotas(weighting: Any, regime: str, num_epochs: int, expected: dict[int, int]) -> None:
    schedule = MixSize(regime, weighting=weighting, num_epochs=num_epochs)
    assert Counter(size_of(schedule, epoch) for epoch in range(num_epochs)) == expected


def test_progressive_epochs_grow_and_stay_large_after_the_planned_end() -> None:
    schedule = MixSize("S28", weighting="progressive", num_epochs=20)
    sizes = [size_of(schedule, epoch) for epoch in range(25)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 16
    assert sizes[-6:] == [40] * 6


def test_epochs_in_random_order_are_drawn_anew_after_the_planned_end() -> None:
    schedule = MixSize("S28", weighting="epochs", num_epochs=20)
    sizes = [size_of(schedule, epoch) for epoch in range(40)]
    assert sizes[:20] not in (sorted(sizes[:20]), sizes[20:])
    assert Counter(sizes[:20]) == Counter(sizes[20:])


@pytest.mark.parametrize("weighting", ["epochs", "progressive"])
def test_an_epoch_of_one_size_uses_all_samples_but_less_than_a_batch(weighting: Any) -> None:
    schedule = MixSize("S28", weighting=weighting, num_epochs=5)
    for epoch in range(5):
        (step,) = set(schedule.steps(epoch, num_samples=1000, batch_size=32))
        assert len(schedule.steps(epoch, num_samples=1000, batch_size=32)) == 1000 // step.batch_size


# Shares of samples, ranks and small datasets


@given(
    shares=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    num_samples=st.integers(200, 5000),
    batch_size=st.integers(1, 8),
)
def test_every_size_gets_its_share_of_the_samples_up_to_one_batch(
    shares: list[int], num_samples: int, batch_size: int
) -> None:
    regime = {16 + 4 * number: share / sum(shares) for number, share in enumerate(shares)}
    schedule = MixSize(regime, base_size=24)
    steps = tally(schedule.steps(0, num_samples=num_samples, batch_size=batch_size))
    used = Counter({step.sizes[0]: count * step.batch_size for step, count in steps.items()})
    batches = {size: schedule._kinds(batch_size)[place].batch_size for place, size in enumerate(schedule.sizes)}
    assert sum(used.values()) <= num_samples
    for size, share in schedule.probabilities().items():
        quota = float(share) * num_samples
        # The smallest size takes what rounding left: at most one sample for each other size.
        assert quota - batches[size] - 1 < used[size] < quota + len(regime)


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("regime", ["S144", "S208", "S224"])
@pytest.mark.parametrize("rounding", ["exact", "pow2_ceil"])
def test_usual_numbers_of_ranks_share_every_batch_without_being_asked_for(
    regime: str, rounding: Any, world_size: int
) -> None:
    for step in set(MixSize(regime, rounding=rounding).steps(0, **IMAGENET)):
        assert step.batch_size % world_size == 0


def test_other_numbers_of_ranks_share_every_batch_on_request() -> None:
    steps = MixSize("S144", batch_multiple=48).steps(0, num_samples=100_000, batch_size=240)
    assert {step.batch_size % 48 for step in steps} == {0}
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of `batch_multiple`, 48; got 256"):
        MixSize("S144", batch_multiple=48).steps(0, **IMAGENET)


def test_sizes_without_a_whole_batch_are_left_out() -> None:
    assert counts_of(MixSize("S144"), num_samples=107, batch_size=10) == {256: 1, 224: 1, 128: 2}


@pytest.mark.parametrize("options", [{}, {"weighting": "steps"}, {"weighting": "epochs", "num_epochs": 3}])
def test_dataset_too_small_for_the_regime_is_refused_whatever_the_epoch(options: dict[str, Any]) -> None:
    schedule = MixSize("S144", **options)
    for epoch in range(4):
        with pytest.raises(ValueError, match=r"`batch_size` must be small enough for 30 samples .* 96 px .*; got 30"):
            schedule.steps(epoch, num_samples=30, batch_size=30)


def test_one_size_and_one_copy_is_the_constant_schedule() -> None:
    mixed = MixSize({32: 1.0}, base_size=32)
    assert list(mixed.steps(3, num_samples=103, batch_size=10)) == [Step((32,), 10)] * 10


# Fields


def test_base_size_is_the_regimes_own_unless_given() -> None:
    assert (MixSize("S144").base_size, MixSize("S28").base_size) == (224, 32)
    scaled = MixSize("S144", base_size=112)
    assert (scaled.base_size, scaled.sizes) == (112, (128, 112, 64, 48))
    assert MixSize("S144", base_size=224) == MixSize("S144")


def test_base_size_need_not_be_among_the_sizes() -> None:
    schedule = MixSize({24: 0.5, 16: 0.5}, base_size=32)
    assert schedule.sizes == (24, 16)
    assert {step.batch_size for step in schedule.steps(0, num_samples=4000, batch_size=64)} == {114, 256}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"regime": {32: 1.0}}, ValueError, "`base_size` must be given with a regime of your own"),
        ({"base_size": 0}, ValueError, "`base_size` must be at least 1"),
        ({"base_size": 3}, ValueError, "`base_size` must be at least 4 for this regime; got 3"),
        ({"grow": "copies"}, ValueError, r"`grow` must be one of \('batch', 'duplicates', 'both'\); got 'copies'"),
        ({"rounding": "floor"}, ValueError, "`rounding` must be one of"),
        ({"weighting": "images"}, ValueError, "`weighting` must be one of"),
        ({"duplicates": 0}, ValueError, "`duplicates` must be at least 1"),
        ({"batch_multiple": 0}, ValueError, "`batch_multiple` must be at least 1"),
        ({"max_budget": 0.9}, ValueError, "`max_budget` must be at least 1 and finite; got 0.9"),
        ({"max_budget": float("nan")}, ValueError, "`max_budget` must be at least 1 and finite; got nan"),
        ({"max_budget": "2"}, TypeError, "`max_budget` must be a number; got '2'"),
        ({"weighting": "epochs"}, ValueError, "`num_epochs` must be given with weighting='epochs'; got None"),
        ({"weighting": "progressive"}, ValueError, "`num_epochs` must be given with weighting='progressive'"),
        ({"num_epochs": 0}, ValueError, "`num_epochs` must be at least 1"),
        ({"seed": -1}, ValueError, "`seed` must be at least 0"),
    ],
)
def test_wrong_fields_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MixSize(**{"regime": "S28", **options})
