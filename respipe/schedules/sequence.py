"""The steps of an epoch in compact form, and the mean batch of several epochs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, overload

import numpy as np
from numpy.typing import NDArray

from respipe.checks import check_choice, check_int
from respipe.schedules.step import Schedule, Step


@dataclass(frozen=True, eq=False, slots=True)
class Steps(Sequence[Step]):
    """A read-only sequence of steps that holds each distinct step once.

    Args:
        kinds: the distinct steps; some may not occur in this epoch.
        codes: (T,) integers, for each step of the epoch its place in ``kinds``.
    """

    kinds: tuple[Step, ...]
    codes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> Steps: ...
    def __getitem__(self, index: int | slice) -> Step | Steps:
        if isinstance(index, slice):
            return Steps(self.kinds, self.codes[index])
        return self.kinds[int(self.codes[index])]

    def __iter__(self) -> Iterator[Step]:
        return map(self.kinds.__getitem__, self.codes.tolist())


def kinds_of(steps: Sequence[Step]) -> set[Step]:
    """The distinct steps of an epoch, and those that its schedule names beside them for other epochs."""
    return set(steps.kinds if isinstance(steps, Steps) else steps)


def tally(steps: Sequence[Step]) -> Mapping[Step, int]:
    """How often each distinct step occurs."""
    if not isinstance(steps, Steps):
        return Counter(steps)
    counts: Counter[Step] = Counter()
    occurrences = np.bincount(steps.codes, minlength=len(steps.kinds)).tolist()
    for step, count in zip(steps.kinds, occurrences, strict=True):
        if count:
            counts[step] += count
    return counts


def tally_epochs(schedule: Schedule, *, num_epochs: int, num_samples: int, batch_size: int) -> list[Mapping[Step, int]]:
    """How often each distinct step occurs in each epoch of a run.

    Raises:
        ValueError: there is no epoch, or the dataset holds less than one batch.
    """
    if num_epochs < 1:
        raise ValueError(f"`num_epochs` must be at least 1; got {num_epochs}. Pass the length of the run.")
    return [tally(schedule.steps(epoch, num_samples=num_samples, batch_size=batch_size)) for epoch in range(num_epochs)]


def steps_per_epoch(epoch: int, *, num_samples: int, batch_size: int) -> int:
    """Whole batches in an epoch that uses each sample at most once; a smaller rest is left out.

    Raises:
        ValueError: ``epoch`` is negative, or the dataset holds less than one batch.
    """
    check_int("epoch", epoch, least=0)
    batch_size = check_int("batch_size", batch_size, least=1)
    if num_samples < batch_size:
        raise ValueError(
            f"`batch_size` must be at most the number of samples, {num_samples}; got {batch_size}. "
            "Make the batch smaller or the dataset larger."
        )
    return num_samples // batch_size


def uniform_steps(step: Step, count: int) -> Steps:
    """``count`` times the same step."""
    return Steps((step,), np.zeros(count, dtype=np.int64))


Mean = Literal["steps", "samples"]


def mean_batch_size(
    schedule: Schedule, *, epochs: Iterable[int], num_samples: int, batch_size: int, over: Mean = "steps"
) -> float:
    """Mean number of samples in a global batch; copies of a sample count once.

    Two readings of MixSize's "average batch" (arXiv 1908.08986): over the "steps", N / T for N samples used in T steps;
    or over the "samples", the size of the batch that a sample is in on average. With the default weighting of
    :class:`MixSize` the latter is the mean of the batch sizes B_i by their probabilities p_i, sum of p_i B_i. It is
    never the smaller one.

    Args:
        schedule: any schedule.
        epochs: numbers of the epochs that count; at least one.
        num_samples: samples in the dataset.
        batch_size: global batch size at the schedule's base size.
        over: which mean.

    Raises:
        ValueError: there is no epoch, or the dataset is too small for the schedule.
    """
    check_choice("over", over, get_args(Mean))
    counts: Counter[Step] = Counter()
    for epoch in epochs:
        counts.update(tally(schedule.steps(epoch, num_samples=num_samples, batch_size=batch_size)))
    num_used = sum(count * step.batch_size for step, count in counts.items())
    if num_used == 0:
        raise ValueError("`epochs` must name at least one epoch; got none.")
    if over == "steps":
        return num_used / sum(counts.values())
    return sum(count * step.batch_size**2 for step, count in counts.items()) / num_used
