"""Batches decoded by a pool of threads, handed back in the order they were submitted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise

import numpy as np
import torch

DecodeRange = Callable[[int, int], None]


def ranges(num_images: int, num_threads: int) -> list[tuple[int, int]]:
    """Start and stop of contiguous parts of a batch, one for each thread, none of them empty."""
    edges = np.linspace(0, num_images, min(num_threads, num_images) + 1).astype(int).tolist()
    return list(pairwise(edges))


class ThreadedBatches:
    """First-in first-out queue of batches that are filled in by threads.

    Each batch is cut into one contiguous range of images per thread, so that a decoder pays its per-call cost once per
    thread and batch, and scratch memory belongs to one thread at a time.

    Args:
        num_threads: threads of the pool.
        name: prefix of the threads' names, as debuggers and profilers show them.
    """

    def __init__(self, num_threads: int, *, name: str) -> None:
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._batches: deque[tuple[tuple[torch.Tensor, ...], list[Future[None]]]] = deque()

    def submit(self, outputs: tuple[torch.Tensor, ...], num_images: int, decode: DecodeRange) -> None:
        """Queue a batch: ``decode(start, stop)`` fills those images of ``outputs``, from several threads at once."""
        futures = [self._pool.submit(decode, *part) for part in ranges(num_images, self._num_threads)]
        self._batches.append((outputs, futures))

    def collect(self) -> tuple[torch.Tensor, ...]:
        """Wait for the oldest batch; raises what its ``decode`` raised."""
        outputs, futures = self._batches.popleft()
        wait(futures)
        for future in futures:
            future.result()
        return outputs

    def reset(self) -> None:
        """Drop every queued batch, after its running parts have ended."""
        while self._batches:
            _, futures = self._batches.popleft()
            for future in futures:
                future.cancel()
            wait(futures)

    def close(self) -> None:
        """End the threads."""
        self.reset()
        self._pool.shutdown()
