"""Run by ``torchrun`` in a test: trains a tiny run and leaves each rank's weights, of the loss too, and results."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

import respipe
from respipe import train
from respipe.train import Run, share_buffers
from tests import train_runs
from tests.torchrun import group_threads


def main(num_steps: str, *arguments: str) -> None:
    """Train; a run of more than ``num_steps`` steps ends there as if killed."""
    original_epochs, original_step, steps = train.train_epochs, train.train_step, [0]

    def train_step(*args: Any) -> torch.Tensor:
        steps[0] += 1
        if steps[0] > int(num_steps):
            os._exit(0)
        return original_step(*args)

    def train_and_report(run: Run, *args: Any) -> None:
        original_epochs(run, *args)
        parameters = {name: parameter.detach().clone() for name, parameter in run.objective.named_parameters()}
        share_buffers(run.model, run.process)
        (result,) = respipe.evaluate(run.model, run.data, 32, batch_size=17, backend="reference", num_threads=1)
        content = {
            "parameters": parameters,
            "model": run.model.state_dict(),
            "top1": result.top1,
            "loss": result.loss,
            "count": result.num_samples,
        }
        torch.save(content, Path(arguments[0]) / f"rank{run.process.rank}.pt")

    train.train_epochs, train.train_step = train_and_report, train_step
    train_runs.from_command_line(arguments)
    assert not group_threads(), "the run must not keep the process group"


if __name__ == "__main__":
    main(*sys.argv[1:])
