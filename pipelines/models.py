"""Models by name."""

from __future__ import annotations

import difflib
import re
from typing import Any

import torchvision
from torch import nn

from respipe.model.resnet_cifar import ResNetCifar, make_stem_small


def build_model(name: str, *, num_classes: int, options: dict[str, Any]) -> nn.Module:
    """Make an untrained model.

    Args:
        name: ``resnet50``: any classification model of torchvision; ``timm:resnet50d``: any of timm;
            ``cifar:resnet56``: a :class:`ResNetCifar` of that depth.
        num_classes: length of its output.
        options: further arguments of the model, such as ``{block: bottleneck}``. ``{small_stem: true}`` is for
            images of CIFAR's size in a ResNet of torchvision; see :func:`respipe.model.resnet_cifar.make_stem_small`.

    Raises:
        ValueError: there is no such model, or it does not take these options.
    """
    library, _, model = name.rpartition(":")
    if options.get("small_stem"):
        others = {option: value for option, value in options.items() if option != "small_stem"}
        return make_stem_small(build_model(name, num_classes=num_classes, options=others))
    try:
        if library == "cifar":
            return ResNetCifar(_depth(model), num_classes=num_classes, **options)
        if library == "timm":
            return _build_timm(model, num_classes=num_classes, **options)
        if library == "":
            _check_name(model, torchvision.models.list_models(torchvision.models))
            return torchvision.models.get_model(model, weights=None, num_classes=num_classes, **options)
    except TypeError as error:
        raise ValueError(f"`model.options` must be arguments of {name}; got {options}: {error}") from error
    raise ValueError(f"`model.name` must begin with timm: or cifar:, or be torchvision's; got {name!r}.")


def _build_timm(model: str, **options: Any) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ValueError(f"`model.name` timm:{model} needs timm. Install it with: pip install timm") from error
    _check_name(model, timm.list_models())
    return timm.create_model(model, pretrained=False, **options)


def _check_name(model: str, names: list[str]) -> None:
    if model not in names:
        close = difflib.get_close_matches(model, names)
        hint = f"Did you mean {' or '.join(close)}?" if close else f"There are {len(names)}, such as {names[0]}."
        raise ValueError(f"`model.name` must be a known model; got {model!r}. {hint}")


def _depth(model: str) -> int:
    match = re.fullmatch(r"resnet(\d+)", model)
    if match is None:
        raise ValueError(f"`model.name` must be cifar:resnetDEPTH, such as cifar:resnet20; got 'cifar:{model}'.")
    return int(match[1])
