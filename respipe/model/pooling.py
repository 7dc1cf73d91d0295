"""Fixed global average pooling becomes adaptive, so that a model takes images of other sizes."""

from __future__ import annotations

from torch import nn

from respipe.model import trace


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
    shadow = trace.without_weights(model)
    with trace.calls(shadow, nn.AvgPool2d, nn.Conv2d) as calls:
        trace.run(shadow, size)
    last_wide = max((i for i, (_, module, _, _) in enumerate(calls) if _is_wide_convolution(module)), default=-1)
    pools = [(i > last_wide and shape[2:] == (1, 1), name) for i, (name, module, _, shape) in enumerate(calls)
             if isinstance(module, nn.AvgPool2d)]  # fmt: skip
    inner = {name for is_global, name in pools if not is_global}
    found = {id(model.get_submodule(name)) for is_global, name in pools if is_global and name not in inner}
    names = tuple(name for name, module in trace.named_modules(model).items() if id(module) in found)
    for name in names:
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, nn.AdaptiveAvgPool2d(1))
    return names


def _is_wide_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1
