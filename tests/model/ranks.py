"""Run by ``torchrun`` in a test: calibrates on each rank's share of the batches and leaves each rank's statistics."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from respipe.model.calibration import calibrate_batchnorm
from tests.torchrun import one_of_the_ranks


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5))


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, 8, 8, generator=generator) * scale for scale in (1, 2, 3, 4, 5)]


def calibrate(rank: int, target: Path) -> None:
    model = nn.parallel.DistributedDataParallel(network())
    share = batches()[rank::2]
    statistics = calibrate_batchnorm(model, share, num_batches=len(share))
    torch.save((statistics, model.module.state_dict()), target)


if __name__ == "__main__":
    with one_of_the_ranks() as process:
        calibrate(process.rank, Path(sys.argv[1]) / f"rank{process.rank}.pt")
