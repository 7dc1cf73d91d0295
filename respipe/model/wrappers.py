"""Models inside of what compiles them or averages their gradients."""

from __future__ import annotations

from typing import cast

from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, whose layers bear their own names."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = cast(nn.Module, model.module)
        elif "_orig_mod" in dict(model.named_children()):  # compiled
            model = model.get_submodule("_orig_mod")
        else:
            return model
