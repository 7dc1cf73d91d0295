"""A resolution schedule at work, in a few minutes on two CPU cores: ``python -m pipelines.demo``.

Renders a small data set of JPEGs, converts it to ``.beton`` files, and trains the network of ``recipes/demo.yaml``
twice for the same number of epochs: at one size, and under TRD. What it leaves in ``--output``:

    images/  train.beton  val.beton       the data
    fixed/  trd/                          the runs: log.jsonl, checkpoint.pt, TensorBoard's files
    schedule.png  batches.png  runs.png   pictures, where matplotlib is installed
"""

from __future__ import annotations

import argparse
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import respipe
from respipe.errors import MissingBackendError
from respipe.plots import plot_batch, plot_runs, plot_schedule
from respipe.recipe import Recipe, load_recipe
from respipe.runs import Event, best_and_last, epochs_of, label_of, read_events, total_macs, totals_by_sizes
from respipe.train import train

logger = logging.getLogger(__name__)

RUNS = ("fixed", "trd")


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.demo", description="Watch a resolution schedule at work."
    )
    parser.add_argument("--output", type=Path, default=Path(".demo"), help="folder for data, runs and pictures")
    parser.add_argument("--images", type=int, default=1600, help="number of training images")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a field of the recipe")
    options = parser.parse_args(arguments)
    output, console = options.output, Console()
    recipe = load_recipe("demo", options.set)
    make_data(output, console, num_images=options.images)
    fixed_size = f"schedule={{name: Constant, size: {recipe.build_schedule().base_size}}}"
    for name, changes in zip(RUNS, ([*options.set, fixed_size], options.set), strict=True):
        console.rule(f"training: {name}")
        shutil.rmtree(output / name, ignore_errors=True)
        paths = {"data": str(output / "train.beton"), "val": str(output / "val.beton")}
        train(load_recipe("demo", changes), **paths, output=output / name)
    console.rule("result")
    console.print(comparison([read_events(output / name) for name in RUNS]))
    for picture in draw(output, recipe):
        console.print(f"wrote {picture}")


def make_data(output: Path, console: Console, *, num_images: int) -> None:
    """Render and convert the data set."""
    images = output / "images"
    shutil.rmtree(images, ignore_errors=True)
    console.rule("rendering images")
    counts = ["--train", str(num_images), "--val", str(num_images // 4)]
    # In a process of its own, whose workers need not load torch.
    subprocess.run([sys.executable, "-m", "pipelines.demo_images", str(images), *counts], check=True)
    console.rule("converting to .beton")
    for split in ("train", "val"):
        with Progress(console=console) as progress:
            bar = progress.add_task(f"{split}.beton")
            done = respipe.convert(
                images / split, output / f"{split}.beton", levels=(256, 128, 64), overwrite=True,
                progress=lambda done, total, bar=bar: progress.update(bar, completed=done, total=total),
            )  # fmt: skip
        sizes = ", ".join(f"{level.num_bytes / 1e6:.1f} MB at most {level.longest_side} px" for level in done.levels)
        console.print(f"{done.num_images} images: {sizes}")


def comparison(logs: Sequence[Sequence[Event]]) -> Table:
    """Both runs side by side, one column each."""
    starts = [log[0] for log in logs]
    epochs = [epochs_of(log) for log in logs]
    totals = [totals_by_sizes(run) for run in epochs]
    scores = [best_and_last(run) for run in epochs]
    seconds = [sum(size.seconds for size in run.values()) for run in totals]
    images = [sum(size.images for size in run.values()) for run in totals]
    macs = [total_macs(run, start["macs"]) / count for run, start, count in zip(epochs, starts, images, strict=True)]
    table = Table(
        "",
        *(" and ".join(f"{label_of(sizes)} px" for sizes in run) for run in totals),
        title="Same network, same epochs",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("training time", *(f"{time:.1f} s ({time / seconds[0]:.0%})" for time in seconds))
    table.add_row("multiply-adds per image", *(f"{value / 1e6:.1f} M ({value / macs[0]:.0%})" for value in macs))
    table.add_row("images/s", *(f"{count / time:.0f}" for count, time in zip(images, seconds, strict=True)))
    for sizes in totals[-1]:
        rates = [f"{run[sizes].images_per_second:.0f}" if sizes in run else "" for run in totals]
        table.add_row(f"images/s at {label_of(sizes)} px", *rates)
    waits = [sum(size.wait_seconds for size in run.values()) for run in totals]
    table.add_row(
        "time waiting for data",
        *(f"{wait / time:.1%}" for wait, time in zip(waits, seconds, strict=True)),
        end_section=True,
    )
    for size in scores[0]:
        table.add_row(f"last top-1 at {size} px", *(f"{run[size][1]:.1%}" for run in scores))
    return table


def draw(output: Path, recipe: Recipe) -> list[Path]:
    """Pictures of schedule, batches and runs; none without matplotlib."""
    schedule, batches, num_samples = recipe.build_schedule(), list[Any](), 0
    for size in schedule.sizes:
        with respipe.Loader(
            output / "train.beton", respipe.schedules.Constant(size), batch_size=recipe.data.batch_size,
            crop=recipe.data.crop.build(), normalize=None, backend=recipe.runtime.backend,
        ) as loader:  # fmt: skip
            batches.append(next(iter(loader))[0])
            num_samples = len(loader.dataset)
    pictures = [output / f"{name}.png" for name in ("schedule", "batches", "runs")]
    steps = {"num_epochs": recipe.epochs, "num_samples": num_samples, "batch_size": recipe.data.batch_size}
    try:
        plot_schedule(schedule, path=pictures[0], **steps)
        plot_batch(batches, pictures[1])
        plot_runs([output / name for name in RUNS], pictures[2])
    except MissingBackendError as error:
        logger.warning("no pictures: %s", error)
        return []
    return pictures


if __name__ == "__main__":
    main()
