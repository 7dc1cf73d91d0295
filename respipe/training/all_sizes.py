"""A network and its loss as one module, for steps that show the same images at several sizes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

Criterion = Callable[[Sequence[torch.Tensor], torch.Tensor], torch.Tensor]


class AllSizes(nn.Module):
    """Pass the images of every size through ``model`` and compute one loss of all outputs.

    In one process it saves a line. ``DistributedDataParallel`` needs it: around this module, DDP sees a step as one
    forward pass, and averages the gradients of a loss with parameters of its own (:class:`respipe.MRED`) too. ::

        both = DistributedDataParallel(AllSizes(model, respipe.MRED(5)))
        for images, labels in loader:      # images: a tuple, the largest size first
            both(images, labels).backward()

    Weights keep their names in ``model``, which is evaluated and saved by itself.

    Args:
        model: takes (N, 3, S, S) images of every size.
        criterion: takes the outputs of all sizes, in the order of the images, and the labels; a module where it has
            parameters.
        recompute: hold the activations of one size at a time. The first pass keeps only the outputs; the backward pass
            computes each size again, adds its gradients to those of the others, and frees it. Gradients, random numbers
            and buffers (BatchNorm's statistics) end up as without; the price is a second forward pass, and the memory
            that of the largest size alone instead of all (2.76 times as much for RS-Net's five sizes).
    """

    def __init__(self, model: nn.Module, criterion: Criterion, *, recompute: bool = False) -> None:
        super().__init__()
        self.model, self.criterion, self.recompute = model, criterion, recompute

    def forward(self, images: torch.Tensor | Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """The loss of one step.

        Args:
            images: of each size, or of a single one.
            labels: as ``criterion`` takes them.
        """
        images = (images,) if isinstance(images, torch.Tensor) else images
        return self.criterion([self._output(one) for one in images], labels)

    def _output(self, images: torch.Tensor) -> torch.Tensor:
        if not self.recompute:
            return self.model(images)
        contexts = partial(_first_and_second_pass, self.model)
        return cast(torch.Tensor, checkpoint(self.model, images, use_reentrant=False, context_fn=contexts))


def _first_and_second_pass(model: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _spare_buffers(model)


@contextmanager
def _spare_buffers(model: nn.Module) -> Generator[None]:
    """Let ``model`` write to copies of its buffers, because the first pass has updated them already."""
    # Swapped, not restored afterwards: autograd refuses tensors that were written to since it saw them.
    holders = [
        module._buffers  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        for module in cast(Iterable[nn.Module], model.modules())
    ]
    kept = [dict(buffers) for buffers in holders]
    for buffers in holders:
        buffers.update({name: None if one is None else one.clone() for name, one in buffers.items()})
    try:
        yield
    finally:
        for buffers, own in zip(holders, kept, strict=True):
            buffers.update(own)
