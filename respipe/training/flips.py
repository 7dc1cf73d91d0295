"""Mirroring that differs between the sizes of a crop."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def flip_each_size(
    images: torch.Tensor | Sequence[torch.Tensor], labels: torch.Tensor
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Mirror every image left to right with probability 1/2, on its own at every size.

    RSNet shows the same crop, mirrored alike, at all sizes. The released code of RS-Nets (arXiv 2007.09558) draws the
    flip for each size; as ``batch_transform`` of :class:`respipe.Loader`, which seeds it for each step and rank, this
    does the same::

        respipe.Loader(
            data, RSNet((224, 160)), batch_size=256, flip_probability=0.0, batch_transform=respipe.flip_each_size
        )

    Draws from torch's random state on the device of the images.

    Args:
        images: (N, C, S, S) tensors of any dtype, one for each size.
        labels: handed on.

    Returns:
        new images, in the memory format that they had, and ``labels``.
    """
    sizes = (images,) if isinstance(images, torch.Tensor) else images
    return tuple(_flipped(one) for one in sizes), labels


def _flipped(images: torch.Tensor) -> torch.Tensor:
    is_flipped = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(is_flipped, images.flip(-1), images)
