"""Run by ``torchrun`` in a test: several runs of ``pipelines.train``, of which each rank's weights are left."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from pipelines import train
from pipelines.train import Run


def main(folder: str, lines: str) -> None:
    """Train with each of the command lines, a JSON list of lists."""
    original = train.train
    finished: list[dict[str, torch.Tensor]] = []

    def train_and_keep(run: Run, *args: Any) -> None:
        original(run, *args)
        parameters = {name: parameter.detach() for name, parameter in run.objective.named_parameters()}
        finished.append(parameters)
        torch.save(finished, Path(folder) / f"rank{run.process.rank}.pt")

    train.train = train_and_keep
    for line in json.loads(lines):
        train.main(line)


if __name__ == "__main__":
    main(*sys.argv[1:])
