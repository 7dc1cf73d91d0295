"""BatchNorm with running statistics of its own for every image size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from respipe.model.side import side_of

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm

_CHILD, _HOOKS = "per_size", "batchnorm_hooks"
"""Names of what is added to every BatchNorm and to the model."""


def make_batchnorm_per_size(model: nn.Module, sizes: Sequence[int]) -> tuple[str, ...]:
    """Let every BatchNorm of ``model`` keep running statistics of its own for each of ``sizes``, in place.

    Each call of the model picks by the side of its images: of the first (N, C, H, W) tensor that it is given, the
    smaller of H and W. In training that side must be one of ``sizes``; in evaluation other sides get the statistics of
    the nearest size, of two equally near the larger. All begin as copies of the present statistics;
    :func:`respipe.calibrate_batchnorm` measures those of the sizes that its batches have.

    Parameters stay shared and keep their names. The present statistics stay too: layers that are called by themselves
    instead of through ``model`` use them, and :func:`make_batchnorm_shared` returns to them. The new ones are buffers
    such as ``layer1.0.bn1.per_size.160.running_mean``. Call it before wrapping the model (compilation,
    ``DistributedDataParallel``); only one thread at a time may run the model.

    Args:
        model: takes (N, C, H, W) images.
        sizes: sides in pixels.

    Returns:
        the names of the changed layers; empty where no BatchNorm keeps running statistics.

    Raises:
        ValueError: there is no size, one is less than 1 or named twice, or a layer has statistics per size already.
    """
    sizes = tuple(sorted(sizes))
    if not sizes or sizes[0] < 1 or len(set(sizes)) < len(sizes):
        raise ValueError(f"`sizes` must be different sides in pixels, at least one of them; got {sizes}.")
    norms = tracking_batchnorms(model)
    for name, norm in norms.items():
        if _per_size(norm) is not None:
            raise ValueError(
                f"`model` must have one set of statistics in each BatchNorm; layer {name!r} has several. Undo them "
                "with `make_batchnorm_shared` first."
            )
    for norm in norms.values():
        norm.add_module(_CHILD, StatisticsPerSize({str(size): RunningStatistics(norm) for size in sizes}))
    if norms:
        hooks = (
            model.register_forward_pre_hook(_lend, with_kwargs=True),
            model.register_forward_hook(_take_back, always_call=True),
        )
        setattr(model, _HOOKS, hooks)
    return tuple(norms)


def make_batchnorm_shared(model: nn.Module, size: int | None = None) -> tuple[str, ...]:
    """Undo :func:`make_batchnorm_per_size`, in place.

    Args:
        model: that it was called with.
        size: side in pixels whose statistics every layer is to keep; default: those from before.

    Returns:
        the names of the changed layers; empty where there was nothing to undo.

    Raises:
        ValueError: there are no statistics of that size, or ``model`` is not the one.
    """
    found = {
        name: (norm, per_size) for name, norm in tracking_batchnorms(model).items() if (per_size := _per_size(norm))
    }
    hooks = cast(tuple[RemovableHandle, ...], getattr(model, _HOOKS, ()))
    if bool(found) != bool(hooks):
        raise ValueError(
            "`model` must be the one that `make_batchnorm_per_size` was called with; got a part of it, or a model that "
            "it is part of. Pass the same."
        )
    for norm, per_size in found.values():
        if size is not None:
            norm.load_state_dict(per_size.at(size).state_dict(), strict=False)
    for norm, _ in found.values():
        delattr(norm, _CHILD)
    for hook in hooks:
        hook.remove()
    if hooks:
        delattr(model, _HOOKS)
    return tuple(found)


def tracking_batchnorms(model: nn.Module) -> dict[str, BatchNorm]:
    """Every BatchNorm of a model that keeps running statistics, by its name."""
    return {
        name: module
        for name, module in cast(Iterable[tuple[str, nn.Module]], model.named_modules())
        if isinstance(module, BatchNorm) and module.track_running_stats and module.running_mean is not None
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


class RunningStatistics(nn.Module):
    """What a BatchNorm knows of its inputs at one size: buffers with the names that the BatchNorm has for its own.

    Args:
        norm: whose present statistics are copied.
    """

    def __init__(self, norm: BatchNorm) -> None:
        super().__init__()
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer.clone())


class StatisticsPerSize(nn.ModuleDict):
    """All :class:`RunningStatistics` of one BatchNorm, by side in pixels. A child of it, so that state names stay."""

    _own: dict[str, torch.Tensor | None] | None = None  # the BatchNorm's own buffers while it has borrowed others

    def at(self, size: int) -> RunningStatistics:
        """The statistics of one size.

        Raises:
            ValueError: there are none.
        """
        if str(size) not in self:
            raise ValueError(f"`size` must be one of {', '.join(self)} px, which have statistics; got {size}.")
        return cast(RunningStatistics, self[str(size)])

    def nearest(self, side: int) -> RunningStatistics:
        """The statistics of the nearest size, of two equally near the larger."""
        return self.at(min((int(size) for size in self), key=lambda size: (abs(size - side), -size)))

    def lend(self, norm: BatchNorm, side: int) -> None:
        """Give the BatchNorm the statistics for images of a side, until :meth:`take_back`.

        Raises:
            ValueError: it is to be trained at a side that is none of the sizes.
        """
        self.take_back(norm)  # a call that was interrupted has not
        if norm.training and str(side) not in self:
            raise ValueError(
                f"`images` must have one of the sides {', '.join(self)} px in training, because BatchNorm keeps "
                f"statistics for these; got {side} px. Name it to `make_batchnorm_per_size` too."
            )
        chosen = self.nearest(side)
        self._own = dict(_buffers(norm))
        _buffers(norm).update(_buffers(chosen))

    def take_back(self, norm: BatchNorm) -> None:
        """Give the BatchNorm its own statistics again."""
        if self._own is not None:
            _buffers(norm).update(self._own)
            self._own = None


def _buffers(module: nn.Module) -> dict[str, torch.Tensor | None]:
    # Through the attributes it would take a millisecond for each call of a deep network.
    return module._buffers  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def _per_size(norm: BatchNorm) -> StatisticsPerSize | None:
    child = dict(norm.named_children()).get(_CHILD)
    return child if isinstance(child, StatisticsPerSize) else None


def _lend(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Before the model's forward pass."""
    side = side_of(args, kwargs)
    for norm in model.modules():
        if isinstance(norm, BatchNorm) and (per_size := _per_size(norm)) is not None:
            per_size.lend(norm, side)


def _take_back(model: nn.Module, *_: object) -> None:
    """After the model's forward pass, also if it failed."""
    for norm in model.modules():
        if isinstance(norm, BatchNorm) and (per_size := _per_size(norm)) is not None:
            per_size.take_back(norm)
