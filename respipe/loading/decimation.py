"""Shrinking finished images by blurring them and dropping pixels."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn import functional as F

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def blur_and_decimate(images: torch.Tensor, ratio: int) -> torch.Tensor:
    """Blur images and keep every ``ratio``-th row and column, beginning with the first.

    Once for each factor of two: the binomial filter (1, 4, 6, 4, 1) / 16 in both axes, whose deviation of one pixel is
    half of the factor, on images continued by their reflection; then every other pixel. An even image stays as it is,
    so normalised and other images alike can be given.

    Args:
        images: (N, C, H, W), floating; H and W are multiples of ``ratio``, and of at least twice that.
        ratio: a power of two.

    Returns:
        (N, C, H / ratio, W / ratio) of the same dtype, device and memory format.
    """
    assert ratio & (ratio - 1) == 0 and not any(side % ratio for side in images.shape[2:]), (
        "the ratio divides the sides"
    )
    channels = images.shape[1]
    kernel = _kernel(images.dtype, images.device).expand(channels, 1, 5, 5)
    while ratio > 1:
        images = F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=channels)
        ratio //= 2
    return images


@lru_cache
def _kernel(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(5, 5): the filter in both axes, copied to each device once."""
    taps = torch.tensor(_BINOMIAL, dtype=dtype, device=device)
    return torch.outer(taps, taps)
