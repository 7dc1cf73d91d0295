from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from respipe.schedules import Progressive


@pytest.mark.parametrize(
    ("start_epoch", "end_epoch", "num_epochs", "first"),
    # The ramps of FFCV's ImageNet recipes, and the epochs at which they reach 192.
    [(65, 76, 88, 71), (41, 48, 56, 45), (29, 34, 40, 32), (23, 27, 32, 25), (17, 20, 24, 19), (11, 13, 16, 12)],
)
def test_imagenet_ramps_jump_at_their_midpoint(start_epoch: int, end_epoch: int, num_epochs: int, first: int) -> None:
    schedule = Progressive(160, 192, start_epoch=start_epoch, end_epoch=end_epoch)
    sizes = [schedule.size(epoch) for epoch in range(num_epochs)]
    assert sizes == [160] * first + [192] * (num_epochs - first)
    assert schedule.sizes == (192, 160)


@given(
    start_size=st.integers(1, 20).map(lambda n: 32 * n),
    end_size=st.integers(1, 20).map(lambda n: 32 * n),
    start_epoch=st.integers(0, 30),
    # Lengths whose fractions are exact in binary, so that the float oracle meets halves exactly.
    length=st.sampled_from([1, 2, 4, 8, 16, 32]),
    epoch=st.integers(0, 70),
)
def test_sizes_follow_the_rounded_straight_line(
    start_size: int, end_size: int, start_epoch: int, length: int, epoch: int
) -> None:
    schedule = Progressive(start_size, end_size, start_epoch=start_epoch, end_epoch=start_epoch + length)
    line = np.interp(epoch, [start_epoch, start_epoch + length], [start_size, end_size])
    assert schedule.size(epoch) == np.round(line / 32) * 32


def test_ends_need_not_be_multiples() -> None:
    schedule = Progressive(100, 150, start_epoch=1, end_epoch=4)
    assert [schedule.size(epoch) for epoch in range(6)] == [100, 100, 128, 128, 150, 150]
    assert schedule.base_size == 150


def test_shrinking_is_quoted_at_the_larger_size() -> None:
    assert Progressive(192, 160, start_epoch=0, end_epoch=2).base_size == 192


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("end_epoch", {"end_epoch": 5}),
        ("multiple", {"multiple": 0}),
        ("multiple", {"multiple": 1000}),
        ("start_size", {"start_size": 0}),
        ("start_epoch", {"start_epoch": -1}),
    ],
)
def test_bad_fields_are_named(field: str, arguments: dict[str, Any]) -> None:
    good: dict[str, Any] = {"start_size": 160, "end_size": 192, "start_epoch": 5, "end_epoch": 9}
    with pytest.raises(ValueError, match=f"`{field}` must be"):
        Progressive(**(good | arguments))
