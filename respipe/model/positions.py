"""Vision transformers whose position embeddings are made for one size, given images of others."""

from __future__ import annotations

import inspect
import math
import sys
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from respipe.model import network

_OPTION = "interpolate_pos_encoding"
"""The argument by which models of Hugging Face's transformers take images of other sizes."""


def make_positions_adaptive(model: nn.Module) -> tuple[str, ...]:
    """Let vision transformers of torchvision and Hugging Face's transformers take square images of any size, in place.

    timm's do so by options of their own. Position embeddings are resampled in every call, as they change in every step
    of training; for a ViT-B/16 at 160 px that takes a two-thousandth of the forward pass of eight images. At the size
    that a model was built for it computes what it did before. Parameters and their names stay.

    Returns:
        the names of the transformers, ``""`` for ``model`` itself; empty where there is none.
    """
    found = list[str]()
    known = sys.modules.get("torchvision.models.vision_transformer")
    for name, module in network.named_modules(model).items():
        if known is not None and type(module) is known.VisionTransformer:
            from respipe.model.torchvision_vit import AnySizeVisionTransformer

            cast(Any, module).__class__ = AnySizeVisionTransformer
        elif _takes_option(module) and not any(name.startswith(f"{outer}.") or not outer for outer in found):
            if _interpolate not in module._forward_pre_hooks.values():  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
                module.register_forward_pre_hook(_interpolate, with_kwargs=True)
        else:
            continue
        found.append(name)
    return tuple(found)


def resampled(positions: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Resample position embeddings of a square grid of patches to another, as timm does: bicubic, antialiased.

    Args:
        positions: (1, 1 + K K, D), the first for the class token, which is kept.
        grid: rows and columns H, W of the new one.

    Returns:
        (1, 1 + H W, D).
    """
    side = math.isqrt(positions.shape[1] - 1)
    if grid == (side, side):
        return positions
    maps = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps.float(), grid, mode="bicubic", antialias=True).to(positions.dtype)
    return torch.cat([positions[:, :1], maps.flatten(2).transpose(1, 2)], 1)


def _takes_option(module: nn.Module) -> bool:
    return _OPTION in inspect.signature(type(module).forward).parameters


def _interpolate(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {_OPTION: True, **kwargs}
