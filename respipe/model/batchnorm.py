"""BatchNorm with statistics, and where wanted weights, of its own for every image size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from respipe.model.batchnorm_sets import BatchNorm, BatchNormSet, BatchNormSets
from respipe.model.side import Calls, side_of

_CHILD, _HOOKS = "per_size", "batchnorm_hooks"
"""Names of what is added to every BatchNorm and to the model."""


def make_batchnorm_per_size(model: nn.Module, sizes: Sequence[int], *, affine: bool = False) -> tuple[str, ...]:
    """Let every BatchNorm of ``model`` keep running statistics of its own for each of ``sizes``, in place.

    Each call of the model picks by the side of its images: of the first (N, C, H, W) tensor that it is given, the
    smaller of H and W. In training that side must be one of ``sizes``; in evaluation other sides get the statistics of
    the nearest size, of two equally near the larger. All begin as copies of the present statistics;
    :func:`respipe.calibrate_batchnorm` measures those of the sizes that its batches have.

    Parameters stay shared and keep their names. The present statistics stay too: layers that are called by themselves
    instead of through ``model`` use them, and :func:`make_batchnorm_shared` returns to them. The new ones are buffers
    such as ``layer1.0.bn1.per_size.160.running_mean``. Call it before wrapping the model (compilation,
    ``DistributedDataParallel``); only one thread at a time may run the model. Parts of it may be checkpointed
    (``torch.utils.checkpoint``): run again in the backward pass, they get what they had in the call before.

    With ``affine`` weights and biases are private to each size as well: the BatchNorm of RS-Nets (arXiv 2007.09558).
    What the model has now then belongs to the largest size, and each other one begins as a copy of it, with names such
    as ``layer1.0.bn1.per_size.160.weight``. In evaluation, sides between two sizes get all tensors interpolated between
    theirs, variances included, and sides beyond get those of the nearest size. Where a step has one size only, the
    parameters of the others get no gradient: ``DistributedDataParallel`` must be told ``find_unused_parameters=True``.

    Checkpoints of the model as it was can be loaded: each size that they have no tensors for takes the plain ones.

    Args:
        model: takes (N, C, H, W) images.
        sizes: sides in pixels.
        affine: private weights and biases beside private statistics.

    Returns:
        the names of the changed layers; empty where no BatchNorm has anything to keep.

    Raises:
        ValueError: there is no size, one is less than 1 or named twice, or a layer has statistics per size already.
    """
    sizes = tuple(sorted(sizes))
    if not sizes or sizes[0] < 1 or len(set(sizes)) < len(sizes):
        raise ValueError(f"`sizes` must be different sides in pixels, at least one of them; got {sizes}.")
    tracking = tracking_batchnorms(model)
    norms = {name: norm for name, norm in _batchnorms(model).items() if name in tracking or (affine and norm.affine)}
    for name, norm in norms.items():
        if _per_size(norm) is not None:
            raise ValueError(
                f"`model` must have one set of statistics in each BatchNorm; layer {name!r} has several. Undo them "
                "with `make_batchnorm_shared` first."
            )
    own_size, calls = sizes[-1] if affine else None, Calls()
    for norm in norms.values():
        sets = {size: BatchNormSet(norm, affine=affine) for size in sizes if size != own_size}
        per_size = BatchNormSets(sets, own_size, calls)
        norm.add_module(_CHILD, per_size)
        _watch(norm, per_size)
    if norms:
        hooks = (
            model.register_load_state_dict_pre_hook(_complete_state),
            model.register_forward_pre_hook(partial(_lend, calls), with_kwargs=True),
            model.register_forward_hook(partial(_take_back, calls), always_call=True),
        )
        setattr(model, _HOOKS, hooks)
    return tuple(norms)


def make_batchnorm_shared(model: nn.Module, size: int | None = None) -> tuple[str, ...]:
    """Undo :func:`make_batchnorm_per_size`, in place.

    Args:
        model: that it was called with.
        size: side in pixels whose tensors every layer is to keep; default: the model's own, which are those from before
            or, with private weights, those of the largest size.

    Returns:
        the names of the changed layers; empty where there was nothing to undo.

    Raises:
        ValueError: there are no statistics of that size, or ``model`` is not the one.
    """
    found = divided_batchnorms(model)
    hooks = cast(tuple[RemovableHandle, ...], getattr(model, _HOOKS, ()))
    if bool(found) != bool(hooks):
        raise ValueError(
            "`model` must be the one that `make_batchnorm_per_size` was called with; got a part of it, or a model that "
            "it is part of. Pass the same."
        )
    for _, per_size in found.values():
        if size is not None and size not in per_size.sizes:
            raise ValueError(
                f"`size` must be one of {', '.join(map(str, per_size.sizes))} px, which have statistics; got {size}."
            )
    for norm, per_size in found.values():
        if size is not None:
            per_size.keep(norm, size)
        for hook in per_size.hooks:
            hook.remove()
        delattr(norm, _CHILD)
    for hook in hooks:
        hook.remove()
    if hooks:
        delattr(model, _HOOKS)
    return tuple(found)


def divided_batchnorms(model: nn.Module) -> dict[str, tuple[BatchNorm, BatchNormSets]]:
    """Every BatchNorm of a model that keeps something per size, with what it keeps, by its name."""
    return {name: (norm, per_size) for name, norm in _batchnorms(model).items() if (per_size := _per_size(norm))}


def tracking_batchnorms(model: nn.Module) -> dict[str, BatchNorm]:
    """Every BatchNorm of a model that keeps running statistics, by its name."""
    return {
        name: norm
        for name, norm in _batchnorms(model).items()
        if norm.track_running_stats and norm.running_mean is not None
    }


def statistics_holders(model: nn.Module) -> dict[str, nn.Module]:
    """Every module whose buffers are running statistics, by its name: each BatchNorm, and what it keeps per size."""
    holders = dict[str, nn.Module]()
    for name, norm in tracking_batchnorms(model).items():
        holders[name] = norm
        per_size = _per_size(norm)
        if per_size is not None:
            prefix = f"{name}.{_CHILD}" if name else _CHILD
            holders |= {f"{prefix}.{size}": statistics for size, statistics in per_size.items()}
    return holders


def _batchnorms(model: nn.Module) -> dict[str, BatchNorm]:
    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    return {name: module for name, module in modules if isinstance(module, BatchNorm)}


def _per_size(norm: BatchNorm) -> BatchNormSets | None:
    child = norm._modules.get(_CHILD)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - asked in every call
    return child if isinstance(child, BatchNormSets) else None


def _complete_state(model: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Before a state is loaded: sizes without tensors in it take the plain ones."""
    for name, (_norm, per_size) in divided_batchnorms(model).items():
        plain = f"{prefix}{name}." if name else prefix
        for size, one in per_size.items():
            own = f"{plain}{_CHILD}.{size}."
            tensors = one.state_dict().keys()
            if not any(own + tensor in state_dict for tensor in tensors):
                state_dict |= {own + key: state_dict[plain + key] for key in tensors if plain + key in state_dict}


def _lend(calls: Calls, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Before the model's forward pass."""
    side = side_of(args, kwargs)
    calls.enter(side)
    for norm in model.modules():
        if isinstance(norm, BatchNorm) and (per_size := _per_size(norm)) is not None:
            per_size.lend(norm, side)
            if not torch.compiler.is_compiling() and not _is_watched(norm, per_size):
                _watch(norm, per_size)  # it was made of the one that was: nn.SyncBatchNorm.convert_sync_batchnorm


def _take_back(calls: Calls, model: nn.Module, *_: object) -> None:
    """After the model's forward pass, also if it failed."""
    calls.leave()
    for norm in model.modules():
        if isinstance(norm, BatchNorm) and (per_size := _per_size(norm)) is not None:
            per_size.take_back(norm)


def _watch(norm: BatchNorm, per_size: BatchNormSets) -> None:
    """Let a BatchNorm see when it is run again outside of a call of the model."""
    per_size.hooks = (
        norm.register_forward_pre_hook(_lend_again),
        norm.register_forward_hook(_take_back_again, always_call=True),
    )


def _is_watched(norm: BatchNorm, per_size: BatchNormSets) -> bool:
    hooks = cast(Mapping[int, object], norm._forward_pre_hooks)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    return per_size.hooks[0].id in hooks


def _lend_again(norm: nn.Module, _: object) -> None:
    per_size = _per_size(cast(BatchNorm, norm))
    if per_size is not None:
        per_size.lend_again(cast(BatchNorm, norm))


def _take_back_again(norm: nn.Module, *_: object) -> None:
    per_size = _per_size(cast(BatchNorm, norm))
    if per_size is not None:
        per_size.take_back_again(cast(BatchNorm, norm))
