"""Measuring how fast loaders are at each image size."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from respipe.cli.console import ProgressCallback
from respipe.loading.loader import Loader
from respipe.schedules.constant import Constant
from respipe.schedules.step import Step

NUM_ROUNDS = 5


@dataclass(frozen=True)
class Sweep:
    """One size per epoch, in turn, so that a single loader serves every size as it would under a schedule."""

    sizes: tuple[int, ...]

    @property
    def base_size(self) -> int:
        """The first size."""
        return self.sizes[0]

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> Sequence[Step]:
        """The steps of one epoch; see :meth:`respipe.schedules.Schedule.steps`."""
        size = self.sizes[epoch % len(self.sizes)]
        return Constant(size).steps(epoch, num_samples=num_samples, batch_size=batch_size)


def measure(
    loaders: Mapping[str, Loader], sizes: tuple[int, ...], *, num_batches: int, on_progress: ProgressCallback
) -> list[dict[str, Any]]:
    """Images per second of each loader at each size.

    Every round visits all loaders and sizes in turn, so that a machine that slows down or speeds up meanwhile does so
    for all alike; a first round, in which code is compiled and files come into memory, does not count.

    Raises:
        ValueError: an epoch has a single batch.
    """
    for loader in loaders.values():
        if loader.num_steps(0) < 2:
            raise ValueError(
                f"`batch_size` must be at most half the number of samples, {len(loader.dataset)}; "
                f"got {loader.batch_size}. Pass a smaller --batch-size."
            )
    speeds: dict[tuple[str, int], list[float]] = {(name, size): [] for name in loaders for size in sizes}
    for number in range(1 + NUM_ROUNDS):
        for place, (name, size) in enumerate(speeds):
            epoch = number * len(sizes) + sizes.index(size)
            speed = _images_per_second(loaders[name], epoch, len(sizes), num_batches)
            if number > 0:
                speeds[name, size].append(speed)
            on_progress(number * len(speeds) + place + 1, (1 + NUM_ROUNDS) * len(speeds))
    return [
        {
            "loader": name,
            "size": size,
            "images_per_second": statistics.median(rounds),
            "rounds": rounds,
            "time_ratio": statistics.median(
                slow / fast for slow, fast in zip(speeds[name, sizes[0]], rounds, strict=True)
            ),
            "area_ratio": (size / sizes[0]) ** 2,
        }
        for (name, size), rounds in speeds.items()
    ]


def _images_per_second(loader: Loader, epoch: int, stride: int, num_batches: int) -> float:
    """Speed over ``num_batches`` batches; where an epoch is too short, the next ones of its size follow.

    The clock starts when an epoch's first batch arrives. While the loop waits for every batch, it sees each one as
    soon as it is ready, so the time between two arrivals is the time that the work in between takes.
    """
    num_images = taken = 0
    seconds = 0.0
    while taken < num_batches:
        loader.set_epoch(epoch)
        # Closing stops the decoding of batches that nobody will ask for, which would slow the next measurement down.
        with contextlib.closing(cast(Generator[tuple[torch.Tensor, torch.Tensor], None, None], iter(loader))) as stream:
            next(stream)
            _synchronize()
            start = time.perf_counter()
            for images, _ in itertools.islice(stream, num_batches - taken):
                num_images += len(images)
                taken += 1
            _synchronize()
            seconds += time.perf_counter() - start
        epoch += stride * (1 + NUM_ROUNDS)
    return num_images / seconds


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
