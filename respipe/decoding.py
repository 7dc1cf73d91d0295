"""Planned batches through a backend, in order, with damaged samples kept out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import replace

import torch

from respipe.backends.base import Backend
from respipe.corruption import CorruptionGuard
from respipe.errors import CorruptImageError
from respipe.sampling.plan import BatchPlan
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
    submitted: deque[tuple[Step, BatchPlan]] = deque()

    def submit(plan: BatchPlan, step: Step) -> None:
        admitted = guard.admit(_with_step(plan, step.decoded))
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
                return _with_step(plan, step), pixels

    def collect_until(left: int) -> Generator[tuple[BatchPlan, tuple[torch.Tensor, ...]], None, None]:
        while len(submitted) > left:
            yield collect()

    try:
        for plan in plans:
            submit(plan, plan.step)
            # A decoding thread that is done needs the interpreter to go on with the next batch.
            time.sleep(0)
            room = backend.room(submitted[-1][1])
            if len(submitted) >= room:
                yield from collect_until(room // 2)
        yield from collect_until(0)
    finally:
        backend.reset()


def _with_step(plan: BatchPlan, step: Step) -> BatchPlan:
    return plan if plan.step is step else replace(plan, step=step)
