"""The plan of a batch: which samples, cropped how, at which sizes. Everything a backend needs to know."""

from __future__ import annotations

from dataclasses import dataclass

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
            may reach over the image's edge; what lies outside reads as black.
        flips: (B,) bool, whether the crop is mirrored left to right.
    """

    step: Step
    epoch: int
    number: int
    indices: NDArray[np.int64]
    boxes: NDArray[np.float64]
    flips: NDArray[np.bool_]

    def __post_init__(self) -> None:
        n = len(self.indices)
        assert self.boxes.shape == (n, 4) and self.flips.shape == (n,), "one box and one flip per image"

    def __len__(self) -> int:
        return len(self.indices)
