"""What a BatchNorm keeps for every image size beside what it has of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from respipe.model.side import Calls

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm

Tensors = dict[str, torch.Tensor]


class BatchNormSet(nn.Module):
    """What a BatchNorm computes with at one size: tensors with the names that it has for its own.

    Args:
        norm: whose present running statistics are copied.
        affine: copy weight and bias too.
    """

    def __init__(self, norm: BatchNorm, *, affine: bool) -> None:
        super().__init__()
        for name, buffer in norm.named_buffers(recurse=False):
            self.register_buffer(name, buffer.clone())
        if affine:
            for name, parameter in norm.named_parameters(recurse=False):
                self.register_parameter(name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))


class BatchNormSets(nn.ModuleDict):
    """Every :class:`BatchNormSet` of one BatchNorm, by side in pixels. A child of it, so that state names stay.

    Args:
        sets: by side in pixels.
        own_size: the side that the BatchNorm's own tensors are for, of those without a set; None if they are for none.
            With an own size, other sides than all of these get what lies between their neighbours; without, the nearest
            set, of two equally near that of the larger side.
        calls: of the model.
    """

    def __init__(self, sets: Mapping[int, BatchNormSet], own_size: int | None, calls: Calls) -> None:
        super().__init__({str(size): one for size, one in sets.items()})
        self.own_size = own_size
        self.calls = calls
        self.hooks: tuple[RemovableHandle, ...] = ()
        self._lender: Tensors | None = None  # the BatchNorm's own tensors while it has borrowed others
        self._is_again = False  # whether it has borrowed them for a part of the model that is run again

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sides in pixels, smallest first."""
        return tuple(sorted({int(size) for size in self} | ({self.own_size} if self.own_size is not None else set())))

    def tensors(self, norm: BatchNorm, side: int) -> Tensors:
        """What ``norm``, which borrows nothing now, is to compute with for images of a side."""
        if str(side) in self:
            return _tensors(self[str(side)])
        sizes = self.sizes
        if self.own_size is None:
            return _tensors(self[str(min(sizes, key=lambda size: (abs(size - side), -size)))])
        side = min(max(side, sizes[0]), sizes[-1])
        lower, upper = max(size for size in sizes if size <= side), min(size for size in sizes if size >= side)
        below, above = (self._of(norm, size) for size in (lower, upper))
        if lower == upper:
            return below
        weight = (side - lower) / (upper - lower)
        return {
            name: torch.lerp(tensor, above[name], weight) if tensor.is_floating_point() else tensor
            for name, tensor in below.items()
        }

    def lend(self, norm: BatchNorm, side: int) -> None:
        """Give the BatchNorm what it is to compute with for images of a side, until :meth:`take_back`.

        Raises:
            ValueError: it is to be trained at a side that is none of the sizes.
        """
        self.take_back(norm)  # a call that was interrupted has not
        if norm.training and side != self.own_size and str(side) not in self:
            raise ValueError(
                f"`images` must have one of the sides {', '.join(map(str, self.sizes))} px in training, because "
                f"BatchNorm keeps statistics for these; got {side} px. Name it to `make_batchnorm_per_size` too."
            )
        if side != self.own_size:
            borrowed = self.tensors(norm, side)
            self._lender = _tensors(norm)
            _give(norm, borrowed)

    def take_back(self, norm: BatchNorm) -> None:
        """Give the BatchNorm its own tensors again."""
        if self._lender is not None:
            _give(norm, self._lender)
            self._lender = None

    def lend_again(self, norm: BatchNorm) -> None:
        """Before the BatchNorm runs: lend, if checkpointing runs it again, what it had in the call before."""
        if self._lender is None and (side := self.calls.side_again()) is not None:
            self.lend(norm, side)
            self._is_again = True

    def take_back_again(self, norm: BatchNorm) -> None:
        """After the BatchNorm has run."""
        if self._is_again:
            self.take_back(norm)
            self._is_again = False

    @torch.no_grad()
    def keep(self, norm: BatchNorm, side: int) -> None:
        """Write what is for images of a side into the BatchNorm's own tensors."""
        self.take_back(norm)
        own = _tensors(norm)
        for name, tensor in self.tensors(norm, side).items():
            own[name].copy_(tensor)

    def _of(self, norm: BatchNorm, size: int) -> Tensors:
        return _tensors(norm if size == self.own_size else self[str(size)])


def _tensors(module: nn.Module) -> Tensors:
    everything = _parameters(module) | _buffers(module)
    return {name: tensor for name, tensor in everything.items() if tensor is not None}


def _give(norm: BatchNorm, tensors: Tensors) -> None:
    parameters, buffers = _parameters(norm), _buffers(norm)
    for name, tensor in tensors.items():
        (buffers if name in buffers else parameters)[name] = tensor


# Through the attributes it would take a millisecond for each call of a deep network, and a parameter could not be
# replaced by a tensor that was computed.


def _buffers(module: nn.Module) -> dict[str, torch.Tensor | None]:
    return module._buffers  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def _parameters(module: nn.Module) -> dict[str, torch.Tensor | None]:
    return cast(
        dict[str, torch.Tensor | None],
        module._parameters,  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    )
