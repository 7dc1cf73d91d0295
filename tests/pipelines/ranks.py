"""Run by ``torchrun`` in a test: trains as ``pipelines.train`` does and leaves each rank's weights and results."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

import respipe
from pipelines import train
from pipelines.distributed import share_buffers
from pipelines.train import Run
from tests.torchrun import group_threads


def main(folder: str, data: str, num_steps: str, *arguments: str) -> None:
    """Train; a run of more than ``num_steps`` steps ends there as if killed."""
    original_train, original_step, steps = train.train, train.train_step, [0]

    def train_step(*args: Any) -> torch.Tensor:
        steps[0] += 1
        if steps[0] > int(num_steps):
            os._exit(0)
        return original_step(*args)

    def train_and_report(run: Run, *args: Any) -> None:
        original_train(run, *args)
        share_buffers(run.model, run.process)
        (result,) = respipe.evaluate(run.model, data, 32, batch_size=17, backend="reference", num_threads=1)
        content = {
            "model": run.model.state_dict(),
            "top1": result.top1,
            "loss": result.loss,
            "count": result.num_samples,
        }
        torch.save(content, Path(folder) / f"rank{run.process.rank}.pt")

    train.train, train.train_step = train_and_report, train_step
    train.main(arguments)
    assert not group_threads(), "the run must not keep the process group"


if __name__ == "__main__":
    main(*sys.argv[1:])
