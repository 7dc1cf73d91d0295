"""What a low-mode step costs beside a full one: forward pass, backward pass and optimizer, in CPU time of one thread.

The two take turns, so that a busy machine slows both alike; the ratio is the median over the rounds of the ratio within
a round. Next to it stands the ratio of multiply-adds.

    python tools/bench_low_step.py --model cifar:resnet14 --option stem_stride=2
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence

import torch
import yaml
from torch.nn import functional as F

import respipe
from respipe.model.loading import build_model
from respipe.schedules import LowMode


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="cifar:resnet14", help="as for respipe evaluate --model")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="of the model")
    parser.add_argument("--size", type=int, default=32, help="side of the full images in pixels")
    parser.add_argument("--batch-size", type=int, default=125)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = (option.partition("=") for option in options.option)
    model = build_model(options.model, num_classes=10, options={key: yaml.safe_load(value) for key, _, value in names})
    model = respipe.adapt(model, LowMode(options.size)).to(memory_format=torch.channels_last).train()
    macs = respipe.cost.counted(model)
    steps = Steps(model, options.size, options.batch_size)
    rounds = [(steps.seconds(options.size), steps.seconds(options.size // 2)) for _ in range(1 + options.rounds)][1:]
    result = {
        "model": options.model,
        "full_ms": round(1000 * statistics.median(full for full, _ in rounds), 1),
        "low_ms": round(1000 * statistics.median(low for _, low in rounds), 1),
        "time_ratio": round(statistics.median(low / full for full, low in rounds), 3),
        "macs_ratio": round(macs(options.size // 2) / macs(options.size), 3),
    }
    print(json.dumps(result))


class Steps:
    """Training steps of a model on black images.

    Args:
        model: adapted to the sizes.
        size: side of the full images in pixels.
        batch_size: images of a step.
    """

    def __init__(self, model: torch.nn.Module, size: int, batch_size: int) -> None:
        self._model = model
        self._optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
        self._labels = torch.zeros(batch_size, dtype=torch.int64)
        self._images = {
            side: torch.zeros(batch_size, 3, side, side).to(memory_format=torch.channels_last)
            for side in (size, size // 2)
        }

    def seconds(self, size: int) -> float:
        """CPU time of one step at a size."""
        start = time.process_time()
        self._optimizer.zero_grad()
        F.cross_entropy(self._model(self._images[size]), self._labels).backward()
        self._optimizer.step()
        return time.process_time() - start


if __name__ == "__main__":
    main()
