"""How much a schedule uses each size in the course of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from respipe.schedules.sequence import tally_epochs
from respipe.schedules.step import Schedule, Step


@dataclass(frozen=True, kw_only=True, eq=False)
class Usage:
    """Steps and images of each size in each of E epochs, K sizes.

    Args:
        sizes: K sides in pixels that occur, largest first.
        kinds: the distinct steps that occur, those of the largest sizes first.
        num_steps: steps of the whole run.
        steps: (E, K) int64. A step that shows the same images at several sizes counts for each of them.
        images: (E, K) int64, images that the model sees, over all ranks and duplicates included.
    """

    sizes: tuple[int, ...]
    kinds: tuple[Step, ...]
    num_steps: int
    steps: NDArray[np.int64]
    images: NDArray[np.int64]

    def area(self, base_size: int) -> NDArray[np.float64]:
        """(E,) pixels that the model sees in each epoch, counted in images of ``base_size``."""
        return self.images @ (np.array(self.sizes) / base_size) ** 2


def usage(schedule: Schedule, *, num_epochs: int, num_samples: int, batch_size: int) -> Usage:
    """Count what a schedule plans for a run.

    Args:
        schedule: any schedule.
        num_epochs: length of the run, at least 1.
        num_samples: samples in the dataset.
        batch_size: global batch size at the schedule's base size.

    Raises:
        ValueError: there is no epoch, or the dataset holds less than one batch.
    """
    epochs = tally_epochs(schedule, num_epochs=num_epochs, num_samples=num_samples, batch_size=batch_size)
    sizes = tuple(sorted({size for steps in epochs for step in steps for size in step.sizes}, reverse=True))
    column = {size: place for place, size in enumerate(sizes)}
    steps_table = np.zeros((num_epochs, len(sizes)), dtype=np.int64)
    images_table = np.zeros_like(steps_table)
    for epoch, steps in enumerate(epochs):
        for step, count in steps.items():
            for size in step.sizes:
                steps_table[epoch, column[size]] += count
                images_table[epoch, column[size]] += count * step.num_images
    distinct = {step for steps in epochs for step in steps}
    kinds = sorted(distinct, key=lambda step: (step.sizes, step.batch_size, step.duplicates, step.mode), reverse=True)
    num_steps = sum(sum(steps.values()) for steps in epochs)
    return Usage(sizes=sizes, kinds=tuple(kinds), num_steps=num_steps, steps=steps_table, images=images_table)
