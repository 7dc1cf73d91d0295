"""Adapting a model to another image size without training: moving its activations to where they were in training.

FixRes (arXiv 1906.06423) tried both ways and found that they gain nothing. Of a ResNet-50 trained at 224 px, moving the
pooled activations left the accuracy as it was (section 3.2: 29.4 % at 64 px, 78.4 % at 288 px, with or without), and
matching every channel before the last ReLU cost as much as it gained (table 4: 29.8 instead of 29.4 % at 64 px, 77.7
instead of 78.4 % at 288 px, 76.8 instead of 77.7 % at 384 px), where tuning the classifier and the last BatchNorm gave
41.7, 78.5 and 79.0 %. They are here to be compared with; to adapt a model, use :func:`respipe.prepare_finetune` or
:func:`respipe.calibrate_batchnorm`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from respipe.model import trace
from respipe.model.calibration import images_for
from respipe.model.finetune import default_layers
from respipe.model.frechet import Frechet, fit_frechet
from respipe.model.modes import evaluation_mode

Action = Callable[[torch.Tensor], torch.Tensor | None]
"""What is done to a layer's input: given it, returns what the layer is to get instead, or None to leave it."""


def match_frechet(activations: torch.Tensor, *, reference: Frechet, observed: Frechet) -> torch.Tensor:
    """Move pooled activations from one Frechet distribution to another of the same exponent, which is exact.

    x becomes mu_ref + sigma_ref / sigma_obs (x - mu_obs), or 0 where that is negative; what is 0 stays.

    Args:
        activations: of any shape, after global average pooling; all channels are treated alike.
        reference: of the size that the model was trained at.
        observed: of the size that it is used at.

    Returns:
        of the shape and dtype of ``activations``.
    """
    moved = reference.mu + reference.sigma / observed.sigma * (activations - observed.mu)
    return torch.where(activations == 0, activations, moved.clamp(min=0))


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelMoments:
    """Mean and variance of each channel, over images and pixels: (C,) each."""

    mean: torch.Tensor
    variance: torch.Tensor


def channel_moments(batches: Iterable[torch.Tensor]) -> ChannelMoments:
    """Moments over all of some (N, C, H, W) maps, in float64; images may differ in size.

    Raises:
        ValueError: there are no maps.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for maps in batches:
        values = maps.detach().double().transpose(0, 1).flatten(1)
        count, total = count + values.shape[1], total + values.sum(1)
        squares = squares + values.square().sum(1)
    if not count:
        raise ValueError("`batches` must hold at least one map; got none. Take more images.")
    mean = total / count
    return ChannelMoments(mean=mean, variance=(squares / count - mean.square()).clamp(min=0))


def match_channels(maps: torch.Tensor, *, reference: ChannelMoments, observed: ChannelMoments) -> torch.Tensor:
    """Give each channel the mean and variance that it had in training; a channel that never varied is only moved.

    Args:
        maps: (N, C, H, W), before the last ReLU.
        reference: of the size that the model was trained at.
        observed: of the size that it is used at.

    Returns:
        of the shape and dtype of ``maps``.
    """
    ratio = torch.where(observed.variance > 0, reference.variance / observed.variance, 1.0).sqrt()
    offset = reference.mean - ratio * observed.mean
    ratio, offset = (values.to(maps.device, maps.dtype).view(-1, 1, 1) for values in (ratio, offset))
    return maps * ratio + offset


def match_pooled(model: nn.Module, reference: Iterable[Any], observed: Iterable[Any], *, size: int = 224) -> ExitStack:
    """Let a model move its pooled activations by :func:`match_frechet` from now on.

    ::

        with match_pooled(model, batches_at_224_px, batches_at_64_px):
            respipe.evaluate(model, "val.beton", 64)

    Args:
        model: a classifier with a BatchNorm before and layers after its global pooling; as it stands in evaluation.
        reference: batches of the size that it was trained at, as :class:`respipe.Loader` yields them.
        observed: batches of the size that it is used at.
        size: side in pixels with which its layers are found, as for :func:`respipe.prepare_finetune`.

    Returns:
        what undoes it: on ``close()``, or at the end of a ``with`` statement.

    Raises:
        ValueError: the layers cannot be found, or there are no activations to fit to.
    """
    layer = model.get_submodule(default_layers(model, size)[1])
    fits = [fit_frechet(torch.cat(list(_inputs(model, layer, 1, batches)))) for batches in (reference, observed)]
    return _install(model, layer, 1, lambda x: match_frechet(x, reference=fits[0], observed=fits[1]))


def match_before_last_relu(
    model: nn.Module, reference: Iterable[Any], observed: Iterable[Any], *, size: int = 224
) -> ExitStack:
    """Let a model match its channels before the last ReLU by :func:`match_channels` from now on.

    Args:
        model, reference, observed, size: as for :func:`match_pooled`. The ReLU must be a module.

    Returns:
        what undoes it: on ``close()``, or at the end of a ``with`` statement.

    Raises:
        ValueError: no ``nn.ReLU`` or ``nn.ReLU6`` is called after the last BatchNorm and before the global pooling.
    """
    layer, calls = _last_relu(model, size)
    moments = [channel_moments(_inputs(model, layer, calls, batches)) for batches in (reference, observed)]
    return _install(model, layer, calls, lambda x: match_channels(x, reference=moments[0], observed=moments[1]))


def _last_relu(model: nn.Module, size: int) -> tuple[nn.Module, int]:
    """The module that is the last ReLU before the global pooling, and how often it is called until then."""
    batchnorm = default_layers(model, size)[0]
    shadow = trace.without_weights(model)
    norm = shadow.get_submodule(batchnorm)
    with trace.calls(shadow, type(norm), nn.ReLU, nn.ReLU6) as calls:
        trace.run(shadow, size)
    modules = [module for _, module, _, shape in calls if max(shape[2:]) > 1]
    last_norm = max(i for i, module in enumerate(modules) if module is norm)
    if last_norm + 1 == len(modules) or not isinstance(modules[-1], nn.ReLU | nn.ReLU6):
        raise ValueError(
            f"`model` must call an nn.ReLU after its last BatchNorm, {batchnorm}; {type(model).__name__} does not. "
            "Apply `match_channels` where it has its own."
        )
    names = {id(module): name for name, module in trace.named_modules(shadow).items()}
    return model.get_submodule(names[id(modules[-1])]), sum(module is modules[-1] for module in modules)


def _install(model: nn.Module, layer: nn.Module, calls: int, action: Action) -> ExitStack:
    """Do something to the input of the ``calls``-th call of a layer in every pass of a model."""
    seen = 0

    def begin(*_: object) -> None:
        nonlocal seen
        seen = 0

    def act(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        nonlocal seen
        seen += 1
        changed = action(inputs[0]) if seen == calls else None
        return None if changed is None else (changed, *inputs[1:])

    handles = ExitStack()
    for handle in (model.register_forward_pre_hook(begin), layer.register_forward_pre_hook(act)):
        handles.callback(handle.remove)
    return handles


def _inputs(model: nn.Module, layer: nn.Module, calls: int, batches: Iterable[Any]) -> Generator[torch.Tensor]:
    """What a layer gets in the ``calls``-th call of every pass, in evaluation mode."""
    captured = list[torch.Tensor]()

    def keep(x: torch.Tensor) -> None:
        captured.append(x.detach().clone())  # the layer may work in place

    for batch in batches:
        with evaluation_mode(model), torch.no_grad(), _install(model, layer, calls, keep):
            model(images_for(model, batch))
        yield captured.pop()
