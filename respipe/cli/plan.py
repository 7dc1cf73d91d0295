"""``respipe plan``: what a schedule will do and what it costs, before anything is trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from respipe.cli.arguments import AsJson
from respipe.cli.console import write_json, write_line, write_table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from respipe.cost.macs import Macs
    from respipe.cost.usage import Usage
    from respipe.schedules.sequence import Mean
    from respipe.schedules.step import Schedule

_EPOCHS, _BATCH_SIZE = 90, 256
_IMAGENET_SAMPLES, _CIFAR_SAMPLES = 1_281_167, 50_000

# What a plan does not depend on, and the usual for the rest: a recipe that is only planned may leave these out.
_DEFAULTS = {
    "model": {"name": "resnet50"},
    "epochs": _EPOCHS,
    "learning_rate": {"peak": 0.1},
}

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
    data: Annotated[
        str | None, typer.Option(help="Count the samples of this dataset instead.", show_default=False)
    ] = None,
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
    if data is not None:
        from respipe.storage.open import open_dataset

        if num_samples is not None:
            raise ValueError("`--data` and `--num-samples` must not be given together. Leave one of them out.")
        num_samples = len(open_dataset(data, on_demand=True))
    outline = read_outline(source, epochs=epochs, num_samples=num_samples, batch_size=batch_size)
    report = plan_report(replace(outline, model=model, model_options={}, kernels={}) if model else outline)
    if as_json:
        write_json(report)
    else:
        _show(report)


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A planned run: from the command line where given there, else from the recipe, else defaults.

    Args:
        source: name or path of the recipe, or the expression.
        schedule: schedule of the run.
        num_epochs: length of the run.
        num_samples: samples in the dataset.
        batch_size: global batch size at the schedule's base size.
        model: name of the recipe's model, ``resnet50`` without a recipe.
        model_options: further arguments of that model.
        kernels: what the recipe says of pooled kernels, as arguments of :func:`respipe.adapt`.
    """

    source: str
    schedule: Schedule
    num_epochs: int
    num_samples: int
    batch_size: int
    model: str = "resnet50"
    model_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    kernels: Mapping[str, Any] = field(default_factory=dict[str, Any])


def read_outline(source: str, *, epochs: int | None, num_samples: int | None, batch_size: int | None) -> Outline:
    """Read a schedule expression, or a recipe by its path or name.

    Args:
        source: expression, path or name.
        epochs, batch_size: values that count where given, whatever the recipe says.
        num_samples: samples in the dataset; None for as many as ImageNet has, or CIFAR where the recipe normalises so.

    Raises:
        ValueError: there is no such recipe, or it or the expression is wrong; the message names the field.
        OSError: the recipe cannot be read.
    """
    if "(" in source:
        from respipe.schedules.parsing import schedule_from_expression

        epochs = epochs or _EPOCHS
        return Outline(
            source=source,
            schedule=schedule_from_expression(source, num_epochs=epochs),
            num_epochs=epochs,
            num_samples=num_samples or _IMAGENET_SAMPLES,
            batch_size=batch_size or _BATCH_SIZE,
        )
    from respipe.recipe import load_recipe

    given = {"epochs": epochs, "data.batch_size": batch_size}
    changes = [f"{name}={value}" for name, value in given.items() if value is not None]
    recipe = load_recipe(source, changes, defaults=_DEFAULTS)
    like_cifar = (recipe.data.normalize or "").startswith("cifar")
    return Outline(
        source=source,
        schedule=recipe.build_schedule(),
        num_epochs=recipe.epochs,
        num_samples=num_samples or (_CIFAR_SAMPLES if like_cifar else _IMAGENET_SAMPLES),
        batch_size=recipe.data.batch_size,
        model=recipe.model.name,
        model_options=recipe.model.options,
        kernels=recipe.adaptation.model_dump(exclude={"batchnorm"}),
    )


def plan_report(outline: Outline) -> dict[str, Any]:
    """Everything that ``respipe plan`` shows, ready for JSON.

    Raises:
        ValueError: there is no such model, it cannot take one of the sizes, or the dataset holds less than one batch.
    """
    from respipe.cost.macs import by_area, mean_macs, relative_epoch_macs
    from respipe.cost.usage import usage

    schedule = outline.schedule
    run = {name: getattr(outline, name) for name in ("num_epochs", "num_samples", "batch_size")}
    used = usage(schedule, **run)
    counted = _counted(outline)
    costs = {"area": by_area(counted(schedule.base_size), schedule.base_size), "counted": counted}
    means = {rule: mean_macs(schedule, macs, **run) for rule, macs in costs.items()}
    return {
        "source": outline.source,
        "schedule": repr(schedule),
        **run,
        "model": outline.model,
        "base_size": schedule.base_size,
        "num_steps": used.num_steps,
        "mean_batch_size": {over: _mean_batch_size(outline, over) for over in ("steps", "samples")},
        "sizes": [_size_row(used, column, outline) for column in range(len(used.sizes))],
        "cost": {
            rule: {
                "gmacs_per_image": means[rule].per_image / 1e9,
                "relative_to_base_size": means[rule].relative,
                "epoch_relative_to_base_size": relative_epoch_macs(schedule, macs, **run),
            }
            for rule, macs in costs.items()
        },
    }


def _mean_batch_size(outline: Outline, over: Mean) -> float:
    from respipe.schedules.sequence import mean_batch_size

    return mean_batch_size(
        outline.schedule,
        epochs=range(outline.num_epochs),
        num_samples=outline.num_samples,
        batch_size=outline.batch_size,
        over=over,
    )


def _size_row(used: Usage, column: int, outline: Outline) -> dict[str, Any]:
    import numpy as np

    from respipe.schedules.step_budget import relative_budget

    size, base_size = used.sizes[column], outline.schedule.base_size
    steps, images = used.steps[:, column], used.images[:, column]
    kinds = [step for step in used.kinds if size in step.sizes]
    return {
        "size": size,
        "batch_sizes": sorted({step.batch_size for step in kinds}),
        "duplicates": sorted({step.duplicates for step in kinds}),
        "largest_budget": max(
            relative_budget(step, base_size=base_size, base_images=outline.batch_size) for step in kinds
        ),
        "num_epochs": int(np.count_nonzero(steps)),
        "num_steps": int(steps.sum()),
        "image_share": float(images.sum() / used.images.sum()),
        "epochs": _ranges(np.flatnonzero(steps)),
    }


def _ranges(epochs: NDArray[np.int64]) -> list[list[int]]:
    """Ascending numbers as [first, last] of each unbroken run of them."""
    import numpy as np

    runs = np.split(epochs, np.flatnonzero(np.diff(epochs) > 1) + 1)
    return [[int(run[0]), int(run[-1])] for run in runs if len(run)]


def _counted(outline: Outline) -> Macs:
    """The cost of the model as the schedule needs it, which takes every size of the schedule."""
    import torch

    from respipe.cost.macs import counted
    from respipe.model.adapt import adapt
    from respipe.model.loading import build_model

    with torch.device("meta"):
        model = build_model(outline.model, options=outline.model_options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a stride that does not divide, or no need of changes
        # Shared BatchNorm, which costs the same.
        return counted(adapt(model, outline.schedule, batchnorm="shared", **outline.kernels))


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
