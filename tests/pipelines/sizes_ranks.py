"""Run by ``torchrun`` in a test: trains as ``pipelines.train`` does and leaves each rank's weights, of the loss too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from pipelines import train
from pipelines.train import Run
from tests.torchrun import group_threads


def main(folder: str, *arguments: str) -> None:
    """Train."""
    original = train.train

    def train_and_keep(run: Run, *args: Any) -> None:
        original(run, *args)
        parameters = {name: parameter.detach() for name, parameter in run.objective.named_parameters()}
        torch.save(parameters, Path(folder) / f"rank{run.process.rank}.pt")

    train.train = train_and_keep
    train.main(arguments)
    assert not group_threads(), "the run must not keep the process group"


if __name__ == "__main__":
    main(*sys.argv[1:])
