"""A paper's method beside training as usual, on CIFAR-10: ``python -m pipelines.compare METHOD --data A --val B ...``.

Trains one network several times for as many epochs, and thus as many images, and compares accuracy and time:

    trd       32 px in every epoch; 30 % and half of the epochs at 16 px
    mixsize   32 px; MixSize B+; MixSize D+, which shows several crops of an image where it is small
    rsnet     32, 24 and 16 px alone; all of them at once, evaluated between and beyond these sizes too
    lowmode   32 px in every step; half of the steps with 16 px images and 3 x 3 kernels pooled to 1 x 1

By default a small network and few epochs: five minutes (lowmode) to half an hour (mixsize) on two idle CPU cores with
``.beton`` files, which ``respipe convert`` makes. With ``--full`` the network and the epochs of the paper, as in
``respipe/recipes/METHOD_cifar10*.yaml``. The same command again goes on where it was stopped. ``--output`` receives a
folder for each run, ``results.json``, and a picture where matplotlib is installed.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

import respipe
from respipe.errors import MissingBackendError
from respipe.plots import plot_accuracy, plot_runs
from respipe.recipe import Recipe, load_recipe
from respipe.runs import epochs_of, label_of, read_events, total_macs, totals_by_sizes
from respipe.train import train

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs that differ in their recipe or in some fields of it.

    Args:
        runs: title, recipe and what is changed in it, by folder. The first run is what the others are compared with.
        small: changes that make the papers' recipes small enough for two CPU cores.
        always: changes in every recipe, small or not.
        picture: what is drawn of them: their ``accuracy`` by size, or the course of the ``runs``.
        paper: top-1 in 0..1 at the base size that the paper reports, by folder.
    """

    runs: Mapping[str, tuple[str, str, Sequence[str]]]
    small: Sequence[str]
    always: Sequence[str] = ("evaluation.calibration_batches=50",)
    picture: Literal["accuracy", "runs"]
    paper: Mapping[str, float] = field(default_factory=dict)


SMALL_NETWORK = "model={name: 'cifar:resnet14', options: {stem_stride: 2, zero_init_residual: true}}"
COSINE = "learning_rate={peak: 0.1, decay: cosine, warmup_epochs: 1}"


def fixed(size: int) -> tuple[str, ...]:
    """What makes a recipe one of a fixed size."""
    return (f"schedule={{name: Constant, size: {size}}}",)


COMPARISONS = {
    "trd": Comparison(
        runs={
            "fixed": ("fixed 32 px", "trd_cifar10", fixed(32)),
            "p30": ("TRD, P = 0.3", "trd_cifar10", ("schedule.participation=0.3",)),
            "p50": ("TRD, P = 0.5", "trd_cifar10", ("schedule.participation=0.5",)),
        },
        small=(
            SMALL_NETWORK, "epochs=10", COSINE, "schedule={name: TRD, full_size: 32, reduced_size: 16}",
            "evaluation.every=1",
        ),
        picture="runs",
        paper={"fixed": 0.9384, "p30": 0.9476, "p50": 0.9437},
    ),
    "mixsize": Comparison(
        runs={
            "fixed": ("fixed 32 px", "mixsize_cifar10_d", fixed(32)),
            "b": ("MixSize B+", "mixsize_cifar10_b", ()),
            "d": ("MixSize D+", "mixsize_cifar10_d", ()),
        },
        small=(
            "model={name: 'cifar:resnet14', options: {zero_init_residual: true}}", "epochs=6",
            "learning_rate.decay=cosine", "learning_rate.milestones=[]", "learning_rate.warmup_epochs=1",
            "evaluation.every=6",
        ),
        always=("evaluation.sizes=[40, 32, 24, 16]",),
        picture="accuracy",
        paper={"fixed": 0.9284, "b": 0.9430, "d": 0.9446},
    ),
    "rsnet": Comparison(
        runs={
            "fixed": ("fixed 32 px", "rsnet_cifar10", fixed(32)),
            "fixed24": ("fixed 24 px", "rsnet_cifar10", fixed(24)),
            "fixed16": ("fixed 16 px", "rsnet_cifar10", fixed(16)),
            "rsnet": ("RS-Net", "rsnet_cifar10", ()),
        },
        small=(
            SMALL_NETWORK, "schedule={name: RSNet, sizes: [32, 24, 16]}", "epochs=6", "learning_rate.warmup_epochs=1",
            "evaluation.every=6", "evaluation.sizes=[40, 36, 32, 28, 24, 20, 16, 12]",
        ),
        picture="accuracy",
    ),
    "lowmode": Comparison(
        runs={
            "full": ("full mode", "lowmode_cifar10_resnet18", fixed(32)),
            "low": ("low mode", "lowmode_cifar10_resnet18", ()),
        },
        small=(SMALL_NETWORK, "epochs=6", COSINE, "schedule={name: LowMode, full_size: 32}", "evaluation.every=1"),
        picture="runs",
        paper={"full": 0.933, "low": 0.931},
    ),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    options = argument_parser().parse_args(arguments)
    comparison = COMPARISONS[options.method]
    results = compare(comparison, options)
    picture = options.picture or options.output / f"{comparison.picture}.png"
    try:
        if comparison.picture == "accuracy":
            plot_accuracy(results, picture)
        else:
            plot_runs([options.output / folder for folder in comparison.runs], picture)
    except MissingBackendError as error:
        logger.warning("no picture: %s", error)


def argument_parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.compare", description=__doc__.split("\n\n")[0])
    parser.add_argument("method", choices=COMPARISONS, metavar="METHOD", help=f"one of {', '.join(COMPARISONS)}")
    parser.add_argument("--data", required=True, help="training data: .beton file or class folder")
    parser.add_argument("--val", required=True, help="validation data: .beton file or class folder")
    parser.add_argument("--output", required=True, type=Path, help="folder for runs, results and picture")
    parser.add_argument("--full", action="store_true", help="train the networks of the recipes as long as these say")
    parser.add_argument("--length", type=_positive, default=1.0, metavar="SHARE",
                        help="train for this share of the epochs; milestones move with the end")  # fmt: skip
    parser.add_argument("--json", type=Path, help="file for the results, instead of results.json in --output")
    parser.add_argument("--picture", type=Path, help="file for the picture, instead of one in --output")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="change a field of every recipe")  # fmt: skip
    return parser


def compare(comparison: Comparison, options: argparse.Namespace) -> dict[str, Any]:
    """Train what is left of the runs, print them side by side and write their figures.

    Args:
        comparison: runs to compare.
        options: options of :func:`argument_parser`.

    Returns:
        what was written: the ``machine``, the ``changes`` in every recipe, the ``length`` of the runs as a share of the
        recipes', and a :func:`summary` of each of ``runs`` with what the ``paper`` reports.
    """
    changes = [*(() if options.full else comparison.small), *comparison.always]
    for folder, (title, _, _) in comparison.runs.items():
        logger.info("training: %s", title)
        recipe = recipe_of(comparison, folder, options)
        train(recipe, data=options.data, val=options.val, output=options.output / folder, resume=True)
    results = {
        "machine": machine(),
        "changes": [*changes, *options.set],
        "length": options.length,
        "runs": [
            {**summary(title, options.output / folder), "paper": comparison.paper.get(folder) if options.full else None}
            for folder, (title, _, _) in comparison.runs.items()
        ],
    }
    file = options.json or options.output / "results.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(markdown(results["runs"]))
    return results


def recipe_of(comparison: Comparison, folder: str, options: argparse.Namespace) -> Recipe:
    """The recipe of a run, as long as asked for. What the user sets comes last."""
    _, name, own = comparison.runs[folder]
    changes = [*(() if options.full else comparison.small), *comparison.always, *own]
    if options.length != 1:
        changes += shortened(load_recipe(name, changes), options.length)
    return load_recipe(name, [*changes, *options.set])


def shortened(recipe: Recipe, length: float) -> list[str]:
    """What to change in a recipe for a run of this many times its length: all that is a number of epochs."""

    def scaled(epochs: Sequence[int], *, least: int = 0) -> list[int]:
        return [max(round(one * length), min(one, least)) for one in epochs]

    rate = recipe.learning_rate
    changes: dict[str, Any] = {
        "epochs": max(1, round(recipe.epochs * length)),
        "learning_rate.milestones": scaled(rate.milestones),
        "learning_rate.warmup_epochs": rate.warmup_epochs * length,
        "evaluation.every": max(1, round(recipe.evaluation.every * length)),
    }
    for name, least in (("milestones", 0), ("guard", 1)):  # a drop without its guard would be another method
        if name in recipe.schedule:
            changes[f"schedule.{name}"] = scaled(recipe.schedule[name], least=least)
    return [f"{key}={value}" for key, value in changes.items()]


def machine() -> dict[str, Any]:
    """What the runs were made with, besides what their logs say."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU cores"
    return {
        "device": device,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "respipe": respipe.__version__,
    }


def summary(title: str, run: Path) -> dict[str, Any]:
    """A finished run in figures.

    Returns:
        ``name``; the ``recipe``; ``steps``, ``samples`` that they were made of, and ``images`` with all crops of each
        sample; multiply-adds of their forward passes (``macs``); training time in ``seconds``, and that of a step by
        its sizes, without waiting for data, in ``step_seconds``; and ``accuracy``, a row per evaluation size with top-1
        in 0..1 ``before`` and ``after`` BatchNorm was calibrated at it.
    """
    events = read_events(run)
    start = [event for event in events if event["event"] == "start"][-1]
    epochs = epochs_of(events)
    recipe = Recipe.model_validate(start["recipe"])
    schedule = recipe.build_schedule()
    planned = [
        step
        for epoch in range(recipe.epochs)
        for step in schedule.steps(epoch, num_samples=start["num_samples"], batch_size=recipe.data.batch_size)
    ]
    totals = totals_by_sizes(epochs)
    before, after = epochs[-1]["eval"], epochs[-1]["calibrated"]
    return {
        "name": title,
        "recipe": start["recipe"],
        "schedule": start["schedule"],
        "steps": len(planned),
        "samples": sum(step.batch_size for step in planned),
        "images": sum(total.images for total in totals.values()),
        "macs": total_macs(epochs, start["macs"]),
        "seconds": round(sum(total.seconds for total in totals.values()), 1),
        "step_seconds": {
            label_of(sizes): round((total.seconds - total.wait_seconds) / total.steps, 5)
            for sizes, total in totals.items()
        },
        "accuracy": [
            {"size": int(size), "before": before[size]["top1"], "after": after[size]["top1"]} for size in before
        ],
    }


def markdown(runs: Sequence[dict[str, Any]]) -> str:
    """The runs side by side as a Markdown table."""
    first = runs[0]
    rows = [
        ["", *(run["name"] for run in runs)],
        ["---", *("---:" for _ in runs)],
        ["steps", *(f"{run['steps']:,}" for run in runs)],
        ["images", *(f"{run['samples']:,}" for run in runs)],
        ["crops", *(f"{run['images']:,}" for run in runs)],
        ["multiply-adds", *(f"{run['macs'] / first['macs']:.0%}" for run in runs)],
        ["training time", *(f"{run['seconds']:.0f} s" for run in runs)],
        ["time of a step", *(_step_times(run["step_seconds"]) for run in runs)],
    ]
    if any(run["paper"] is not None for run in runs):
        rows.append(["top-1 in the paper", *("" if run["paper"] is None else f"{run['paper']:.2%}" for run in runs)])
    for place, row in enumerate(first["accuracy"]):
        cells = [run["accuracy"][place] for run in runs]
        rows.append(
            [f"top-1 at {row['size']} px, before / after", *(f"{c['before']:.1%} / {c['after']:.1%}" for c in cells)]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _step_times(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{1000 * time:.1f} ms at {label} px" for label, time in seconds.items())


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number; got {text}")
    return value


if __name__ == "__main__":
    main()
