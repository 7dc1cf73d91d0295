from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from respipe.cost.macs import by_area, mean_macs
from respipe.cost.usage import usage
from respipe.schedules import TRD, Constant, MixSize, Step


class Multiscale:
    """Two sizes of the same images in every step, of which there are two per epoch."""

    base_size = 8
    sizes = (8, 4)

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> Sequence[Step]:
        return [Step((8, 4), batch_size, duplicates=3)] * 2


def test_constant_schedule_uses_whole_batches_of_every_epoch() -> None:
    used = usage(Constant(16), num_epochs=3, num_samples=103, batch_size=10)
    assert used.sizes == (16,)
    assert used.num_steps == 30
    np.testing.assert_array_equal(used.steps, [[10]] * 3)
    np.testing.assert_array_equal(used.images, [[100]] * 3)
    np.testing.assert_array_equal(used.area(32), [25.0] * 3)


def test_alternating_sizes_are_counted_in_their_own_epochs() -> None:
    used = usage(TRD(32, 16, 0.5, draw="alternate"), num_epochs=4, num_samples=64, batch_size=8)
    assert used.sizes == (32, 16)
    np.testing.assert_array_equal(used.steps, [[0, 8], [8, 0], [0, 8], [8, 0]])


def test_sizes_that_never_occur_are_left_out() -> None:
    used = usage(TRD(32, 16, 0.0), num_epochs=4, num_samples=64, batch_size=8)
    assert (used.sizes, used.kinds) == ((32,), (Step((32,), 8),))


def test_kinds_of_steps_are_named_once_with_the_largest_sizes_first() -> None:
    used = usage(MixSize("S28", grow="both", batch_multiple=1), num_epochs=4, num_samples=2000, batch_size=64)
    assert used.kinds == (Step((40,), 51), Step((32,), 64), Step((24,), 85), Step((16,), 128, 2))


def test_step_with_several_sizes_and_duplicates_counts_for_each_size() -> None:
    used = usage(Multiscale(), num_epochs=1, num_samples=10, batch_size=5)
    assert used.num_steps == 2
    np.testing.assert_array_equal(used.steps, [[2, 2]])
    np.testing.assert_array_equal(used.images, [[30, 30]])
    np.testing.assert_array_equal(used.area(8), [30 + 30 / 4])


def test_area_agrees_with_mean_cost_by_area() -> None:
    schedule, run = TRD(224, (112, 56), 0.6, unit="step"), {"num_epochs": 5, "num_samples": 700, "batch_size": 7}
    used = usage(schedule, **run)
    mean = mean_macs(schedule, by_area(1.0, 224), **run)
    assert used.area(224).sum() / used.images.sum() == pytest.approx(mean.relative)


def test_run_without_epochs_is_refused() -> None:
    with pytest.raises(ValueError, match="`num_epochs` must be at least 1; got 0"):
        usage(Constant(16), num_epochs=0, num_samples=10, batch_size=5)
