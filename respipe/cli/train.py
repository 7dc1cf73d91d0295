"""``respipe train``: train a recipe, here or in the processes that ``torchrun`` started."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from respipe.cli.arguments import AsJson
from respipe.cli.console import progress_of_parts, show_error, write_json, write_line, write_table

if TYPE_CHECKING:
    from respipe.runs import Event


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="YAML file, or the name of one of respipe's.")],
    data: Annotated[str, typer.Option(help="Training data: .beton file or class folder.")],
    output: Annotated[Path, typer.Option(help="Folder for checkpoint and log.")],
    val: Annotated[str | None, typer.Option(help="Validation data: .beton file or class folder.")] = None,
    init: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Tune this network: a run's checkpoint.pt, or a file of weights."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Length of the run. Default: the recipe's.", show_default=False)
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a field of the recipe to a YAML value: data.batch_size=128, evaluation.sizes=[96,128], "
            "'schedule={name: Constant, size: 96}'. Repeatable; `respipe recipe NAME` shows the fields.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --output, if any.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe, on one process or, with torchrun, on several GPUs.

    Example: respipe train trd_imagenet --data train.beton --val val.beton --output runs/trd

    On 8 GPUs: torchrun --nproc-per-node 8 --no-python respipe train trd_imagenet ...
    """
    from respipe.recipe import load_recipe
    from respipe.runs import CHECKPOINT_NAME, LOG_NAME
    from respipe.train import train as train_recipe

    overrides = [*(changes or ()), *([f"epochs={epochs}"] if epochs is not None else [])]
    is_main = os.environ.get("RANK", "0") == "0"
    if not is_main:
        logging.getLogger("respipe").setLevel(logging.ERROR)
    try:
        with progress_of_parts() if is_main else nullcontext() as on_progress:
            history = train_recipe(
                load_recipe(recipe, overrides, finetune=init is not None),
                data=data, val=val, output=output, init=init, resume=resume, on_progress=on_progress,
            )  # fmt: skip
    except KeyboardInterrupt:
        if is_main and (output / CHECKPOINT_NAME).exists():
            show_error("interrupted. The same command with --resume goes on from the last checkpoint.")
        elif is_main:
            show_error("interrupted before the first checkpoint, which comes at the end of an epoch, or every N steps "
                       "with --set runtime.checkpoint_steps=N.")  # fmt: skip
        raise
    if is_main and as_json:
        write_json({"output": str(output), "epochs": list(history)})
    elif is_main:
        _show(history)
        write_line()
        write_line(f"Wrote {output / CHECKPOINT_NAME} and {output / LOG_NAME}. Next:", style="bold")
        write_line(f"  respipe evaluate {output} {val or 'VAL.beton'}")
        write_line(f"  respipe plot run {output} --output run.png")


def recipe(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Name of a recipe.", show_default=False)] = None,
) -> None:
    """Show one of respipe's recipes, with every field that --set may change, or list their names.

    Example: respipe recipe trd_imagenet > mine.yaml
    """
    from respipe.recipe import RECIPES, recipe_names

    if name is not None and name not in recipe_names():
        raise ValueError(f"`NAME` must be one of {', '.join(recipe_names())}; got {name!r}.")
    for line in recipe_names() if name is None else (RECIPES / f"{name}.yaml").read_text("utf-8").splitlines():
        write_line(line)


def _show(epochs: Sequence[Event]) -> None:
    """Throughput and waiting by training size; best and last accuracy by evaluation size."""
    from respipe.runs import best_and_last, label_of, totals_by_sizes

    write_table(
        ("trained at", "steps", "images", "time (s)", "images/s", "waiting"),
        [
            (
                f"{label_of(sizes)} px", f"{total.steps:,}", f"{total.images:,}", f"{total.seconds:.1f}",
                f"{total.images_per_second:.0f}", f"{total.wait_share:.1%}",
            )
            for sizes, total in totals_by_sizes(epochs).items()
        ],
    )  # fmt: skip
    scores = best_and_last(epochs)
    if not scores:
        return
    calibrated = epochs[-1].get("calibrated", {})
    write_line()
    write_table(
        ("evaluated at", "last top-1", "best top-1", *(("BatchNorm calibrated",) if calibrated else ())),
        [
            (
                f"{size} px", f"{last:.2%}", f"{best:.2%}",
                *((f"{calibrated[str(size)]['top1']:.2%}",) if calibrated else ()),
            )
            for size, (best, last) in scores.items()
        ],
    )  # fmt: skip
