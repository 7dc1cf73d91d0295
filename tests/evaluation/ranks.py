"""Run by ``torchrun`` in a test: evaluates on two ranks, which do not divide the batches, and leaves what each got."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

from respipe.evaluation import evaluate
from tests.torchrun import one_of_the_ranks

SIZES = (40, 24)


class Network(nn.Module):
    """Six logits from an image's mean colour; remembers the sizes of the batches it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(3, 6)
        nn.init.normal_(self.linear.weight, std=3)
        self.seen: list[tuple[int, int]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append((len(images), images.shape[-1]))
        return self.linear(images.mean(dim=(2, 3)))


def main(data: str, target: Path) -> None:
    """Evaluate, and write what came of it."""
    network = Network()
    model = nn.parallel.DistributedDataParallel(network)
    outcomes = {
        batch_size: [
            result.to_dict()
            for result in evaluate(model, data, SIZES, batch_size=batch_size, backend="reference", num_threads=1)
        ]
        for batch_size in (5, 17)
    }
    report = {"seen": network.seen, "outcomes": outcomes}
    target.write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    with one_of_the_ranks() as process:
        main(sys.argv[1], Path(sys.argv[2], f"rank{process.rank}.json"))
