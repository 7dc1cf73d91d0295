"""The plan of a batch: which samples, cropped how, at which sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from respipe.planning.augmentation import Augmentation
from respipe.schedules.step import Step


class BatchPlan:
    """One batch as plain data, immutable. Arrays have one row per image, copies of a sample adjacent.

    It comes with every batch where ``Loader(with_spec=True)``. Not a dataclass: Lightning rebuilds those that it finds
    in a batch, and refuses frozen ones.

    Args:
        step: sizes and mode of the step this batch belongs to.
        epoch: number of the epoch, from 0.
        number: number of the step within the epoch, from 0.
        indices: (B,) int64, sample numbers in the dataset.
        boxes: (B, 4) float64, crop boxes ``top, left, height, width`` in pixels of the sample's largest level. A box
            may reach over the image's edge; what lies outside reads as black. Of several sizes, the largest's.
        flips: (B,) bool, whether the crop is mirrored left to right.
        size_boxes: (B, K, 4) float64, a box for each of the K sizes where these are cropped differently; None where
            ``boxes`` serves all of them.
        copies: (B,) int64, number of each image among all uses of its sample in the epoch; zeros where left out.
        augmentation: operations on the pixels of each image; None for none.
        views: where each image of the step's sizes is a crop of its own, a plan for each of the step's views, of one
            size. A view of n crops has n * B rows: the first crops of all samples, then the second ones, and so on.
            ``boxes`` and ``flips`` are then those of the very first crop, and ``augmentation`` is None.
        context: whether the resize sees the image beyond the boxes, as :class:`respipe.planning.crops.Crop` may ask.
        real: (B,) bool, false for the repeats that an evaluation's share was padded with; None where none may be.
    """

    __slots__ = (
        "augmentation", "boxes", "context", "copies", "epoch", "flips", "indices", "number", "real", "size_boxes",
        "step", "views",
    )  # fmt: skip

    step: Step
    epoch: int
    number: int
    indices: NDArray[np.int64]
    boxes: NDArray[np.float64]
    flips: NDArray[np.bool_]
    size_boxes: NDArray[np.float64] | None
    copies: NDArray[np.int64]
    augmentation: Augmentation | None
    views: tuple[BatchPlan, ...]
    context: bool
    real: NDArray[np.bool_] | None

    def __init__(
        self,
        *,
        step: Step,
        epoch: int,
        number: int,
        indices: NDArray[np.int64],
        boxes: NDArray[np.float64],
        flips: NDArray[np.bool_],
        size_boxes: NDArray[np.float64] | None = None,
        copies: NDArray[np.int64] | None = None,
        augmentation: Augmentation | None = None,
        views: tuple[BatchPlan, ...] = (),
        context: bool = False,
        real: NDArray[np.bool_] | None = None,
    ) -> None:
        n = len(indices)
        assert boxes.shape == (n, 4) and flips.shape == (n,), "one box and one flip per image"
        assert size_boxes is None or size_boxes.shape == (n, len(step.sizes), 4), "one box per size"
        self.__setstate__(
            {
                "step": step,
                "epoch": epoch,
                "number": number,
                "indices": indices,
                "boxes": boxes,
                "flips": flips,
                "size_boxes": size_boxes,
                "copies": copies if copies is not None else np.zeros(n, np.int64),
                "augmentation": augmentation,
                "views": views,
                "context": context,
                "real": real,
            }
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"A BatchPlan cannot be changed; use plan.replace({name}=...) to get another.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("A BatchPlan cannot be changed.")

    def __repr__(self) -> str:
        return f"BatchPlan(step={self.step!r}, epoch={self.epoch}, number={self.number}, {len(self)} images)"

    def __len__(self) -> int:
        return len(self.indices)

    def boxes_by_size(self) -> NDArray[np.float64]:
        """(B, K, 4) float64: the box of each image at each of the step's K sizes."""
        if self.size_boxes is not None:
            return self.size_boxes
        return np.repeat(self.boxes[:, None], len(self.step.sizes), axis=1)

    def captions(self) -> list[list[str]]:
        """What is done to the pixels of each image in words, for each of the step's sizes or crops."""
        if self.views:
            by_view = (view.captions()[0] for view in self.views)
            return [some[at : at + len(self)] for some in by_view for at in range(0, len(some), max(1, len(self)))]
        texts = [self.augmentation.describe(row) if self.augmentation is not None else "" for row in range(len(self))]
        return [texts] * len(self.step.sizes)

    def replace(self, **changes: Any) -> BatchPlan:
        """Another plan, which differs in the fields given."""
        return BatchPlan(**{**self.__getstate__(), **changes})

    def take(self, rows: NDArray[np.int64]) -> BatchPlan:
        """The batch of these rows, which may repeat."""
        return self.replace(
            indices=self.indices[rows],
            boxes=self.boxes[rows],
            flips=self.flips[rows],
            size_boxes=self.size_boxes[rows] if self.size_boxes is not None else None,
            copies=self.copies[rows],
            real=self.real[rows] if self.real is not None else None,
            augmentation=self.augmentation.take(rows) if self.augmentation is not None else None,
            views=tuple(
                view.take(tiled(rows, kind.count, len(self)))
                for view, kind in zip(self.views, self.step.views, strict=False)
            ),
        )


def tiled(rows: NDArray[np.int64], count: int, length: int) -> NDArray[np.int64]:
    """Rows of a batch of ``length`` images as rows of ``count`` such batches in a row: (count * len(rows),) int64."""
    return np.add.outer(np.arange(count) * length, rows).ravel()
