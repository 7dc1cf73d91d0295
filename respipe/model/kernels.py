"""Convolution kernels that are pooled while the images are small."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast, get_args

from torch import nn
from torch.utils.hooks import RemovableHandle

from respipe.checks import check_choice
from respipe.model import trace
from respipe.model.pooled_layers import (
    DroppableMaxPool2d,
    PooledConv2d,
    Reduce,
    becomes_smaller,
    make_droppable,
    pool_kernel,
)
from respipe.model.side import Calls, side_of

_HOOKS = "kernel_hooks"
"""Name of what is added to the model."""


def make_kernels_pooled(
    model: nn.Module,
    full_size: int,
    low_sizes: Sequence[int],
    *,
    layers: Sequence[str] | None = None,
    reduce: Reduce = "mean",
    drop_maxpool: bool = True,
) -> tuple[str, ...]:
    """Let convolutions of ``model`` pool their kernels in calls with images of ``low_sizes``, in place.

    The low mode of arXiv 1910.06548. With r = full size / low size, a kernel of side K is averaged over windows of r to
    side K' = the largest odd number up to ceil(K / r): 3 becomes 1, 5 becomes 3 (the last window has one tap fewer in
    each axis). The padding p becomes p - dilation (K - K') / 2, so that every map has the size it would have had; the
    stride stays. Gradients reach the full kernels. Images of all other sizes are computed as before.

    Parameters, buffers in the ``state_dict`` and all names stay. Call it before wrapping the model (compilation,
    ``DistributedDataParallel``); only one thread at a time may run the model. Parts of it may be checkpointed
    (``torch.utils.checkpoint``): run again in the backward pass, they have the kernels of the call before.

    Args:
        model: takes (N, 3, S, S) images.
        full_size: side in pixels at which kernels are as they are.
        low_sizes: sides in pixels, smaller than ``full_size``.
        layers: names of the convolutions to pool, plain ``nn.Conv2d`` with odd kernels. Default: all with kernels of 3
            or 5 except the first to run, which in a ResNet-18 or 50 are the paper's: the 3 x 3 of every block.
        reduce: "mean", as the paper has it; or "sum", which keeps a kernel's response to even areas, where "mean"
            leaves a ninth of it for 3 x 3. BatchNorm right after the layer removes the difference while it trains.
        drop_maxpool: leave out max-pooling that runs before the first pooled layer, in calls with small images only, as
            the paper has it. The maps after it are then as large as those of images twice as large.

    Returns:
        the names of the pooled layers; empty where no kernel becomes smaller.

    Raises:
        ValueError: an argument is out of range, a layer cannot be pooled, or the model pools kernels already.
        RuntimeError, AssertionError: whatever the model raises on images of ``full_size``.
    """
    _check_arguments(model, full_size, low_sizes, reduce)
    order = _order_of_calls(model, full_size)
    modules = trace.named_modules(model)
    names = _default_layers(order, modules) if layers is None else _checked_layers(layers, modules)
    pooled_at = {name: _ratios(cast(nn.Conv2d, modules[name]), full_size, low_sizes) for name in names}
    pooled = {name: ratios for name, ratios in pooled_at.items() if ratios}
    if not pooled:
        return ()
    calls = Calls()
    for name, ratios in pooled.items():
        pool_kernel(cast(nn.Conv2d, modules[name]), ratios, reduce=reduce, calls=calls)
    if drop_maxpool:
        first = next((place for place, name in enumerate(order) if name in pooled), 0)
        for name in order[:first]:
            if type(modules[name]) is nn.MaxPool2d:
                make_droppable(cast(nn.MaxPool2d, modules[name]), set[int]().union(*pooled.values()), calls=calls)
    hooks = (
        model.register_forward_pre_hook(partial(_enter, calls), with_kwargs=True),
        model.register_forward_hook(partial(_leave, calls), always_call=True),
    )
    setattr(model, _HOOKS, hooks)
    return tuple(pooled)


def make_kernels_full(model: nn.Module) -> tuple[str, ...]:
    """Undo :func:`make_kernels_pooled`, in place.

    Returns:
        the names of the layers that are plain again; empty where there was nothing to undo.

    Raises:
        ValueError: ``model`` is not the one that it was called with.
    """
    routed = _routed(model)
    hooks = cast(tuple[RemovableHandle, ...], getattr(model, _HOOKS, ()))
    if bool(routed) != bool(hooks):
        raise ValueError(
            "`model` must be the one that `make_kernels_pooled` was called with; got a part of it, or a model that it "
            "is part of. Pass the same."
        )
    for module in routed.values():
        module.restore()
    for hook in hooks:
        hook.remove()
    if hooks:
        delattr(model, _HOOKS)
    return tuple(name for name, module in routed.items() if isinstance(module, nn.Conv2d))


def _check_arguments(model: nn.Module, full_size: int, low_sizes: Sequence[int], reduce: str) -> None:
    if not low_sizes or not 0 < min(low_sizes) <= max(low_sizes) < full_size:
        raise ValueError(
            f"`low_sizes` must be sides in pixels below `full_size`, {full_size}, at least one of them; "
            f"got {tuple(low_sizes)}."
        )
    check_choice("reduce", reduce, get_args(Reduce))
    if _routed(model):
        raise ValueError("`model` must have full kernels; got one that pools them. Call `make_kernels_full` first.")


def _order_of_calls(model: nn.Module, size: int) -> list[str]:
    """Names of the layers that pooling is about, in the order in which they run."""
    shadow = trace.without_weights(model)
    with trace.calls(shadow, nn.Conv2d, nn.MaxPool2d) as calls:
        trace.run(shadow, size)
    return [name for name, *_ in calls]


def _default_layers(order: Sequence[str], modules: Mapping[str, nn.Module]) -> list[str]:
    convs = [(name, module) for name in order if isinstance(module := modules[name], nn.Conv2d)]
    return list(
        dict.fromkeys(
            name
            for name, conv in convs
            if name != convs[0][0] and type(conv) is nn.Conv2d and set(conv.kernel_size) <= {1, 3, 5}
        )
    )


def _checked_layers(layers: Sequence[str], modules: Mapping[str, nn.Module]) -> list[str]:
    for name in layers:
        conv = modules.get(name)
        if type(conv) is not nn.Conv2d or not all(side % 2 for side in conv.kernel_size):
            raise ValueError(
                "`layers` must name plain nn.Conv2d with kernels of odd sides, so that their maps can keep their size; "
                f"{name!r} is {conv if conv is not None else 'no layer of the model'}. Leave it out."
            )
    return list(dict.fromkeys(layers))


def _ratios(conv: nn.Conv2d, full_size: int, low_sizes: Sequence[int]) -> dict[int, float]:
    """How much smaller images are than in full, by their side, where that makes a smaller kernel."""
    ratios = {side: full_size / side for side in low_sizes}
    return {side: ratio for side, ratio in ratios.items() if becomes_smaller(conv, ratio)}


def _routed(model: nn.Module) -> dict[str, PooledConv2d | DroppableMaxPool2d]:
    return {
        name: module
        for name, module in cast(Iterable[tuple[str, nn.Module]], model.named_modules())
        if isinstance(module, PooledConv2d | DroppableMaxPool2d)
    }


def _enter(calls: Calls, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Before the model's forward pass."""
    side = side_of(args, kwargs)
    calls.enter(side)
    for module in model.modules():
        if isinstance(module, PooledConv2d | DroppableMaxPool2d):
            module.enter(side)


def _leave(calls: Calls, model: nn.Module, *_: object) -> None:
    """After the model's forward pass, also if it failed: layers called by themselves are plain."""
    calls.leave()
    for module in model.modules():
        if isinstance(module, PooledConv2d | DroppableMaxPool2d):
            module.active = None
