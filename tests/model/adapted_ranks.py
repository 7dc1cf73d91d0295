"""Run by ``torchrun`` in a test: trains adapted networks on each rank's share and leaves each rank's state."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from respipe.model.adapt import adapt
from respipe.model.resnet_cifar import ResNetCifar
from respipe.schedules import LowMode, RSNet
from respipe.training.objective import MRED, AllSizes
from tests.torchrun import one_of_the_ranks


def images(size: int, rank: int) -> torch.Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(rank))


def train_rsnet(rank: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    both = AllSizes(adapt(ResNetCifar(8, width=4, num_classes=3), RSNet((16, 8))), MRED(2))
    optimizer = torch.optim.SGD(both.parameters(), lr=0.1)
    parallel = nn.parallel.DistributedDataParallel(both)
    for _ in range(2):
        optimizer.zero_grad()
        parallel((images(16, rank), images(8, rank)), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    return both.state_dict()


def train_low_mode(rank: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = adapt(ResNetCifar(8, width=4, num_classes=3), LowMode(16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    for size in (16, 8, 8):
        optimizer.zero_grad()
        parallel(images(size, rank)).square().sum().backward()
        optimizer.step()
    return model.state_dict()


if __name__ == "__main__":
    with one_of_the_ranks() as process:
        rank = process.rank
        torch.save((train_rsnet(rank), train_low_mode(rank)), Path(sys.argv[1]) / f"rank{rank}.pt")
