"""Which stored resolution serves a crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from respipe.planning.batch import BatchPlan
from respipe.planning.boxes import cover, hull, scale_boxes
from respipe.storage.dataset import Level


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Route:
    """Where each image of a batch is read.

    Args:
        levels: (B,) int64, numbers of stored levels, 0 the largest.
        shapes: (B, 2) int64, height and width of those stored images.
        boxes: (B, K, 4) float64, the plan's crop boxes at each of its K sizes, in pixels of those levels.
        hulls: (B, K, 4) int64, their integer hulls.
        covers: (B, 4) int64, the part of each stored image that holds all of its hulls.
    """

    levels: NDArray[np.int64]
    shapes: NDArray[np.int64]
    boxes: NDArray[np.float64]
    hulls: NDArray[np.int64]
    covers: NDArray[np.int64]


def choose_levels(levels: Sequence[Level], plan: BatchPlan, *, margin: float = 1.0) -> NDArray[np.int64]:
    """Pick for each image the smallest level on which its crop is still at least ``margin`` x S pixels on both sides.

    S is the largest size of the step, so that one decode serves all of its sizes. Crops too small for that on every
    level are read from the largest one.

    Args:
        levels: the dataset's levels, largest first.
        plan: the batch, with boxes in pixels of ``levels[0]``. Where it names the levels, these are taken.
        margin: how much larger than the output a crop must be; above 1 trades decoding time for sharpness.

    Returns:
        (B,) int64, numbers of levels.
    """
    return _choose(_shapes(levels, plan), plan, margin)


def route(levels: Sequence[Level], plan: BatchPlan, *, margin: float = 1.0) -> Route:
    """Where each image of a batch is read, on the level of :func:`choose_levels`, whose arguments it takes."""
    shapes = _shapes(levels, plan)
    chosen = _choose(shapes, plan, margin)
    height, width = stored = shapes[chosen, :, np.arange(len(plan))].T
    boxes = scale_boxes(plan.boxes_by_size(), height / shapes[0, 0], width / shapes[0, 1])
    hulls = hull(boxes)
    return Route(levels=chosen, shapes=stored.T, boxes=boxes, hulls=hulls, covers=cover(hulls))


def _shapes(levels: Sequence[Level], plan: BatchPlan) -> NDArray[np.int64]:
    """(L, 2, B) int64: height and width of each image on each level."""
    shapes = np.empty((len(levels), 2, len(plan)), np.int64)
    for shape, level in zip(shapes, levels, strict=True):
        shape[0], shape[1] = level.heights[plan.indices], level.widths[plan.indices]
    return shapes


def _choose(shapes: NDArray[np.int64], plan: BatchPlan, margin: float) -> NDArray[np.int64]:
    """See :func:`choose_levels`; ``shapes`` of :func:`_shapes`."""
    if plan.levels is not None:
        return plan.levels
    # A small difference of rounding must not send a crop of exactly S pixels to the next larger level.
    target = margin * max(plan.step.sizes) * (1 - 1e-9)
    crops = plan.boxes[:, 2:].T * (shapes / shapes[0])
    fits = crops.min(axis=1) >= target
    fits[0] = True
    return len(fits) - 1 - fits[::-1].argmax(axis=0)
