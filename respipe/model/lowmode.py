"""Low mode: convolutions that pool their kernels while the images are small, max-pooling that is left out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import nn
from torch.nn import functional as F

from respipe.checks import check_choice
from respipe.model import _routing, network
from respipe.model._routing import Route, Routed

Reduce = Literal["mean", "sum"]
Pair = tuple[int, int]


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
    modules = network.named_modules(model)
    names = _default_layers(order, modules) if layers is None else _checked_layers(layers, modules)
    pooled_at = {name: _ratios(cast(nn.Conv2d, modules[name]), full_size, low_sizes) for name in names}
    pooled = {name: ratios for name, ratios in pooled_at.items() if ratios}
    if not pooled:
        return ()
    routing = _routing.routing_of(model)
    routing.route.pooled = sides = frozenset[int]().union(*pooled.values())
    for name, ratios in pooled.items():
        pool_kernel(cast(nn.Conv2d, modules[name]), ratios, reduce=reduce, route=routing.route)
    if drop_maxpool:
        first = next((place for place, name in enumerate(order) if name in pooled), 0)
        for name in order[:first]:
            if type(modules[name]) is nn.MaxPool2d:
                make_droppable(cast(nn.MaxPool2d, modules[name]), sides, route=routing.route)
    routing.learn(model)
    return tuple(pooled)


def make_kernels_full(model: nn.Module) -> tuple[str, ...]:
    """Undo :func:`make_kernels_pooled`, in place.

    Returns:
        the names of the layers that are plain again; empty where there was nothing to undo.

    Raises:
        ValueError: ``model`` is not the one that it was called with.
    """
    _routing.check_is_root(model, "make_kernels_pooled")
    routed = _pooling_layers(model)
    for module in routed.values():
        module.restore()
    if routed:
        routing = _routing.routing_of(model)
        routing.route.pooled = frozenset()
        routing.learn(model)
    return tuple(name for name, module in routed.items() if isinstance(module, nn.Conv2d))


def _check_arguments(model: nn.Module, full_size: int, low_sizes: Sequence[int], reduce: str) -> None:
    if not low_sizes or not 0 < min(low_sizes) <= max(low_sizes) < full_size:
        raise ValueError(
            f"`low_sizes` must be sides in pixels below `full_size`, {full_size}, at least one of them; "
            f"got {tuple(low_sizes)}."
        )
    check_choice("reduce", reduce, get_args(Reduce))
    if _pooling_layers(model):
        raise ValueError("`model` must have full kernels; got one that pools them. Call `make_kernels_full` first.")


def _order_of_calls(model: nn.Module, size: int) -> list[str]:
    """Names of the layers that pooling is about, in the order in which they run."""
    shadow = network.without_weights(model)
    with network.calls(shadow, nn.Conv2d, nn.MaxPool2d) as calls:
        network.run(shadow, size)
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


def _pooling_layers(model: nn.Module) -> dict[str, PooledConv2d | DroppableMaxPool2d]:
    return {
        name: module
        for name, module in cast(Iterable[tuple[str, nn.Module]], model.named_modules())
        if isinstance(module, PooledConv2d | DroppableMaxPool2d)
    }


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """How a convolution computes with its pooled kernel.

    Args:
        kernel_size: (height, width) of the pooled kernel.
        padding: (height, width); where negative, so much of the input is cut off instead.
        buffer: name of the (h' w', h w) matrix that turns a kernel into a pooled one.
    """

    kernel_size: Pair
    padding: Pair
    buffer: str


class PooledConv2d(Routed, nn.Conv2d):
    """A convolution that pools its kernel at some sizes."""

    plain = nn.Conv2d
    poolings: Mapping[int, Pooling]

    def restore(self) -> None:
        """Become a plain convolution again."""
        for pooling in self.poolings.values():
            delattr(self, pooling.buffer)
        del self.poolings
        super().restore()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Turn (N, C, H, W) into (N, C', H', W'), of the same size with either kernel."""
        side = self.side(input)
        pooling = None if side is None else self.poolings.get(side)
        if pooling is None:
            return super().forward(input)
        height, width = pooling.padding
        if min(height, width) < 0:
            left, top = min(width, 0), min(height, 0)
            input = F.pad(input, (left, left, top, top))
            height, width = max(height, 0), max(width, 0)
        if self.padding_mode != "zeros" and max(height, width) > 0:
            input = F.pad(input, (width, width, height, height), mode=self.padding_mode)
            height = width = 0
        weight = self.pooled_weight(pooling)
        return F.conv2d(input, weight, self.bias, self.stride, (height, width), self.dilation, self.groups)

    def pooled_weight(self, pooling: Pooling) -> torch.Tensor:
        """The pooled kernels, (C', C / groups, h', w')."""
        matrix = cast(torch.Tensor, getattr(self, pooling.buffer))
        # No matrix product, because kernels are pooled once per batch: it would count as work for every image.
        weight = (self.weight.flatten(2).unsqueeze(2) * matrix).sum(-1)
        return torch.unflatten(weight, 2, pooling.kernel_size)


class DroppableMaxPool2d(Routed, nn.MaxPool2d):
    """Max-pooling that is left out at some sizes."""

    plain = nn.MaxPool2d
    dropped_at: frozenset[int]

    def restore(self) -> None:
        """Become plain max-pooling again."""
        del self.dropped_at
        super().restore()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Turn (N, C, H, W) into (N, C, H', W'), or return it."""
        return input if self.side(input) in self.dropped_at else cast(torch.Tensor, super().forward(input))


def pooling_matrix(kernel: int, ratio: float, *, reduce: Reduce = "mean") -> torch.Tensor:
    """The matrix that pools one axis of a kernel.

    Windows are ``ratio`` taps wide, from the first tap on, if that gives the right number of them; else they are those
    of adaptive pooling, which may share taps.

    Args:
        kernel: number of taps K, odd.
        ratio: at least 1: how much smaller the images are.
        reduce: windows become means of their taps; or sums, where a tap in several windows is divided among them.

    Returns:
        (K', K) float64.
    """
    size = pooled_side(kernel, ratio)
    if size > 1 and ratio == int(ratio) and math.ceil(kernel / ratio) == size:
        windows = [(int(ratio) * place, min(int(ratio) * (place + 1), kernel)) for place in range(size)]
    else:
        windows = [(kernel * place // size, -(-kernel * (place + 1) // size)) for place in range(size)]
    matrix = torch.zeros(size, kernel, dtype=torch.float64)
    for row, (start, stop) in enumerate(windows):
        matrix[row, start:stop] = 1
    return matrix / matrix.sum(dim=1 if reduce == "mean" else 0, keepdim=True)


def pooled_side(kernel: int, ratio: float) -> int:
    """K', the largest odd number up to ceil(K / ``ratio``)."""
    side = math.ceil(kernel / ratio)
    return side if side % 2 else max(1, side - 1)


def pool_kernel(conv: nn.Conv2d, ratios: Mapping[int, float], *, reduce: Reduce, route: Route) -> None:
    """Turn a convolution into :class:`PooledConv2d`, in place.

    Args:
        conv: plain, with a kernel of odd sides.
        ratios: how much smaller the images are, by their side in pixels; enough to make the kernel smaller.
        reduce: see :func:`pooling_matrix`.
        route: route of the model.
    """
    poolings = dict[int, Pooling]()
    for side, ratio in ratios.items():
        matrices = [pooling_matrix(kernel, ratio, reduce=reduce) for kernel in conv.kernel_size]
        height, width = (len(matrix) for matrix in matrices)
        buffer = f"pooling_{side}"
        # A buffer moves with the module; as it is not persistent, the state_dict stays as it was.
        conv.register_buffer(buffer, torch.kron(*matrices).to(conv.weight), persistent=False)
        poolings[side] = Pooling(
            kernel_size=(height, width), padding=_pooled_padding(conv, (height, width)), buffer=buffer
        )
    _routing.adopt(conv, PooledConv2d, route)
    cast(PooledConv2d, conv).poolings = poolings


@torch.no_grad()
def convolution_at(conv: PooledConv2d, side: int) -> nn.Conv2d:
    """A plain convolution with the pooled kernel that ``conv`` has at a side in pixels. It shares the bias."""
    pooling = conv.poolings[side]
    weight, kernel_size, padding = conv.pooled_weight(pooling), pooling.kernel_size, pooling.padding
    if min(padding) < 0:  # no plain convolution cuts its input: zeros around the pooled kernel have the same effect
        height, width = ((full - pooled) // 2 for full, pooled in zip(conv.kernel_size, kernel_size, strict=True))
        weight, kernel_size = F.pad(weight, (width, width, height, height)), conv.kernel_size
        padding = cast(Pair, conv.padding)
    made = nn.Conv2d(
        conv.in_channels, conv.out_channels, cast(Pair, kernel_size), stride=cast(Pair, conv.stride), padding=padding,
        dilation=cast(Pair, conv.dilation), groups=conv.groups, bias=False, padding_mode=conv.padding_mode,
        device="meta",
    )  # fmt: skip
    made.weight = nn.Parameter(weight, conv.weight.requires_grad)
    made.bias = conv.bias
    return made


def make_droppable(maxpool: nn.MaxPool2d, sides: Iterable[int], *, route: Route) -> None:
    """Turn max-pooling into :class:`DroppableMaxPool2d`, left out at some sides in pixels, in place.

    Args:
        maxpool: plain.
        sides: in pixels.
        route: route of the model.
    """
    _routing.adopt(maxpool, DroppableMaxPool2d, route)
    cast(DroppableMaxPool2d, maxpool).dropped_at = frozenset(sides)


def becomes_smaller(conv: nn.Conv2d, ratio: float) -> bool:
    """Whether pooling changes a convolution's kernel."""
    return any(pooled_side(kernel, ratio) < kernel for kernel in conv.kernel_size)


def _pooled_padding(conv: nn.Conv2d, kernel_size: Pair) -> Pair:
    """Padding with which a smaller kernel yields a map of the same size; negative where input is to be cut off."""
    spares = [
        (dilation * (full - 1) // 2, dilation * (full - pooled) // 2)
        for dilation, full, pooled in zip(conv.dilation, conv.kernel_size, kernel_size, strict=True)
    ]
    if conv.padding == "same":
        height, width = (same - spare for same, spare in spares)
    else:
        paddings = (0, 0) if conv.padding == "valid" else cast(Pair, conv.padding)
        height, width = (padding - spare for padding, (_, spare) in zip(paddings, spares, strict=True))
    return height, width
