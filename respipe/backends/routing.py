"""From a plan to what a backend is told: which stored image serves each crop, and where it lies."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from respipe.backends.base import ROW, Interpolation, ReadJob
from respipe.planning.batch import BatchPlan
from respipe.storage.dataset import Dataset

# Pixels of output that a filter reaches to either side.
_REACH: dict[Interpolation, int] = {"bilinear": 1, "bicubic": 2}


def route(
    dataset: Dataset,
    plan: BatchPlan,
    *,
    margin: float = 1.0,
    interpolation: Interpolation = "bilinear",
) -> ReadJob:
    """Choose the level that each image of a batch is read from, and look up everything that decoding it needs.

    That is the smallest level on which the crop is still at least ``margin`` x S pixels on both sides, S being the
    largest side that is decoded, so that one decode serves all sizes of the step. Crops too small for that on every
    level are read from the largest one; so are those that see their context, to be the pixels of whoever resizes it.

    Args:
        dataset: where the images are.
        plan: the batch, with boxes in pixels of ``dataset.levels[0]``.
        margin: how much larger than the output a crop must be; above 1 trades decoding time for sharpness.
        interpolation: filter of the resize.
    """
    sizes = plan.step.decoded.sizes
    shapes = np.empty((len(dataset.levels), 2, len(plan)), np.int64)
    for shape, level in zip(shapes, dataset.levels, strict=True):
        shape[0], shape[1] = level.heights[plan.indices], level.widths[plan.indices]
    chosen = _choose(shapes, plan.boxes, math.inf if plan.context else margin * max(sizes))
    height, width = shapes[chosen, :, np.arange(len(plan))].T
    boxes = scale_boxes(plan.boxes_by_size(), height / shapes[0, 0], width / shapes[0, 1])
    hulls = hull(boxes)
    if plan.context:
        scales = np.maximum(boxes[..., 2:] / np.array(sizes)[:, None], 1)
        sides = np.stack([height, width], axis=1)[:, None]
        hulls = widened(hulls, np.ceil(_REACH[interpolation] * scales).astype(np.int64), sides)
    return ReadJob(
        sizes=sizes,
        indices=plan.indices,
        levels=chosen,
        rows=_rows(dataset, plan.indices, chosen, height, width),
        boxes=boxes,
        hulls=hulls,
        covers=cover(hulls),
        flips=plan.flips,
        unchecked=np.zeros(len(plan), np.bool_),
        interpolation=interpolation,
        exact=plan.context,
    )


def _choose(shapes: NDArray[np.int64], boxes: NDArray[np.float64], target: float) -> NDArray[np.int64]:
    """(B,) int64, numbers of the levels, of (L, 2, B) heights and widths of each image on each."""
    # A small difference of rounding must not send a crop of exactly S pixels to the next larger level.
    crops = boxes[:, 2:].T * (shapes / shapes[0])
    fits = crops.min(axis=1) >= target * (1 - 1e-9)
    fits[0] = True
    return len(fits) - 1 - fits[::-1].argmax(axis=0)


def _rows(
    dataset: Dataset,
    indices: NDArray[np.int64],
    levels: NDArray[np.int64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
) -> NDArray[np.void]:
    rows = np.zeros(len(indices), ROW)
    rows["height"], rows["width"] = heights, widths
    for number, level in enumerate(dataset.levels):
        of_level = (levels == number).nonzero()[0]
        if not len(of_level):
            continue
        samples = indices[of_level]
        rows["raw"][of_level] = level.raw[samples]
        if level.buffers is None:
            rows["buffer"] = -1
        else:
            for name, values in (("buffer", level.buffers), ("offset", level.offsets), ("length", level.sizes)):
                rows[name][of_level] = values[samples]
    return rows


# Scaling a box to another level rounds in the last bits of a float64. Without slack, an edge that should fall on a
# pixel border would pull in one more row or column of pixels.
_SLACK = 1e-6


def scale_boxes(
    boxes: NDArray[np.float64], vertical: NDArray[np.float64], horizontal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Boxes as they lie in the same images resized by the given factors.

    Args:
        boxes: (B, K, 4) float64, K boxes of each image.
        vertical, horizontal: (B,) float64, new side over old side of each image.

    Returns:
        (B, K, 4) float64.
    """
    scaled = boxes.copy()
    scaled[..., 0::2] *= vertical[:, None, None]
    scaled[..., 1::2] *= horizontal[:, None, None]
    return scaled


def hull(boxes: NDArray[np.float64]) -> NDArray[np.int64]:
    """The smallest whole-pixel boxes that contain the given ones.

    Args:
        boxes: (..., 4) float64.

    Returns:
        (..., 4) int64, each at least 1 x 1; a box of whole pixels is its own hull.
    """
    start = np.floor(boxes[..., :2] + _SLACK)
    stop = np.ceil(boxes[..., :2] + boxes[..., 2:] - _SLACK)
    return np.concatenate([start, np.maximum(stop - start, 1)], axis=-1).astype(np.int64)


def cover(hulls: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest box around all of an image's.

    Args:
        hulls: (B, K, 4) int64, K boxes of each image.

    Returns:
        (B, 4) int64.
    """
    start = hulls[..., :2].min(axis=1)
    stop = (hulls[..., :2] + hulls[..., 2:]).max(axis=1)
    return np.concatenate([start, stop - start], axis=1)


def widened(hulls: NDArray[np.int64], margins: NDArray[np.int64], sides: NDArray[np.int64]) -> NDArray[np.int64]:
    """Boxes with a margin around them, as far as the image goes.

    Args:
        hulls: (..., 4) int64, within the image.
        margins: (..., 2) int64, what is added above and below, and on the left and the right.
        sides: (..., 2) int64, height and width of the image.

    Returns:
        (..., 4) int64.
    """
    start = np.maximum(hulls[..., :2] - margins, 0)
    stop = np.minimum(hulls[..., :2] + hulls[..., 2:] + margins, sides)
    return np.concatenate([start, stop - start], axis=-1)
