"""RS-Net: every step shows the same crops at all sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from respipe.checks import check_bool, check_int, check_sequence
from respipe.schedules.sequence import steps_per_epoch, uniform_steps
from respipe.schedules.step import BatchNorm, Step, View, short_repr


@dataclass(frozen=True)
class RSNet:
    """Parallel training of resolution-switchable networks (RS-Nets, arXiv 2007.09558).

    Every step yields a tuple of batches, largest size first: the same crops, mirrored alike, each resized from the
    source to every size. The schedule itself draws nothing at random.

    Args:
        sizes: sides in pixels in any order; they are kept largest first. The paper's are 224, 192, 160, 128 and 96,
            which together cost 2.76 times a step of the largest alone.
        own_crops: whether each size gets a crop, flip and augmentation of its own; a size may then be named several
            times (Table 6 of the paper compares both).

    Raises:
        TypeError, ValueError: ``sizes`` is empty, has one that is no positive integer, or a side twice where all show
            the same crops.
    """

    sizes: tuple[int, ...]
    own_crops: bool = False

    batchnorm: ClassVar[BatchNorm] = "per_size"

    def __post_init__(self) -> None:
        sizes = tuple(check_int("sizes", size, least=1) for size in check_sequence("sizes", self.sizes))
        check_bool("own_crops", self.own_crops)
        if not sizes or (len(set(sizes)) < len(sizes) and not self.own_crops):
            raise ValueError(
                f"`sizes` must be different sides, at least one; got {self.sizes!r}. Pass for example (224, 160, 96), "
                "or own_crops=True for several crops of one size."
            )
        object.__setattr__(self, "sizes", tuple(sorted(sizes, reverse=True)))

    def __repr__(self) -> str:
        return short_repr(self, "own_crops")

    @property
    def base_size(self) -> int:
        """The largest size."""
        return self.sizes[0]

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> Sequence[Step]:
        """The steps of one epoch; see :meth:`respipe.schedules.Schedule.steps`."""
        count = steps_per_epoch(epoch, num_samples=num_samples, batch_size=batch_size)
        views = tuple(View(size, len(list(alike))) for size, alike in groupby(self.sizes)) if self.own_crops else ()
        return uniform_steps(Step(self.sizes, batch_size, views=views), count)
