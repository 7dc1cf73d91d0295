"""The layers of a network in low mode: convolutions that pool their kernels, max-pooling that is left out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import nn
from torch.nn import functional as F

from respipe.model.side import Calls

Reduce = Literal["mean", "sum"]
Pair = tuple[int, int]


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


class PooledConv2d(nn.Conv2d):
    """A convolution that pools its kernel while ``active`` says how. Made of ``nn.Conv2d`` by changing its class."""

    poolings: Mapping[int, Pooling]
    active: Pooling | None
    calls: Calls

    def enter(self, side: int) -> None:
        """Begin a call with images of this side."""
        self.active = self.poolings.get(side)

    def restore(self) -> None:
        """Become a plain convolution again."""
        for pooling in self.poolings.values():
            delattr(self, pooling.buffer)
        del self.poolings, self.active, self.calls
        _change_class(self, nn.Conv2d)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Turn (N, C, H, W) into (N, C', H', W'), of the same size with either kernel."""
        pooling = self.active
        if pooling is None and (side := self.calls.side_again()) is not None:
            pooling = self.poolings.get(side)
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


class DroppableMaxPool2d(nn.MaxPool2d):
    """Max-pooling that is left out at some sizes. Made of ``nn.MaxPool2d`` by changing its class."""

    dropped_at: frozenset[int]
    active: bool | None
    calls: Calls

    def enter(self, side: int) -> None:
        """Begin a call with images of this side."""
        self.active = side in self.dropped_at or None

    def restore(self) -> None:
        """Become plain max-pooling again."""
        del self.dropped_at, self.active, self.calls
        _change_class(self, nn.MaxPool2d)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Turn (N, C, H, W) into (N, C, H', W'), or return it."""
        is_dropped = self.active is not None or self.calls.side_again() in self.dropped_at
        return input if is_dropped else cast(torch.Tensor, super().forward(input))


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


def pool_kernel(conv: nn.Conv2d, ratios: Mapping[int, float], *, reduce: Reduce, calls: Calls) -> None:
    """Turn a convolution into :class:`PooledConv2d`, in place.

    Args:
        conv: plain, with a kernel of odd sides.
        ratios: how much smaller the images are, by their side in pixels; enough to make the kernel smaller.
        reduce: see :func:`pooling_matrix`.
        calls: of the model.
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
    _change_class(conv, PooledConv2d)
    pooled = cast(PooledConv2d, conv)
    pooled.poolings, pooled.active, pooled.calls = poolings, None, calls


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


def make_droppable(maxpool: nn.MaxPool2d, sides: Iterable[int], *, calls: Calls) -> None:
    """Turn max-pooling into :class:`DroppableMaxPool2d`, left out at some sides in pixels, in place.

    Args:
        maxpool: plain.
        sides: in pixels.
        calls: of the model.
    """
    _change_class(maxpool, DroppableMaxPool2d)
    droppable = cast(DroppableMaxPool2d, maxpool)
    droppable.dropped_at, droppable.active, droppable.calls = frozenset(sides), None, calls


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


def _change_class(module: Any, to: type[nn.Module]) -> None:
    module.__class__ = to
