"""Mixup and CutMix carried out on placed batches."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from respipe.planning.mixing import MixPlan


def mix_labels(
    labels: torch.Tensor, plan: MixPlan, size: int, *, num_classes: int, label_smoothing: float
) -> torch.Tensor:
    """Mixed labels.

    Args:
        labels: (B,) int64, or (B, K) floating for several labels at once.
        plan: how the batch is mixed.
        size: side of the images in pixels; of several sizes, the largest.
        num_classes: K, where ``labels`` are classes.
        label_smoothing: see :class:`respipe.planning.mixing.Mixing`.

    Returns:
        (B, K) float32.
    """
    if labels.ndim == 1:
        soft = F.one_hot(labels.long(), num_classes).float()
        soft = soft * (1 - label_smoothing) + label_smoothing / num_classes
    else:
        soft = labels.float() * (1 - label_smoothing) + 0.5 * label_smoothing
    partners, shares = _on(labels.device, plan.partners, plan.shares(size).astype(np.float32)[:, None])
    return soft * shares + soft[partners] * (1 - shares)


def mix_images(images: torch.Tensor, plan: MixPlan) -> torch.Tensor:
    """Mixed images of the same dtype and memory format, from (B, C, S, S)."""
    size = images.shape[-1]
    weights = np.where(plan.cut, 1, plan.weights).astype(np.float32)
    partners, own, edges = _on(images.device, plan.partners, weights, plan.rectangles(size).astype(np.float32))
    others, line = images[partners], torch.arange(size, device=images.device)
    top, left, bottom, right = (edge[:, None] for edge in edges.unbind(1))
    inside = ((line >= top) & (line < bottom))[:, None, :, None] & ((line >= left) & (line < right))[:, None, None, :]
    mixed = torch.lerp(others.float(), images.float(), own.view(-1, 1, 1, 1))
    if images.dtype == torch.uint8:
        mixed = mixed.round_()
    return torch.where(inside, others, mixed.to(images.dtype))


def _on(device: torch.device, *arrays: NDArray[np.generic]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)
