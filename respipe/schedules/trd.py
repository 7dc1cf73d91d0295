"""TRD: in some epochs, drawn at random, training runs at a reduced size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from respipe.checks import check_choice, check_int, check_probability, check_sequence
from respipe.rng import Stream, check_seed, draws
from respipe.schedules.guard import check_guard, is_protected
from respipe.schedules.sequence import Steps, steps_per_epoch
from respipe.schedules.step import Step

Draw = Literal["bernoulli", "quota", "alternate"]
Unit = Literal["epoch", "step"]

# A quota without a known end of the run is kept within blocks of this many epochs.
_BLOCK = 10


@dataclass(frozen=True)
class TRD:
    """Temporally Resolution Decrement (arXiv 2112.00954, Algorithm 1).

    Each epoch runs at ``reduced_size`` with probability ``participation``, else at ``full_size``. Batch size and number
    of steps stay the same. Every epoch has its own draw, which is used up even where a guard overrules it, so that
    moving a milestone leaves all other epochs as they were.

    Args:
        full_size: side in pixels of the full size.
        reduced_size: side in pixels of the reduced size, at most ``full_size``; or several of them, of which every
            reduced epoch draws one uniformly (the variants "Three-Resolutions" and "Mix-Resolutions" of Table 6).
        participation: share P of the epochs that are reduced, before guards.
        milestones: first epochs that run with a lower learning rate.
        guard: (before, after): epochs in ``[m - before, m + after)`` around each milestone m stay at full size.
        draw: how epochs are chosen. ``"bernoulli"``: independently. ``"quota"``: at random, but exactly round(P E) of
            ``num_epochs`` E; without ``num_epochs``, the share holds over every 10 epochs, up to rounding, which is
            carried over. ``"alternate"``: every even epoch ("Regular" of Table 6); P must be 0.5.
        final_full_epochs: the last epochs of the run that stay at full size.
        num_epochs: length of the run; needed for ``final_full_epochs``.
        unit: what is chosen. ``"step"`` draws for every step on its own ("Batch-wise" of Table 6); a quota then holds
            within each epoch.
        seed: 64-bit seed of the draws.

    Raises:
        TypeError, ValueError: a field is out of range.
    """

    full_size: int
    reduced_size: int | Sequence[int]
    participation: float
    _: KW_ONLY
    milestones: Sequence[int] = ()
    guard: tuple[int, int] = (2, 2)
    draw: Draw = "bernoulli"
    final_full_epochs: int = 0
    num_epochs: int | None = None
    unit: Unit = "epoch"
    seed: int = 0

    def __post_init__(self) -> None:
        full_size = check_int("full_size", self.full_size, least=1)
        milestones = tuple(
            check_int("milestones", milestone, least=0) for milestone in check_sequence("milestones", self.milestones)
        )
        object.__setattr__(self, "full_size", full_size)
        object.__setattr__(self, "reduced_size", _check_reduced_size(self.reduced_size, full_size))
        object.__setattr__(self, "participation", check_probability("participation", self.participation))
        object.__setattr__(self, "milestones", milestones)
        object.__setattr__(self, "guard", check_guard(self.guard))
        check_choice("draw", self.draw, get_args(Draw))
        check_choice("unit", self.unit, get_args(Unit))
        object.__setattr__(self, "final_full_epochs", check_int("final_full_epochs", self.final_full_epochs, least=0))
        if self.num_epochs is not None:
            least = max(1, self.final_full_epochs)
            object.__setattr__(self, "num_epochs", check_int("num_epochs", self.num_epochs, least=least))
        elif self.final_full_epochs > 0:
            raise ValueError("`num_epochs` must be given with `final_full_epochs`; got None. Pass the run's length.")
        object.__setattr__(self, "seed", check_seed(self.seed))
        if self.draw == "alternate" and self.participation != 0.5:
            raise ValueError(
                f"`participation` must be 0.5 with draw='alternate'; got {self.participation}. "
                "Pass 0.5 or choose another draw."
            )

    @property
    def base_size(self) -> int:
        """``full_size``."""
        return self.full_size

    @property
    def sizes(self) -> tuple[int, ...]:
        """Full and reduced sides in pixels, largest first."""
        return tuple(sorted({self.full_size, *self._reduced_sizes}, reverse=True))

    @property
    def _reduced_sizes(self) -> tuple[int, ...]:
        return (self.reduced_size,) if isinstance(self.reduced_size, int) else tuple(self.reduced_size)

    def expected_shares(self) -> dict[int, float]:
        """Share of the steps that each size is expected to have, largest size first.

        Guards are ignored, as they are in the paper's tables.
        """
        shares = dict.fromkeys(self.sizes, 0.0)
        shares[self.full_size] += 1 - self.participation
        for size in self._reduced_sizes:
            shares[size] += self.participation / len(self._reduced_sizes)
        return shares

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> Sequence[Step]:
        """The steps of one epoch; see :meth:`respipe.schedules.Schedule.steps`."""
        count = steps_per_epoch(epoch, num_samples=num_samples, batch_size=batch_size)
        kinds = tuple(Step((size,), batch_size) for size in (self.full_size, *self._reduced_sizes))
        if self._is_guarded(epoch):
            return Steps(kinds, np.zeros(count, dtype=np.int64))
        codes = self._choices(epoch, count if self.unit == "step" else 1)
        return Steps(kinds, np.broadcast_to(codes, count))

    def _is_guarded(self, epoch: int) -> bool:
        if self.num_epochs is not None and self.final_full_epochs > 0:
            is_final = epoch >= self.num_epochs - self.final_full_epochs
        else:
            is_final = False
        return is_final or is_protected(epoch, milestones=self.milestones, guard=self.guard)

    def _choices(self, epoch: int, units: int) -> NDArray[np.int64]:
        """What the units (steps, or a single one for the whole epoch) draw.

        Returns:
            (units,) int64, 0 for the full size, i for the i-th reduced size.
        """
        uniforms = draws(self.seed, Stream.SCHEDULE, epoch=epoch, count=units)
        number = np.arange(units) if self.unit == "step" else np.array([epoch])
        if self.draw == "bernoulli":
            reduced = uniforms[:, 0] < self.participation
        elif self.draw == "alternate":
            reduced = number % 2 == 0
        elif self.unit == "step":
            reduced = self._quota(block=epoch, length=units)
        else:
            length = self.num_epochs or _BLOCK
            reduced = self._quota(block=epoch // length, length=length)[number % length]
        which = 1 + (uniforms[:, 1] * len(self._reduced_sizes)).astype(np.int64)
        return np.where(reduced, which, 0)

    def _quota(self, *, block: int, length: int) -> NDArray[np.bool_]:
        """Which units of a block of ``length`` units are reduced: (length,) bool."""
        # The difference of two rounded running totals hands each block's rounding error on to the next block.
        count = round(self.participation * length * (block + 1)) - round(self.participation * length * block)
        keys = draws(self.seed, Stream.SCHEDULE, epoch=block, count=length, word=1)[:, 0]
        reduced = np.zeros(length, dtype=np.bool_)
        reduced[np.argsort(keys, kind="stable")[:count]] = True
        return reduced


def _check_reduced_size(reduced_size: int | Sequence[int], full_size: int) -> int | tuple[int, ...]:
    several = isinstance(reduced_size, Sequence)
    sizes = tuple(check_int("reduced_size", size, least=1) for size in (reduced_size if several else [reduced_size]))
    if not sizes or max(sizes) > full_size or len(set(sizes)) < len(sizes):
        raise ValueError(
            f"`reduced_size` must be one or several different sides up to `full_size`, {full_size}; "
            f"got {reduced_size!r}. Pass smaller or fewer sides."
        )
    return sizes if several else sizes[0]
