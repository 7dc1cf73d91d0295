"""Runs a model without its weights, to see the shapes it would compute."""

from __future__ import annotations

import copy
from collections.abc import Container, Generator, Iterable
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import nn

Shape = tuple[int, ...]

NUM_IMAGES = 2
"""In the batch that a model is run with."""


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its name, shared ones under each of their names."""
    return dict(cast(Iterable[tuple[str, nn.Module]], model.named_modules(remove_duplicate=False)))


def without_weights(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters and buffers have shapes but no values (device "meta").

    Costs neither memory nor time for the weights, and leaves ``model`` and the random state alone.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo).eval()


def run(model: nn.Module, size: int) -> None:
    """Pass two images of ``size`` x ``size`` pixels through a model made by :func:`without_weights`.

    Raises:
        RuntimeError, ValueError, AssertionError: whatever the model raises on images of that size.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    with torch.no_grad():
        model(torch.empty(NUM_IMAGES, 3, size, size, dtype=dtype, device="meta"))


@contextmanager
def calls(
    model: nn.Module, *kinds: type[nn.Module], dimensions: Container[int] = (4,)
) -> Generator[list[tuple[str, nn.Module, Shape, Shape]]]:
    """Record the calls of modules of the given kinds, in order: name, module, shape of input, shape of output.

    Only calls that turn one tensor into another are recorded, both with a number of dimensions out of ``dimensions``:
    by default (N, C, H, W).
    """
    seen: list[tuple[str, nn.Module, Shape, Shape]] = []

    def record(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [*inputs[:1], output]
        if len(tensors) == 2 and all(
            isinstance(tensor, torch.Tensor) and tensor.ndim in dimensions for tensor in tensors
        ):
            seen.append((name, module, tuple(inputs[0].shape), tuple(output.shape)))

    names = {module: name for name, module in named_modules(model).items() if isinstance(module, kinds)}
    handles = [module.register_forward_hook(partial(record, name)) for module, name in names.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
