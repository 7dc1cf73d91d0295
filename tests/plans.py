"""Batch plans with chosen crops, for tests of what decodes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from respipe.planning.batch import BatchPlan
from respipe.schedules.step import Step
from respipe.storage.dataset import Dataset

Boxes = NDArray[np.float64]
BoxRule = Callable[[NDArray[np.float64], NDArray[np.float64], np.random.Generator], Boxes]


def random_resized(heights: Boxes, widths: Boxes, rng: np.random.Generator) -> Boxes:
    """Whole pixels, anywhere in the image, as training crops are."""
    height, width = (np.ceil(rng.random(len(heights)) * side) for side in (heights, widths))
    top, left = (np.floor(rng.random(len(heights)) * (side + 1)) for side in (heights - height, widths - width))
    return np.stack([top, left, height, width], axis=1)


def evaluation(heights: Boxes, widths: Boxes, _: np.random.Generator) -> Boxes:
    """The central square of seven eighths of the shorter side: edges between pixels."""
    side = np.minimum(heights, widths) * 7 / 8
    return np.stack([(heights - side) / 2, (widths - side) / 2, side, side], axis=1)


def whole(heights: Boxes, widths: Boxes, _: np.random.Generator) -> Boxes:
    """The whole image."""
    return np.stack([heights * 0, widths * 0, heights, widths], axis=1)


def one_pixel(heights: Boxes, widths: Boxes, _: np.random.Generator) -> Boxes:
    """The last pixel."""
    return np.stack([heights - 1, widths - 1, heights**0, widths**0], axis=1)


def small(heights: Boxes, widths: Boxes, rng: np.random.Generator) -> Boxes:
    """A few pixels with edges between pixels, to be enlarged."""
    height, width = (np.minimum(3.3 + 5 * rng.random(len(heights)), side) for side in (heights, widths))
    return np.stack([(heights - height) * 0.6, (widths - width) * 0.3, height, width], axis=1)


def over_the_edge(heights: Boxes, widths: Boxes, rng: np.random.Generator) -> Boxes:
    """The image's own size, shifted by up to four pixels, as a random crop with padding is."""
    top, left = rng.integers(-4, 5, (2, len(heights))).astype(np.float64)
    return np.stack([top, left, heights, widths], axis=1)


def outside(heights: Boxes, widths: Boxes, _: np.random.Generator) -> Boxes:
    """Wholly below the image."""
    return np.stack([heights + 3, widths * 0, heights, widths], axis=1)


def make_nested_plan(dataset: Dataset, rule: BoxRule, *, sizes: tuple[int, ...]) -> BatchPlan:
    """A batch of all samples that crops each size in its own way: the first as the rule says, the others tighter."""
    plan = make_plan(dataset, rule, sizes=sizes)
    centres = plan.boxes[:, None, :2] + plan.boxes[:, None, 2:] / 2
    sides = plan.boxes[:, None, 2:] * np.linspace(1, 0.8, len(sizes))[:, None]
    return plan.replace(size_boxes=np.concatenate([centres - sides / 2, sides], axis=2))


def make_plan(
    dataset: Dataset, rule: BoxRule, *, sizes: tuple[int, ...], indices: Sequence[int] | None = None, seed: int = 0
) -> BatchPlan:
    """A batch of the given samples, or of all; every second crop is mirrored."""
    samples = np.arange(len(dataset)) if indices is None else np.array(indices, np.int64)
    level = dataset.levels[0]
    heights, widths = (side[samples].astype(np.float64) for side in (level.heights, level.widths))
    return BatchPlan(
        step=Step(sizes, max(1, len(samples))),
        epoch=0,
        number=0,
        indices=samples.astype(np.int64),
        boxes=rule(heights, widths, np.random.default_rng(seed)),
        flips=np.arange(len(samples)) % 2 == 1,
    )
