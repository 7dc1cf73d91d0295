"""MixSize beside a fixed size: ``python -m pipelines.mixsize --data cifar10/train --val cifar10/test --output DIR``.

Trains one network three times, for as many epochs and thus as many images: at the fixed size of 32 px, with MixSize B+
and with MixSize D+, which shows several crops of an image where it is small. Then compares accuracy at several sizes,
with the BatchNorm statistics that training left and with such as were calibrated at each size.

By default a small network and few epochs, half an hour or less on two CPU cores with ``.beton`` files, which
``respipe convert`` makes. With ``--full`` ResNet-44 and 200 epochs, as in Table 1 of the paper: see
``recipes/mixsize_cifar10_b.yaml``. The same command again goes on where it was stopped. What it leaves in ``--output``:

    fixed/  b/  d/                the runs: log.jsonl, checkpoint.pt, TensorBoard's files
    results.json  accuracy.png    the comparison as data, and its picture where matplotlib is installed
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import respipe
from pipelines import report, train
from pipelines.recipe import Recipe
from respipe.errors import MissingBackendError
from respipe.plots import plot_accuracy

logger = logging.getLogger(__name__)

RUNS = {
    "fixed": ("fixed 32 px", "mixsize_cifar10_d", ("schedule={name: Constant, size: 32}",)),
    "b": ("MixSize B+", "mixsize_cifar10_b", ()),
    "d": ("MixSize D+", "mixsize_cifar10_d", ()),
}
"""By folder: title, recipe and what is changed in it."""

SMALL = (
    "model={name: 'cifar:resnet14', options: {zero_init_residual: true}}",
    "epochs=6",
    "learning_rate.decay=cosine",
    "learning_rate.milestones=[]",
    "learning_rate.warmup_epochs=1",
    "evaluation.every=6",
)
"""What makes the paper's recipes small enough for two CPU cores."""


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    options = argument_parser().parse_args(arguments)
    changes = [*(() if options.full else SMALL), "evaluation.sizes=[40, 32, 24, 16]", *options.set]
    for folder, (_, recipe, own_changes) in RUNS.items():
        flags = [flag for change in (*changes, *own_changes) for flag in ("--set", change)]
        paths = ["--data", options.data, "--val", options.val, "--output", str(options.output / folder)]
        train.main([recipe, *paths, "--resume", *flags])
    results = {
        "machine": machine(),
        "changes": changes,
        "runs": [summary(title, options.output / folder) for folder, (title, _, _) in RUNS.items()],
    }
    file = options.json or options.output / "results.json"
    file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(markdown(results["runs"]))
    try:
        plot_accuracy(results, options.picture or options.output / "accuracy.png")
    except MissingBackendError as error:
        logger.warning("no picture: %s", error)


def argument_parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.mixsize", description="Compare MixSize with a fixed size on CIFAR-10."
    )
    parser.add_argument("--data", required=True, help="training data: .beton file or class folder")
    parser.add_argument("--val", required=True, help="validation data: .beton file or class folder")
    parser.add_argument("--output", required=True, type=Path, help="folder for runs, results and picture")
    parser.add_argument("--full", action="store_true", help="train the paper's network as long as the paper does")
    parser.add_argument("--json", type=Path, help="file for the results, instead of results.json in --output")
    parser.add_argument("--picture", type=Path, help="file for the picture, instead of accuracy.png in --output")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="change a field of all three recipes")  # fmt: skip
    return parser


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
        sample; multiply-adds of their forward passes (``macs``); training time in ``seconds``; and ``accuracy``, a row
        per evaluation size with top-1 in 0..1 ``before`` and ``after`` calibration.
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
    ]
    for place, row in enumerate(first["accuracy"]):
        cells = [run["accuracy"][place] for run in runs]
        rows.append(
            [f"top-1 at {row['size']} px, before / after", *(f"{c['before']:.1%} / {c['after']:.1%}" for c in cells)]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
