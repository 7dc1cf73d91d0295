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
import tempfile
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from respipe.processes import num_cores
from respipe.throughput import Plan, measure
from tools.benchmarks.contender import Settings
from tools.benchmarks.prepare import prepare_files
from tools.benchmarks.process import LoaderProcess, start_processes
from tools.benchmarks.registry import LOADERS
from tools.benchmarks.report import command_words, machine, show_table, versions, write_json
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


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """Training on one loader's batches at one size.

    Args:
        loader: its title.
        size: side in pixels.
        images_per_second: on its batches, median of the rounds.
        in_memory: on one batch again and again.
        share: of the second that the first is, median over the rounds of the ratio within a round.
        allocated_mib, used_mib: memory of the GPU that tensors had at most, and that was in use by whatever.
    """

    loader: str
    size: int
    images_per_second: float
    in_memory: float
    share: float
    allocated_mib: float
    used_mib: float


def main() -> None:
    """Measure, and write what was asked for."""
    arguments = parse_arguments(sys.argv[1:])
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in (logger.name, "tools.benchmarks", "respipe.throughput"):
        logging.getLogger(name).setLevel(logging.INFO)
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
            keep("training", asdict(result))
        for epochs in measure_epochs(loaders, arguments):
            keep("epochs", epochs)
    for table, part in ((loading_table, "loading"), (training_table, "training"), (epoch_table, "epochs")):
        show_table(console, *table(report[part]), as_markdown=arguments.markdown)


def parse_arguments(texts: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with one subfolder of JPEGs per class")
    parser.add_argument("--sizes", type=_integers, default=(224, 192, 160, 128, 112, 96), help="sides, commas between")
    parser.add_argument("--loaders", type=_texts, default=DEFAULT_LOADERS, help=f"of {', '.join(LOADERS)}")
    parser.add_argument("--schedules", type=lambda text: tuple(text.split(";")), default=SCHEDULES,
                        help="with semicolons between; the first is what the others are compared with")  # fmt: skip
    parser.add_argument("--epoch-loader", help="whose epochs are timed (default: the fastest of respipe's at 224 px)")
    parser.add_argument("--model", default="resnet50", help="of torchvision")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--threads", type=int, default=min(8, num_cores()), help="of each loader")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3, help="of loading and training")
    parser.add_argument("--seconds", type=float, default=0.4, help="length of a visit that only loads")
    parser.add_argument("--steps", type=int, default=_LEAST_STEPS, help="of a visit that trains, at least %(default)s")
    parser.add_argument("--epoch-images", type=int, default=25_600)
    parser.add_argument("--epochs", type=int, default=2, help="of each schedule; an even number, as TRD alternates")
    parser.add_argument("--json", type=Path, help="file for results, machine and versions")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir(), "respipe-bench"),
                        help="where converted files are kept for the next run (default: %(default)s)")  # fmt: skip
    arguments = parser.parse_args(texts)
    if not arguments.data.is_dir():
        parser.error(f"DATA must be a folder with one subfolder of JPEGs per class; got {arguments.data}")
    if arguments.steps < _LEAST_STEPS:
        parser.error(f"--steps must be at least {_LEAST_STEPS}; got {arguments.steps}")
    unknown = [name for name in arguments.loaders if name not in LOADERS]
    if unknown:
        parser.error(f"--loaders must be of {', '.join(LOADERS)}; got {', '.join(unknown)}")
    if arguments.epoch_loader is not None and arguments.epoch_loader not in respipe_loaders(arguments.loaders):
        parser.error(f"--epoch-loader must be one of respipe's in --loaders; got {arguments.epoch_loader}")
    return arguments


def respipe_loaders(names: Sequence[str]) -> list[str]:
    """Those that are respipe's."""
    return [name for name in names if not LOADERS[name].peer]


def start_loaders(arguments: argparse.Namespace, stack: ExitStack) -> dict[str, LoaderProcess]:
    """Convert what the loaders read, and start their processes, which end with the stack."""
    wanted = [LOADERS[name].file for name in arguments.loaders]
    settings = Settings(
        data=arguments.data,
        files=prepare_files(
            arguments.data, [file for file in wanted if file], arguments.workdir, num_workers=arguments.threads
        ),
        batch_size=arguments.batch_size,
        num_threads=arguments.threads,
        device=arguments.device,
    )
    return start_processes(arguments.loaders, settings, stack)


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


def measure_training(
    loaders: Mapping[str, LoaderProcess], arguments: argparse.Namespace
) -> Generator[TrainingResult, None, None]:
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


def training_result(title: str, size: int, pairs: Sequence[tuple[TrainingRate, TrainingRate]]) -> TrainingResult:
    """What the rounds of one loader at one size say."""
    return TrainingResult(
        loader=title,
        size=size,
        images_per_second=statistics.median(fed.images_per_second for fed, _ in pairs),
        in_memory=statistics.median(ready.images_per_second for _, ready in pairs),
        share=statistics.median(fed.images_per_second / ready.images_per_second for fed, ready in pairs),
        allocated_mib=max(fed.allocated_mib for fed, _ in pairs),
        used_mib=max(fed.used_mib for fed, _ in pairs),
    )


def measure_epochs(
    loaders: Mapping[str, LoaderProcess], arguments: argparse.Namespace
) -> Generator[dict[str, Any], None, None]:
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


def loading_table(loading: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Headings and cells of the table of loading."""
    return ("loader", "px", "images/s", "range"), [
        (
            result["loader"],
            str(result["size"]),
            f"{result['images_per_second']:,.0f}",
            f"{min(result['rounds']):,.0f}-{max(result['rounds']):,.0f}",
        )
        for result in loading
    ]


def training_table(training: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Headings and cells of the table of training."""
    return ("loader", "px", "images/s", "in memory", "share", "tensors MiB", "GPU MiB"), [
        (
            result["loader"],
            str(result["size"]),
            f"{result['images_per_second']:,.0f}",
            f"{result['in_memory']:,.0f}",
            f"{result['share']:.1%}",
            f"{result['allocated_mib']:,.0f}",
            f"{result['used_mib']:,.0f}",
        )
        for result in training
    ]


def epoch_table(epochs: Sequence[Mapping[str, Any]]) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Headings and cells of the table of epochs."""
    return ("schedule", "loader", "s/epoch", "time", "multiply-adds"), [
        (
            epoch["schedule"],
            epoch["loader"],
            f"{epoch['seconds']:.2f}",
            f"{epoch['relative_seconds']:.2f}",
            f"{epoch['relative_macs']:.2f}",
        )
        for epoch in epochs
    ]


def command_line(arguments: argparse.Namespace) -> str:
    """The command that repeats a run, without the paths of this machine."""
    options = ("model", "device", "threads", "batch_size", "rounds", "seconds", "steps", "epoch_images", "epochs")
    options += ("sizes", "loaders")
    return shlex.join([*command_words("gpu", arguments, options), "--schedules", ";".join(arguments.schedules)])


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _texts(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


if __name__ == "__main__":
    main()
