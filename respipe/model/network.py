"""Looking at a network: without its wrappers, without its weights, in evaluation mode; and replacing its parts."""

from __future__ import annotations

import copy
import sys
from collections.abc import Container, Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import nn

Shape = tuple[int, ...]

NUM_IMAGES = 2
"""In the batch that a model is run with."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside of what compiles it or averages its gradients, whose layers bear their own names."""
    while True:
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = cast(nn.Module, model.module)
        elif "_orig_mod" in dict(model.named_children()):  # compiled
            model = model.get_submodule("_orig_mod")
        else:
            return model


def check_module(model: object) -> None:
    """Raise ``TypeError`` unless ``model`` is a module: a class, a name or a ``state_dict`` is none."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module; got {type(model).__name__}. Pass the model itself.")


def check_whole(model: nn.Module) -> None:
    """Refuse what is no model, and one that FSDP2 has divided among processes: no copy can be made of it.

    Raises:
        TypeError: it is no module.
        ValueError: ``torch.distributed.fsdp.fully_shard`` was called with it or a part of it.
    """
    check_module(model)
    fsdp = sys.modules.get("torch.distributed.fsdp")  # without it, nothing is sharded
    if fsdp is not None and any(isinstance(module, fsdp.FSDPModule) for module in model.modules()):
        raise ValueError(
            "`model` must be whole; got one that `fully_shard` divided among processes. Adapt it before it is sharded; "
            "to extract, load `get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))` into an "
            "adapted model that is not."
        )


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None]:
    """Have a model in evaluation mode, then every module in the mode it was in."""
    modes = {module: module.training for module in cast(Iterable[nn.Module], model.modules())}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def device_of(model: nn.Module) -> torch.device:
    """Where a model's parameters are; the CPU for one that has none."""
    parameters = cast(Iterable[nn.Parameter], model.parameters())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every module by its name, shared ones under each of their names."""
    return dict(cast(Iterable[tuple[str, nn.Module]], model.named_modules(remove_duplicate=False)))


def replace_modules(model: nn.Module, replacements: Mapping[str, nn.Module]) -> None:
    """Put modules in the places of others, by name, in place."""
    for name, module in replacements.items():
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, module)


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
