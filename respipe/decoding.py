"""Planned batches through a backend, in order, with damaged samples kept out."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import replace

import torch

from respipe.backends.base import Backend
from respipe.corruption import CorruptionGuard
from respipe.errors import CorruptImageError
from respipe.sampling.plan import BatchPlan
from respipe.schedules.step import Step

# One batch is decoded while the one before it is placed and handed over; more would only cost memory.
_IN_FLIGHT = 2


def decode_in_order(
    backend: Backend, guard: CorruptionGuard, plans: Iterable[BatchPlan]
) -> Generator[tuple[BatchPlan, tuple[torch.Tensor, ...]], None, None]:
    """Decode batches, keeping the backend busy with the next one while the last is in use.

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
    submitted: deque[tuple[Step, BatchPlan]] = deque()

    def submit(plan: BatchPlan, step: Step) -> None:
        admitted = guard.admit(plan if plan.step is step.decoded else replace(plan, step=step.decoded))
        backend.submit(admitted)
        submitted.append((step, admitted))

    def collect() -> tuple[BatchPlan, tuple[torch.Tensor, ...]]:
        while True:
            try:
                pixels = backend.collect()
            except CorruptImageError as error:
                # Damage that no checksum told of shows only now. The backend has lost its place: do all again.
                guard.report(error)
                backend.reset()
                again = list(submitted)
                submitted.clear()
                for step, plan in again:
                    submit(plan, step)
            else:
                step, plan = submitted.popleft()
                return plan if plan.step is step else replace(plan, step=step), pixels

    try:
        for plan in plans:
            submit(plan, plan.step)
            if len(submitted) == _IN_FLIGHT:
                yield collect()
        while submitted:
            yield collect()
    finally:
        backend.reset()
