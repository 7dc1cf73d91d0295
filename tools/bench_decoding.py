"""Which way of decoding crops is the fastest on a GPU, at each size: where and how much of each stored JPEG is decoded.

All routes read the same converted file, crop the same boxes and leave uint8 batches on the device. Each runs in a
process of its own, since decoding regions on a GPU crashes the process with some versions of nvImageCodec.

    python tools/bench_decoding.py path/to/imagenet/val --json benchmarks/decoding.json

The images may be few: they are repeated to the length of an epoch. With ``--device cpu`` only the routes that need no
GPU are run.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.contender import Settings
from bench.loaders import GPU_ROUTES, ROUTES
from bench.measure import Measurable, Plan, Sizes, Timing, measure
from bench.prepare import prepare_files
from bench.process import start_processes
from bench.report import command_words, machine, show_table, versions, write_json
from rich.console import Console

logger = logging.getLogger("bench_decoding")

_STALL_SECONDS = 60.0


class Route:
    """A route that may crash: from then on it takes no time and decodes no images.

    Args:
        process: that runs it.
    """

    def __init__(self, process: Measurable) -> None:
        self._process = process
        self.crashed = False

    def first_batch(self, sizes: Sizes) -> float:
        """See :meth:`bench.process.Runner.first_batch`."""
        return self._ask(lambda: self._process.first_batch(sizes))

    def throughput(self, sizes: Sizes, num_batches: int) -> float:
        """See :meth:`bench.process.Runner.throughput`."""
        return self._ask(lambda: self._process.throughput(sizes, num_batches))

    def _ask(self, question: Callable[[], float]) -> float:
        if self.crashed:
            return 0.0
        try:
            return question()
        except (RuntimeError, OSError) as error:  # it died before it answered, or before it was asked
            logger.warning("%s", error)
            self.crashed = True
            return 0.0


def main(texts: Sequence[str] | None = None) -> None:
    """Measure, and write what was asked for."""
    arguments = parse_arguments(sys.argv[1:] if texts is None else texts)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in (logger.name, "bench"):
        logging.getLogger(name).setLevel(logging.INFO)
    with ExitStack() as stack:
        routes = start_routes(arguments, stack)
        plan = Plan(
            visits={name: [(size,) for size in arguments.sizes] for name in routes},
            batch_size=arguments.batch_size,
            num_threads=arguments.threads,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
        )
        timings = measure(routes, plan)
    results = make_results(routes, timings)
    if arguments.json:
        report = {"machine": machine(), "versions": versions(), "command": command_line(arguments), "routes": results}
        write_json(arguments.json, report)
    show_table(Console(width=120), *table(results), as_markdown=arguments.markdown)


def parse_arguments(texts: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with one subfolder of JPEGs per class, or a converted .beton")
    parser.add_argument("--sizes", type=lambda text: tuple(map(int, text.split(","))), default=(224, 160, 128, 96),
                        help="sides, commas between")  # fmt: skip
    parser.add_argument("--routes", type=lambda text: tuple(text.split(",")), help=f"of {', '.join(ROUTES)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int, default=min(8, len(os.sched_getaffinity(0))), help="of each route")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.7, help="length of a visit")
    parser.add_argument("--json", type=Path, help="file for results, machine and versions")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir(), "respipe-bench"),
                        help="where the converted file is kept for the next run (default: %(default)s)")  # fmt: skip
    arguments = parser.parse_args(texts)
    known = [name for name in ROUTES if arguments.device != "cpu" or name not in GPU_ROUTES]
    arguments.routes = arguments.routes or tuple(known)
    if unknown := [name for name in arguments.routes if name not in known]:
        parser.error(f"--routes on {arguments.device} must be of {', '.join(known)}; got {', '.join(unknown)}")
    return arguments


def start_routes(arguments: argparse.Namespace, stack: ExitStack) -> dict[str, Route]:
    """Convert the images, and start all processes at once, which end with the stack."""
    files = {"pyramid": arguments.data}
    if arguments.data.is_dir():
        files = prepare_files(arguments.data, files, arguments.workdir, num_workers=arguments.threads)
    settings = Settings(
        data=arguments.data,
        files=files,
        batch_size=arguments.batch_size,
        num_threads=arguments.threads,
        device=arguments.device,
    )
    processes = start_processes(arguments.routes, settings, stack, stall_timeout=_STALL_SECONDS)
    return {name: Route(process) for name, process in processes.items()}


def make_results(routes: Mapping[str, Route], timings: Mapping[tuple[str, Sizes], Timing]) -> list[dict[str, Any]]:
    """What was measured of each route at each size; of one that crashed, nothing after the crash."""
    results: list[dict[str, Any]] = []
    for (name, (size,)), timing in timings.items():
        whole = all(timing.rates)
        results.append(
            {
                "route": ROUTES[name].title,
                "size": size,
                "images_per_second": timing.median if whole else None,
                "rounds": timing.rates if whole else [],
                "crashed": routes[name].crashed,
            }
        )
    return results


def table(results: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Headings and cells: images per second of the routes in rows, at the sizes in columns; then the fastest."""
    sizes = list(dict.fromkeys(result["size"] for result in results))
    rates: dict[str, dict[int, float | None]] = {}
    for result in results:
        rates.setdefault(result["route"], {})[result["size"]] = result["images_per_second"]
    rows = [
        (title, *("crashed" if (rate := by_size[size]) is None else f"{rate:,.0f}" for size in sizes))
        for title, by_size in rates.items()
    ]
    fastest = [max(rates, key=lambda title: rates[title][size] or 0.0) for size in sizes]
    return ("images/s", *(f"{size} px" for size in sizes)), [*rows, ("fastest", *fastest)]


def command_line(arguments: argparse.Namespace) -> str:
    """The command that repeats a run, without the paths of this machine."""
    options = ("device", "threads", "batch_size", "rounds", "seconds", "sizes", "routes")
    return shlex.join(command_words("bench_decoding", arguments, options))


if __name__ == "__main__":
    main()
