"""The mean batch size of a schedule that changes it, which the learning rate is scaled by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, get_args

from respipe.checks import check_choice
from respipe.schedules.sequence import tally
from respipe.schedules.step import Schedule, Step

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
