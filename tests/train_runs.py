"""Tiny training runs for tests: their recipe, their command line, and what they leave."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from respipe.recipe import load_recipe
from respipe.train import train

RECIPE = """
model: {name: mobilenet_v2, options: {width_mult: 0.25, dropout: 0.5}}
schedule: {name: TRD, full_size: 64, reduced_size: 32, participation: 0.5, unit: step}
epochs: 3
data: {batch_size: 4, batch_transform: {name: MixUp, alpha: 0.4}}
learning_rate: {peak: 0.05, decay: cosine, warmup_epochs: 1}
optimizer: {nesterov: true, decay_all: false}
label_smoothing: 0.1
evaluation: {sizes: [64, 32], every: 2, batch_size: 7}
runtime: {device: cpu, backend: reference, num_threads: 1, checkpoint_steps: 3, tensorboard: false}
finetune:
  schedule: {name: Constant, size: 64}
  epochs: 2
  data: {batch_transform: null, crop: {name: ShiftedCenterCrop}}
  learning_rate: {peak: 0.5, decay: step, warmup_epochs: 0, milestones: [1]}
"""

_SWITCHABLE = (
    "model={name: 'cifar:resnet8', options: {width: 4}}",
    "data={batch_size: 4, crop: {name: RandomResizedCrop}}",
    "optimizer={weight_decay: 0.1}",
    "evaluation={sizes: [40, 32, 24, 16], every: 2, batch_size: 9, calibration_batches: 2}",
    "epochs=2",
)
KINDS = {
    "trd": (),
    "rsnet": (*_SWITCHABLE, "schedule={name: RSNet, sizes: [32, 24, 16]}"),
    "lowmode": (*_SWITCHABLE, "schedule={name: LowMode, full_size: 32}"),
    "mixsize": (
        "schedule={name: MixSize, regime: {64: 0.4, 32: 0.6}, base_size: 64}",
        "data={batch_size: 2, crop: {name: RandomResizedCrop}}",
        "learning_rate={peak: 0.01, scale: steps}",
        "optimizer={smoothing: 0.9}",
        "evaluation={sizes: [64, 32], every: 2, batch_size: 7, calibration_batches: 3}",
    ),
}
"""What is changed in the recipe for each kind of run."""


def write_recipe(folder: Path) -> Path:
    """Write the recipe of the tiny runs."""
    path = folder / "tiny.yaml"
    path.write_text(RECIPE)
    return path


def start(
    folder: Path,
    data: Path,
    output: Path,
    *changes: str,
    kind: str = "trd",
    init: Path | None = None,
    resume: bool = False,
    val: Path | None = None,
) -> Path:
    """Train a tiny run in ``output``, whose recipe lies in ``folder``; returns ``output``."""
    recipe = load_recipe(str(write_recipe(folder)), [*KINDS[kind], *changes], finetune=init is not None)
    train(recipe, data=str(data), val=str(val or data), output=output, init=init, resume=resume)
    return output


def from_command_line(arguments: Sequence[str]) -> Path:
    """The same in a process of its own: ``FOLDER DATA OUTPUT KIND [--resume] [CHANGE...]``."""
    parser = argparse.ArgumentParser()
    for name in ("folder", "data", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("kind")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("changes", nargs="*")
    given = parser.parse_intermixed_args(arguments)
    return start(given.folder, given.data, given.output, *given.changes, kind=given.kind, resume=given.resume)


def events(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def epochs(output: Path) -> list[dict[str, Any]]:
    return [event for event in events(output) if event["event"] == "epoch"]


def saved(output: Path) -> dict[str, Any]:
    return torch.load(output / "checkpoint.pt", weights_only=True)


def final_state(output: Path) -> dict[str, torch.Tensor]:
    """Weights, those of the loss, and momenta of a run."""
    checkpoint = saved(output)
    momenta = {f"momentum.{k}": v["momentum_buffer"] for k, v in checkpoint["optimizer"]["state"].items()}
    return {**checkpoint["model"], **checkpoint["criterion"], **momenta}


def assert_same_run(first: Path, second: Path) -> None:
    states = final_state(first), final_state(second)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    fields = ("epoch", "train_loss", "lr", "eval")
    logs = [{event["epoch"]: [event[field] for field in fields] for event in epochs(one)} for one in (first, second)]
    assert logs[0] == logs[1]
