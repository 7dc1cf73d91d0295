"""``respipe plan``: what a schedule will do and what it costs, before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from respipe.cli.arguments import AsJson
from respipe.cli.console import write_json, write_line, write_table

Source = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE_OR_SCHEDULE",
        help="A recipe (YAML file, or the name of one of respipe's), or a schedule such as 'TRD(224, 112, 0.5)'.",
    ),
]
Epochs = Annotated[
    int | None, typer.Option(min=1, help="Length of the run. Default: the recipe's, else 90.", show_default=False)
]
NumSamples = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Samples in the dataset. Default: ImageNet's 1,281,167, or CIFAR's 50,000 for recipes that say cifar.",
        show_default=False,
    ),
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Global batch size. Default: the recipe's, else 256.", show_default=False)
]


def plan(
    source: Source,
    epochs: Epochs = None,
    num_samples: NumSamples = None,
    batch_size: BatchSize = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model on which the cost is counted: a torchvision name, timm:NAME or cifar:resnetDEPTH. "
            "Default: the recipe's, else resnet50.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a schedule's epochs, sizes, steps and cost.

    Example: respipe plan 'TRD(224, 112, 0.5)' --epochs 90, or respipe plan trd_imagenet
    """
    from respipe.cli.outline import read_outline
    from respipe.cli.plan_report import plan_report

    outline = read_outline(source, epochs=epochs, num_samples=num_samples, batch_size=batch_size)
    report = plan_report(replace(outline, model=model, model_options={}, kernels={}) if model else outline)
    if as_json:
        write_json(report)
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    write_line(report["schedule"], style="bold")
    write_line(
        f"{report['num_epochs']} epochs of {report['num_samples']:,} samples in batches of {report['batch_size']} "
        f"at {report['base_size']} px: {report['num_steps']:,} steps"
    )
    mean = report["mean_batch_size"]
    if mean["steps"] != report["batch_size"]:
        write_line(f"mean batch: {mean['steps']:.1f} over the steps, {mean['samples']:.1f} over the samples")
    write_line()
    base = f"fixed {report['base_size']} px"
    write_table(
        ("size", "batch", "copies", "pixels/step", "epochs", "steps", "images", "in epochs"),
        [
            (
                f"{row['size']} px",
                _show_extent(row["batch_sizes"]),
                _show_extent(row["duplicates"]),
                f"{row['largest_budget']:.1%}",
                f"{row['num_epochs']}",
                f"{row['num_steps']:,}",
                f"{row['image_share']:.1%}",
                _show_ranges(row["epochs"]),
            )
            for row in report["sizes"]
        ],
        left=("in epochs",),
    )
    write_line()
    write_table(
        ("cost", "GMACs per image", f"of {base}", f"epoch, of {base}"),
        [
            (
                f"{rule}",
                f"{cost['gmacs_per_image']:.4g}",
                f"{cost['relative_to_base_size']:.1%}",
                f"{cost['epoch_relative_to_base_size']:.1%}",
            )
            for rule, cost in (
                ("by area", report["cost"]["area"]),
                (f"counted on {report['model']}", report["cost"]["counted"]),
            )
        ],
        left=("cost",),
    )


def _show_extent(numbers: list[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _show_ranges(ranges: list[list[int]], most: int = 12) -> str:
    texts = [f"{first}" if first == last else f"{first}-{last}" for first, last in ranges]
    return ", ".join(texts[:most]) + (", ..." if len(texts) > most else "")
