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
    return _choose(levels, plan, margin)[0]


def route(levels: Sequence[Level], plan: BatchPlan, *, margin: float = 1.0) -> Route:
    """Where each image of a batch is read, on the level of :func:`choose_levels`, whose arguments it takes."""
    chosen, vertical, horizontal = _choose(levels, plan, margin)
    boxes = scale_boxes(plan.boxes_by_size(), vertical, horizontal)
    hulls = hull(boxes)
    return Route(levels=chosen, boxes=boxes, hulls=hulls, covers=cover(hulls))


def _choose(
    levels: Sequence[Level], plan: BatchPlan, margin: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """(B,) each: numbers of levels, and their heights and widths over those of the largest one."""
    # A small difference of rounding must not send a crop of exactly S pixels to the next larger level.
    target = margin * max(plan.step.sizes) * (1 - 1e-9)
    chosen, vertical, horizontal = np.zeros(len(plan), np.int64), np.ones(len(plan)), np.ones(len(plan))
    heights, widths = levels[0].heights[plan.indices], levels[0].widths[plan.indices]
    for number, level in enumerate(levels[1:], start=1):
        down, across = level.heights[plan.indices] / heights, level.widths[plan.indices] / widths
        fits = np.minimum(plan.boxes[:, 2] * down, plan.boxes[:, 3] * across) >= target
        chosen[fits] = number
        vertical[fits], horizontal[fits] = down[fits], across[fits]
    return chosen, vertical, horizontal
