"""The size of the images that a model is called with, by which it is routed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def side_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Side in pixels of the images that a model was called with.

    Args:
        args, kwargs: of the call.

    Returns:
        the smaller of height and width of the first tensor of four dimensions.

    Raises:
        TypeError: there is no such tensor.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.ndim == 4:
            return int(min(value.shape[2:]))
    raise TypeError("`model` must be called with a tensor of (N, C, H, W) images, whose size it goes by; got none.")
