from __future__ import annotations

from typing import Any

import pytest

from respipe.schedules import TRD, Constant, LowMode, MixSize, MultiCrop, RSNet, Step, View


def test_steps_name_every_crop_and_how_it_is_drawn() -> None:
    views = (View(224, 2, scale=(0.32, 1.0)), View(96, 3, scale=(0.05, 0.32)))
    schedule = MultiCrop(views)
    assert list(schedule.steps(0, num_samples=25, batch_size=10)) == [Step((224, 224, 96, 96, 96), 10, views=views)] * 2
    assert (schedule.base_size, schedule.sizes) == (224, (224, 96))


def test_a_schedule_inside_decides_size_and_batch_of_every_step() -> None:
    inside = MixSize({64: 0.5, 32: 0.5}, base_size=64)
    steps = MultiCrop([View(inside, 2), View(16)]).steps(1, num_samples=400, batch_size=8)
    for step, alone in zip(steps, inside.steps(1, num_samples=400, batch_size=8), strict=True):
        assert step.sizes == (*alone.sizes * 2, 16)
        assert (step.batch_size, step.duplicates) == (alone.batch_size, alone.duplicates)
    assert {step.batch_size for step in steps} == {8, 32}


def test_schedules_of_one_seed_change_together() -> None:
    schedule = MultiCrop([View(TRD(64, 32, 0.5, unit="step")), View(TRD(24, 12, 0.5, unit="step"))])
    assert {step.sizes for step in schedule.steps(0, num_samples=100, batch_size=5)} == {(64, 24), (32, 12)}


@pytest.mark.parametrize(
    "views",
    [
        [View(RSNet((64, 32)))],
        [View(MultiCrop([View(64)]))],
        [View(Constant(64)), View(MixSize({64: 0.5, 32: 0.5}, base_size=64))],
    ],
)
def test_schedules_that_do_not_go_together_are_refused(views: list[View]) -> None:
    with pytest.raises(ValueError, match="`views` must have schedules"):
        MultiCrop(views).steps(0, num_samples=400, batch_size=8)


def test_impossible_views_are_refused() -> None:
    with pytest.raises(ValueError, match="pool the kernels"):
        MultiCrop([View(LowMode(64))])
    wrong: list[Any] = [[], [224], View(224)]
    for views in wrong:
        with pytest.raises(TypeError, match="`views` must be"):
            MultiCrop(views)
    for fields in ({"count": 0}, {"scale": (0.0, 1.0)}, {"scale": (0.5, 0.2)}, {"scale": (0.1, 1.0), "crop": 3}):
        with pytest.raises(ValueError, match="must be"):
            View(64, **fields)
    with pytest.raises(ValueError, match="`sizes` must be those of `views`"):
        Step((64, 32), 8, views=(View(64),))
