"""The baseline: one size for the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from respipe.checks import check_int
from respipe.schedules.sequence import steps_per_epoch, uniform_steps
from respipe.schedules.step import Step


@dataclass(frozen=True)
class Constant:
    """Every step has the same size.

    Args:
        size: side in pixels.

    Raises:
        TypeError, ValueError: ``size`` is not a positive integer.
    """

    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", check_int("size", self.size, least=1))

    @property
    def base_size(self) -> int:
        """``size``."""
        return self.size

    @property
    def sizes(self) -> tuple[int, ...]:
        """``size`` alone."""
        return (self.size,)

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> Sequence[Step]:
        """The steps of one epoch; see :meth:`respipe.schedules.Schedule.steps`."""
        count = steps_per_epoch(epoch, num_samples=num_samples, batch_size=batch_size)
        return uniform_steps(Step((self.size,), batch_size), count)
