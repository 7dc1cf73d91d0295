"""The state that a model is evaluated in."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import cast

import torch
from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """Have a model in evaluation mode, then every module in the mode it was in."""
    modes = {module: module.training for module in cast(Iterable[nn.Module], model.modules())}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the CPU for one that has none."""
    parameters = cast(Iterable[nn.Parameter], model.parameters())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))
