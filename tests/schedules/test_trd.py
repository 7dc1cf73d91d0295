from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from respipe.schedules import TRD


def size_of(schedule: TRD, epoch: int) -> int:
    (size,) = {size for step in schedule.steps(epoch, num_samples=8, batch_size=2) for size in step.sizes}
    return size


def reduced_epochs(schedule: TRD, num_epochs: int) -> set[int]:
    return {epoch for epoch in range(num_epochs) if size_of(schedule, epoch) < schedule.full_size}


def step_sizes(schedule: TRD, epoch: int, num_steps: int) -> list[int]:
    return [step.sizes[0] for step in schedule.steps(epoch, num_samples=num_steps, batch_size=1)]


def first_uniform(seed: int, epoch: int) -> float:
    """The draw of an epoch, from NumPy's generator alone: stream 3 is that of schedules."""
    word = np.random.Philox(key=np.array([seed, 3], dtype=np.uint64), counter=[0, 0, epoch, 0]).random_raw()
    return (word >> 11) / 2**53


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_epoch_is_reduced_where_its_draw_is_below_participation(seed: int) -> None:
    expected = {epoch for epoch in range(100) if first_uniform(seed, epoch) < 0.4}
    assert reduced_epochs(TRD(64, 32, 0.4, seed=seed), 100) == expected
    assert 25 < len(expected) < 55


def test_comparison_with_participation_is_strict() -> None:
    draw = first_uniform(0, 7)
    assert size_of(TRD(64, 32, draw), 7) == 64
    assert size_of(TRD(64, 32, float(np.nextafter(draw, 1))), 7) == 32


@pytest.mark.parametrize("draw", ["bernoulli", "quota"])
@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_participation_zero_and_one_are_certain(draw: Any, unit: Any) -> None:
    assert reduced_epochs(TRD(64, 32, 0, draw=draw, unit=unit), 25) == set()
    assert reduced_epochs(TRD(64, 32, 1, draw=draw, unit=unit), 25) == set(range(25))


@pytest.mark.parametrize("draw", ["bernoulli", "quota", "alternate"])
@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_guard_changes_only_the_epochs_it_protects(draw: Any, unit: Any) -> None:
    free = TRD(64, 32, 0.5, draw=draw, unit=unit)
    guarded = TRD(64, 32, 0.5, draw=draw, unit=unit, milestones=(20, 40), guard=(2, 3))
    protected = {18, 19, 20, 21, 22, 38, 39, 40, 41, 42}
    for epoch in range(60):
        expected = [64] * 6 if epoch in protected else step_sizes(free, epoch, 6)
        assert step_sizes(guarded, epoch, 6) == expected


@settings(deadline=None)
@given(participation=st.floats(0, 1), num_epochs=st.integers(1, 60), seed=st.integers(0, 2**64 - 1))
def test_quota_draw_gives_exact_number_of_epochs(participation: float, num_epochs: int, seed: int) -> None:
    schedule = TRD(64, 32, participation, draw="quota", num_epochs=num_epochs, seed=seed)
    assert len(reduced_epochs(schedule, num_epochs)) == round(participation * num_epochs)


@settings(deadline=None)
@given(participation=st.floats(0, 1), seed=st.integers(0, 2**64 - 1))
def test_quota_draw_of_open_length_holds_after_every_ten_epochs(participation: float, seed: int) -> None:
    reduced = reduced_epochs(TRD(64, 32, participation, draw="quota", seed=seed), 50)
    for end in range(10, 60, 10):
        assert sum(epoch < end for epoch in reduced) == round(participation * end)


def test_quota_draw_is_shuffled() -> None:
    reduced = reduced_epochs(TRD(64, 32, 0.5, draw="quota"), 400)
    blocks = [frozenset(range(10)) & {epoch - start for epoch in reduced} for start in range(0, 400, 10)]
    assert len(set(blocks)) > 30
    # Every place in a block is about equally likely: 40 blocks, standard deviation 3.2.
    places = Counter(place for block in blocks for place in block)
    assert all(8 <= places[place] <= 32 for place in range(10))


def test_alternate_draw_reduces_even_epochs() -> None:
    assert reduced_epochs(TRD(64, 32, 0.5, draw="alternate"), 9) == {0, 2, 4, 6, 8}


def test_alternate_draw_by_step_reduces_even_steps() -> None:
    assert step_sizes(TRD(64, 32, 0.5, draw="alternate", unit="step"), 1, 5) == [32, 64, 32, 64, 32]


def test_unit_step_draws_every_step_on_its_own() -> None:
    schedule = TRD(64, 32, 0.3, unit="step")
    first, second = step_sizes(schedule, 0, 2000), step_sizes(schedule, 1, 2000)
    assert first != second
    # Standard deviation 20.5.
    assert 510 < first.count(32) < 690
    both = sum(a == b == 32 for a, b in itertools.pairwise(first))
    assert 120 < both < 240


def test_unit_step_does_not_depend_on_the_number_of_steps() -> None:
    schedule = TRD(64, 32, 0.5, unit="step")
    assert step_sizes(schedule, 3, 50) == step_sizes(schedule, 3, 80)[:50]


def test_quota_by_step_holds_over_all_epochs_so_far() -> None:
    schedule = TRD(64, 32, 0.25, draw="quota", unit="step")
    counts = [step_sizes(schedule, epoch, 9).count(32) for epoch in range(8)]
    assert np.cumsum(counts).tolist() == [round(0.25 * 9 * (epoch + 1)) for epoch in range(8)]


def test_several_reduced_sizes_are_equally_likely() -> None:
    schedule = TRD(64, (32, 48), 0.5)
    counts = Counter(size_of(schedule, epoch) for epoch in range(2000))
    # Expected 1000, 500, 500 with standard deviations 22 and 19.
    assert 900 < counts[64] < 1100
    assert 420 < counts[32] < 580
    assert 420 < counts[48] < 580


def test_every_size_of_a_range_occurs() -> None:
    schedule = TRD(64, range(32, 65), 0.5, unit="step")
    assert schedule.sizes == tuple(range(64, 31, -1))
    assert set(step_sizes(schedule, 0, 2000)) == set(range(32, 65))


def test_which_epochs_are_reduced_does_not_depend_on_the_reduced_sizes() -> None:
    assert reduced_epochs(TRD(64, 32, 0.5), 100) == reduced_epochs(TRD(64, (16, 48), 0.5), 100)


def test_final_epochs_stay_full() -> None:
    free = reduced_epochs(TRD(64, 32, 0.9), 20)
    assert free & {17, 18, 19}
    assert reduced_epochs(TRD(64, 32, 0.9, final_full_epochs=3, num_epochs=20), 24) == free - {17, 18, 19}


def test_expected_shares_are_the_probabilities() -> None:
    assert TRD(224, 112, 0.7, milestones=(3,)).expected_shares() == pytest.approx({224: 0.3, 112: 0.7})
    assert TRD(64, (32, 48), 0.5).expected_shares() == pytest.approx({64: 0.5, 48: 0.25, 32: 0.25})
    shares = TRD(64, range(32, 65), 0.5).expected_shares()
    assert list(shares) == list(range(64, 31, -1))
    assert shares[64] == pytest.approx(0.5 + 0.5 / 33)
    assert sum(shares.values()) == pytest.approx(1)


def test_numbers_of_other_types_make_an_equal_schedule() -> None:
    schedule = TRD(
        np.int64(64),
        [np.int32(32), 48],
        1,
        milestones=[3],
        guard=[1, 1],
    )
    assert schedule == TRD(64, (32, 48), 1.0, milestones=(3,), guard=(1, 1))
    assert repr(schedule) == repr(TRD(64, (32, 48), 1.0, milestones=(3,), guard=(1, 1)))


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("full_size", {"full_size": 0}),
        ("reduced_size", {"reduced_size": 65}),
        ("reduced_size", {"reduced_size": 0}),
        ("reduced_size", {"reduced_size": ()}),
        ("reduced_size", {"reduced_size": (32, 32)}),
        ("participation", {"participation": 1.01}),
        ("participation", {"participation": float("nan")}),
        ("participation", {"participation": 0.4, "draw": "alternate"}),
        ("milestones", {"milestones": (-1,)}),
        ("guard", {"guard": (1,)}),
        ("draw", {"draw": "often"}),
        ("unit", {"unit": "batch"}),
        ("final_full_epochs", {"final_full_epochs": -1}),
        ("num_epochs", {"final_full_epochs": 1}),
        ("num_epochs", {"final_full_epochs": 3, "num_epochs": 2}),
        ("num_epochs", {"num_epochs": 0}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**64}),
    ],
)
def test_bad_values_are_named(field: str, arguments: dict[str, Any]) -> None:
    good: dict[str, Any] = {"full_size": 64, "reduced_size": 32, "participation": 0.5}
    with pytest.raises(ValueError, match=f"`{field}` must "):
        TRD(**(good | arguments))


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("full_size", {"full_size": 64.0}),
        ("reduced_size", {"reduced_size": "32"}),
        ("participation", {"participation": "half"}),
        ("milestones", {"milestones": (2.5,)}),
        ("milestones", {"milestones": 3}),
        ("guard", {"guard": 3}),
        ("seed", {"seed": 0.5}),
    ],
)
def test_bad_types_are_named(field: str, arguments: dict[str, Any]) -> None:
    good: dict[str, Any] = {"full_size": 64, "reduced_size": 32, "participation": 0.5}
    with pytest.raises(TypeError, match=f"`{field}` must "):
        TRD(**(good | arguments))


def test_options_are_keywords() -> None:
    with pytest.raises(TypeError):
        TRD(64, 32, 0.5, (3,))
