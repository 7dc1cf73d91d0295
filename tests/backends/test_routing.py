"""Which stored level each crop is read from."""

from __future__ import annotations

import numpy as np

from respipe.backends.routing import choose_levels, route
from respipe.planning.batch import BatchPlan
from respipe.schedules.step import Step
from tests.memory_dataset import MemoryDataset

# Two images with levels of 64 x 96 and 100 x 80, half of that, and a quarter.
SHAPES = [(64, 96), (100, 80)]


def plan_of(boxes: list[tuple[float, float, float, float]], *, size: int) -> BatchPlan:
    count = len(boxes)
    return BatchPlan(
        step=Step((size,), count),
        epoch=0,
        number=0,
        indices=np.arange(count) % len(SHAPES),
        boxes=np.array(boxes, np.float64),
        flips=np.zeros(count, np.bool_),
    )


def test_the_smallest_level_serves_on_which_the_crop_has_enough_pixels_on_both_sides() -> None:
    levels = MemoryDataset(SHAPES, fractions=(0.5, 0.25)).levels
    boxes = [(0, 0, 64, 96), (0, 0, 64, 64), (0, 0, 63, 96), (0, 0, 32, 32), (0, 0, 31, 80), (0, 0, 10, 10)]
    assert choose_levels(levels, plan_of([box for box in boxes for _ in range(2)], size=16)).tolist() == [
        *(2, 2), *(2, 2), *(1, 1), *(1, 1), *(0, 0), *(0, 0)
    ]  # fmt: skip


def test_a_margin_asks_for_more_pixels() -> None:
    levels = MemoryDataset(SHAPES, fractions=(0.5, 0.25)).levels
    plan = plan_of([(0, 0, 64, 80)], size=16)
    assert [choose_levels(levels, plan, margin=margin).item() for margin in (0.5, 1.0, 1.01, 2.0, 2.01)] == [
        *(2, 2, 1, 1, 0),
    ]


def test_a_route_has_the_shapes_and_boxes_of_the_levels_read() -> None:
    levels = MemoryDataset(SHAPES, fractions=(0.5, 0.25)).levels
    routed = route(levels, plan_of([(0, 0, 64, 96), (20, 8, 40, 40)], size=16))
    assert routed.levels.tolist() == [2, 1]
    assert routed.shapes.tolist() == [[16, 24], [50, 40]]
    np.testing.assert_allclose(routed.boxes[:, 0], [(0, 0, 16, 24), (10, 4, 20, 20)])


def test_levels_that_a_plan_names_are_read() -> None:
    levels = MemoryDataset(SHAPES, fractions=(0.5, 0.25)).levels
    plan = plan_of([(0, 0, 64, 96), (0, 0, 40, 40)], size=16)
    named = plan.replace(levels=np.array([0, 2]))
    assert choose_levels(levels, named).tolist() == [0, 2]
    routed = route(levels, named)
    assert routed.levels.tolist() == [0, 2]
    assert routed.shapes.tolist() == [[64, 96], [25, 20]]
    assert routed.covers.tolist() == [[0, 0, 64, 96], [0, 0, 10, 10]]


def test_rows_of_a_plan_keep_their_levels() -> None:
    plan = plan_of([(0, 0, 64, 96), (0, 0, 40, 40)], size=16).replace(levels=np.array([0, 2]))
    taken = plan.take(np.array([1, 1, 0]))
    assert taken.levels is not None
    assert taken.levels.tolist() == [2, 2, 0]
