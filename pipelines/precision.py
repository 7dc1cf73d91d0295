"""The precision that a model runs in."""

from __future__ import annotations

import torch

from respipe.recipe import Precision


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context for a forward pass; ``auto`` is bfloat16 on a GPU and float32 on the CPU."""
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    dtype = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=dtype, enabled=precision != "float32")
