"""Geometry of crop boxes: arrays whose last axis is ``top, left, height, width``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
