"""``respipe bench``: how fast this machine reads the user's own data at each image size."""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from respipe.cli.arguments import AsJson, parse_integers, parse_names
from respipe.cli.console import ProgressCallback, progress, write_json, write_line, write_table

if TYPE_CHECKING:
    import torch

    from respipe.loading.loader import Loader
    from respipe.schedules.step import Step

NUM_ROUNDS = 5


def bench(
    data: Annotated[str, typer.Argument(help="A .beton file, a folder or URL of several, or a class folder.")],
    sizes: Annotated[Any, typer.Option(parser=parse_integers, metavar="S,S,...", help="Image sides in pixels.")] = (
        "224,160,128,112,96"
    ),
    backends: Annotated[Any, typer.Option(parser=parse_names, metavar="NAME,...", help="Backends to measure.")] = (
        "auto"
    ),
    batches: Annotated[int, typer.Option(min=1, help="Batches per measurement.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 64,
    threads: Annotated[int | None, typer.Option(min=1, help="Decoding threads. Default: all cores.")] = None,
    device: Annotated[str, typer.Option(help="Where batches end up, such as cpu or cuda.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Measure images per second at each size: the median of five rounds that take every size in turn.

    Example: respipe bench train.beton --sizes 224,160,128 --backends tiles,reference
    """
    import torch

    from respipe.loading.loader import Loader

    ordered = tuple(sorted(set(sizes), reverse=True))
    arguments: dict[str, Any] = {"batch_size": batch_size, "num_threads": threads, "device": device}
    with contextlib.ExitStack() as stack:
        loaders: dict[str, Loader] = {}
        for backend in backends:
            loader = stack.enter_context(
                Loader(data, Sweep(ordered), backend=backend, dtype=torch.uint8, normalize=None, **arguments)
            )
            loaders.setdefault(loader.backend, loader)
        num_samples = len(next(iter(loaders.values())).dataset)
        with progress("measuring") as on_progress:
            results = measure_loaders(loaders, ordered, num_batches=batches, on_progress=on_progress)
    report = {"data": str(data), "num_samples": num_samples, **arguments, "num_batches": batches, "results": results}
    if as_json:
        write_json(report)
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    write_line(
        f"{report['data']}: {report['num_samples']:,} samples, {report['num_batches']} batches of "
        f"{report['batch_size']} per measurement, median of {len(report['results'][0]['rounds'])} rounds"
    )
    largest = max(row["size"] for row in report["results"])
    write_table(
        ("backend", "size", "images/s", "lowest", "highest", f"time vs {largest} px", f"area vs {largest} px"),
        [
            (
                row["loader"],
                f"{row['size']} px",
                f"{row['images_per_second']:,.0f}",
                f"{min(row['rounds']):,.0f}",
                f"{max(row['rounds']):,.0f}",
                f"{row['time_ratio']:.2f}",
                f"{row['area_ratio']:.2f}",
            )
            for row in report["results"]
        ],
        left=("backend",),
    )


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
        from respipe.schedules.constant import Constant

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
            batches = cast("Generator[tuple[torch.Tensor, torch.Tensor]]", iter(self._loader))
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
    from respipe.throughput import Plan, measure

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
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
