"""How the layers of an adapted model learn the size of the images that the model is called with.

::

    model(images) -> hook: route.side = 160, if every adapted layer is in its place
                     layer1.0.bn1   reads route.side: computes with its tensors for 160 px
                     layer1.0.conv2 reads route.side: pools its kernel, or not
                  -> hook: route.side = None

An adapted layer is the layer that was there, of another class: names, tensors, hooks and places stay. So a call costs
one attribute per layer, and one look per module on the way to them at whether it has been replaced.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, cast

import torch
import torch.fx
from torch import nn
from torch.utils.hooks import RemovableHandle

from respipe.model.network import named_modules

_ROUTING = "respipe_routing"
"""Name of what is added to a model."""

_MOST_CALLS = 10_000
"""Calls that are remembered: far more than any training step makes before its backward pass."""

_AUTOGRAD: Any = torch._C  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
"""Where PyTorch tells what its backward pass is at. It has no public names for that."""


class Route:
    """What the adapted layers of one model know of its present call.

    It remembers the sides of earlier calls for parts of the model that checkpointing runs again in the backward pass.
    Autograd numbers the nodes of its graph in the order in which they are made. The node whose gradient is being
    computed when a part is run again was thus made in the call whose numbers surround its own. Parts that are
    checkpointed reentrantly within one another are not told apart from other calls.
    """

    def __init__(self) -> None:
        self.side: int | None = None
        """Of the images, in pixels; None outside of any call."""
        self.pooled = frozenset[int]()
        """Sides at which the model pools kernels: what was measured there holds there alone."""
        self.is_lent = False
        """Whether the layers have been given what they compute with in advance, for a whole compiled call."""
        self._starts = list[int]()  # a number of autograd's, from which on
        self._sides = list[int | None]()  # nodes belong to a call of this side, or to none
        self._has_warned = False

    def __getstate__(self) -> dict[str, Any]:
        return Route().__dict__ | {"pooled": self.pooled}  # a copy has made no calls

    def enter(self, side: int) -> None:
        """A call begins."""
        self.side = side
        self._record(side)

    def leave(self) -> None:
        """A call has ended."""
        self.side = None
        self._record(None)

    def side_outside(self, images: object) -> int | None:
        """The side for a layer that runs outside of any call of the model: that of the call it is run again for.

        Args:
            images: what the layer is given.

        Returns:
            None for a layer that is called by itself, which is to compute as if it had not been adapted.

        Raises:
            RuntimeError: ``torch.fx`` traces the layer, which would bake in one size for all.
        """
        if isinstance(images, torch.fx.Proxy):
            raise RuntimeError(
                "`torch.fx` cannot trace an adapted model, whose layers go by the size of its images. Trace what "
                "`respipe.extract(model, size)` returns."
            )
        if torch.compiler.is_compiling():
            return None
        side = self._side_again() if _in_backward_pass() else None
        if side is None and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "A layer of an adapted model was called outside of a call of the model, so that it cannot know the "
                "size of the images: it computes as it did before `respipe.adapt`. Call the adapted model itself, or "
                "take the layers of what `respipe.extract(model, size)` returns.",
                UserWarning,
                stacklevel=5,
            )
        return side

    def _side_again(self) -> int | None:
        """The side of the call a part of which is run again now."""
        number: int = _AUTOGRAD._current_autograd_node()._sequence_nr()  # noqa: SLF001
        place = bisect_right(self._starts, number) - 1
        return self._sides[place] if place >= 0 else None

    def _record(self, side: int | None) -> None:
        # In a compiled graph nothing is run again by Python. A call within a backward pass, which recomputes a whole
        # model, has no graph of its own that anything could be run again for.
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or _in_backward_pass():
            return
        self._starts.append(_AUTOGRAD._autograd._get_sequence_nr())  # noqa: SLF001
        self._sides.append(side)
        if len(self._starts) > 4 * _MOST_CALLS:
            del self._starts[: 2 * _MOST_CALLS], self._sides[: 2 * _MOST_CALLS]


class Routed(nn.Module):
    """A layer that goes by the size of the model's images. Made of a layer of class ``plain`` by :func:`adopt`."""

    route: Route
    plain: type[nn.Module]

    def side(self, images: object) -> int | None:
        """Side in pixels of the images that the model is called with, or was, if a part of it is run again."""
        side = self.route.side
        return side if side is not None else self.route.side_outside(images)

    def lend(self, side: int) -> None:
        """Before a compiled call, in whose checkpointed parts nothing may be set: set what the layer computes with."""

    def take_back(self) -> None:
        """After a compiled call."""

    def __prepare_scriptable__(self) -> NoReturn:
        """What ``torch.jit.script`` calls before it compiles a module."""
        raise RuntimeError(
            "`torch.jit.script` cannot compile an adapted model, whose layers go by the size of its images. Compile "
            "what `respipe.extract(model, size)` returns."
        )

    def restore(self) -> None:
        """Become the plain layer again."""
        del self.route
        cast(Any, self).__class__ = self.plain


def adopt(module: nn.Module, to: type[Routed], route: Route) -> None:
    """Turn a layer into one that goes by a model's route, in place."""
    cast(Any, module).__class__ = to
    cast(Routed, module).route = route


class Routing:
    """The adapted layers of one model and the way to each.

    Args:
        model: that images are given to.
    """

    def __init__(self, model: nn.Module) -> None:
        self.route = Route()
        self._layers = list[Routed]()
        self._ways = list[tuple[nn.Module, str, nn.Module]]()  # parent, attribute, child
        self._handles: tuple[RemovableHandle, ...] = (
            model.register_forward_pre_hook(_enter, with_kwargs=True),
            model.register_forward_hook(_leave, always_call=True),
        )

    @property
    def layers(self) -> Mapping[int, Routed]:
        """Every adapted layer by its ``id``."""
        return {id(layer): layer for layer in self._layers}

    def learn(self, model: nn.Module) -> None:
        """Note the adapted layers, after some were added or restored. Without any, nothing is left in the model."""
        self._layers = [layer for layer in _routed(model).values() if layer.route is self.route]
        self._ways = _ways(model, self.layers)
        if not self._layers:
            for handle in self._handles:
                handle.remove()
            delattr(model, _ROUTING)

    def enter(self, side: int) -> None:
        """A call begins."""
        self.route.enter(side)
        if torch.compiler.is_compiling():
            for layer in self._layers:
                layer.lend(side)
            self.route.is_lent = True

    def leave(self) -> None:
        """A call has ended."""
        self.route.leave()
        if self.route.is_lent:
            self.route.is_lent = False
            for layer in self._layers:
                layer.take_back()

    def check(self, model: nn.Module) -> None:
        """Refuse the call if a layer is no longer in its place, since the model would compute something else unsaid.

        Raises:
            RuntimeError: a layer was replaced by something that has no tensors or kernels per size.
        """
        for parent, attribute, child in self._ways:
            if parent._modules.get(attribute) is not child:  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
                self._find_again(model)
                return

    def _find_again(self, model: nn.Module) -> None:
        """After something was replaced: adopt what was made of an adapted layer, accept wrappers, refuse all else."""
        present = named_modules(model)
        adopted = {name for name, module in present.items() if any(adopts(module, self.route) for adopts in ADOPTERS)}
        reachable = {id(module) for module in present.values()}
        lost = [name for key, name in self._names().items() if key not in reachable and name not in adopted]
        if lost:
            found = present.get(lost[0])
            raise RuntimeError(
                f"`model` must keep the layers that `respipe.adapt` made go by the size of its images; {lost[0]!r} is "
                f"{type(found).__name__ if found is not None else 'gone'} now"
                f"{f', and {len(lost) - 1} more are replaced' if len(lost) > 1 else ''}. Freeze, fuse or quantize what "
                "`respipe.extract(model, size)` returns, or change the model before it is adapted."
            )
        self.learn(model)

    def _names(self) -> dict[int, str]:
        """The name that each adapted layer had, by its ``id``."""
        names = dict[int, str]()
        for parent, attribute, child in self._ways:  # parents come before their children
            prefix = names.get(id(parent), "")
            names[id(child)] = f"{prefix}.{attribute}" if prefix else attribute
        return {key: name for key, name in names.items() if key in self.layers}


ADOPTERS: list[Callable[[nn.Module, Route], bool]] = []
"""Each makes what was made of an adapted layer, and still has what that kept, an adapted layer again."""


def routing_of(model: nn.Module) -> Routing:
    """The routing of a model, made where it has none."""
    routing = existing_routing(model)
    if routing is None:
        routing = Routing(model)
        setattr(model, _ROUTING, routing)
    return routing


def existing_routing(model: nn.Module) -> Routing | None:
    """The routing of a model, if it has one."""
    return cast(Routing | None, getattr(model, _ROUTING, None))


def check_is_root(model: nn.Module, made_by: str) -> None:
    """Refuse a part of an adapted model, or a model that it is part of.

    Raises:
        ValueError: adapted layers in ``model`` go by the route of another module.
    """
    routing = existing_routing(model)
    routes = {id(layer.route) for layer in _routed(model).values()}
    if routes != ({id(routing.route)} if routing is not None else set()):
        raise ValueError(
            f"`model` must be the one that `{made_by}` was called with; got a part of it, or a model that it is part "
            "of. Pass the same."
        )


def side_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Side in pixels of the images that a model was called with.

    Args:
        args, kwargs: arguments of the call.

    Returns:
        the smaller of height and width of the first tensor of four dimensions.

    Raises:
        TypeError: there is no such tensor.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.ndim == 4:
            return int(min(value.shape[2:]))
    raise TypeError("`model` must be called with a tensor of (N, C, H, W) images, whose size it goes by; got none.")


def _enter(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Before the model's forward pass."""
    routing = cast(Routing, getattr(model, _ROUTING))
    if getattr(model, "_is_replica", False):
        raise RuntimeError(
            "`nn.DataParallel` runs copies of a model in threads of one process, which an adapted model cannot be told "
            "apart in. Use DistributedDataParallel, one process per GPU."
        )
    if torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
        raise RuntimeError(
            "`torch.jit.trace` would keep one size of an adapted model for all. Trace what `respipe.extract(model, "
            "size)` returns."
        )
    routing.check(model)
    routing.enter(side_of(args, kwargs))


def _leave(model: nn.Module, *_: object) -> None:
    """After the model's forward pass, also if it failed."""
    cast(Routing, getattr(model, _ROUTING)).leave()


def _routed(model: nn.Module) -> dict[str, Routed]:
    modules = cast(Iterable[tuple[str, nn.Module]], model.named_modules())
    return {name: module for name, module in modules if isinstance(module, Routed)}


def _ways(model: nn.Module, layers: Mapping[int, Routed]) -> list[tuple[nn.Module, str, nn.Module]]:
    """Every module on the way to the layers, as (parent, attribute, child), parents first."""
    ways = dict[tuple[int, str], tuple[nn.Module, str, nn.Module]]()
    for name, module in named_modules(model).items():
        if id(module) in layers:
            parent = model
            for attribute in name.split(".") if name else ():
                child = parent.get_submodule(attribute)
                ways[id(parent), attribute] = (parent, attribute, child)
                parent = child
    return list(ways.values())


def _in_backward_pass() -> bool:
    return _AUTOGRAD._current_graph_task_id() != -1  # noqa: SLF001
