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


def route(levels: Sequence[Level], plan: BatchPlan, *, margin: float = 1.0) -> Route:
    """Pick for each image the smallest level on which its crop is still at least ``margin`` x S pixels on both sides.

    S is the largest size of the step, so that one decode serves all of its sizes. Crops too small for that on every
    level are read from the largest one.

    Args:
        levels: the dataset's levels, largest first.
        plan: the batch, with boxes in pixels of ``levels[0]``.
        margin: how much larger than the output a crop must be; above 1 trades decoding time for sharpness.
    """
    target = margin * max(plan.step.sizes)
    chosen = np.zeros(len(plan), np.int64)
    boxes, largest = plan.boxes_by_size(), plan.boxes[:, None]
    heights, widths = (side[plan.indices].astype(np.float64) for side in (levels[0].heights, levels[0].widths))
    for number, level in enumerate(levels[1:], start=1):
        factors = level.heights[plan.indices] / heights, level.widths[plan.indices] / widths
        # A small difference of rounding must not send a crop of exactly S pixels to the next larger level.
        fits = np.min(scale_boxes(largest, *factors)[:, 0, 2:], axis=1) >= target * (1 - 1e-9)
        chosen[fits] = number
        boxes = np.where(fits[:, None, None], scale_boxes(plan.boxes_by_size(), *factors), boxes)
    hulls = hull(boxes)
    return Route(levels=chosen, boxes=boxes, hulls=hulls, covers=cover(hulls))
