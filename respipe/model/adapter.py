"""Gives a model what a schedule needs of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

from torch import nn

from respipe.checks import check_choice
from respipe.errors import NoEffectWarning
from respipe.model import trace
from respipe.model.batchnorm import make_batchnorm_per_size
from respipe.model.kernels import make_kernels_pooled
from respipe.model.pooled_layers import Reduce
from respipe.model.pooling import make_pooling_adaptive
from respipe.schedules.lowmode import LowMode
from respipe.schedules.rsnet import RSNet
from respipe.schedules.step import Schedule

logger = logging.getLogger(__name__)

BatchNorm = Literal["auto", "shared", "per_size"]
Kernels = Literal["auto", "full", "pooled"]


def adapt(
    model: nn.Module,
    schedule: Schedule,
    *,
    batchnorm: BatchNorm = "auto",
    kernels: Kernels = "auto",
    layers: Sequence[str] | None = None,
    reduce: Reduce = "mean",
    drop_maxpool: bool = True,
) -> nn.Module:
    """Let ``model`` take images of every size of ``schedule``, in place, and go by the size of those it is given.

    Global average pooling of a fixed size becomes adaptive, BatchNorm gets what it needs for each size, and kernels are
    pooled where the schedule wants it; then the model is tried, without its weights, at every size. At the largest size
    it computes what it did before. What it has keeps its name, so that checkpoints from before can be loaded;
    :func:`respipe.extract` makes a plain model of it again.

    Call it before the optimizer is made, which is to have all parameters, and before the model is wrapped (compilation,
    ``DistributedDataParallel``). ``torch.compile(model, dynamic=False)`` makes one graph for each size.

    Args:
        model: takes (N, 3, S, S) images, built for ``schedule.base_size``.
        schedule: names the sizes that the model will be given.
        batchnorm: "shared": one set of statistics, weights and biases for all sizes. "per_size": a set for each, as
            :func:`respipe.model.batchnorm.make_batchnorm_per_size` describes. "auto": per size for RSNet and LowMode,
            else shared.
        kernels: "full": as they are. "pooled": smaller at the sizes below ``schedule.base_size``, as
            :func:`respipe.model.kernels.make_kernels_pooled` describes. "auto": pooled for LowMode, else full.
        layers, reduce, drop_maxpool: which kernels are pooled and how, as described there.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: the model cannot take one of the sizes; the message names the size and what the model said. Or the
            model was adapted before to what is asked for again.

    Warns:
        NoEffectWarning: the model needed no change.
        UserWarning: a size is not a multiple of the model's total stride, so that its maps cover more than the image.
    """
    check_choice("batchnorm", batchnorm, get_args(BatchNorm))
    check_choice("kernels", kernels, get_args(Kernels))
    try:
        replaced = make_pooling_adaptive(model, schedule.base_size)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(_cannot_take(schedule.base_size, error)) from error
    _try_sizes(model, schedule.sizes)
    _warn_about_ragged_maps(model, schedule)
    divided = _divide_batchnorm(model, schedule, batchnorm)
    pooled = _pool_kernels(model, schedule, kernels, layers=layers, reduce=reduce, drop_maxpool=drop_maxpool)
    if pooled:
        _try_sizes(model, schedule.sizes)  # without max-pooling, maps are larger
    if replaced:
        logger.info("replaced fixed average pooling by adaptive: %s", ", ".join(replaced))
    if divided:
        logger.info("%d BatchNorms have a set for each of %s px", len(divided), _join(schedule.sizes))
    if pooled:
        logger.info("%d convolutions pool their kernels below %d px", len(pooled), schedule.base_size)
    if not (replaced or divided or pooled):
        warnings.warn(
            f"`adapt` changed nothing: {type(model).__name__} already takes every size of the schedule, "
            f"{_join(schedule.sizes)} px. Nothing needs to be done.",
            NoEffectWarning,
            stacklevel=2,
        )
    return model


def _divide_batchnorm(model: nn.Module, schedule: Schedule, batchnorm: BatchNorm) -> tuple[str, ...]:
    wanted = isinstance(schedule, RSNet | LowMode) if batchnorm == "auto" else batchnorm == "per_size"
    has_several = len(schedule.sizes) > 1
    return make_batchnorm_per_size(model, schedule.sizes, affine=True) if wanted and has_several else ()


def _pool_kernels(model: nn.Module, schedule: Schedule, kernels: Kernels, **options: Any) -> tuple[str, ...]:
    wanted = isinstance(schedule, LowMode) if kernels == "auto" else kernels == "pooled"
    low_sizes = [size for size in schedule.sizes if size < schedule.base_size]
    return make_kernels_pooled(model, schedule.base_size, low_sizes, **options) if wanted and low_sizes else ()


def _try_sizes(model: nn.Module, sizes: tuple[int, ...]) -> None:
    shadow = trace.without_weights(model)
    for size in sizes:
        try:
            trace.run(shadow, size)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ValueError(_cannot_take(size, error)) from error


def _cannot_take(size: int, error: Exception) -> str:
    cause = " ".join(str(error).split())
    return (
        f"`model` must take images of every size of the schedule; at {size} px it raised {type(error).__name__}: "
        f"{cause or 'no message'}. If it pools by a fixed size in `forward`, use adaptive pooling there; if it pools "
        "by nn.AvgPool2d made for another size, call `make_pooling_adaptive(model, that_size)` first; if it is a timm "
        f"transformer, build it with `dynamic_img_size=True`; otherwise leave {size} px out of the schedule."
    )


def _warn_about_ragged_maps(model: nn.Module, schedule: Schedule) -> None:
    stride = total_stride(model, schedule.base_size)
    if stride is None:
        return
    ragged = [size for size in schedule.sizes if size % stride]
    if ragged:
        nearby = sorted({size // stride * stride + extra for size in ragged for extra in (0, stride)} - {0})
        warnings.warn(
            f"The model's total stride of {stride} px does not divide {_join(ragged)} px: its maps are rounded up, "
            "which costs more than the image's area says and shows their last row and column less of the image. "
            f"Multiples close by are {_join(nearby)} px; to follow a paper to the letter, ignore this warning.",
            UserWarning,
            stacklevel=3,
        )


def total_stride(model: nn.Module, size: int) -> int | None:
    """By how much the model's strided layers shrink an image, in pixels per side.

    Measured at ``size`` if every strided layer divides its map evenly there, else at the next power of two.

    Returns:
        the stride, 1 for a model without strided layers, or None where it cannot be measured because layers without
        padding shorten their maps by something else than a factor (Inception), or a size is refused.
    """
    shadow = trace.without_weights(model)
    for probe in (size, 1 << size.bit_length()):
        with trace.calls(shadow, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d) as calls:
            try:
                trace.run(shadow, probe)
            except (RuntimeError, ValueError, AssertionError):
                return None
        sides = [(before[2], after[2]) for _, module, before, after in calls if _is_strided(module)]
        if all(before % after == 0 for before, after in sides):
            return probe // min((after for _, after in sides), default=probe)
    return None


def _is_strided(module: nn.Module) -> bool:
    stride = cast(int | tuple[int, int], module.stride)
    return max(stride if isinstance(stride, tuple) else (stride,)) > 1


def _join(sizes: Sequence[int]) -> str:
    *others, last = (str(size) for size in sizes)
    return f"{', '.join(others)} and {last}" if others else last
