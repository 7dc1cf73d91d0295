"""Epochs around a drop of the learning rate, in which a schedule stays at full size."""

from __future__ import annotations

from collections.abc import Sequence

from respipe.checks import check_int, check_sequence


def check_guard(guard: Sequence[int]) -> tuple[int, int]:
    """The guard as (epochs before a milestone, epochs from the milestone on).

    Raises:
        TypeError, ValueError: it is not two non-negative integers.
    """
    if len(check_sequence("guard", guard)) != 2:
        raise ValueError(f"`guard` must be two numbers (before, after); got {guard!r}. Pass (0, 0) to guard nothing.")
    return check_int("guard[0]", guard[0], least=0), check_int("guard[1]", guard[1], least=0)


def is_protected(epoch: int, *, milestones: Sequence[int], guard: tuple[int, int]) -> bool:
    """Whether an epoch lies within ``[m - before, m + after)`` for any milestone m.

    Args:
        epoch: number of the epoch, from 0.
        milestones: first epochs that run with a lower learning rate.
        guard: (before, after) in epochs.
    """
    before, after = guard
    return any(milestone - before <= epoch < milestone + after for milestone in milestones)
