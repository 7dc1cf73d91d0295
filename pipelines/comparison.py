"""Runs of one network side by side: what ``pipelines.mixsize``, ``rsnet``, ``lowmode`` and ``trd`` share."""

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
from pipelines import report, train
from pipelines.metrics import label_of
from respipe.errors import MissingBackendError
from respipe.plots import plot_accuracy, plot_runs
from respipe.recipe import Recipe, load_recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs that differ in their recipe or in some fields of it.

    Args:
        name: of the module that makes it.
        description: one sentence.
        runs: by folder: title, recipe and what is changed in it. The first is what the others are compared with.
        small: what makes the papers' recipes small enough for two CPU cores.
        always: what is changed in every recipe, small or not.
        picture: what is drawn of them: their ``accuracy`` by size, or the course of the ``runs``.
        paper: top-1 in 0..1 at the base size that the paper reports, by folder.
    """

    name: str
    description: str
    runs: Mapping[str, tuple[str, str, Sequence[str]]]
    small: Sequence[str]
    always: Sequence[str]
    picture: Literal["accuracy", "runs"]
    paper: Mapping[str, float] = field(default_factory=dict)


def main(comparison: Comparison, arguments: Sequence[str] | None = None) -> None:
    """Run the command line of a comparison."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    options = argument_parser(comparison).parse_args(arguments)
    results = compare(comparison, options)
    picture = options.picture or options.output / f"{comparison.picture}.png"
    try:
        if comparison.picture == "accuracy":
            plot_accuracy(results, picture)
        else:
            plot_runs([options.output / folder for folder in comparison.runs], picture)
    except MissingBackendError as error:
        logger.warning("no picture: %s", error)


def compare(comparison: Comparison, options: argparse.Namespace) -> dict[str, Any]:
    """Train what is left of the runs, print them side by side and write their figures.

    Args:
        comparison: of which runs.
        options: of :func:`argument_parser`.

    Returns:
        what was written: the ``machine``, the ``changes`` in every recipe, the ``length`` of the runs as a share of the
        recipes', and a :func:`summary` of each of ``runs`` with what the ``paper`` reports.
    """
    changes = [*(() if options.full else comparison.small), *comparison.always]
    for folder, (_, recipe, own_changes) in comparison.runs.items():
        own = [*changes, *own_changes]
        if options.length != 1:
            own += shortened(load_recipe(recipe, own), options.length)
        flags = [flag for change in (*own, *options.set) for flag in ("--set", change)]
        paths = ["--data", options.data, "--val", options.val, "--output", str(options.output / folder)]
        train.main([recipe, *paths, "--resume", *flags])
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


def argument_parser(comparison: Comparison) -> argparse.ArgumentParser:
    """What the command line of a comparison takes."""
    parser = argparse.ArgumentParser(prog=f"python -m pipelines.{comparison.name}", description=comparison.description)
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


def shortened(recipe: Recipe, length: float) -> list[str]:
    """What to change in a recipe for a run of so many times its length: all that is a number of epochs."""

    def scaled(epochs: Sequence[int]) -> list[int]:
        return [round(one * length) for one in epochs]

    rate = recipe.learning_rate
    changes: dict[str, Any] = {
        "epochs": max(1, round(recipe.epochs * length)),
        "learning_rate.milestones": scaled(rate.milestones),
        "learning_rate.warmup_epochs": rate.warmup_epochs * length,
        "evaluation.every": max(1, round(recipe.evaluation.every * length)),
    }
    for name in ("milestones", "guard"):
        if name in recipe.schedule:
            changes[f"schedule.{name}"] = scaled(recipe.schedule[name])
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
    events = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    start = [event for event in events if event["event"] == "start"][-1]
    epochs = list({event["epoch"]: event for event in events if event["event"] == "epoch"}.values())
    recipe = Recipe.model_validate(start["recipe"])
    schedule = recipe.build_schedule()
    planned = [
        step
        for epoch in range(recipe.epochs)
        for step in schedule.steps(epoch, num_samples=start["num_samples"], batch_size=recipe.data.batch_size)
    ]
    totals = report.totals_by_sizes(epochs)
    before, after = epochs[-1]["eval"], epochs[-1]["calibrated"]
    return {
        "name": title,
        "recipe": start["recipe"],
        "schedule": start["schedule"],
        "steps": len(planned),
        "samples": sum(step.batch_size for step in planned),
        "images": sum(total.images for total in totals.values()),
        "macs": report.total_macs(epochs, start["macs"]),
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
