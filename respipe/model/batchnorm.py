"""BatchNorm with statistics, and where wanted weights, of its own for every image size."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from respipe.model import _routing
from respipe.model._routing import Route, Routed

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm

Tensors = dict[str, torch.Tensor | None]

_CHILD = "per_size"
"""Name of what is added to every BatchNorm."""


def make_batchnorm_per_size(model: nn.Module, sizes: Sequence[int], *, affine: bool = False) -> tuple[str, ...]:
    """Let every BatchNorm of ``model`` keep running statistics of its own for each of ``sizes``, in place.

    Each call of the model picks by the side of its images: of the first (N, C, H, W) tensor that it is given, the
    smaller of H and W. In training that side must be one of ``sizes``; in evaluation other sides get the statistics of
    the nearest size, of two equally near the larger. All begin as copies of the present statistics;
    :func:`respipe.calibrate_batchnorm` measures those of the sizes that its batches have.

    Parameters stay shared and keep their names. The present statistics stay too: layers that are called by themselves
    instead of through ``model`` use them, with a warning, and :func:`make_batchnorm_shared` returns to them. The new
    ones are buffers such as ``layer1.0.bn1.per_size.160.running_mean``. Call it before wrapping the model
    (compilation, ``DistributedDataParallel``); only one thread at a time may run the model. Parts of it may be
    checkpointed (``torch.utils.checkpoint``): run again in the backward pass, they get what they had in the call
    before. A BatchNorm that is replaced afterwards keeps its sets if ``convert_sync_batchnorm`` did it; else the next
    call of the model raises and names it.

    With ``affine`` weights and biases are private to each size as well: the BatchNorm of RS-Nets (arXiv 2007.09558).
    What the model has now then belongs to the largest size, and each other one begins as a copy of it, with names such
    as ``layer1.0.bn1.per_size.160.weight``. In evaluation, sides between two sizes get all tensors interpolated between
    theirs, variances included, and sides beyond get those of the nearest size. Where a step has one size only, the
    parameters of the others get no gradient: ``DistributedDataParallel`` must be told ``find_unused_parameters=True``.

    Where the model pools kernels at some sizes (:func:`respipe.model.lowmode.make_kernels_pooled`), what was measured
    there is for these alone: other sides, at which kernels are full, get what lies between or nearest to them among the
    sizes with full kernels.

    Checkpoints of the model as it was can be loaded: each size that they have no tensors for takes the plain ones.

    Args:
        model: network that takes (N, C, H, W) images.
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
        if isinstance(norm, PerSizeBatchNorm):
            raise ValueError(
                f"`model` must have one set of statistics in each BatchNorm; layer {name!r} has several. Undo them "
                "with `make_batchnorm_shared` first."
            )
    if not norms:
        return ()
    routing = _routing.routing_of(model)
    own_size = sizes[-1] if affine else None
    for norm in norms.values():
        sets = {size: BatchNormSet(norm, affine=affine) for size in sizes if size != own_size}
        norm.add_module(_CHILD, BatchNormSets(sets, own_size))
        _adopt(norm, routing.route)
    routing.learn(model)
    return tuple(norms)


def make_batchnorm_shared(model: nn.Module, size: int | None = None) -> tuple[str, ...]:
    """Undo :func:`make_batchnorm_per_size`, in place.

    Args:
        model: network that it was called with.
        size: side in pixels whose tensors every layer is to keep; default: the model's own, which are those from before
            or, with private weights, those of the largest size.

    Returns:
        the names of the changed layers; empty where there was nothing to undo.

    Raises:
        ValueError: there are no statistics of that size, or ``model`` is not the one.
    """
    _routing.check_is_root(model, "make_batchnorm_per_size")
    found = divided_batchnorms(model)
    for norm in found.values():
        if size is not None and size not in norm.per_size.sizes:
            raise ValueError(
                f"`size` must be one of {', '.join(map(str, norm.per_size.sizes))} px, which have statistics; "
                f"got {size}."
            )
    for norm in found.values():
        if size is not None:
            norm.keep(size)
        norm.restore()
    if found:
        _routing.routing_of(model).learn(model)
    return tuple(found)


class BatchNormSet(nn.Module):
    """What a BatchNorm computes with at one size: tensors with the names that it has for its own.

    Args:
        norm: layer whose present running statistics are copied.
        affine: copy weight and bias too.
    """

    def __init__(self, norm: BatchNorm, *, affine: bool) -> None:
        super().__init__()
        for name, buffer in _buffers(norm).items():
            self.register_buffer(name, None if buffer is None else buffer.clone())
        for name, parameter in _parameters(norm).items() if affine else ():
            copied = None if parameter is None else nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            self.register_parameter(name, copied)


class BatchNormSets(nn.ModuleDict):
    """Every :class:`BatchNormSet` of one BatchNorm, by side in pixels. A child of it, so that state names stay.

    Args:
        sets: tensors by side in pixels.
        own_size: the side that the BatchNorm's own tensors are for, of those without a set; None if they are for none.
            With an own size, other sides than all of these get what lies between their neighbours; without, the nearest
            set, of two equally near that of the larger side.
    """

    def __init__(self, sets: Mapping[int, BatchNormSet], own_size: int | None) -> None:
        super().__init__({str(size): one for size, one in sets.items()})
        self.own_size = own_size

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides in pixels, smallest first."""
        return tuple(sorted({int(size) for size in self} | ({self.own_size} if self.own_size is not None else set())))


class PerSizeBatchNorm(Routed):
    """A BatchNorm of any kind that computes with the tensors for the size of the model's images."""

    per_size: BatchNormSets
    training: bool
    num_features: int
    _own: tuple[Tensors, Tensors]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise (N, C, ...) features."""
        if self.route.is_lent:
            return super().forward(input)
        side = self.side(input)
        if side is None or side == cast(BatchNormSets, _modules(self)[_CHILD]).own_size:
            return super().forward(input)
        self.lend(side)
        try:
            return super().forward(input)
        finally:
            self.take_back()

    def lend(self, side: int) -> None:
        """Set the tensors to compute with for images of a side in pixels.

        Raises:
            ValueError: the layer is to be trained at a side that is none of the sizes.
        RuntimeError: its weights are computed from others, so that those of this side would go unused.
        """
        sets = cast(BatchNormSets, _modules(self)[_CHILD])
        if self.training and side != sets.own_size and str(side) not in _modules(sets):
            raise ValueError(
                f"`images` must have one of the sides {', '.join(map(str, sets.sizes))} px in training, because "
                f"BatchNorm keeps statistics for these; got {side} px. Name it to `make_batchnorm_per_size` too."
            )
        tensors, own = self.tensors(side), (_parameters(self), _buffers(self))
        if "parametrizations" in _modules(self) and any(map(_parameters, sets.values())):
            raise RuntimeError(
                f"`model` must have BatchNorms whose weights are their own; {self.plain.__name__}({self.num_features}) "
                "was parametrized after it was given weights per size, which the parametrization would hide. "
                "Parametrize what `respipe.extract(model, size)` returns, or leave `affine` out."
            )
        _set(self, _own=own, _parameters=tensors[0], _buffers=tensors[1])

    def take_back(self) -> None:
        """Set the layer's own tensors again."""
        _set(self, _own=None, _parameters=self._own[0], _buffers=self._own[1])

    def holder(self, side: int | None) -> nn.Module:
        """The module whose tensors are for images of a side in pixels, this one or one of its sets.

        Raises:
            ValueError: none is, since the side is between two sizes.
        """
        sets = self.per_size
        if side is None or side == sets.own_size:
            return self
        if str(side) not in sets and sets.own_size is None:
            side = self._nearest(side)
        return sets[str(side)]

    def tensors(self, side: int) -> tuple[Tensors, Tensors]:
        """Parameters and buffers to compute with for images of a side in pixels.

        Raises:
            ValueError: the side is none of the sizes, and kernels are pooled at all of these.
        """
        sets = cast(BatchNormSets, _modules(self)[_CHILD])
        one = _modules(sets).get(str(side))
        if one is not None:
            return _parameters(one) or _parameters(self), _buffers(one)
        if side == sets.own_size:
            return _parameters(self), _buffers(self)
        if sets.own_size is None:
            return self.tensors(self._nearest(side))
        sizes = self._full_sizes(side)
        side = min(max(side, sizes[0]), sizes[-1])
        lower, upper = max(size for size in sizes if size <= side), min(size for size in sizes if size >= side)
        if lower == upper:
            return self.tensors(lower)
        weight, above = (side - lower) / (upper - lower), self.tensors(upper)
        parameters, buffers = (
            {name: _between(tensor, end[name], weight) for name, tensor in start.items()}
            for start, end in zip(self.tensors(lower), above, strict=True)
        )
        return parameters, buffers

    @torch.no_grad()
    def keep(self, side: int) -> None:
        """Write what is for images of a side into the BatchNorm's own tensors."""
        for own, kept in zip((_parameters(self), _buffers(self)), self.tensors(side), strict=True):
            for name, tensor in kept.items():
                if tensor is not None:
                    cast(torch.Tensor, own[name]).copy_(tensor)

    def restore(self) -> None:
        """Become the plain layer again, with its own tensors."""
        delattr(self, _CHILD)
        self.__dict__.pop("_own", None)
        super().restore()

    def _nearest(self, side: int) -> int:
        return min(self._full_sizes(side), key=lambda size: (abs(size - side), -size))

    def _full_sizes(self, side: int) -> tuple[int, ...]:
        """Sizes whose tensors are for the kernels that the model has at a side which is none of them."""
        sizes = tuple(size for size in self.per_size.sizes if size not in self.route.pooled)
        if not sizes:
            raise ValueError(
                f"`images` must have one of the sides {', '.join(map(str, self.per_size.sizes))} px, at which kernels "
                f"are pooled, because BatchNorm keeps statistics for no others; got {side} px."
            )
        return sizes

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        """Before a state is loaded: sizes without tensors in it take the plain ones."""
        for size, one in self.per_size.items():
            own, tensors = f"{prefix}{_CHILD}.{size}.", one.state_dict().keys()
            if not any(own + tensor in state_dict for tensor in tensors):
                state_dict |= {own + key: state_dict[prefix + key] for key in tensors if prefix + key in state_dict}
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return _made_of, (self.plain,), self.__getstate__()


@functools.cache
def per_size_class(plain: type[nn.Module]) -> type[PerSizeBatchNorm]:
    """The class of what a BatchNorm of class ``plain`` becomes."""
    return type(f"PerSize{plain.__name__}", (PerSizeBatchNorm, plain), {"plain": plain, "__module__": __name__})


def divided_batchnorms(model: nn.Module) -> dict[str, PerSizeBatchNorm]:
    """Every BatchNorm of a model that keeps something per size, by its name."""
    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    return {name: module for name, module in modules if isinstance(module, PerSizeBatchNorm)}


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
        if isinstance(norm, PerSizeBatchNorm):
            prefix = f"{name}.{_CHILD}" if name else _CHILD
            holders |= {f"{prefix}.{size}": statistics for size, statistics in norm.per_size.items()}
    return holders


def _adopt(norm: nn.Module, route: Route) -> None:
    _routing.adopt(norm, per_size_class(type(norm)), route)


def _adopt_converted(module: nn.Module, route: Route) -> bool:
    """Make what ``convert_sync_batchnorm`` made of a layer, which still has its sets, go by the size again."""
    is_converted = isinstance(_modules(module).get(_CHILD), BatchNormSets) and not isinstance(module, PerSizeBatchNorm)
    if is_converted and isinstance(module, BatchNorm):
        _adopt(module, route)
    return is_converted


_routing.ADOPTERS.append(_adopt_converted)


def _made_of(plain: type[nn.Module]) -> nn.Module:
    kind = per_size_class(plain)
    return kind.__new__(kind)


def _set(norm: nn.Module, **attributes: object) -> None:
    # Both dictionaries at once and not by way of nn.Module's attributes, which would take milliseconds in a deep
    # network. A parameter cannot be replaced by a tensor that was computed in any other way.
    if not torch.compiler.is_compiling():
        norm.__dict__.update(attributes)
        return
    for name, value in attributes.items():
        setattr(norm, name, value)


def _between(start: torch.Tensor | None, end: torch.Tensor | None, weight: float) -> torch.Tensor | None:
    return start if start is None or end is None or not start.is_floating_point() else torch.lerp(start, end, weight)


def _batchnorms(model: nn.Module) -> dict[str, BatchNorm]:
    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    return {name: module for name, module in modules if isinstance(module, BatchNorm)}


def _modules(module: nn.Module) -> dict[str, nn.Module | None]:
    return module._modules  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - attributes are slow


def _buffers(module: nn.Module) -> Tensors:
    return module._buffers  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def _parameters(module: nn.Module) -> Tensors:
    return cast(Tensors, module._parameters)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
