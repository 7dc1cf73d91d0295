"""Gives a model what a schedule needs of it, and takes a plain model for one size out of it again."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal, cast, get_args

from torch import nn

from respipe.checks import check_choice
from respipe.errors import NoEffectWarning
from respipe.model import network
from respipe.model.batchnorm import divided_batchnorms, make_batchnorm_per_size, make_batchnorm_shared
from respipe.model.lowmode import (
    DroppableMaxPool2d,
    Pair,
    PooledConv2d,
    Reduce,
    convolution_at,
    make_kernels_full,
    make_kernels_pooled,
)
from respipe.model.positions import make_positions_adaptive
from respipe.schedules.step import Schedule, check_schedule

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
    :func:`respipe.extract` makes a plain model of it again. What was done, or that nothing had to be, is logged.

    Vision transformers of torchvision and transformers resample their position embeddings from then on
    (:func:`respipe.model.positions.make_positions_adaptive`); those of timm do so by ``dynamic_img_size=True``.

    Call it before the optimizer is made, which is to have all parameters, and before the model is wrapped (compilation,
    ``DistributedDataParallel``, ``fully_shard``). ``torch.compile(model, dynamic=False)`` makes one graph for each
    size. Whoever replaces a layer that goes by the size afterwards, to freeze, fuse or quantize it, gets an error at
    the next call.

    Args:
        model: network that takes (N, 3, S, S) images, built for ``schedule.base_size``.
        schedule: sizes that the model will be given, and what they ask of it.
        batchnorm: "shared": one set of statistics, weights and biases for all sizes. "per_size": a set for each, as
            :func:`respipe.model.batchnorm.make_batchnorm_per_size` describes. "auto": what the schedule's attribute
            ``batchnorm`` says, which is "per_size" for RSNet and LowMode; shared for a schedule without it.
        kernels: "full": as they are. "pooled": smaller at the sizes below ``schedule.base_size``, as
            :func:`respipe.model.lowmode.make_kernels_pooled` describes; all other sizes are computed as
            ``extract(model, schedule.base_size)`` does. "auto": what the schedule's attribute ``kernels`` says, which
            is "pooled" for LowMode; full for a schedule without it.
        layers, reduce, drop_maxpool: kernels to pool and how, as described there.

    Returns:
        ``model`` itself.

    Raises:
        TypeError: ``model`` is no module, or ``schedule`` no schedule.
        ValueError: the model cannot take one of the sizes; the message names the size and what the model said. Or the
            model was adapted before to what is asked for again, or is sharded.

    Warns:
        NoEffectWarning: ``batchnorm="per_size"``, ``kernels="pooled"`` or ``layers`` was asked for and changed nothing.
    """
    check_choice("batchnorm", batchnorm, get_args(BatchNorm))
    check_choice("kernels", kernels, get_args(Kernels))
    check_schedule(schedule)
    network.check_whole(model)
    transformers = make_positions_adaptive(model)
    try:
        replaced = make_pooling_adaptive(model, schedule.base_size)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ValueError(_cannot_take(model, schedule.base_size, error)) from error
    _try_sizes(model, schedule.sizes)
    _log_ragged_maps(model, schedule)
    divided: tuple[str, ...] = ()
    pooled: tuple[str, ...] = ()
    if _wanted(schedule, "batchnorm", batchnorm, default="shared") == "per_size" and len(set(schedule.sizes)) > 1:
        divided = make_batchnorm_per_size(model, tuple(dict.fromkeys(schedule.sizes)), affine=True)
    low_sizes = [size for size in schedule.sizes if size < schedule.base_size]
    if _wanted(schedule, "kernels", kernels, default="full") == "pooled" and low_sizes:
        options: dict[str, Any] = {"layers": layers, "reduce": reduce, "drop_maxpool": drop_maxpool}
        pooled = make_kernels_pooled(model, schedule.base_size, low_sizes, **options)
        _try_sizes(model, schedule.sizes)  # without max-pooling, maps are larger
    for asked, has_effect in (
        ('batchnorm="per_size"', batchnorm != "per_size" or divided),
        ('kernels="pooled"', kernels != "pooled" or pooled),
        ("layers", layers is None or pooled),
    ):
        if not has_effect:
            warnings.warn(
                f"`{asked}` changed nothing: {type(model).__name__} has nothing that could differ between "
                f"{_join(schedule.sizes)} px. Leave it out.",
                NoEffectWarning,
                stacklevel=2,
            )
    if transformers:
        logger.info("position embeddings are resampled to the size of the images")
    _log_changes(model, schedule, replaced, divided, pooled)
    return model


def _wanted(schedule: Schedule, attribute: str, asked: str, *, default: str) -> str:
    """What the caller asks for, else the schedule, else the default."""
    return cast(str, getattr(schedule, attribute, default)) if asked == "auto" else asked


def _log_changes(
    model: nn.Module, schedule: Schedule, replaced: Sequence[str], divided: Sequence[str], pooled: Sequence[str]
) -> None:
    if replaced:
        logger.info("replaced fixed average pooling by adaptive: %s", ", ".join(replaced))
    if divided:
        logger.info("%d BatchNorms have a set for each of %s px", len(divided), _join(schedule.sizes))
    if pooled:
        logger.info("%d convolutions pool their kernels below %d px", len(pooled), schedule.base_size)
    if not (replaced or divided or pooled):
        kind, sizes = type(model).__name__, _join(schedule.sizes)
        has_statistics = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
        why = "" if has_statistics else "; it has no BatchNorm, so that it needs no statistics per size"
        logger.info("%s takes every size of the schedule as it is, %s px%s", kind, sizes, why)


def _try_sizes(model: nn.Module, sizes: tuple[int, ...]) -> None:
    shadow = network.without_weights(model)
    for size in sizes:
        try:
            network.run(shadow, size)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ValueError(_cannot_take(model, size, error)) from error


def _cannot_take(model: nn.Module, size: int, error: Exception) -> str:
    cause = " ".join(str(error).split())
    return (
        f"`model` must take images of every size of the schedule; at {size} px it raised {type(error).__name__}: "
        f"{cause or 'no message'}. {_remedy(model, size)} Otherwise leave {size} px out of the schedule."
    )


def _remedy(model: nn.Module, size: int) -> str:
    """What lets a model of this kind take other sizes."""
    options = {name for kind in type(model).__mro__ for name in inspect.signature(kind.__init__).parameters}
    patch = _patch_side(model)
    multiples = f"Sides must be multiples of its patches, {patch} px" if patch > 1 else ""
    if _FREEING in options and getattr(model, _FREEING, None) is not True:
        return f"Build it by timm.create_model(..., {_FREEING}=True).{multiples and f' {multiples}.'}"
    if patch > 1 and size % patch:
        return f"{multiples}; Progressive rounds to them by multiple={patch}."
    kinds = {type(module).__name__ for module in cast(Iterable[nn.Module], model.modules())}
    if patch > 1 or "img_size" in options or any("Attention" in kind for kind in kinds):
        built = (
            f" timm.create_model(..., img_size={size}) builds it for that size alone." if "img_size" in options else ""
        )
        return f"This architecture is made for one size.{built}"
    return (
        "If it pools by a fixed size in `forward`, use adaptive pooling there; if it pools by nn.AvgPool2d made for "
        "another size, call `make_pooling_adaptive(model, that_size)` first."
    )


_FREEING = "dynamic_img_size"
"""Argument of those of timm's models that it frees of their one size: ViT, DeiT, EVA, Swin and their kin."""


def _patch_side(model: nn.Module) -> int:
    """Side in pixels of a vision transformer's patches, as timm, torchvision or transformers keep it; 1 if unknown."""
    for holder in (getattr(model, "patch_embed", None), model, getattr(model, "config", None)):
        patch = getattr(holder, "patch_size", None)
        if isinstance(patch, int | tuple | list):
            return max(cast(Pair, patch)) if not isinstance(patch, int) else patch
    return 1


def _log_ragged_maps(model: nn.Module, schedule: Schedule) -> None:
    stride = total_stride(model, schedule.base_size)
    ragged = [size for size in schedule.sizes if stride is not None and size % stride]
    if stride is not None and ragged:
        nearby = sorted({size // stride * stride + extra for size in ragged for extra in (0, stride)} - {0})
        logger.info(
            "the model's total stride of %d px does not divide %s px: its maps are rounded up, which costs more than "
            "the image's area says and shows their last row and column less of the image; multiples close by: %s px",
            stride, _join(ragged), _join(nearby),
        )  # fmt: skip


def total_stride(model: nn.Module, size: int) -> int | None:
    """By how much the model's strided layers shrink an image, in pixels per side.

    Measured at ``size`` if every strided layer divides its map evenly there, else at the next power of two.

    Returns:
        the stride, 1 for a model without strided layers, or None where it cannot be measured because layers without
        padding shorten their maps by something else than a factor (Inception), or a size is refused.
    """
    shadow = network.without_weights(model)
    for probe in (size, 1 << size.bit_length()):
        with network.calls(shadow, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d) as calls:
            try:
                network.run(shadow, probe)
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


def extract(model: nn.Module, size: int) -> nn.Module:
    """A plain copy of an adapted model that computes at one size what the model computes there in evaluation.

    Nothing of :func:`respipe.adapt` is left in it: every BatchNorm has one set of tensors, pooled kernels have become
    kernels of their own, and no hook looks at the size of the images. It takes images of any size as the model did
    before it was adapted, and can be exported. ::

        program = torch.export.export(respipe.extract(model, 160).eval(), (torch.zeros(1, 3, 160, 160),))

    Args:
        model: that :func:`respipe.adapt` was called with; not compiled, nor wrapped in ``DistributedDataParallel``.
        size: side in pixels, also one that the model was not trained at, if it takes it.

    Returns:
        a copy on the same device and in the same modes. ``model`` stays as it is.

    Raises:
        ValueError: ``size`` is less than 1, or ``model`` is a part of the adapted one, or wrapped, or sharded.
    """
    if size < 1:
        raise ValueError(f"`size` must be at least 1; got {size}. Pass a side in pixels.")
    network.check_whole(model)
    plain = copy.deepcopy(model)
    for norm in divided_batchnorms(plain).values():
        norm.keep(size)
    make_batchnorm_shared(plain)
    replacements: dict[str, nn.Module] = {}
    for name, module in network.named_modules(plain).items():
        if isinstance(module, PooledConv2d) and size in module.poolings:
            replacements[name] = convolution_at(module, size)
        elif isinstance(module, DroppableMaxPool2d) and size in module.dropped_at:
            replacements[name] = nn.Identity()
    make_kernels_full(plain)
    network.replace_modules(plain, {name: module.train(plain.training) for name, module in replacements.items()})
    return plain


def make_pooling_adaptive(model: nn.Module, size: int) -> tuple[str, ...]:
    """Replace every ``nn.AvgPool2d`` that averages the whole map by ``nn.AdaptiveAvgPool2d(1)``, in place.

    At ``size`` the model computes what it did before; parameters and their names stay as they are. Pooling inside the
    network (DenseNet's transitions, ResNet-D's shortcuts) stays: a pool counts as global if each of its outputs is
    1 x 1 at ``size`` and no convolution wider than 1 x 1 runs after it.

    Args:
        model: takes (N, 3, ``size``, ``size``) images. Pooling called as a function (``F.avg_pool2d``) is not seen.
        size: side in pixels that the model was built for.

    Returns:
        the names of the replaced modules; empty where there was nothing to replace.

    Raises:
        RuntimeError, ValueError, AssertionError: whatever the model raises on images of that size.
    """
    shadow = network.without_weights(model)
    with network.calls(shadow, nn.AvgPool2d, nn.Conv2d) as calls:
        network.run(shadow, size)
    last_wide = max((i for i, (_, module, _, _) in enumerate(calls) if _is_wide_convolution(module)), default=-1)
    pools = [(i > last_wide and shape[2:] == (1, 1), name) for i, (name, module, _, shape) in enumerate(calls)
             if isinstance(module, nn.AvgPool2d)]  # fmt: skip
    inner = {name for is_global, name in pools if not is_global}
    found = {id(model.get_submodule(name)) for is_global, name in pools if is_global and name not in inner}
    names = tuple(name for name, module in network.named_modules(model).items() if id(module) in found)
    network.replace_modules(model, {name: nn.AdaptiveAvgPool2d(1) for name in names})
    return names


def _is_wide_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
