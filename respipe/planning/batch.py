"""The plan of a batch: which samples, cropped how, at which sizes. Everything a backend needs to know."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from respipe.schedules.step import Step


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class BatchPlan:
    """One batch as plain data. Arrays have one row per image, sample-major (duplicates of a sample are adjacent).

    Args:
        step: the sizes and mode of the step this batch belongs to.
        epoch: number of the epoch, from 0.
        number: number of the step within the epoch, from 0.
        indices: (B,) int64, sample numbers in the dataset.
        boxes: (B, 4) float64, crop boxes ``top, left, height, width`` in pixels of the sample's largest level. A box
            may reach over the image's edge; what lies outside reads as black. Of several sizes, the largest's.
        flips: (B,) bool, whether the crop is mirrored left to right.
        size_boxes: (B, K, 4) float64, a box for each of the K sizes where these are cropped differently; None where
            ``boxes`` serves all of them.
        levels: (B,) int64, the stored level that each image is read from, 0 the largest; None where that has not been
            chosen yet.
    """

    step: Step
    epoch: int
    number: int
    indices: NDArray[np.int64]
    boxes: NDArray[np.float64]
    flips: NDArray[np.bool_]
    size_boxes: NDArray[np.float64] | None = None
    levels: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        n = len(self.indices)
        assert self.boxes.shape == (n, 4) and self.flips.shape == (n,), "one box and one flip per image"
        assert self.size_boxes is None or self.size_boxes.shape == (n, len(self.step.sizes), 4), "one box per size"
        assert self.levels is None or self.levels.shape == (n,), "one level per image"

    def __len__(self) -> int:
        return len(self.indices)

    def boxes_by_size(self) -> NDArray[np.float64]:
        """(B, K, 4) float64: the box of each image at each of the step's K sizes."""
        if self.size_boxes is not None:
            return self.size_boxes
        return np.repeat(self.boxes[:, None], len(self.step.sizes), axis=1)

    def take(self, rows: NDArray[np.int64]) -> BatchPlan:
        """The batch of these rows, which may repeat."""
        return replace(
            self,
            indices=self.indices[rows],
            boxes=self.boxes[rows],
            flips=self.flips[rows],
            size_boxes=self.size_boxes[rows] if self.size_boxes is not None else None,
            levels=self.levels[rows] if self.levels is not None else None,
        )
