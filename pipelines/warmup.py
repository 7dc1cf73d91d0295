"""A pass over a batch of every shape before training starts."""

from __future__ import annotations

import torch
from torch import nn

from pipelines.precision import autocast
from respipe.loading.loader import Images
from respipe.recipe import Precision


def warm_up(objective: nn.Module, images: Images, labels: torch.Tensor, precision: Precision) -> None:
    """Run a model and its loss forwards and backwards; weights, gradients, buffers, modes and random numbers stay.

    Kernels are chosen and memory is reserved then, so that no later step of this shape has to wait for either and a
    batch too large for the GPU shows at once.

    Args:
        objective: model and loss in the form in which they are trained; called with images and labels.
        images, labels: of the shape to be prepared for.
        precision: that it is trained in.
    """
    buffers = {buffer: buffer.clone() for buffer in objective.buffers()}
    modes = {module: module.training for module in objective.modules()}
    gradients = {parameter: parameter.grad for parameter in objective.parameters()}
    device = labels.device
    objective.train()
    for parameter in gradients:
        parameter.grad = None  # or what follows would be added to it
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        with autocast(precision, device):
            loss = objective(images, labels)
        loss.backward()
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
    for module, training in modes.items():
        module.training = training
    with torch.no_grad():
        for buffer, values in buffers.items():
            buffer.copy_(values)
