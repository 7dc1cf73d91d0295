"""What backends share that decode on CPU threads: batches handed back in the order they were submitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from respipe.backends.pool.buffers import OutputBuffers
from respipe.backends.pool.daemon import PATIENCE_SECONDS, DaemonPool
from respipe.backends.routing import Route, route
from respipe.planning.batch import BatchPlan
from respipe.storage.dataset import Dataset

Outputs = tuple[NDArray[np.uint8], ...]
DecodeRange = Callable[[int, int], None]
"""Fills in the images from the first number to before the second."""


# Planning a batch of small images and handing it over takes a good part of the time of decoding it. The thread that
# does so is faster for several in a row, as code and data stay in the processor's cache, and the others need work
# meanwhile.
_ROOM_BYTES = 12 << 20  # of pixels in flight
_LEAST_ROOM, _MOST_ROOM = 2, 8  # batches

# About half a millisecond of decoding. A thread needs the interpreter before it starts and when it is done, and may
# have to wait for it that long.
_MIN_PIXELS = 150_000


def ranges(covers: NDArray[np.int64], max_parts: int) -> list[tuple[int, int]]:
    """Start and stop of contiguous parts of a batch, none of them empty: as many as are worth a thread each.

    Args:
        covers: (B, 4) int64, what is decoded of each image: top, left, height and width.
        max_parts: at least 1.
    """
    num_pixels = int(covers[:, 2:].prod(axis=1).sum())
    parts = min(max_parts, len(covers), max(1, num_pixels // _MIN_PIXELS))
    return list(pairwise(len(covers) * part // max(parts, 1) for part in range(parts + 1)))


class ThreadedBackend(ABC):
    """A backend whose batches are filled in by a pool of threads. See :class:`respipe.backends.base.Backend`.

    Each batch is cut into one contiguous range of images per thread, or fewer where they are small or the batches
    that are in flight give every thread something to do. So a decoder pays its per-call cost once per range, and
    scratch memory belongs to one thread at a time.

    Args:
        name: of the backend; its threads are called after it, as debuggers and profilers show them.
        dataset: where the images are.
        num_threads: decoding threads.
        level_margin: see :func:`respipe.backends.routing.route`.
    """

    def __init__(self, name: str, dataset: Dataset, *, num_threads: int, level_margin: float) -> None:
        self._name = name
        self._dataset = dataset
        self._num_threads = num_threads
        self._level_margin = level_margin
        self._pool = DaemonPool(num_threads, f"respipe-{name}")
        self._buffers = OutputBuffers()
        self._batches: deque[tuple[tuple[torch.Tensor, ...], list[Future[None]]]] = deque()

    @property
    def name(self) -> str:
        """The backend's name as given to ``Loader(backend=...)``."""
        return self._name

    def room(self, plan: BatchPlan) -> int:
        """See :class:`respipe.backends.base.Backend`."""
        num_bytes = 3 * len(plan) * sum(size * size for size in plan.step.sizes)
        return min(max(_ROOM_BYTES // max(num_bytes, 1), _LEAST_ROOM), _MOST_ROOM)

    def submit(self, plan: BatchPlan) -> None:
        """Start decoding a batch."""
        routed = route(self._dataset.levels, plan, margin=self._level_margin)
        outputs = self._buffers.allocate([(len(plan), size, size, 3) for size in plan.step.sizes])
        decode = self._decoder(plan, routed, outputs)
        # Enough that half of the batches in flight occupy all threads.
        parts = ranges(routed.covers, -(-2 * self._num_threads // self.room(plan)))
        futures = [self._pool.submit(decode, *part) for part in parts]
        self._batches.append((tuple(torch.from_numpy(output) for output in outputs), futures))

    @abstractmethod
    def _decoder(self, plan: BatchPlan, routed: Route, outputs: Outputs) -> DecodeRange:
        """What fills in a range of a batch's images, from several threads at once.

        Args:
            plan: the batch.
            routed: where its images are.
            outputs: for each size of the step a (B, S, S, 3) uint8 array.
        """

    def collect(self) -> tuple[torch.Tensor, ...]:
        """Wait for the oldest batch; raises what its decoder raised."""
        outputs, futures = self._batches.popleft()
        errors = [future.exception() for future in futures]  # all of them have ended before one is raised
        for error in errors:
            if error is not None:
                raise error
        return outputs

    def reset(self) -> None:
        """Drop every batch that was not collected, after its running parts have ended or are given up."""
        futures = [future for _, futures in self._batches for future in futures]
        self._batches.clear()
        for future in futures:
            future.cancel()
        # A part that hangs goes on to write, if ever, into memory that it keeps alive and nobody else has.
        wait(futures, timeout=PATIENCE_SECONDS)

    def close(self) -> None:
        """End the threads."""
        self.reset()
        self._pool.close()
