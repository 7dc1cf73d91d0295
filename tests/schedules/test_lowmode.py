from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from respipe.cost.macs import by_area, mean_macs
from respipe.schedules import LowMode, Step

# The paper's run on CIFAR-10.
PAPER = LowMode(32, milestones=(80, 120))


def modes(schedule: LowMode, epoch: int, num_steps: int = 400) -> list[str]:
    return [step.mode for step in schedule.steps(epoch, num_samples=num_steps, batch_size=1)]


def test_low_steps_have_the_low_size_and_mode() -> None:
    assert set(LowMode(224, 4).steps(0, num_samples=100, batch_size=1)) == {
        Step((224,), 1),
        Step((56,), 1, mode="low"),
    }


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_step_is_low_where_its_draw_is_below_the_probability(seed: int) -> None:
    words = np.random.Philox(key=np.array([seed, 3], dtype=np.uint64), counter=[0, 0, 7, 0]).random_raw(1600)[::4]
    expected = ["low" if word >> 11 < 0.3 * 2**53 else "full" for word in words]
    assert modes(LowMode(32, probability=0.3, seed=seed), 7) == expected


def test_draw_of_a_step_does_not_depend_on_the_number_of_steps() -> None:
    assert modes(PAPER, 3, 50) == modes(PAPER, 3, 80)[:50]


def test_four_epochs_after_each_milestone_are_full_and_all_others_as_without() -> None:
    protected = {80, 81, 82, 83, 120, 121, 122, 123}
    for epoch in range(130):
        assert modes(PAPER, epoch) == (["full"] * 400 if epoch in protected else modes(LowMode(32), epoch))
    assert "low" in modes(PAPER, 0)


def test_blurred_images_are_decoded_at_full_size_in_the_same_steps() -> None:
    plain, blurred = (
        LowMode(32, 4, downsample=downsample).steps(0, num_samples=1000, batch_size=100)
        for downsample in ("antialiased", "blur")
    )
    assert [step.sizes for step in blurred] == [step.sizes for step in plain]
    assert {step.decoded.sizes for step in blurred} == {(32,)}
    assert {step.decoded.sizes for step in plain} == {(32,), (8,)}


def test_share_of_low_steps_in_the_papers_run_is_48_percent() -> None:
    num_low = sum(modes(PAPER, epoch).count("low") for epoch in range(200))
    # 192 of 200 epochs have 400 draws of probability 0.5: standard deviation 139.
    assert abs(num_low - 0.48 * 200 * 400) < 420


def test_probability_may_differ_between_epochs_and_the_last_one_holds() -> None:
    schedule = LowMode(32, probability=(0, 1, 0.25))
    assert set(modes(schedule, 0)) == {"full"}
    assert set(modes(schedule, 1)) == {"low"}
    assert modes(schedule, 2) == modes(LowMode(32, probability=0.25), 2)
    assert modes(schedule, 9) == modes(LowMode(32, probability=0.25), 9)


def test_cost_of_a_run_is_that_of_its_full_and_low_steps() -> None:
    schedule = LowMode(32, probability=(0.0, 1.0, 1.0), milestones=(2,), guard=(0, 1))
    cost = mean_macs(schedule, by_area(1, 32), num_epochs=4, num_samples=10, batch_size=2)
    assert cost.relative == pytest.approx((1 + 0.25 + 1 + 0.25) / 4)


def test_numbers_of_other_types_make_an_equal_schedule() -> None:
    schedule = LowMode(np.int64(32), 2, [1, 0.5], milestones=[80], guard=[0, 4])
    assert schedule == LowMode(32, 2, (1.0, 0.5), milestones=(80,))
    assert repr(schedule) == repr(LowMode(32, 2, (1.0, 0.5), milestones=(80,)))


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("full_size", {"full_size": 0}),
        ("ratio", {"ratio": 1}),
        ("ratio", {"ratio": 3}),
        ("ratio", {"ratio": 64}),
        ("probability", {"probability": 1.01}),
        ("probability", {"probability": ()}),
        ("probability", {"probability": (0.5, -0.1)}),
        ("milestones", {"milestones": (-1,)}),
        ("guard", {"guard": (4,)}),
        ("seed", {"seed": -1}),
        ("downsample", {"downsample": "nearest"}),
        ("ratio", {"full_size": 36, "ratio": 3, "downsample": "blur"}),
        ("ratio", {"full_size": 4, "ratio": 4, "downsample": "blur"}),
    ],
)
def test_bad_values_are_named(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{field}` must "):
        LowMode(**({"full_size": 32} | arguments))


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("full_size", {"full_size": 32.0}),
        ("ratio", {"ratio": 2.5}),
        ("probability", {"probability": None}),
        ("probability", {"probability": "high"}),
        ("milestones", {"milestones": 80}),
    ],
)
def test_values_of_wrong_types_are_named(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=f"`{field}` must "):
        LowMode(**({"full_size": 32} | arguments))
