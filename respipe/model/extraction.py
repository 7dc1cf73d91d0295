"""A model for one size alone, out of one that was adapted to several."""

from __future__ import annotations

import copy

from torch import nn

from respipe.model import trace
from respipe.model.batchnorm import divided_batchnorms, make_batchnorm_shared
from respipe.model.kernels import make_kernels_full
from respipe.model.pooled_layers import DroppableMaxPool2d, PooledConv2d, convolution_at


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
        ValueError: ``size`` is less than 1, or ``model`` is a part of the adapted one, or wrapped.
    """
    if size < 1:
        raise ValueError(f"`size` must be at least 1; got {size}. Pass a side in pixels.")
    plain = copy.deepcopy(model)
    for norm, per_size in divided_batchnorms(plain).values():
        per_size.keep(norm, size)
    make_batchnorm_shared(plain)
    replacements = dict[str, nn.Module]()
    for name, module in trace.named_modules(plain).items():
        if isinstance(module, PooledConv2d) and size in module.poolings:
            replacements[name] = convolution_at(module, size)
        elif isinstance(module, DroppableMaxPool2d) and size in module.dropped_at:
            replacements[name] = nn.Identity()
    make_kernels_full(plain)
    for name, module in replacements.items():
        parent, _, attribute = name.rpartition(".")
        setattr(plain.get_submodule(parent), attribute, module.train(plain.training))
    return plain
