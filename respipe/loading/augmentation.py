"""Decoded batches augmented as planned, on CPU threads or on the device, before they are normalised."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from contextlib import closing
from itertools import pairwise

import torch

from respipe.augment.operations import augment_tensor, resolve
from respipe.backends.pool import DaemonPool
from respipe.planning.batch import BatchPlan

Decoded = tuple[BatchPlan, tuple[torch.Tensor, ...]]


def augment_in_order(
    batches: Generator[Decoded, None, None],
    *,
    mean: tuple[float, ...],
    to_device: Callable[[torch.Tensor], torch.Tensor],
    num_threads: int,
) -> Iterator[Decoded]:
    """Augment batches, those on a CPU by threads while the next one is being decoded.

    Args:
        batches: plans and their (B, S, S, 3) uint8 pixels; closed at the end.
        mean: mean colour, three values in 0..1.
        to_device: copy to the device where batches end up.
        num_threads: number of threads, whose work is done by compiled loops without the GIL.

    Yields:
        the same, changed in place or copied to the device.
    """
    threads = DaemonPool(num_threads, "respipe-augment")
    waiting: deque[tuple[Decoded, list[Future[None]]]] = deque()
    with closing(batches):
        try:
            for plan, pixels in batches:
                waiting.append(_started(plan, tuple(map(to_device, pixels)), mean, threads, num_threads))
                if len(waiting) > 1:
                    yield _finished(*waiting.popleft())
            while waiting:
                yield _finished(*waiting.popleft())
        finally:
            wait([future for _, futures in waiting for future in futures], timeout=30)
            threads.close()


def _started(
    plan: BatchPlan, pixels: tuple[torch.Tensor, ...], mean: tuple[float, ...], threads: DaemonPool, num_threads: int
) -> tuple[Decoded, list[Future[None]]]:
    futures: list[Future[None]] = []
    for part, images in zip(plan.views or (plan,) * len(pixels), pixels, strict=True):
        if part.augmentation is None:
            continue
        resolved = resolve(part.augmentation, images.shape[1], mean)
        if images.device.type != "cpu":
            augment_tensor(images, resolved)
            continue
        edges = [len(images) * number // num_threads for number in range(num_threads + 1)]
        futures += [
            threads.submit(resolved.augment, images.numpy(), start, stop)
            for start, stop in pairwise(edges)
            if start < stop
        ]
    return (plan, pixels), futures


def _finished(batch: Decoded, futures: list[Future[None]]) -> Decoded:
    for future in futures:
        future.result(timeout=300)
    return batch
