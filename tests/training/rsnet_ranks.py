"""Run by ``torchrun`` in a test: trains at several sizes at once and leaves each rank's weights, alpha included."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from respipe.training.objective import MRED, AllSizes
from tests.torchrun import one_of_the_ranks


def images_and_labels() -> tuple[list[torch.Tensor], torch.Tensor]:
    """Four steps of six samples at two sizes: (4, 6, 3, S, S) each, and (4, 6)."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(4, 6, 3, size, size, generator=generator) for size in (8, 6)]
    return images, torch.randint(4, (4, 6), generator=generator)


def train(share: slice, *, distributed: bool, recompute: bool) -> dict[str, torch.Tensor]:
    """Train on each step's samples in ``share``; returns weights and alpha."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4))
    both = AllSizes(model, MRED(2), recompute=recompute)
    optimizer = torch.optim.SGD(both.parameters(), lr=0.5, momentum=0.9)
    parallel = nn.parallel.DistributedDataParallel(both) if distributed else both
    images, labels = images_and_labels()
    for number in range(len(labels)):
        optimizer.zero_grad()
        parallel([one[number, share] for one in images], labels[number, share]).backward()
        optimizer.step()
    return both.state_dict()


if __name__ == "__main__":
    with one_of_the_ranks() as process:
        share = slice(3 * process.rank, 3 * process.rank + 3)
        states = [train(share, distributed=True, recompute=recompute) for recompute in (False, True)]
        torch.save(states, Path(sys.argv[1]) / f"rank{process.rank}.pt")
