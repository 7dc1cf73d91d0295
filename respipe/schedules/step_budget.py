"""How many samples, and how many copies of each, a step of a given size affords within the budget of the base size."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from respipe.schedules.step import Step

Grow = Literal["batch", "duplicates", "both"]
Rounding = Literal["exact", "pow2_ceil"]

# A base batch up to this size is taken for that of one device, as in the released code, which rounds per device. For
# larger ones batch sizes are multiples of the largest divisor up to a 32nd, unless told otherwise: fine enough to keep
# the budget, and any number of ranks with 32 base samples each can share every batch.
_ONE_DEVICE = 64
_SAMPLES_PER_PART = 32


def relative_budget(step: Step, *, base_size: int, base_images: int) -> float:
    """Pixels of a step over those of ``base_images`` images at ``base_size``; what its memory and time go with."""
    return sum(size**2 for size in step.sizes) * step.num_images / (base_size**2 * base_images)


@dataclass(frozen=True, kw_only=True)
class StepBudget:
    """Steps of any size that train on about as many pixels as a step of the base size does.

    Args:
        base_size: side in pixels.
        batch_size: global batch at ``base_size``.
        duplicates: copies of each sample at ``base_size``.
        grow: what changes with the size. With q = (base_size / size)^2, a step has q times as many samples
            ("batch") or q times as many copies of each ("duplicates"); with "both", sqrt(q) times as many of each.
            Where not even one copy fits (sizes so large that q or sqrt(q) times ``duplicates`` is below 1/2), the batch
            shrinks instead.
        rounding: of batch sizes: "exact" to the nearest multiple of ``batch_multiple``; "pow2_ceil" to ``batch_size``
            times a power of two, upwards and never below ``batch_size``. Copies are rounded to the nearest number.
        batch_multiple: batch sizes are multiples of it; None: the largest divisor of ``batch_size`` of which 32 or more
            fit into it, or 1 where ``batch_size`` is at most 64.
        max_budget: most pixels of a step, as a multiple of the base step's; where rounding exceeds it, copies and then
            samples are taken away.

    Raises:
        ValueError: ``batch_size`` is not a multiple of ``batch_multiple``.
    """

    base_size: int
    batch_size: int
    duplicates: int = 1
    grow: Grow = "batch"
    rounding: Rounding = "exact"
    batch_multiple: int | None = None
    max_budget: float | None = None

    def __post_init__(self) -> None:
        if self.batch_multiple is not None and self.batch_size % self.batch_multiple:
            raise ValueError(
                f"`batch_size` must be a multiple of `batch_multiple`, {self.batch_multiple}; got {self.batch_size}. "
                "Change either."
            )

    @property
    def multiple(self) -> int:
        """What batch sizes are multiples of."""
        if self.batch_multiple is not None:
            return self.batch_multiple
        largest = self.batch_size // _SAMPLES_PER_PART if self.batch_size > _ONE_DEVICE else 1
        return next(number for number in range(largest, 0, -1) if self.batch_size % number == 0)

    def step(self, size: int) -> Step:
        """The step of a size.

        Raises:
            ValueError: ``max_budget`` has no room for the smallest batch of this size.
        """
        area_ratio = Fraction(self.base_size, size) ** 2
        ratio = Fraction(self.base_size, size) if self.grow == "both" else area_ratio
        if self.grow != "batch" and ratio * self.duplicates < Fraction(1, 2):
            batch_size, duplicates = self._rounded_batch(area_ratio), self.duplicates
        else:
            batch_size = self.batch_size if self.grow == "duplicates" else self._rounded_batch(ratio)
            duplicates = self.duplicates if self.grow == "batch" else max(1, round(ratio * self.duplicates))
        if self.max_budget is not None:
            most = Fraction(self.max_budget) * area_ratio * self.batch_size * self.duplicates
            batch_size, duplicates = self._capped(size, batch_size, duplicates, int(most))
        return Step((size,), batch_size, duplicates)

    def _rounded_batch(self, ratio: Fraction) -> int:
        if self.rounding == "pow2_ceil":
            factor = 1
            while factor < ratio:
                factor *= 2
            return factor * self.batch_size
        return max(1, round(ratio * self.batch_size / self.multiple)) * self.multiple

    def _capped(self, size: int, batch_size: int, duplicates: int, most: int) -> tuple[int, int]:
        """Fewer copies, then fewer samples, until a step has at most ``most`` images."""
        duplicates = max(1, min(duplicates, most // batch_size))
        batch_size = min(batch_size, most // duplicates // self.multiple * self.multiple)
        if batch_size < 1:
            raise ValueError(
                f"`max_budget` must leave room for {self.multiple} images of {size} px beside {self.batch_size} of "
                f"{self.base_size} px; got {self.max_budget}. Raise it, or leave out the size."
            )
        return batch_size, duplicates
