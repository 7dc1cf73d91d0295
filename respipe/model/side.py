"""The size of the images that a model is called with, by which it is routed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import torch

_MOST_CALLS = 10_000
"""Calls that are remembered: far more than any training step makes before its backward pass."""

_AUTOGRAD: Any = torch._C  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
"""Where PyTorch tells what its backward pass is at. It has no public names for that."""


def side_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Side in pixels of the images that a model was called with.

    Args:
        args, kwargs: of the call.

    Returns:
        the smaller of height and width of the first tensor of four dimensions.

    Raises:
        TypeError: there is no such tensor.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.ndim == 4:
            return int(min(value.shape[2:]))
    raise TypeError("`model` must be called with a tensor of (N, C, H, W) images, whose size it goes by; got none.")


class Calls:
    """The sides of a model's calls, for parts of it that checkpointing runs again in the backward pass.

    Autograd numbers the nodes of its graph in the order in which they are made. The node whose gradient is being
    computed when a part is run again was thus made in the call whose numbers surround its own. Parts that are
    checkpointed reentrantly within one another are not told apart from other calls.
    """

    def __init__(self) -> None:
        self._starts = list[int]()  # a number of autograd's, from which on
        self._sides = list[int | None]()  # nodes belong to a call of this side, or to none

    def __reduce__(self) -> tuple[type[Calls], tuple[()]]:
        return Calls, ()  # a copy has made no calls

    def enter(self, side: int) -> None:
        """A call begins."""
        self._record(side)

    def leave(self) -> None:
        """A call has ended."""
        self._record(None)

    def side_again(self) -> int | None:
        """The side of the call a part of which is run again now; None outside of any backward pass."""
        if torch.compiler.is_compiling() or not _in_backward_pass():
            return None
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


def _in_backward_pass() -> bool:
    return _AUTOGRAD._current_graph_task_id() != -1  # noqa: SLF001
