"""What the adapter adds to a forward pass: time of the host, whatever the device.

The adapter does nothing to the images: before and after each call of the model it walks through its layers, and each
BatchNorm looks whether it is run again. That takes the same time for every batch, so that it is measured here on passes
in which the BatchNorms alone are run, on maps of one pixel; in CPU time of one thread, which other processes do not add
to. Plain and adapted models take turns.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Sequence
from functools import partial

import torch
import torchvision
from torch import nn

import respipe
from respipe.schedules import LowMode, RSNet


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="resnet18,resnet50,mobilenet_v2", help="of torchvision, by commas")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(json.dumps([measure(name, size=options.size, rounds=options.rounds) for name in options.models.split(",")]))


def measure(name: str, *, size: int, rounds: int) -> dict[str, object]:
    """Milliseconds that adaptations add to a forward pass.

    Args:
        name: of a model of torchvision.
        size: side of the images in pixels; the adapted models have BatchNorms for half of it, too.
        rounds: passes of each model; what is added is the median of the differences within a round.

    Returns:
        of private BatchNorms (RSNet) in passes at the largest size, whose tensors are the layers' own, and at another,
        which lends them others; and of these together with pooled kernels (LowMode) at the full size.
    """
    plain = torchvision.models.get_model(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a stride that does not divide
        private = respipe.adapt(copy.deepcopy(plain), RSNet((size, size // 2)))
        low = respipe.adapt(copy.deepcopy(plain), LowMode(size))
    for model in (plain, private, low):
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        maps = [torch.zeros(2, norm.num_features, 1, 1) for norm in norms]
        model.forward = partial(run_norms, norms, maps)
    large, small = (torch.zeros(2, 3, side, side) for side in (size, size // 2))
    pairs = {"per_size, largest": (private, large), "per_size, other": (private, small), "low mode, full": (low, large)}
    differences: dict[str, list[float]] = {kind: [] for kind in pairs}
    for _ in range(rounds):
        for kind, (model, images) in pairs.items():
            differences[kind].append(-seconds_of(plain, images) + seconds_of(model, images))
    return {
        "model": name,
        "batchnorms": sum(isinstance(module, nn.BatchNorm2d) for module in plain.modules()),
        "added_ms": {kind: round(1000 * statistics.median(one), 2) for kind, one in differences.items()},
    }


def run_norms(norms: Sequence[nn.Module], maps: Sequence[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """A model's forward pass without everything but its BatchNorms."""
    for norm, features in zip(norms, maps, strict=True):
        norm(features)
    return images


def seconds_of(model: nn.Module, images: torch.Tensor) -> float:
    """CPU time of one forward pass in training mode."""
    start = time.process_time()
    model(images)
    return time.process_time() - start


if __name__ == "__main__":
    main()
