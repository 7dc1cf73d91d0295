"""``respipe plot``: pictures of schedules, of training runs and of benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from respipe.cli.arguments import AsJson, parse_sizes
from respipe.cli.console import write_json, write_line
from respipe.cli.plan import BatchSize, Epochs, NumSamples, Source, read_outline

plot = typer.Typer(no_args_is_help=True, help="Draw a schedule, training runs or a benchmark.")

Output = Annotated[
    Path, typer.Option("--output", "-o", help="Where the picture goes; the suffix decides the format: png, pdf or svg.")
]


@plot.command("schedule")
def plot_schedule_command(
    source: Source,
    output: Output,
    epochs: Epochs = None,
    num_samples: NumSamples = None,
    batch_size: BatchSize = None,
    as_json: AsJson = False,
) -> None:
    """Draw the sizes of a schedule and its cumulative cost.

    Example: respipe plot schedule trd_imagenet -o schedule.png
    """
    from respipe.plots import plot_schedule

    outline = read_outline(source, epochs=epochs, num_samples=num_samples, batch_size=batch_size)
    plot_schedule(
        outline.schedule,
        num_epochs=outline.num_epochs,
        path=output,
        num_samples=outline.num_samples,
        batch_size=outline.batch_size,
    )
    _tell(output, as_json=as_json)


@plot.command("batch")
def plot_batch_command(
    data: Annotated[Path, typer.Argument(help="A .beton file, or a folder with one subfolder per class.")],
    schedule: Annotated[str, typer.Argument(help="A schedule such as 'TRD(224, 112, 0.5)'.")],
    output: Output,
    augment: Annotated[
        str, typer.Option(help="Policies of respipe.augment, such as 'RandAugment(2, 9), RandomErasing(0.25)'.")
    ] = "",
    images: Annotated[int, typer.Option(min=1, help="Images of each batch.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Batches, each a row; a row for each size or crop.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of order, crops, flips and augmentation.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw training images as a loader makes them, with what was done to each.

    Example: respipe plot batch train.beton 'Constant(224)' --augment 'RandAugment(2, 9)' -o batch.png
    """
    from itertools import islice

    import torch

    from respipe import augment as policies
    from respipe.loading.loader import Loader
    from respipe.plots import plot_batch
    from respipe.schedules.parsing import IN_EXPRESSIONS, schedule_from_expression, values_from_expression

    known = {name: getattr(policies, name) for name in policies.__all__}
    rows, captions = list[torch.Tensor](), list[list[str]]()
    with Loader(
        data, schedule_from_expression(schedule, known={**IN_EXPRESSIONS, **known}), batch_size=images, seed=seed,
        augment=values_from_expression(augment, known), dtype=torch.uint8, normalize=None, with_spec=True,
    ) as loader:  # fmt: skip
        for shown, _, plan in islice(loader, steps):
            rows += shown if isinstance(shown, tuple) else (shown,)
            captions += plan.captions()
    plot_batch(rows, output, num_images=images, captions=captions)
    _tell(output, as_json=as_json)


@plot.command("run")
def plot_run_command(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Folders with a log.jsonl each.")],
    output: Output,
    as_json: AsJson = False,
) -> None:
    """Draw loss, accuracy and sizes of training runs, by epoch and by wall time.

    Example: respipe plot run runs/fixed runs/trd -o runs.png
    """
    from respipe.plots import plot_runs

    plot_runs(run_dirs, output)
    _tell(output, as_json=as_json)


@plot.command("crop")
def plot_crop_command(
    data: Annotated[Path, typer.Argument(help="A file of `respipe convert`.")],
    output: Output,
    sizes: Annotated[Any, typer.Option(parser=parse_sizes, metavar="SIZES", help="Sides in pixels.")] = "224,128,64",
    sample: Annotated[int, typer.Option(min=0, help="Number of the image.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the crop.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw which stored level a crop is read from at each size, and which of its tiles are decoded.

    Example: respipe plot crop train.beton -o crop.png
    """
    from respipe.plots import plot_crop

    plot_crop(data, output, sizes=sizes, sample=sample, seed=seed)
    _tell(output, as_json=as_json)


@plot.command("throughput")
def plot_throughput_command(
    results: Annotated[Path, typer.Argument(metavar="FILE.json", help="What `respipe bench --json` wrote.")],
    output: Output,
    as_json: AsJson = False,
) -> None:
    """Draw images per second against image size from a benchmark's JSON.

    Example: respipe bench train.beton --json > b.json; respipe plot throughput b.json -o b.png
    """
    from respipe.plots import plot_throughput

    plot_throughput(json.loads(results.read_text(encoding="utf-8")), output)
    _tell(output, as_json=as_json)


def _tell(output: Path, *, as_json: bool) -> None:
    if as_json:
        write_json({"picture": str(output)})
    else:
        write_line(f"Wrote {output}")
