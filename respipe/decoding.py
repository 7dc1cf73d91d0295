"""Planned batches through a backend, in order, with damaged samples kept out."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable

import torch

from respipe.backends.base import Backend
from respipe.corruption import CorruptionGuard
from respipe.errors import CorruptImageError
from respipe.sampling.plan import BatchPlan

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
        the plan as it was carried out, without damaged samples, and its pixels (see :class:`Backend`).

    Raises:
        CorruptImageError: a sample is damaged and may not be left out.
    """
    submitted: deque[BatchPlan] = deque()

    def submit(plan: BatchPlan) -> None:
        admitted = guard.admit(plan)
        backend.submit(admitted)
        submitted.append(admitted)

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
                for plan in again:
                    submit(plan)
            else:
                return submitted.popleft(), pixels

    try:
        for plan in plans:
            submit(plan)
            if len(submitted) == _IN_FLIGHT:
                yield collect()
        while submitted:
            yield collect()
    finally:
        backend.reset()
