"""RS-Net: every step shows the same crops at all sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from respipe.checks import check_int, check_sequence
from respipe.schedules.sequence import steps_per_epoch, uniform_steps
from respipe.schedules.step import BatchNorm, Step


@dataclass(frozen=True)
class RSNet:
    """Parallel training of resolution-switchable networks (RS-Nets, arXiv 2007.09558).

    Every step yields a tuple of batches, largest size first: the same crops, mirrored alike, each resized from the
    source to every size. Nothing is drawn at random.

    Args:
        sizes: sides in pixels, all different, in any order; they are kept largest first. The paper's are 224, 192, 160,
            128 and 96, which together cost 2.76 times a step of the largest alone.

    Raises:
        TypeError, ValueError: ``sizes`` is empty, has one side twice or one that is no positive integer.
    """

    sizes: tuple[int, ...]

    batchnorm: ClassVar[BatchNorm] = "per_size"

    def __post_init__(self) -> None:
        sizes = tuple(check_int("sizes", size, least=1) for size in check_sequence("sizes", self.sizes))
        if not sizes or len(set(sizes)) < len(sizes):
            raise ValueError(
                f"`sizes` must be different sides, at least one; got {self.sizes!r}. Pass for example (224, 160, 96)."
            )
        object.__setattr__(self, "sizes", tuple(sorted(sizes, reverse=True)))

    @property
    def base_size(self) -> int:
        """The largest size."""
        return self.sizes[0]

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> Sequence[Step]:
        """The steps of one epoch; see :meth:`respipe.schedules.Schedule.steps`."""
        count = steps_per_epoch(epoch, num_samples=num_samples, batch_size=batch_size)
        return uniform_steps(Step(self.sizes, batch_size), count)
