"""Low mode: in some steps, drawn at random, both images and kernels are small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from respipe.checks import check_choice, check_int, check_probability, check_sequence
from respipe.rng import Stream, check_seed, draws
from respipe.schedules.guard import check_guard, is_protected
from respipe.schedules.sequence import Steps, steps_per_epoch
from respipe.schedules.step import BatchNorm, Kernels, Step

Downsample = Literal["antialiased", "blur"]


@dataclass(frozen=True)
class LowMode:
    """Training with downsampled images and pooled kernels (arXiv 1910.06548).

    Each step is drawn on its own. A low one has images of ``full_size / ratio`` and ``mode="low"``, for which
    :func:`respipe.adapt` lets the model pool its kernels. Batch size and number of steps stay the same. Every step has
    its own draw, which is used up even where a guard overrules it.

    Args:
        full_size: side in pixels of the full size.
        ratio: how much smaller the images of low steps are; divides ``full_size``.
        probability: of a low step: one for all epochs, or one for each, the last of which holds from there on.
        milestones: first epochs that run with a lower learning rate. The paper's are 80 and 120 of 200.
        guard: (before, after): epochs in ``[m - before, m + after)`` around each milestone m have no low step. The
            paper names only those after it.
        downsample: how images of low steps get small. "antialiased": crops are resized to the low side at once, and no
            more of them is decoded than that takes. "blur": they are resized to ``full_size``, blurred by the binomial
            filter (1, 4, 6, 4, 1) / 16 and every other pixel is kept, once for each factor of two in ``ratio``; the
            paper prefers a Gaussian blur without saying which. It costs the decoding of a full step.
        seed: 64-bit seed of the draws.

    Raises:
        TypeError, ValueError: a field is out of range.
    """

    full_size: int
    ratio: int = 2
    probability: float | Sequence[float] = 0.5
    _: KW_ONLY
    milestones: Sequence[int] = ()
    guard: tuple[int, int] = (0, 4)
    downsample: Downsample = "antialiased"
    seed: int = 0

    batchnorm: ClassVar[BatchNorm] = "per_size"
    kernels: ClassVar[Kernels] = "pooled"

    def __post_init__(self) -> None:
        full_size, ratio = check_int("full_size", self.full_size, least=1), check_int("ratio", self.ratio, least=2)
        if full_size % ratio:
            raise ValueError(
                f"`ratio` must divide `full_size`, {full_size}; got {ratio}. Pass another, or a full size of "
                f"{max(1, round(full_size / ratio)) * ratio} px."
            )
        object.__setattr__(self, "full_size", full_size)
        object.__setattr__(self, "ratio", ratio)
        object.__setattr__(self, "probability", _check_probabilities(self.probability))
        milestones = check_sequence("milestones", self.milestones)
        object.__setattr__(self, "milestones", tuple(check_int("milestones", one, least=0) for one in milestones))
        object.__setattr__(self, "guard", check_guard(self.guard))
        check_choice("downsample", self.downsample, get_args(Downsample))
        if self.downsample == "blur" and (ratio & (ratio - 1) or full_size < 2 * ratio):
            raise ValueError(
                f"`ratio` must be a power of two, at most half of `full_size`, where images are blurred; got {ratio} "
                f'at {full_size} px. Pass downsample="antialiased" for other ratios.'
            )
        object.__setattr__(self, "seed", check_seed(self.seed))

    @property
    def base_size(self) -> int:
        """``full_size``."""
        return self.full_size

    @property
    def low_size(self) -> int:
        """Side in pixels of the images of low steps."""
        return self.full_size // self.ratio

    @property
    def sizes(self) -> tuple[int, ...]:
        """Full and low side in pixels."""
        return self.full_size, self.low_size

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> Sequence[Step]:
        """The steps of one epoch; see :meth:`respipe.schedules.Schedule.steps`."""
        count = steps_per_epoch(epoch, num_samples=num_samples, batch_size=batch_size)
        decimation = self.ratio if self.downsample == "blur" else 1
        low = Step((self.low_size,), batch_size, mode="low", decimation=decimation)
        kinds = Step((self.full_size,), batch_size), low
        is_low = draws(self.seed, Stream.SCHEDULE, epoch=epoch, count=count)[:, 0] < self._probability_in(epoch)
        return Steps(kinds, is_low.astype(np.int64))

    def _probability_in(self, epoch: int) -> float:
        if is_protected(epoch, milestones=self.milestones, guard=self.guard):
            return 0.0
        if isinstance(self.probability, Sequence):
            return self.probability[min(epoch, len(self.probability) - 1)]
        return self.probability


def _check_probabilities(probability: float | Sequence[float]) -> float | tuple[float, ...]:
    if not isinstance(probability, Sequence):
        return check_probability("probability", probability)
    if not probability:
        raise ValueError("`probability` must be one number, or one for each epoch; got none. Pass 0.5.")
    return tuple(check_probability("probability", one) for one in probability)
