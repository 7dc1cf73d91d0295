"""Gradients whose size follows a running mean, so that steps of very different batches weigh alike."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

# PyTorch documents its foreach functions under these names.
from torch import _foreach_mul_, _foreach_norm  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]

logger = logging.getLogger(__name__)

KEY = "gradient_smoothing"
"""Where an optimizer's ``state_dict`` holds the state of its smoothing."""


class GradientSmoothing:
    """Rescale the gradients before every step of an optimizer to the running mean of their norm.

    With n_t the L2 norm of all gradients together, r_0 = n_0 and r_t = alpha r_{t-1} + (1 - alpha) n_t, the gradients
    of step t > 0 are multiplied by r_t / (n_t + 1e-6) (MixSize, arXiv 1908.08986, for the batches of B+). It happens
    within ``optimizer.step()``: after clipping, and before the optimizer adds its weight decay. A step whose norm is
    not finite changes neither gradients nor state.

    The state is part of the optimizer's ``state_dict``; an optimizer without smoothing ignores it there. Nothing waits
    for the GPU. Under ``torch.amp.GradScaler`` the norms are those of unscaled gradients. Every rank must hold all
    gradients whole, as under ``DistributedDataParallel``, which makes the norms equal on all ranks.

    Args:
        optimizer: any optimizer that evaluates a closure, if given one, once per step. It keeps the smoothing alive.
        alpha: in [0, 1): weight of the past. The paper does not say; 0.9 is what its released code uses.

    Raises:
        TypeError: ``optimizer`` is none of PyTorch's, such as a wrapper around one.
        ValueError: ``alpha`` is out of range. Later, from ``optimizer.step()``: a gradient is sparse.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, alpha: float = 0.9) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(
                f"`optimizer` must be a torch.optim.Optimizer; got {type(optimizer).__name__}. Pass the one it wraps."
            )
        if not 0 <= alpha < 1:
            raise ValueError(f"`alpha` must be at least 0 and less than 1; got {alpha}. Leave it out for 0.9.")
        self._alpha = float(alpha)
        self._mean = torch.tensor(math.nan)  # r of the last step; NaN before the first one
        self._handles = (
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_state_dict_post_hook(self._add_state),
            optimizer.register_load_state_dict_pre_hook(self._take_state),
        )

    def remove(self) -> None:
        """Leave the optimizer as it was without smoothing. Safe to call twice."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, float | None]:
        """The running mean of the norm, or None before the first step. Waits for the GPU."""
        mean = self._mean.item()
        return {"mean_norm": None if math.isnan(mean) else mean}

    def load_state_dict(self, state_dict: Mapping[str, float | None]) -> None:
        """Go on from a saved state."""
        mean = state_dict["mean_norm"]
        self._mean = torch.tensor(math.nan if mean is None else mean, dtype=torch.float64)

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Smooth now, or, where a closure is yet to compute the gradients, right after it has."""
        closure = cast(Callable[[], Any] | None, args[1] if len(args) > 1 else kwargs.get("closure"))
        if closure is None:
            self._smooth(optimizer)
            return None
        is_evaluated = False

        def evaluate_and_smooth() -> Any:
            nonlocal is_evaluated
            if is_evaluated:
                raise ValueError(
                    f"`optimizer` must evaluate its closure once per step; got {type(optimizer).__name__}, which does "
                    "so repeatedly. Use it without GradientSmoothing."
                )
            is_evaluated = True
            loss = closure()
            self._smooth(optimizer)
            return loss

        return (optimizer, evaluate_and_smooth), {key: value for key, value in kwargs.items() if key != "closure"}

    @torch.no_grad()
    def _smooth(self, optimizer: torch.optim.Optimizer) -> None:
        groups = _gradients_by_kind(optimizer)
        if not groups:
            return
        norm = _total_norm(groups)
        # A fused optimizer is handed scaled gradients together with their scale, and divides by it in its kernel.
        scale = cast(torch.Tensor | None, getattr(optimizer, "grad_scale", None))
        factor = self._advance(norm if scale is None else norm / scale.to(norm.device, non_blocking=True))
        for (device, _), gradients in groups.items():
            _foreach_mul_(gradients, factor.to(device, non_blocking=True))

    def _advance(self, norm: torch.Tensor) -> torch.Tensor:
        """Take n_t into the mean; returns what to multiply the gradients by. Both are tensors without dimensions."""
        self._mean = self._mean.to(norm)
        is_first, is_finite = self._mean.isnan(), norm.isfinite()
        mean = torch.where(is_first, norm, self._alpha * self._mean + (1 - self._alpha) * norm)
        self._mean.copy_(torch.where(is_finite, mean, self._mean))  # in place, as CUDA graphs need it
        return torch.where(is_finite & ~is_first, mean / (norm + 1e-6), torch.ones_like(norm))

    def _add_state(self, _: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        state_dict[KEY] = self.state_dict()

    def _take_state(self, _: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        if KEY not in state_dict:
            logger.info("the optimizer's saved state has no %s: the running mean starts anew", KEY)
        self.load_state_dict(state_dict.get(KEY, {"mean_norm": None}))


def _gradients_by_kind(
    optimizer: torch.optim.Optimizer,
) -> dict[tuple[torch.device, torch.dtype], list[torch.Tensor]]:
    """All gradients, by device and dtype: what the foreach kernels take in one launch."""
    groups = dict[tuple[torch.device, torch.dtype], list[torch.Tensor]]()
    for group in optimizer.param_groups:
        for parameter in cast(list[torch.Tensor], group["params"]):
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.layout != torch.strided:
                raise ValueError(
                    f"`optimizer` must have dense gradients for GradientSmoothing; got one of layout {gradient.layout} "
                    f"and shape {tuple(gradient.shape)}. Build embeddings with sparse=False."
                )
            groups.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    return groups


def _total_norm(groups: Mapping[tuple[torch.device, torch.dtype], list[torch.Tensor]]) -> torch.Tensor:
    """L2 norm of all gradients together, in at least float32, on the device of the first group."""
    first_device, _ = next(iter(groups))
    norms = list[torch.Tensor]()
    for (_, dtype), gradients in groups.items():
        # float16 would overflow: its gradients are scaled up to near its largest number.
        wide = torch.promote_types(dtype, torch.float32)
        parts = _foreach_norm(gradients, 2, dtype=wide)
        norms.extend(part.to(first_device, non_blocking=True) for part in parts)
    return cast(torch.Tensor, torch.linalg.vector_norm(torch.stack(norms)))
