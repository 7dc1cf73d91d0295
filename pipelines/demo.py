"""What respipe is for, in a few minutes on two CPU cores: ``python -m pipelines.demo``.

Renders a small data set of JPEGs, converts it, and shows two things: how fast the same images load at several sizes
with torchvision's DataLoader and with respipe, and what a network learns in the same time at one size and under a
schedule. Epochs of both runs take turns, so that whatever else keeps the machine busy slows both down. What it leaves
in ``--output``:

    images/  train.beton  val.beton           the data
    fixed/  scheduled/                        the runs: log.jsonl
    loading.png  batches.png  training.png    pictures, where matplotlib is installed
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

import respipe
from respipe.errors import MissingBackendError
from respipe.plots import plot_batch, plot_runs, plot_throughput
from respipe.processes import num_cores
from respipe.recipe import Recipe, load_recipe
from respipe.runs import Event, read_events
from respipe.schedules import Constant
from respipe.train import evaluate_epoch as evaluate
from respipe.train import open_log, prepare, train_epoch
from respipe.training.meter import EpochMeter
from respipe.training.processes import process_group

logger = logging.getLogger(__name__)

RUNS = ("fixed", "scheduled")
SIZES = (160, 96, 64, 48)
BAND = Path(__file__).parents[1] / "benchmarks" / "demo_cpu.json"


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.demo", description="Watch a resolution schedule at work."
    )
    parser.add_argument("--output", type=Path, default=Path(".demo"), help="folder for data, runs and pictures")
    parser.add_argument("--images", type=int, default=3200, help="number of training images")
    parser.add_argument("--seed", type=int, default=4, help="seed of both runs")
    parser.add_argument(
        "--fixed-epochs", type=int, default=8, help="epochs at the fixed size; the recipe has the others"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="time of each measurement of loading")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the recipe")
    options = parser.parse_args(arguments)
    output, console = options.output, Console()
    make_data(output, console, num_images=options.images)

    console.rule("1. loading the same images at several sizes")
    speeds = measure_loading(output, seconds=options.seconds)
    console.print(loading_table(speeds))

    console.rule("2. training for the same time")
    changes = [*options.set, f"seed={options.seed}"]
    scheduled = load_recipe("demo", changes)
    size = scheduled.build_schedule().base_size
    fixed = load_recipe(
        "demo", [*changes, f"schedule={{name: Constant, size: {size}}}", f"epochs={options.fixed_epochs}"]
    )
    train_in_turns({"fixed": fixed, "scheduled": scheduled}, output, console)
    logs = {name: read_events(output / name) for name in RUNS}
    console.print(training_table(logs))
    console.print(
        "One seed, on data that make small images worthwhile, with a network and a schedule chosen for them: what you "
        "see is time turned into accuracy, not a promise for yours."
    )
    if BAND.exists():
        console.print(band_line(json.loads(BAND.read_text())))
    for picture in draw(output, scheduled, speeds):
        console.print(f"wrote {picture}")

    console.rule("3. your own images")
    console.print(
        "respipe convert FOLDER train.beton        # a folder with one subfolder per class\n"
        "respipe inspect train.beton\n"
        "respipe bench train.beton --sizes 224,160,128,96\n"
        "docs/getting-started.md                   # 20 lines that train on it",
        markup=False,
        highlight=False,
    )


def make_data(output: Path, console: Console, *, num_images: int) -> None:
    """Render and convert the data set."""
    images = output / "images"
    shutil.rmtree(images, ignore_errors=True)
    console.rule("rendering and converting images")
    counts = ["--train", str(num_images), "--val", str(num_images // 4)]
    # In a process of its own, whose workers need not load torch.
    subprocess.run([sys.executable, "-m", "pipelines.demo_images", str(images), *counts], check=True)
    for split in ("train", "val"):
        with Progress(console=console) as progress:
            bar = progress.add_task(f"{split}.beton")
            respipe.convert(
                images / split, output / f"{split}.beton", levels=(256, 128, 64), overwrite=True,
                progress=lambda done, total, bar=bar: progress.update(bar, completed=done, total=total),
            )  # fmt: skip


# --- Loading ----------------------------------------------------------------------------------------------------------


def measure_loading(output: Path, *, seconds: float, rounds: int = 3) -> dict[str, dict[int, float]]:
    """Images per second of both loaders at each size: medians of visits that take turns."""
    visits: dict[str, dict[int, list[float]]] = {"torchvision": {}, "respipe": {}}
    makers: dict[str, Callable[[Path, int], Iterable[Any]]] = {
        "torchvision": torchvision_batches,
        "respipe": respipe_batches,
    }
    for _ in range(rounds):
        for size in SIZES:
            for name, make in makers.items():
                visits[name].setdefault(size, []).append(images_per_second(make(output, size), seconds))
    return {name: {size: statistics.median(one) for size, one in sizes.items()} for name, sizes in visits.items()}


def torchvision_batches(output: Path, size: int) -> Iterator[Any]:
    transform = v2.Compose([v2.RandomResizedCrop(size, scale=(0.5, 1.0)), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    dataset = ImageFolder(output / "images" / "train", transform)
    loader = DataLoader(
        dataset, 64, shuffle=True, num_workers=num_cores(), drop_last=True, multiprocessing_context="fork"
    )
    while True:
        yield from loader


def respipe_batches(output: Path, size: int) -> Iterator[Any]:
    with respipe.Loader(
        output / "train.beton", Constant(size), batch_size=64, dtype=torch.uint8, normalize=None,
        crop=respipe.sampling.RandomResizedCrop(scale=(0.5, 1.0)),
    ) as loader:  # fmt: skip
        while True:
            yield from loader


def images_per_second(batches: Iterable[Any], seconds: float) -> float:
    """Speed of a loader, once what it prepared in advance has been used up."""
    iterator = iter(batches)
    for _ in range(8):
        next(iterator)
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        count += len(next(iterator)[1])
    return count / elapsed


def loading_table(speeds: dict[str, dict[int, float]]) -> Table:
    table = Table("images/s", *(f"{size} px" for size in SIZES))
    for column in table.columns[1:]:
        column.justify = "right"
    for name, sizes in speeds.items():
        table.add_row(name, *(f"{sizes[size]:,.0f}" for size in SIZES))
    ratios = (speeds["respipe"][size] / speeds["torchvision"][size] for size in SIZES)
    table.add_row("ratio", *(f"{ratio:.1f}x" for ratio in ratios))
    return table


# --- Training ---------------------------------------------------------------------------------------------------------


def train_in_turns(recipes: dict[str, Recipe], output: Path, console: Console) -> None:
    """Train several runs, always the one that has had the least time, an epoch at a time."""
    with ExitStack() as stack, Progress(console=console) as progress:
        process = stack.enter_context(process_group("cpu"))
        turns = {}
        for name, recipe in recipes.items():
            shutil.rmtree(output / name, ignore_errors=True)
            (output / name).mkdir(parents=True)
            data, val = (str(output / f"{split}.beton") for split in ("train", "val"))
            run = prepare(recipe, process, data=data, val=val, output=output / name)
            stack.enter_context(run.loader)
            turns[name] = (run, stack.enter_context(open_log(run)), progress.add_task(name, total=recipe.epochs))
        while waiting := [name for name, (run, _, _) in turns.items() if len(run.history) < run.recipe.epochs]:
            name = min(waiting, key=lambda name: turns[name][0].elapsed)
            run, log, bar = turns[name]
            epoch = len(run.history)
            record = train_epoch(run, epoch, EpochMeter(process), lambda *_: None)
            run.elapsed += record["seconds"]  # of training alone
            record |= evaluate(run, epoch, lambda *_: None) | {"elapsed": run.elapsed}
            run.history.append(record)
            log("epoch", **record)
            progress.advance(bar)
        for run, log, _ in turns.values():
            log("end", elapsed=run.elapsed, top1={})


def training_table(logs: dict[str, Sequence[Event]]) -> Table:
    """Both runs side by side, one column each."""
    epochs = {name: [event for event in log if event["event"] == "epoch"] for name, log in logs.items()}
    table = Table("", *logs, title="Same network, same time")
    for column in table.columns[1:]:
        column.justify = "right"
    sizes = {name: " to ".join(f"{min_or_max} px" for min_or_max in ends(run)) for name, run in epochs.items()}
    table.add_row("sizes", *sizes.values())
    table.add_row("epochs", *(str(len(run)) for run in epochs.values()))
    table.add_row("training time", *(f"{run[-1]['elapsed']:.1f} s" for run in epochs.values()))
    waits = (sum(size["wait_seconds"] for event in run for size in event["sizes"].values()) for run in epochs.values())
    shares = (wait / run[-1]["elapsed"] for wait, run in zip(waits, epochs.values(), strict=True))
    table.add_row("waiting for data", *(f"{share:.1%}" for share in shares))
    table.add_row("last top-1", *(top1(run) for run in epochs.values()))
    seconds = min(run[-1]["elapsed"] for run in epochs.values())
    table.add_row(f"top-1 within {seconds:.1f} s", *(top1(run, seconds) for run in epochs.values()))
    return table


def ends(epochs: Sequence[Event]) -> list[int]:
    sizes = {int(size) for event in epochs for size in event["sizes"]}
    return sorted({min(sizes), max(sizes)})


def top1(epochs: Sequence[Event], seconds: float = math.inf) -> str:
    """The last accuracy within so much training time."""
    within = [event for event in epochs if event["elapsed"] <= seconds]
    return f"{next(iter(within[-1]['eval'].values()))['top1']:.1%}" if within else "none yet"


def band_line(band: dict[str, Any]) -> str:
    """What other seeds gave, from the committed file."""
    runs = band["results"]
    text = ", ".join(
        f"{name} {min(run[name] for run in runs):.1%} to {max(run[name] for run in runs):.1%}" for name in RUNS
    )
    return f"Seeds {', '.join(str(run['seed']) for run in runs)}, on a busy machine: last top-1 {text}."


def draw(output: Path, recipe: Recipe, speeds: dict[str, dict[int, float]]) -> list[Path]:
    """Pictures of loading, batches and runs; none without matplotlib."""
    batches: list[Any] = []
    for size in recipe.build_schedule().sizes:
        with respipe.Loader(
            output / "train.beton", Constant(size), batch_size=recipe.data.batch_size, normalize=None,
            crop=recipe.data.crop.build(),
        ) as loader:  # fmt: skip
            batches.append(next(iter(loader))[0])
    pictures = [output / f"{name}.png" for name in ("loading", "batches", "training")]
    rows = [
        {"loader": name, "size": size, "images_per_second": speed}
        for name, sizes in speeds.items()
        for size, speed in sizes.items()
    ]
    try:
        plot_throughput({"results": rows}, pictures[0])
        plot_batch(batches, pictures[1])
        plot_runs([output / name for name in RUNS], pictures[2])
    except MissingBackendError as error:
        logger.warning("no pictures: %s", error)
        return []
    return pictures


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # of other packages, about fork
    main()
