"""Sizes that grow in the course of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction

from respipe.checks import check_int
from respipe.schedules.sequence import steps_per_epoch, uniform_steps
from respipe.schedules.step import Step


@dataclass(frozen=True)
class Progressive:
    """A linear ramp from one size to another, rounded to a multiple: the schedule of FFCV's ImageNet recipes.

    ::

        size   end_size             __________
                             __----|
               start_size __|
                            |      |
                     start_epoch  end_epoch

    Up to and including ``start_epoch`` the size is ``start_size``, from ``end_epoch`` on it is ``end_size``. In between
    it is the multiple nearest to the straight line, halves rounding to the even multiple. ``start_size`` and
    ``end_size`` themselves need not be multiples; the ramp may then overshoot them by less than one multiple.

    Args:
        start_size, end_size: sides in pixels.
        start_epoch, end_epoch: where the ramp begins and ends, ``start_epoch < end_epoch``.
        multiple: what sizes on the ramp are rounded to, in pixels.

    Raises:
        TypeError, ValueError: a field is out of range.
    """

    start_size: int
    end_size: int
    _: KW_ONLY
    start_epoch: int
    end_epoch: int
    multiple: int = 32

    def __post_init__(self) -> None:
        for name, least in (("start_size", 1), ("end_size", 1), ("start_epoch", 0), ("end_epoch", 0), ("multiple", 1)):
            object.__setattr__(self, name, check_int(name, getattr(self, name), least=least))
        if self.end_epoch <= self.start_epoch:
            raise ValueError(
                f"`end_epoch` must be later than `start_epoch`, {self.start_epoch}; got {self.end_epoch}. "
                f"For a single jump pass {self.start_epoch + 1}."
            )
        if min(self.sizes) < 1:
            raise ValueError(
                f"`multiple` must be small enough that no size rounds to 0; got {self.multiple} for sizes "
                f"{self.start_size} to {self.end_size}. Pass a smaller multiple."
            )

    @property
    def base_size(self) -> int:
        """The larger of both ends."""
        return max(self.start_size, self.end_size)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every side in pixels that the ramp passes through, largest first."""
        return tuple(sorted({self.size(epoch) for epoch in range(self.start_epoch, self.end_epoch + 1)}, reverse=True))

    def size(self, epoch: int) -> int:
        """Side in pixels of every step of an epoch."""
        if epoch <= self.start_epoch:
            return self.start_size
        if epoch >= self.end_epoch:
            return self.end_size
        # Fractions, because a midpoint that floats miss by one bit would move the jump by an epoch.
        progress = Fraction(epoch - self.start_epoch, self.end_epoch - self.start_epoch)
        return round((self.start_size + progress * (self.end_size - self.start_size)) / self.multiple) * self.multiple

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> Sequence[Step]:
        """The steps of one epoch; see :meth:`respipe.schedules.Schedule.steps`."""
        count = steps_per_epoch(epoch, num_samples=num_samples, batch_size=batch_size)
        return uniform_steps(Step((self.size(epoch),), batch_size), count)
