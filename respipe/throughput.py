"""Interleaved measurement: every loader is visited at every size, round after round.

The one clock of ``respipe bench`` and of ``tools/benchmarks``.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

logger = logging.getLogger(__name__)

Sizes = tuple[int, ...]

_TRIAL_BATCHES = 4


class Measurable(Protocol):
    """What is needed of a loader to time it; see ``tools/benchmarks/process.py``."""

    def first_batch(self, sizes: Sizes) -> float: ...
    def throughput(self, sizes: Sizes, num_batches: int) -> float: ...


@dataclass(kw_only=True)
class Timing:
    """What was measured of one loader at one size.

    Args:
        first_batch_seconds: from constructing the loader to its first batch; imports are not in it.
        rates: images per second, one per round.
    """

    first_batch_seconds: float
    rates: list[float] = field(default_factory=list[float])

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.rates)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure.

    Args:
        visits: sizes by loader name.
        batch_size: images per batch.
        rounds: visits to each loader at each size.
        seconds: length of a visit, where ``num_batches`` is None.
        num_batches: batches of a visit.
        num_threads: worker processes of a loader, which share the batches of a visit evenly.
    """

    visits: Mapping[str, Sequence[Sizes]]
    batch_size: int
    rounds: int
    seconds: float = 0.0
    num_batches: int | None = None
    num_threads: int = 1

    @property
    def num_visits(self) -> int:
        """Timed visits in all."""
        return self.rounds * sum(len(sizes) for sizes in self.visits.values())


def measure(
    loaders: Mapping[str, Measurable],
    plan: Plan,
    *,
    progress: Callable[[int, int], None] | None = None,
    open_at_once: bool = False,
) -> dict[tuple[str, Sizes], Timing]:
    """Time all loaders in one run, so that a machine that gets slower or faster meanwhile does so for all of them.

    Each pair of loader and size is opened and tried out once, which decides how many batches its visits have. Then
    come the rounds: in each, every pair is visited once, at each size in another order of loaders.

    Args:
        loaders: by name.
        plan: what to measure.
        progress: called with the visits done and the visits in all.
        open_at_once: open all loaders at the same time, which saves some, but says nothing about their first batches.

    Returns:
        one timing for each loader and size.
    """
    pairs = [(name, sizes) for name, all_sizes in plan.visits.items() for sizes in all_sizes]
    timings: dict[tuple[str, Sizes], Timing] = {}
    num_batches: dict[tuple[str, Sizes], int] = {}
    opened: dict[tuple[str, Sizes], float] = {}

    def open_all(name: str) -> None:
        opened.update({(name, sizes): loaders[name].first_batch(sizes) for sizes in plan.visits[name]})

    with ThreadPoolExecutor(max(1, len(plan.visits)) if open_at_once else 1) as pool:
        list(pool.map(open_all, plan.visits))
    for name, sizes in pairs:
        timings[name, sizes] = Timing(first_batch_seconds=opened[name, sizes])
        if plan.num_batches is not None:
            num_batches[name, sizes] = plan.num_batches
            continue
        rate = loaders[name].throughput(sizes, _whole_turns(_TRIAL_BATCHES, plan.num_threads))
        num_batches[name, sizes] = _whole_turns(rate * plan.seconds / plan.batch_size, plan.num_threads)
        logger.info("%s at %s px: about %.0f images/s", name, sizes, rate)
    done = 0
    for number in range(plan.rounds):
        for name, sizes in visiting_order(pairs, number):
            timings[name, sizes].rates.append(loaders[name].throughput(sizes, num_batches[name, sizes]))
            done += 1
            if progress is not None:
                progress(done, plan.num_visits)
    return timings


def visiting_order(pairs: Sequence[tuple[str, Sizes]], number: int) -> list[tuple[str, Sizes]]:
    """The pairs of one round, size by size, since loaders that are compared should run soon after each other.

    Each round begins with another loader, so that none always follows the same one.
    """
    by_size: dict[Sizes, list[tuple[str, Sizes]]] = {}
    for pair in pairs:
        by_size.setdefault(pair[1], []).append(pair)
    ordered: list[tuple[str, Sizes]] = []
    for group in by_size.values():
        first = number % len(group)
        ordered += group[first:] + group[:first]
    return ordered


def _whole_turns(num_batches: float, num_threads: int) -> int:
    """A number of batches that worker processes can share evenly, two for each at least."""
    return max(2, math.ceil(num_batches / num_threads)) * num_threads
