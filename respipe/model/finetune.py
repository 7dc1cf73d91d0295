"""Fine-tuning of a trained model at the size that it will be used at: which layers learn, and that the rest stays."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, cast

from torch import nn

from respipe.checks import check_int
from respipe.model import network
from respipe.model.batchnorm import BatchNorm

logger = logging.getLogger(__name__)

_WEIGHTED = (nn.Linear, nn.Conv2d)

Calls = list[tuple[str, nn.Module, network.Shape, network.Shape]]
"""As :func:`respipe.model.network.calls` gives them."""


def prepare_finetune(
    model: nn.Module, *, bn_affine: bool = False, layers: str | Sequence[str] | None = None, size: int = 224
) -> nn.Module:
    """Let only the end of ``model`` learn, in place, to tune it at its test size as FixRes does (arXiv 1906.06423).

    By default those are the classifier and the last BatchNorm before the global pooling, found by
    :func:`default_layers`. As in the paper's code that BatchNorm computes with the statistics of its batches and
    updates its running ones, while its weight and bias stay: of a ResNet-50 the 2,049,000 parameters of the last layer
    learn. Exactly this holds afterwards:

    * ``requires_grad`` is True for the parameters of the chosen layers and of all that is in them, and False for all
      others. A BatchNorm chosen for itself, not as part of a larger layer, keeps its weight and bias unless
      ``bn_affine``.
    * ``model.train()`` puts the chosen layers, with all that is in them, in training mode. All else stays in evaluation
      mode, ``model.training`` included: BatchNorm with its statistics, dropout, auxiliary outputs. ``model.eval()`` is
      as ever.

    Weights, buffers, names and the ``state_dict`` stay as they are; copies, also by ``pickle``, behave alike. Call it
    before the optimizer is made, which is to get the parameters that learn, and before the model is wrapped
    (compilation, ``DistributedDataParallel``). Calling it again chooses anew; with ``layers="*"`` everything learns. ::

        model = respipe.prepare_finetune(torchvision.models.resnet50(weights="IMAGENET1K_V1"))
        learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(learning, lr=0.008, momentum=0.9, weight_decay=1e-4)

    A model that :func:`respipe.adapt` gave private BatchNorms can be tuned at the sizes that it was adapted to; all of
    a chosen BatchNorm's sets count as part of it. To tune it at another size, pass ``respipe.extract(model, size)``.

    Args:
        model: a classifier of images, from anywhere.
        bn_affine: let weight and bias of a BatchNorm that is chosen for itself learn, too.
        layers: names of the layers to choose instead, as in ``model.named_modules()``, exactly these; or patterns of
            names, where ``*`` stands for anything, ``[01]`` for one of the characters. PNASNet's last three cells and
            its classifier are ``("cell_9", "cell_1[01]", "last_linear")`` in timm.
        size: side in pixels of the images with which layers are looked for; not used with ``layers``.

    Returns:
        ``model`` itself.

    Raises:
        ValueError: a name or pattern fits no layer; no layer that was found or named has parameters that may learn; or
            what :func:`default_layers` raises.
    """
    if layers is None:
        chosen = default_layers(model, size)
    else:
        chosen = _matching_layers(model, (layers,) if isinstance(layers, str) else tuple(layers))
    learning = _learning_parameters(model, chosen, bn_affine=bn_affine)
    if not learning:
        raise ValueError(
            f"`layers` must have parameters that may learn; {_join(chosen)} has none. Name the classifier too or, for "
            "a BatchNorm, pass bn_affine=True; to renew statistics alone, use `calibrate_batchnorm`."
        )
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learning)
    # On the instance, because a model's class is not ours to change. Copies get a partial of their own.
    cast(Any, model).train = partial(_train, model, chosen)
    model.train(model.training or any(module.training for module in model.modules()))
    logger.info("%s of %s learns", _join(chosen), type(model).__name__)
    return model


def default_layers(model: nn.Module, size: int = 224) -> tuple[str, ...]:
    """The layers that FixRes tunes: the last BatchNorm before the global pooling, and the classifier.

    Found by running a copy without weights, so it matters neither what they are called nor whether pooling is a module.
    The BatchNorm is the last one to run on maps of more than one pixel. The classifier is every ``nn.Linear`` and
    ``nn.Conv2d`` that runs after the last such map: one layer in most models, two in MobileNetV3.

    Args:
        model: takes (N, 3, ``size``, ``size``) images, one tensor.
        size: side in pixels, large enough for more than one pixel to reach the global pooling.

    Returns:
        names of the BatchNorm and then of the layers of the classifier, in the order of their calls.

    Raises:
        ValueError: the model does not take images of that size, has no BatchNorm before the global pooling, or nothing
            after it; the message names the layers that there are.
    """
    before, after = _around_pooling(model, size)
    classifier = _classifier(before, after)
    norms = [name for name, module, _, shape in before if isinstance(module, BatchNorm) and _has_several_pixels(shape)]
    if not norms:
        raise ValueError(
            f"`model` must have a BatchNorm before its global pooling; {_ending([*before, *after])}. Name the layers "
            f"to tune: layers={classifier!r} for the classifier alone."
        )
    return tuple(dict.fromkeys((norms[-1], *classifier)))


def classifier_layers(model: nn.Module, size: int = 224) -> tuple[str, ...]:
    """The layers with weights that run after the global pooling; the first of them gets what was pooled.

    Arguments, errors and how they are found as for :func:`default_layers`, but the model needs no BatchNorm.
    """
    return _classifier(*_around_pooling(model, size))


def _around_pooling(model: nn.Module, size: int) -> tuple[Calls, Calls]:
    """The calls up to the last one that sees a map of more than one pixel, and those after it."""
    calls = _calls(model, check_int("size", size, least=1))
    last_map = max((i for i, (_, _, _, shape) in enumerate(calls) if _has_several_pixels(shape)), default=-1)
    before, after = calls[: last_map + 1], calls[last_map + 1 :]
    if any(_is_wide(module) and not _has_several_pixels(shape) for _, module, shape, _ in after):
        raise ValueError(
            f"`size` must be so large that maps of more than one pixel reach the global pooling; got {size}. Pass the "
            "size that the model was trained at."
        )
    return before, after


def _classifier(before: Calls, after: Calls) -> tuple[str, ...]:
    classifier = tuple(dict.fromkeys(name for name, module, _, _ in after if isinstance(module, _WEIGHTED)))
    if not classifier:
        weighted = [name for name, module, _, _ in before if isinstance(module, _WEIGHTED)]
        raise ValueError(
            f"`model` must have a classifier after its global pooling; {_ending(before)}. Name the layers to tune: "
            f"layers={tuple(weighted[-1:])!r}."
        )
    return classifier


def _ending(calls: Calls) -> str:
    weighted = [name for name, module, _, _ in calls if isinstance(module, _WEIGHTED)]
    return f"the last layers called are {_join(weighted[-5:])}" if weighted else "no layer has weights"


def _calls(model: nn.Module, size: int) -> Calls:
    """What :func:`respipe.model.network.calls` says of every module, in the order in which they end."""
    shadow = network.without_weights(model)
    try:
        with network.calls(shadow, nn.Module, dimensions=(2, 3, 4)) as calls:
            network.run(shadow, size)
    except (RuntimeError, ValueError, AssertionError) as error:
        cause = " ".join(str(error).split())
        raise ValueError(
            f"`size` must be a side in pixels that `model` takes; at {size} px it raised {type(error).__name__}: "
            f"{cause or 'no message'}. Pass the size that the model was trained at, or name the layers to tune."
        ) from error
    return calls


def _is_wide(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1


def _has_several_pixels(shape: network.Shape) -> bool:
    """Whether a tensor holds more than one vector per image, wherever its channels are."""
    return shape[0] > network.NUM_IMAGES or sum(side > 1 for side in shape[1:]) > 1


def _matching_layers(model: nn.Module, patterns: tuple[str, ...]) -> tuple[str, ...]:
    names = list(network.named_modules(model))
    chosen = dict[str, None]()
    for pattern in patterns:
        found = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            close = difflib.get_close_matches(pattern, names) or [name for name, _ in model.named_children()]
            raise ValueError(
                f"`layers` must name layers of the model; {pattern!r} is none of {type(model).__name__}. There are for "
                f"example {_join(close)}; model.named_modules() lists all."
            )
        chosen |= dict.fromkeys(found)
    return tuple(chosen)


def _learning_parameters(model: nn.Module, chosen: tuple[str, ...], *, bn_affine: bool) -> set[int]:
    """The ``id`` of each parameter that is to learn."""
    learning = set[int]()
    for name in chosen:
        layer = model.get_submodule(name)
        if bn_affine or not isinstance(layer, BatchNorm):
            learning |= {id(parameter) for parameter in layer.parameters()}
    return learning


def _train(model: nn.Module, chosen: tuple[str, ...], mode: bool = True) -> nn.Module:
    """``model.train`` of a prepared model."""
    type(model).train(model, mode)
    learning = {module for name in chosen for module in model.get_submodule(name).modules()}
    for module in model.modules():
        if module not in learning:
            module.training = False
    return model


def _join(names: Sequence[str]) -> str:
    return ", ".join(name or "the whole model" for name in names)
