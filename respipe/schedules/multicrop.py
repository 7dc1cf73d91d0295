"""Several crops of each sample in every step, each drawn, placed and augmented on its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from respipe.checks import check_sequence
from respipe.schedules.constant import Constant
from respipe.schedules.sequence import Steps
from respipe.schedules.step import BatchNorm, Schedule, Step, View


@dataclass(frozen=True)
class MultiCrop:
    """Several crops of each sample, of one size or several: multi-crop training (SwAV, arXiv 2006.09882, section 3.2).

    The images of every step are a tuple, one (B, 3, S, S) tensor for each crop, in the order of ``views``; with a
    single crop they are its tensor. ``[View(224, 2, scale=(0.32, 1.0)), View(96, 8, scale=(0.05, 0.32))]`` are DINO's
    ten crops, ``[View(224, 2)]`` the two of SimCLR and BYOL. Where the size of a view is a schedule, that decides its
    size at every step, and the batch size and duplicates of the step as well.

    Args:
        views: what is cropped out of each sample.

    Raises:
        TypeError, ValueError: there is no view, or a schedule inside pools kernels.
    """

    views: tuple[View, ...]

    def __post_init__(self) -> None:
        views = tuple(check_sequence("views", self.views))
        object.__setattr__(self, "views", views)
        if not views or not all(isinstance(view, View) for view in views):
            raise TypeError(f"`views` must be at least one View; got {views!r}. Pass for example [View(224, 2)].")
        pooling = [one for one in self._schedules if getattr(one, "kernels", "full") != "full"]
        if pooling:
            raise ValueError(
                f"`views` must have schedules of the size alone; got {pooling[0]!r}, whose steps pool the kernels of "
                "the whole model. Pass for example TRD."
            )

    @property
    def base_size(self) -> int:
        """The largest side that a view has at its schedule's base size."""
        return max(one.base_size for one in self._schedules)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every side in pixels that a crop may have, largest first."""
        return tuple(sorted({size for one in self._schedules for size in one.sizes}, reverse=True))

    @property
    def batchnorm(self) -> BatchNorm:
        """What a schedule inside needs of the model; see :class:`respipe.schedules.Schedule`."""
        per_size = any(getattr(one, "batchnorm", "shared") == "per_size" for one in self._schedules)
        return "per_size" if per_size else "shared"

    @property
    def _schedules(self) -> list[Schedule]:
        return [view.size if isinstance(view.size, Schedule) else Constant(view.size) for view in self.views]

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> Sequence[Step]:
        """The steps of one epoch; see :meth:`respipe.schedules.Schedule.steps`.

        Raises:
            ValueError: also where schedules inside plan different numbers of steps, or batches of different shapes.
        """
        # A view of one size follows the others, whatever batches they plan.
        leading = [view.size for view in self.views if isinstance(view.size, Schedule)] or [Constant(self.base_size)]
        planned = [one.steps(epoch, num_samples=num_samples, batch_size=batch_size) for one in leading]
        if len({len(steps) for steps in planned}) > 1:
            raise ValueError(
                f"`views` must have schedules with the same number of steps; got {[len(steps) for steps in planned]} "
                f"in epoch {epoch}. Use schedules that keep the batch size, such as TRD."
            )
        numbers: dict[tuple[Step, ...], int] = {}
        codes = [numbers.setdefault(together, len(numbers)) for together in zip(*planned, strict=True)]
        return Steps(tuple(map(self._joined, numbers)), np.array(codes, np.int64))

    def _joined(self, steps: tuple[Step, ...]) -> Step:
        """The step of all views from those of the schedules inside."""
        alike = len({replace(step, sizes=(1,), views=()) for step in steps}) == 1
        if not alike or any(len(step.sizes) > 1 or step.views for step in steps):
            raise ValueError(
                f"`views` must have schedules that plan steps of one size and of the same batch; got {steps}. Use "
                "schedules that keep the batch size, such as TRD."
            )
        sizes = iter(step.sizes[0] for step in steps)
        views = tuple(
            replace(view, size=next(sizes)) if isinstance(view.size, Schedule) else view for view in self.views
        )
        return replace(steps[0], sizes=tuple(view.size for view in views for _ in range(view.count)), views=views)
