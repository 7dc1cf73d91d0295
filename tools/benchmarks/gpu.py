"""Whether a loader keeps a GPU fed at every size, and whether cheap steps are cheap on the clock.

Four measurements, in processes of their own, interleaved, medians of the rounds:

* loading: images per second of respipe's backends, of stock FFCV and of DALI's stock pipeline, as uint8 on the GPU;
* training: images per second of a ResNet-50 in bfloat16 on each loader's batches, and the share of its speed on one
  batch that is in memory already (and the memory of the GPU);
* epochs of schedules against an epoch of one size, next to the share of its multiply-adds.

    python -m tools.benchmarks.gpu path/to/imagenet/val --json benchmarks/gpu.json

The images may be few: they are repeated to the length of an epoch. What the defaults take is sized for ten minutes on
one GPU with eight cores, conversion of a few hundred images included.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import statistics
import sys
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from rich.console import Console

from respipe.processes import num_cores
from respipe.throughput import Plan, measure
from tools.benchmarks.command import log_progress, parsed, parser_of, start_loaders
from tools.benchmarks.process import LoaderProcess
from tools.benchmarks.registry import LOADERS
from tools.benchmarks.report import Columns, command_words, machine, number, show_table, versions, write_json
from tools.benchmarks.training import EpochTime, TrainingRate

logger = logging.getLogger(__name__)

FIXED = "Constant(224)"
SCHEDULES = (
    FIXED,
    "TRD(224, 112, 0.5, draw='alternate')",
    "MixSize('S144')",
    "RSNet((224, 192, 160, 128, 96))",
)
DEFAULT_LOADERS = ("ffcv-500", "dali", "respipe-tiles", "respipe-ffcv", "respipe-dali")

_TRIAL_STEPS = 4
# A loader has up to a dozen batches ready or under way. Over fewer steps than these, even one that is much too slow
# would keep the GPU fed.
_LEAST_STEPS = 100


LOADING: Columns = {
    "loader": number("loader", ""),
    "px": number("size", ""),
    "images/s": number("images_per_second", ",.0f"),
    "range": lambda row: f"{min(row['rounds']):,.0f}-{max(row['rounds']):,.0f}",
}
TRAINING: Columns = {
    "loader": number("loader", ""),
    "px": number("size", ""),
    "images/s": number("images_per_second", ",.0f"),
    "in memory": number("in_memory", ",.0f"),
    "share": number("share", ".1%"),
    "tensors MiB": number("allocated_mib", ",.0f"),
    "GPU MiB": number("used_mib", ",.0f"),
}
EPOCHS: Columns = {
    "schedule": number("schedule", ""),
    "loader": number("loader", ""),
    "s/epoch": number("seconds", ".2f"),
    "time": number("relative_seconds", ".2f"),
    "multiply-adds": number("relative_macs", ".2f"),
}


def main() -> None:
    """Measure, and write what was asked for."""
    arguments = parse_arguments(sys.argv[1:])
    log_progress(__name__)
    console = Console(width=120)
    report: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(),
        "command": command_line(arguments),
        "loading": [],
        "training": [],
        "epochs": [],
    }

    def keep(part: str, *found: dict[str, Any]) -> None:
        report[part].extend(found)
        if arguments.json:  # after each part, for a run that is stopped
            write_json(arguments.json, report)

    with ExitStack() as stack:
        loaders = start_loaders(arguments, stack)
        keep("loading", *measure_loading(loaders, arguments))
        for result in measure_training(loaders, arguments):
            keep("training", result)
        for epochs in measure_epochs(loaders, arguments):
            keep("epochs", epochs)
    for columns, part in ((LOADING, "loading"), (TRAINING, "training"), (EPOCHS, "epochs")):
        show_table(console, columns, report[part], as_markdown=arguments.markdown)


def parse_arguments(texts: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = parser_of(
        __doc__, sizes=(224, 192, 160, 128, 112, 96), loaders=DEFAULT_LOADERS, device="cuda",
        threads=min(8, num_cores()), batch_size=256, rounds=3, seconds=0.4,
    )  # fmt: skip
    parser.add_argument("--schedules", type=lambda text: tuple(text.split(";")), default=SCHEDULES,
                        help="with semicolons between; the first is what the others are compared with")  # fmt: skip
    parser.add_argument("--epoch-loader", help="whose epochs are timed (default: the fastest of respipe's at 224 px)")
    parser.add_argument("--model", default="resnet50", help="of torchvision")
    parser.add_argument("--steps", type=int, default=_LEAST_STEPS, help="of a visit that trains, at least %(default)s")
    parser.add_argument("--epoch-images", type=int, default=25_600)
    parser.add_argument("--epochs", type=int, default=2, help="of each schedule; an even number, as TRD alternates")
    arguments = parsed(parser, texts)
    if arguments.steps < _LEAST_STEPS:
        parser.error(f"--steps must be at least {_LEAST_STEPS}; got {arguments.steps}")
    if arguments.epoch_loader is not None and arguments.epoch_loader not in respipe_loaders(arguments.loaders):
        parser.error(f"--epoch-loader must be one of respipe's in --loaders; got {arguments.epoch_loader}")
    return arguments


def respipe_loaders(names: Sequence[str]) -> list[str]:
    """Those that are respipe's."""
    return [name for name in names if not LOADERS[name].peer]


def measure_loading(loaders: Mapping[str, LoaderProcess], arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Images per second of loading alone; also opens the loaders' streams for what follows."""
    plan = Plan(
        visits={name: [(size,) for size in arguments.sizes] for name in loaders},
        batch_size=arguments.batch_size,
        num_threads=arguments.threads,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
    )
    return [
        {
            "loader": LOADERS[name].title,
            "size": size,
            "images_per_second": timing.median,
            "rounds": timing.rates,
        }
        for (name, (size,)), timing in measure(loaders, plan, open_at_once=True).items()
    ]


def measure_training(loaders: Mapping[str, LoaderProcess], arguments: argparse.Namespace) -> Generator[dict[str, Any]]:
    """Training on each loader's batches and on one in memory, in turn, size by size."""

    def train(name: str, size: int, num_steps: int, *, in_memory: bool) -> TrainingRate:
        return loaders[name].training(size, num_steps, arguments.model, in_memory=in_memory)

    def get_ready(name: str) -> None:
        for size in arguments.sizes:
            train(name, size, 1, in_memory=True)

    with ThreadPoolExecutor(len(loaders)) as pool:  # libraries take a while to load their kernels
        list(pool.map(get_ready, loaders))
    for size in arguments.sizes:
        rates: dict[str, list[tuple[TrainingRate, TrainingRate]]] = {name: [] for name in loaders}
        for _ in range(arguments.rounds):
            for name in loaders:
                fed, ready = (train(name, size, arguments.steps, in_memory=in_memory) for in_memory in (False, True))
                rates[name].append((fed, ready))
        for name, pairs in rates.items():
            result = training_result(LOADERS[name].title, size, pairs)
            logger.info("%s", result)
            yield result


def training_result(title: str, size: int, pairs: Sequence[tuple[TrainingRate, TrainingRate]]) -> dict[str, Any]:
    """What the rounds of one loader at one size say.

    Returns:
        ``images_per_second`` on its batches and ``in_memory``, on one batch again and again, medians of the rounds;
        ``share``, the median over the rounds of their ratio within a round; ``allocated_mib`` and ``used_mib``, memory
        of the GPU that tensors had at most, and that was in use by whatever.
    """
    return {
        "loader": title,
        "size": size,
        "images_per_second": statistics.median(fed.images_per_second for fed, _ in pairs),
        "in_memory": statistics.median(ready.images_per_second for _, ready in pairs),
        "share": statistics.median(fed.images_per_second / ready.images_per_second for fed, ready in pairs),
        "allocated_mib": max(fed.allocated_mib for fed, _ in pairs),
        "used_mib": max(fed.used_mib for fed, _ in pairs),
    }


def measure_epochs(loaders: Mapping[str, LoaderProcess], arguments: argparse.Namespace) -> Generator[dict[str, Any]]:
    """Epochs of every schedule with one of respipe's loaders, against those of the first schedule."""
    ours = respipe_loaders(tuple(loaders))
    if not ours:
        return
    chosen = arguments.epoch_loader or max(
        ours,
        key=lambda name: loaders[name].throughput((max(arguments.sizes),), _TRIAL_STEPS * arguments.threads),
    )
    first: EpochTime | None = None
    for schedule in arguments.schedules:
        time = loaders[chosen].epochs(schedule, arguments.epoch_images, arguments.epochs, arguments.model)
        logger.info("%s", time)
        first = first or time
        yield {**asdict(time), "loader": LOADERS[chosen].title, "relative_seconds": time.seconds / first.seconds}


def command_line(arguments: argparse.Namespace) -> str:
    """The command that repeats a run, without the paths of this machine."""
    options = ("model", "device", "threads", "batch_size", "rounds", "seconds", "steps", "epoch_images", "epochs")
    options += ("sizes", "loaders")
    return shlex.join([*command_words("gpu", arguments, options), "--schedules", ";".join(arguments.schedules)])


if __name__ == "__main__":
    main()
