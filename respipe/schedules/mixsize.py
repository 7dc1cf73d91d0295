"""MixSize: every step has a size of its own, and as many samples or copies of them as that size affords."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from respipe.checks import check_choice, check_int, check_number
from respipe.rng import Stream, check_seed, draws, raw_draws
from respipe.schedules.regimes import REGIMES, Regime, check_regime, regime_probabilities
from respipe.schedules.sequence import Steps, steps_per_epoch
from respipe.schedules.step import Step
from respipe.schedules.step_budget import Grow, Rounding, StepBudget

Weighting = Literal["samples", "steps", "epochs", "progressive"]


@dataclass(frozen=True)
class MixSize:
    """MixSize (Mix & Match, arXiv 1908.08986): sizes change from step to step at about constant work per step.

    Args:
        regime: name of a mix of sizes, "S28" (for 32 px), "S144", "S208" or "S224" (for 224 px), "S28-code" for the one
            of the released code; or a mapping from side in pixels to probability.
        base_size: side in pixels that the batch size is quoted at. A named regime has its own and is scaled to another;
            a mapping needs one, which need not be among its sizes.
        grow: what small sizes have more of: samples in the "batch" (the paper's B+), "duplicates" of each sample, with
            independent crops (D+), or "both". See :class:`respipe.schedules.step_budget.StepBudget`, also for the next
            four.
        duplicates: copies of each sample at ``base_size``.
        rounding: of batch sizes: "exact", to the nearest that ``batch_multiple`` allows, as the released code does; or
            "pow2_ceil", to the next power of two times the base batch, which gives the paper's numbers of steps.
        batch_multiple: batch sizes are multiples of it, so that as many ranks can share them. Default: a 32nd of the
            base batch where that divides it (8 for 256), else the next smaller divisor; 1 for base batches up to 64.
            The plan never depends on the number of ranks.
        max_budget: at least 1: the most pixels of a step, in base steps.
        weighting: what the probabilities are shares of. "samples": of the samples of each epoch, exactly up to
            rounding down; the steps of all sizes come in random order. "steps": of the steps, each drawn on its own;
            the number of steps then differs between epochs. "epochs": of the ``num_epochs`` epochs, exactly up to
            rounding, in random order, each of one size. "progressive": the same from small to large.
        num_epochs: length of the run; needed for "epochs" and "progressive".
        seed: 64-bit seed of the draws.

    Every sample is used at most once per epoch. Samples that fill no batch are left out: with "samples" those of each
    size, so that in a small dataset a size may have no step at all.

    Raises:
        TypeError, ValueError: a field is out of range.
    """

    regime: Regime
    _: KW_ONLY
    base_size: int = cast(int, None)  # looked up in __post_init__
    grow: Grow = "batch"
    duplicates: int = 1
    rounding: Rounding = "exact"
    batch_multiple: int | None = None
    max_budget: float | None = None
    weighting: Weighting = "samples"
    num_epochs: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        regime = check_regime(self.regime)
        base_size = cast(int | None, self.base_size)
        if base_size is None:
            if not isinstance(regime, str):
                raise ValueError(
                    "`base_size` must be given with a regime of your own; got None. Pass a side in pixels."
                )
            base_size = REGIMES[regime].base_size
        object.__setattr__(self, "regime", regime)
        object.__setattr__(self, "base_size", check_int("base_size", base_size, least=1))
        for name in ("grow", "rounding", "weighting"):
            check_choice(name, getattr(self, name), get_args(_CHOICES[name]))
        object.__setattr__(self, "duplicates", check_int("duplicates", self.duplicates, least=1))
        for name in ("batch_multiple", "num_epochs"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, check_int(name, getattr(self, name), least=1))
        if self.max_budget is not None:
            object.__setattr__(self, "max_budget", check_number("max_budget", self.max_budget, least=1))
        if self.weighting in ("epochs", "progressive") and self.num_epochs is None:
            raise ValueError(
                f"`num_epochs` must be given with weighting={self.weighting!r}; got None. Pass the run's length."
            )
        object.__setattr__(self, "seed", check_seed(self.seed))
        self.probabilities()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Every side in pixels of the regime, largest first."""
        return tuple(self.probabilities())

    def probabilities(self) -> dict[int, Fraction]:
        """Probability of each side in pixels, largest first."""
        return regime_probabilities(cast("str | tuple[tuple[int, float], ...]", self.regime), self.base_size)

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> Sequence[Step]:
        """The steps of one epoch; see :meth:`respipe.schedules.Schedule.steps`.

        Raises:
            ValueError: also if the dataset is smaller than the batches of the regime's sizes: of every size, or with a
                ``weighting`` other than "samples" of any.
        """
        steps_per_epoch(epoch, num_samples=num_samples, batch_size=batch_size)
        num_samples, batch_size = int(num_samples), int(batch_size)  # fractions do not multiply with NumPy's integers
        kinds = self._kinds(batch_size)
        batch_sizes = np.array([kind.batch_size for kind in kinds], dtype=np.int64)
        if self.weighting == "samples":
            counts = self._sample_quotas(num_samples) // batch_sizes
            fits = counts.any()
        else:
            counts = num_samples // batch_sizes
            fits = counts.all()
        if not fits:
            raise ValueError(
                f"`batch_size` must be small enough for {num_samples} samples to fill batches of "
                f"{', '.join(f'{kind.batch_size} at {kind.sizes[0]} px' for kind in kinds)} with weighting="
                f"{self.weighting!r}; got {batch_size}. Make the batch smaller or the dataset larger."
            )
        if self.weighting == "samples":
            codes = _shuffled(np.repeat(np.arange(len(kinds)), counts), seed=self.seed, epoch=epoch)
        elif self.weighting == "steps":
            codes = self._drawn(epoch, num_samples, batch_sizes)
        else:
            place = self._place_of(epoch)
            codes = np.full(counts[place], place, dtype=np.int64)
        return Steps(kinds, codes)

    def _kinds(self, batch_size: int) -> tuple[Step, ...]:
        """The step of each size, largest first."""
        budget = StepBudget(
            base_size=self.base_size,
            batch_size=batch_size,
            duplicates=self.duplicates,
            grow=self.grow,
            rounding=self.rounding,
            batch_multiple=self.batch_multiple,
            max_budget=self.max_budget,
        )
        return tuple(budget.step(size) for size in self.sizes)

    def _sample_quotas(self, num_samples: int) -> NDArray[np.int64]:
        """Samples of each size, largest first: rounded down, and all that are left for the smallest."""
        quotas = [int(share * num_samples) for share in self.probabilities().values()]
        quotas[-1] = num_samples - sum(quotas[:-1])
        return np.array(quotas, dtype=np.int64)

    def _drawn(self, epoch: int, num_samples: int, batch_sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Independent draws of sizes, up to the first step that the samples left cannot fill: (T,) int64."""
        most = num_samples // int(batch_sizes.min())
        uniforms = draws(self.seed, Stream.SCHEDULE, epoch=epoch, count=most)[:, 0]
        edges = [float(edge) for edge in accumulate(self.probabilities().values())]
        codes = np.searchsorted(edges[:-1], uniforms, side="right")
        return codes[: np.searchsorted(np.cumsum(batch_sizes[codes]), num_samples, side="right")]

    def _place_of(self, epoch: int) -> int:
        """The place in ``sizes`` of an epoch's only size."""
        assert self.num_epochs is not None, "checked with the other fields"
        places = np.repeat(np.arange(len(self.sizes)), _apportioned(self.num_epochs, [*self.probabilities().values()]))
        if self.weighting == "progressive":
            # Whoever trains for longer than planned stays at the last size.
            return int(places[::-1][min(epoch, self.num_epochs - 1)])
        return int(_shuffled(places, seed=self.seed, epoch=epoch // self.num_epochs)[epoch % self.num_epochs])


_CHOICES = {"grow": Grow, "rounding": Rounding, "weighting": Weighting}


def _shuffled(values: NDArray[np.int64], *, seed: int, epoch: int) -> NDArray[np.int64]:
    keys = raw_draws(seed, Stream.SCHEDULE, epoch=epoch, count=-(-len(values) // 4)).reshape(-1)[: len(values)]
    return values[np.argsort(keys, kind="stable")]


def _apportioned(total: int, shares: Sequence[Fraction]) -> list[int]:
    """``total`` units divided by shares: rounded down, and one more for the largest remainders, earlier ones first."""
    exact = [share * total for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(counts)), key=lambda place: counts[place] - exact[place])
    for place in by_remainder[: total - sum(counts)]:
        counts[place] += 1
    return counts
