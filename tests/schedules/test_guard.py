from __future__ import annotations

import pytest

from respipe.schedules.guard import check_guard, is_protected

MILESTONES = (75, 150, 225)


def protected(guard: tuple[int, int]) -> set[int]:
    return {epoch for epoch in range(300) if is_protected(epoch, milestones=MILESTONES, guard=guard)}


def test_two_epochs_on_each_side_of_a_milestone() -> None:
    assert protected((2, 2)) == {73, 74, 75, 76, 148, 149, 150, 151, 223, 224, 225, 226}


def test_one_epoch_on_each_side_of_a_milestone() -> None:
    assert protected((1, 1)) == {74, 75, 149, 150, 224, 225}


def test_sides_are_independent() -> None:
    assert protected((0, 1)) == {75, 150, 225}
    assert protected((1, 0)) == {74, 149, 224}
    assert protected((0, 0)) == set()


@pytest.mark.parametrize("guard", [(), (1,), (1, 2, 3)])
def test_guard_must_be_two_numbers(guard: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`guard` must be two numbers"):
        check_guard(guard)


def test_guard_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match=r"`guard\[1\]` must be at least 0; got -1"):
        check_guard((2, -1))
