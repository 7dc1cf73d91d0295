"""Run by ``torchrun`` in a test: trains with smoothed gradients and leaves each rank's weights and state."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from respipe.training.gradients import GradientSmoothing
from tests.torchrun import one_of_the_ranks


def images_and_targets() -> tuple[torch.Tensor, torch.Tensor]:
    """Five steps of four samples whose gradients differ in size from step to step: (5, 4, 3) and (5, 4)."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1.0, 5.0, 0.1, 3.0, 0.5])
    return torch.randn(5, 4, 3, generator=generator), torch.randn(5, 4, generator=generator) * sizes[:, None]


def train(share: slice, *, distributed: bool) -> tuple[nn.Module, GradientSmoothing]:
    """Train on each step's samples in ``share``."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    smoothing = GradientSmoothing(optimizer)
    parallel = nn.parallel.DistributedDataParallel(model) if distributed else model
    for images, targets in zip(*images_and_targets(), strict=True):
        optimizer.zero_grad()
        (parallel(images[share])[:, 0] - targets[share]).square().mean().backward()
        optimizer.step()
    return model, smoothing


if __name__ == "__main__":
    with one_of_the_ranks() as process:
        rank = process.rank
        model, smoothing = train(slice(2 * rank, 2 * rank + 2), distributed=True)
        torch.save({"model": model.state_dict(), **smoothing.state_dict()}, Path(sys.argv[1]) / f"rank{rank}.pt")
