"""The steps of one epoch in compact form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from respipe.checks import check_int
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
