"""Planned batches through a backend, in order, with damaged samples kept out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator

import torch

from respipe.backends.base import Backend
from respipe.errors import CorruptImageError
from respipe.loading.corruption import CorruptionGuard
from respipe.planning.batch import BatchPlan
from respipe.schedules.step import Step


def decode_in_order(
    backend: Backend, guard: CorruptionGuard, plans: Iterable[BatchPlan]
) -> Generator[tuple[BatchPlan, tuple[torch.Tensor, ...]], None, None]:
    """Decode batches, keeping the backend busy with the next ones while the last is in use.

    Args:
        backend: decodes; nothing may be submitted to it by others meanwhile.
        guard: decides what happens to damaged samples.
        plans: batches in the order wanted.

    Yields:
        the plan as it was carried out, without damaged samples, and its pixels (see :class:`Backend`), of the sides
        that ``plan.step.decoded`` has.

    Raises:
        CorruptImageError: a sample is damaged and may not be left out.
    """
    batches = _InFlight(backend, guard)
    try:
        for plan in plans:
            batches.submit(plan, plan.step)
            # A decoding thread that is done needs the interpreter to go on with the next batch.
            time.sleep(0)
            room = batches.room
            if len(batches) >= room:
                yield from batches.collect_until(room // 2)
        yield from batches.collect_until(0)
    finally:
        backend.reset()


class _InFlight:
    """Batches that were submitted to a backend, with the steps that they were planned for."""

    def __init__(self, backend: Backend, guard: CorruptionGuard) -> None:
        self._backend = backend
        self._guard = guard
        self._submitted: deque[tuple[Step, BatchPlan]] = deque()

    def __len__(self) -> int:
        return len(self._submitted)

    @property
    def room(self) -> int:
        """How many batches like the last one the backend needs to be busy."""
        return self._backend.room(self._submitted[-1][1])

    def submit(self, plan: BatchPlan, step: Step) -> None:
        """Start decoding a batch without its damaged samples, as far as they are known."""
        admitted = self._guard.admit(_with_step(plan, step.decoded))
        self._backend.submit(admitted)
        self._submitted.append((step, admitted))

    def collect_until(self, left: int) -> Iterator[tuple[BatchPlan, tuple[torch.Tensor, ...]]]:
        """The oldest batches, until so many are left."""
        while len(self) > left:
            yield self._collect()

    def _collect(self) -> tuple[BatchPlan, tuple[torch.Tensor, ...]]:
        while True:
            try:
                pixels = self._backend.collect()
            except CorruptImageError as error:
                # Damage that no checksum told of shows only now. The backend has lost its place: do all again.
                self._guard.report(error)
                self._backend.reset()
                again = list(self._submitted)
                self._submitted.clear()
                for step, plan in again:
                    self.submit(plan, step)
            else:
                step, plan = self._submitted.popleft()
                return _with_step(plan, step), pixels


def _with_step(plan: BatchPlan, step: Step) -> BatchPlan:
    return plan if plan.step is step else plan.replace(step=step)
