"""One pass over every shape of batch before training starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from pipelines.precision import autocast
from pipelines.recipe import Precision


def warm_up(
    objective: nn.Module, shapes: Iterable[torch.Tensor | Sequence[torch.Tensor]], precision: Precision
) -> None:
    """Run a model and its loss forwards and backwards on every shape; its weights, buffers and modes stay as they are.

    Kernels are chosen and memory is reserved then, that of the largest batch first, so that no later step has to wait
    for either and a batch too large for the GPU shows at once.

    Args:
        objective: model and loss in the form in which they are trained; called with images and labels, all of class 0.
            Without gradients.
        shapes: images as :meth:`respipe.Loader.warmup_shapes` yields them.
        precision: that it is trained in.
    """
    buffers = {buffer: buffer.clone() for buffer in objective.buffers()}
    modes = {module: module.training for module in objective.modules()}
    objective.train()
    for images in shapes:
        first = images if isinstance(images, torch.Tensor) else images[0]
        labels = torch.zeros(len(first), dtype=torch.int64, device=first.device)
        with autocast(precision, first.device):
            loss = objective(images, labels)
        loss.backward()
        for parameter in objective.parameters():
            parameter.grad = None
    for module, training in modes.items():
        module.training = training
    with torch.no_grad():
        for buffer, values in buffers.items():
            buffer.copy_(values)
