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
from respipe.throughput import Plan, measure

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


class LoaderVisits:
    """Visits to one loader at the sizes of its :class:`Sweep`, for :func:`respipe.throughput.measure`.

    Args:
        loader: loader of a sweep.

    Raises:
        ValueError: an epoch has a single batch.
    """

    def __init__(self, loader: Loader) -> None:
        if loader.num_steps(0) < 2:
            raise ValueError(
                f"`batch_size` must be at most half the number of samples, {len(loader.dataset)}; "
                f"got {loader.batch_size}. Pass a smaller --batch-size."
            )
        self._loader, self._sizes = loader, cast(Sweep, loader.schedule).sizes
        self._turns = dict.fromkeys(self._sizes, 0)

    def first_batch(self, sizes: tuple[int, ...]) -> float:
        """Seconds until the first batch of a size: code is compiled and files come into memory, as no visit counts."""
        start = time.perf_counter()
        self.throughput(sizes, 1)
        return time.perf_counter() - start

    def throughput(self, sizes: tuple[int, ...], num_batches: int) -> float:
        """Images per second over some batches; where an epoch is too short, the next ones of its size follow.

        The clock starts when an epoch's first batch arrives. While the loop waits for every batch, it sees each one as
        soon as it is ready, so the time between two arrivals is the time that the work in between takes.
        """
        (size,) = sizes
        num_images = taken = 0
        seconds = 0.0
        while taken < num_batches:
            self._loader.set_epoch(self._sizes.index(size) + len(self._sizes) * self._turns[size])
            self._turns[size] += 1
            # Closing stops the decoding of batches that nobody will ask for, which would slow the next visit down.
            batches = cast(Generator[tuple[torch.Tensor, torch.Tensor], None, None], iter(self._loader))
            with contextlib.closing(batches) as stream:
                next(stream)
                _synchronize()
                start = time.perf_counter()
                for images, _ in itertools.islice(stream, num_batches - taken):
                    num_images += len(images)
                    taken += 1
                _synchronize()
                seconds += time.perf_counter() - start
        return num_images / seconds


def measure_loaders(
    loaders: Mapping[str, Loader], sizes: tuple[int, ...], *, num_batches: int, on_progress: ProgressCallback
) -> list[dict[str, Any]]:
    """Images per second of each loader at each size, as ``respipe bench`` reports it."""
    plan = Plan(
        visits={name: [(size,) for size in sizes] for name in loaders},
        batch_size=next(iter(loaders.values())).batch_size,
        rounds=NUM_ROUNDS,
        num_batches=num_batches,
    )
    timings = measure({name: LoaderVisits(loader) for name, loader in loaders.items()}, plan, progress=on_progress)
    return [
        {
            "loader": name,
            "size": size,
            "images_per_second": timing.median,
            "rounds": timing.rates,
            "time_ratio": statistics.median(
                slow / fast for slow, fast in zip(timings[name, (sizes[0],)].rates, timing.rates, strict=True)
            ),
            "area_ratio": (size / sizes[0]) ** 2,
        }
        for (name, (size,)), timing in timings.items()
    ]


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
