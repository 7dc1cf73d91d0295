"""Which stored resolution serves a crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from respipe.sampling.boxes import cover, hull, scale_boxes
from respipe.sampling.plan import BatchPlan
from respipe.storage.dataset import Level


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Route:
    """Where each image of a batch is read.

    Args:
        levels: (B,) int64, numbers of stored levels, 0 the largest.
        boxes: (B, K, 4) float64, the plan's crop boxes at each of its K sizes, in pixels of those levels.
        hulls: (B, K, 4) int64, their integer hulls.
        covers: (B, 4) int64, the part of each stored image that holds all of its hulls.
    """

    levels: NDArray[np.int64]
    boxes: NDArray[np.float64]
    hulls: NDArray[np.int64]
    covers: NDArray[np.int64]


def choose_levels(levels: Sequence[Level], plan: BatchPlan, *, margin: float = 1.0) -> NDArray[np.int64]:
    """Pick for each image the smallest level on which its crop is still at least ``margin`` x S pixels on both sides.

    S is the largest size of the step, so that one decode serves all of its sizes. Crops too small for that on every
    level are read from the largest one.

    Args:
        levels: the dataset's levels, largest first.
        plan: the batch, with boxes in pixels of ``levels[0]``.
        margin: how much larger than the output a crop must be; above 1 trades decoding time for sharpness.

    Returns:
        (B,) int64, numbers of levels.
    """
    # A small difference of rounding must not send a crop of exactly S pixels to the next larger level.
    target = margin * max(plan.step.sizes) * (1 - 1e-9)
    chosen = np.zeros(len(plan), np.int64)
    for number in range(1, len(levels)):
        vertical, horizontal = _factors(levels, plan, number)
        chosen[np.minimum(plan.boxes[:, 2] * vertical, plan.boxes[:, 3] * horizontal) >= target] = number
    return chosen


def route(levels: Sequence[Level], plan: BatchPlan, *, margin: float = 1.0) -> Route:
    """Where each image of a batch is read, on the level of :func:`choose_levels`, whose arguments it takes."""
    chosen = choose_levels(levels, plan, margin=margin)
    vertical, horizontal = np.ones(len(plan)), np.ones(len(plan))
    for number in range(1, len(levels)):
        served = chosen == number
        for factors, side in zip((vertical, horizontal), _factors(levels, plan, number), strict=True):
            factors[served] = side[served]
    boxes = scale_boxes(plan.boxes_by_size(), vertical, horizontal)
    hulls = hull(boxes)
    return Route(levels=chosen, boxes=boxes, hulls=hulls, covers=cover(hulls))


def _factors(levels: Sequence[Level], plan: BatchPlan, number: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(B,) each: height and width of a level over those of the largest one."""
    largest, level = levels[0], levels[number]
    return (
        level.heights[plan.indices] / largest.heights[plan.indices],
        level.widths[plan.indices] / largest.widths[plan.indices],
    )
