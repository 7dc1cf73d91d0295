"""Planned batches through a backend, in order, with damaged samples kept out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from respipe.backends.base import Backend, ReadJob
from respipe.backends.routing import route
from respipe.errors import CorruptImageError
from respipe.loading.corruption import CorruptionGuard
from respipe.loading.read_ahead import Kernel, routed_ahead
from respipe.planning.batch import BatchPlan
from respipe.storage.dataset import Dataset
from respipe.storage.fetching import Held

_POLL_SECONDS = 0.02


def decode_in_order(
    backend: Backend,
    dataset: Dataset,
    guard: CorruptionGuard,
    plans: Iterable[BatchPlan],
    *,
    kernel: Kernel,
    routed: Callable[[Dataset, BatchPlan], ReadJob] = route,
) -> Generator[tuple[BatchPlan, tuple[torch.Tensor, ...]], None, None]:
    """Decode batches, keeping the backend busy with the next ones while the last is in use.

    Args:
        backend: decodes; nothing may be submitted to it by others meanwhile.
        dataset: where the images are.
        guard: decides what happens to damaged samples.
        plans: batches in the order wanted.
        kernel: is told what the next batches will read.
        routed: :func:`respipe.backends.routing.route`, with or without options.

    Yields:
        The plan as it was carried out, without damaged samples, and its pixels (see :class:`Backend`), of the sides
        that ``plan.step.decoded`` has; where the plan has views, a tensor for all crops of each view.

    Raises:
        CorruptImageError: a sample is damaged and may not be left out.
    """

    def routes(plan: BatchPlan) -> tuple[ReadJob, ...]:
        return tuple(routed(dataset, one) for one in plan.views or (plan,))

    batches = _InFlight(backend, guard, routes)
    ahead = routed_ahead(plans, routes, kernel, dataset.fetched)
    try:
        for routed_batch in ahead:
            if routed_batch is None:
                if not len(batches):
                    time.sleep(_POLL_SECONDS)  # other processes need the room
                yield from batches.collect_until(0)
                continue
            batches.submit(*routed_batch)
            # A decoding thread that is done needs the interpreter to go on with the next batch.
            time.sleep(0)
            room = batches.room
            if len(batches) >= room:
                yield from batches.collect_until(room // 2)
        yield from batches.collect_until(0)
    finally:
        ahead.close()
        backend.reset()


class _Submitted(NamedTuple):
    """A batch that a backend is working on: its plan, a job for each view and where to note what was checked."""

    plan: BatchPlan
    jobs: tuple[tuple[ReadJob, NDArray[np.bool_]], ...]
    held: Sequence[Held]


class _InFlight:
    """Batches that were submitted to a backend, oldest first."""

    def __init__(
        self, backend: Backend, guard: CorruptionGuard, route: Callable[[BatchPlan], tuple[ReadJob, ...]]
    ) -> None:
        self._backend = backend
        self._guard = guard
        self._route = route
        self._submitted: deque[_Submitted] = deque()

    def __len__(self) -> int:
        return len(self._submitted)

    @property
    def room(self) -> int:
        """How many batches like the last one the backend needs to be busy."""
        return min(self._backend.room(job) for job, _ in self._submitted[-1].jobs)

    def submit(self, planned: BatchPlan, jobs: Iterable[ReadJob] = (), held: Sequence[Held] = ()) -> None:
        """Start decoding a batch, routed or not, without its damaged samples, as far as they are known."""
        plan = self._guard.admit(planned)
        routed = jobs if jobs and plan is planned else self._route(plan)
        checked = tuple(map(self._guard.must_check, routed))
        for job, _ in checked:
            self._backend.submit(job)
        self._submitted.append(_Submitted(plan, checked, held))

    def collect_until(self, left: int) -> Iterator[tuple[BatchPlan, tuple[torch.Tensor, ...]]]:
        """The oldest batches, until this many are left."""
        while len(self) > left:
            yield self._collect()

    def _collect(self) -> tuple[BatchPlan, tuple[torch.Tensor, ...]]:
        while True:
            try:
                pixels = tuple(tensor for _ in self._submitted[0].jobs for tensor in self._backend.collect())
            except CorruptImageError as error:
                # Damage shows only now, and the backend has lost its place: do all again without that sample.
                self._guard.report(error)
                self._backend.reset()
                again = list(self._submitted)
                self._submitted.clear()
                for plan, jobs, held in again:
                    self._enter(jobs)
                    self.submit(plan, held=held)
            else:
                plan, jobs, _ = self._submitted.popleft()
                self._enter(jobs)
                return plan, pixels

    def _enter(self, jobs: Iterable[tuple[ReadJob, NDArray[np.bool_]]]) -> None:
        for job, checked in jobs:
            self._guard.enter(job, checked)
