from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from respipe.schedules import Step
from respipe.schedules.step_budget import StepBudget, relative_budget

AROUND_224 = (320, 288, 256, 224, 192, 160, 128, 96)
AROUND_32 = (48, 40, 32, 24, 16)


def steps(base_size: int, sizes: tuple[int, ...], **options: Any) -> list[tuple[int, int]]:
    """Batch size and copies at each size beside 64 samples at the base size."""
    budget = StepBudget(**{"base_size": base_size, "batch_size": 64, "batch_multiple": 1, **options})
    made = [budget.step(size) for size in sizes]
    assert [step.sizes for step in made] == [(size,) for size in sizes]
    return [(step.batch_size, step.duplicates) for step in made]


def test_larger_batches_are_the_reference_codes() -> None:
    expected = [31, 39, 49, 64, 87, 125, 196, 348]
    assert steps(224, AROUND_224, grow="batch") == [(size, 1) for size in expected]
    assert steps(32, AROUND_32, grow="batch") == [(size, 1) for size in (28, 41, 64, 114, 256)]


def test_more_copies_are_the_reference_codes() -> None:
    assert steps(224, AROUND_224, grow="duplicates") == [
        (31, 1), (64, 1), (64, 1), (64, 1), (64, 1), (64, 2), (64, 3), (64, 5),
    ]  # fmt: skip
    assert steps(32, AROUND_32, grow="duplicates") == [(28, 1), (64, 1), (64, 1), (64, 2), (64, 4)]


def test_two_copies_at_the_base_size_are_the_reference_codes() -> None:
    expected = [1, 1, 2, 2, 3, 4, 6, 11]
    assert steps(224, AROUND_224, grow="duplicates", duplicates=2) == [(64, copies) for copies in expected]


def test_larger_batches_and_more_copies_together_are_the_reference_codes() -> None:
    assert steps(224, AROUND_224, grow="both") == [
        (45, 1), (50, 1), (56, 1), (64, 1), (75, 1), (90, 1), (112, 2), (149, 2),
    ]  # fmt: skip
    assert steps(32, AROUND_32, grow="both") == [(43, 1), (51, 1), (64, 1), (85, 1), (128, 2)]


def test_powers_of_two_are_those_of_the_papers_table() -> None:
    assert steps(224, (256, 224, 128, 96), rounding="pow2_ceil") == [(64, 1), (64, 1), (256, 1), (512, 1)]
    assert steps(32, (40, 32, 24, 16), rounding="pow2_ceil") == [(64, 1), (64, 1), (128, 1), (256, 1)]


def budgets(sizes: tuple[int, ...], **options: Any) -> list[float]:
    budget = StepBudget(base_size=max(224 * (224 in sizes), 32), batch_size=64, batch_multiple=1, **options)
    return [relative_budget(budget.step(size), base_size=budget.base_size, base_images=64) for size in sizes]


def test_relative_budgets_are_the_published_ones() -> None:
    assert budgets((256, 224, 128, 96), rounding="pow2_ceil") == pytest.approx([1.306, 1, 1.306, 1.469], abs=5e-4)
    assert budgets((40, 32, 24, 16), rounding="pow2_ceil") == [1.5625, 1, 1.125, 1]
    assert budgets((256, 224, 128, 96)) == pytest.approx([1, 1, 1, 1], abs=1.3e-3)
    assert budgets(AROUND_224) == pytest.approx([1] * 8, abs=0.02)
    assert max(budgets(AROUND_224, grow="duplicates")) == pytest.approx(1.653, abs=5e-4)


def test_relative_budget_counts_every_size_and_copy() -> None:
    assert relative_budget(Step((8, 4), 5, 3), base_size=8, base_images=10) == 1.875


def test_batch_sizes_are_multiples_of_what_is_asked_for() -> None:
    # Four devices with a base batch of 64 each, as the reference code rounds.
    assert steps(224, (256, 224, 128, 96), batch_size=256, batch_multiple=4) == [
        (196, 1), (256, 1), (784, 1), (1392, 1),
    ]  # fmt: skip
    assert steps(224, (256, 224, 128, 96), batch_size=48, batch_multiple=48) == [(48, 1), (48, 1), (144, 1), (240, 1)]


@pytest.mark.parametrize(
    ("batch_size", "multiple"), [(1, 1), (31, 1), (64, 1), (96, 3), (100, 2), (127, 1), (192, 6), (256, 8), (1024, 32)]
)
def test_multiple_left_open_is_a_divisor_of_the_base_batch(batch_size: int, multiple: int) -> None:
    assert StepBudget(base_size=32, batch_size=batch_size).multiple == multiple


def test_base_size_has_the_base_batch() -> None:
    for grow in ("batch", "duplicates", "both"):
        for rounding in ("exact", "pow2_ceil"):
            budget = StepBudget(base_size=224, batch_size=250, duplicates=3, grow=grow, rounding=rounding)
            assert budget.step(224) == Step((224,), 250, 3)


def test_batch_shrinks_where_not_one_copy_of_a_huge_image_fits() -> None:
    # At three times the side a ninth of the samples has the pixels of the base step, with "both" too.
    assert steps(32, (96,), grow="duplicates") == steps(32, (96,), grow="both") == [(7, 1)]


def test_smallest_batch_is_one_multiple() -> None:
    assert steps(32, (4096,)) == [(1, 1)]
    assert steps(32, (4096,), batch_multiple=16) == [(16, 1)]


def test_cap_takes_copies_first_and_then_samples() -> None:
    assert steps(224, (288, 192), grow="duplicates", max_budget=1) == [(38, 1), (64, 1)]
    assert steps(224, (288, 192), grow="duplicates", duplicates=2, max_budget=1.05) == [(64, 1), (64, 2)]
    assert steps(224, (128, 96), rounding="pow2_ceil", max_budget=1.2, batch_multiple=8) == [(232, 1), (416, 1)]


@given(
    size=st.integers(8, 512),
    batch_size=st.sampled_from([64, 96, 256]),
    duplicates=st.integers(1, 4),
    grow=st.sampled_from(["batch", "duplicates", "both"]),
    rounding=st.sampled_from(["exact", "pow2_ceil"]),
    max_budget=st.sampled_from([1.0, 1.1, 2.0]),
)
def test_no_step_exceeds_the_cap(
    size: int, batch_size: int, duplicates: int, grow: Any, rounding: Any, max_budget: float
) -> None:
    budget = StepBudget(
        base_size=128, batch_size=batch_size, duplicates=duplicates, grow=grow, rounding=rounding, max_budget=max_budget
    )
    try:
        step = budget.step(size)
    except ValueError:
        assert size**2 * budget.multiple > 128**2 * batch_size * duplicates * max_budget
        return
    assert relative_budget(step, base_size=128, base_images=batch_size * duplicates) <= max_budget
    assert step.batch_size % budget.multiple == 0


def test_cap_without_room_for_one_batch_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"`max_budget` must leave room for 8 images of 64 px beside 8 of 32 px; got 1"
    ):
        StepBudget(base_size=32, batch_size=8, batch_multiple=8, max_budget=1.0).step(64)


def test_base_batch_off_the_multiple_is_refused() -> None:
    with pytest.raises(ValueError, match="`batch_size` must be a multiple of `batch_multiple`, 3; got 64"):
        StepBudget(base_size=32, batch_size=64, batch_multiple=3)
