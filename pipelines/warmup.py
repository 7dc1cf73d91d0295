"""One pass over every shape of batch before training starts."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from pipelines.precision import autocast
from pipelines.recipe import Precision


def warm_up(model: nn.Module, shapes: Iterable[torch.Tensor], precision: Precision) -> None:
    """Run a model forwards and backwards on every shape; its weights, buffers and modes stay as they are.

    Kernels are chosen and memory is reserved then, that of the largest batch first, so that no later step has to wait
    for either and a batch too large for the GPU shows at once.

    Args:
        model: in the form in which it is trained; without gradients.
        shapes: images as :meth:`respipe.Loader.warmup_shapes` yields them.
        precision: that it is trained in.
    """
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    modes = {module: module.training for module in model.modules()}
    model.train()
    for images in shapes:
        with autocast(precision, images.device):
            loss = model(images).float().sum()
        loss.backward()
        for parameter in model.parameters():
            parameter.grad = None
    for module, training in modes.items():
        module.training = training
    with torch.no_grad():
        for buffer, values in buffers.items():
            buffer.copy_(values)
