"""Models by name."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from respipe.model.resnet_cifar import ResNetCifar, make_stem_small


def build_model(name: str, *, num_classes: int | None = None, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Make an untrained model.

    Args:
        name: ``resnet50``: any classification model of torchvision; ``timm:resnet50d``: any of timm;
            ``cifar:resnet56``: a :class:`ResNetCifar` of that depth; ``package.module:function``: whatever a callable
            of yours returns, looked for in the current folder too.
        num_classes: length of its output; default: the model's own. Callables of yours get it where it is given.
        options: further arguments of the model, such as ``{block: bottleneck}``. ``{small_stem: true}`` is for
            images of CIFAR's size in a ResNet of torchvision; see :func:`respipe.model.resnet_cifar.make_stem_small`.

    Raises:
        ValueError: there is no such model, or it does not take these options.
    """
    library, _, model = name.rpartition(":")
    if options is not None and options.get("small_stem"):
        others = {option: value for option, value in options.items() if option != "small_stem"}
        return make_stem_small(build_model(name, num_classes=num_classes, options=others))
    arguments: dict[str, Any] = {**(options or {}), **({} if num_classes is None else {"num_classes": num_classes})}
    try:
        if library == "cifar":
            return ResNetCifar(_depth(model), **arguments)
        if library == "timm":
            return _build_timm(model, arguments)
        if library == "":
            return _build_torchvision(model, arguments)
        return _build_own(library, model, arguments)
    except TypeError as error:
        raise ValueError(f"`model.options` must be arguments of {name}; got {dict(options or {})}: {error}") from error


def _build_torchvision(model: str, arguments: Mapping[str, Any]) -> nn.Module:
    import torchvision  # here, since `respipe evaluate --help` must not wait for it

    _check_name(model, torchvision.models.list_models(torchvision.models))
    return torchvision.models.get_model(model, weights=None, **arguments)


def _build_timm(model: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ValueError(f"`model.name` timm:{model} needs timm. Install it with: pip install timm") from error
    _check_name(model, timm.list_models())
    return timm.create_model(model, pretrained=False, **arguments)


def _build_own(module: str, function: str, arguments: Mapping[str, Any]) -> nn.Module:
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"`model.name` must be torchvision's, begin with timm: or cifar:, or be module:callable; got "
            f"{module}:{function}, and {error}."
        ) from error
    finally:
        sys.path.remove(here)
    model = make(**arguments)
    if not isinstance(model, nn.Module):
        raise ValueError(f"`model.name` must be a callable that returns a module; {module}:{function} made {model!r}.")
    return model


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
