"""Models by name, and trained ones from files: of runs, of torchvision, of timm, or of anyone's own training."""

from __future__ import annotations

import argparse
import difflib
import importlib
import pickle
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from respipe.model.adapt import adapt
from respipe.model.resnet_cifar import ResNetCifar, make_stem_small
from respipe.recipe import Recipe

Weights = Mapping[str, torch.Tensor]

_RUN_FILE = "checkpoint.pt"
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_MOST_LISTED = 3


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model with its weights, on the CPU.

    Args:
        model: in evaluation mode.
        recipe: recipe of its run by ``respipe train``; None for any other checkpoint.
    """

    model: nn.Module
    recipe: Recipe | None


def load_trained_model(
    path: str | Path,
    name: str | None = None,
    *,
    num_classes: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> TrainedModel:
    """Build a model and give it the weights of a file. Nothing in the file is executed.

    Args:
        path: a run's folder, its ``checkpoint.pt``, or a file of weights by ``torch.save`` or safetensors: a
            ``state_dict``, alone or under the key ``state_dict``, ``model`` or ``model_state_dict``, its names with or
            without what DistributedDataParallel, compilation or a Lightning module put before them.
        name: as for :func:`respipe.model.loading.build_model`. Not needed for a run, which says what it trained.
        num_classes: length of the model's output; default: as the weights have it.
        options: further arguments of the model.

    Raises:
        ValueError: the file holds no weights, or they are not of this model.
        OSError: there is no such file.
    """
    content = _read(Path(path))
    weights = _weights_in(content, path)
    written = content.get("recipe")
    recipe = Recipe.model_validate(written) if isinstance(written, Mapping) and "model" in written else None
    if name is None and recipe is None:
        raise ValueError(
            f"`model` must be named for a checkpoint that does not say what it is of; {path} does not. Pass for "
            "example --model resnet50, timm:resnet50d or my_module:make_model."
        )
    if name is None and recipe is not None:
        name, options = recipe.model.name, {**recipe.model.options, **(options or {})}
    assert name is not None
    with torch.device("meta"):
        planned = build_model(name, num_classes=num_classes, options=options)
    if num_classes is None:
        num_classes = _other_num_classes(weights, planned)
    model = build_model(name, num_classes=num_classes, options=options)
    if recipe is not None:
        model = _adapted(model, recipe)
    _load(model, weights, path, name)
    return TrainedModel(model=model.eval(), recipe=recipe)


def load_weights(model: nn.Module, path: str | Path, *, name: str) -> None:
    """Give a model the weights of a file, all of them. Nothing in the file is executed.

    Args:
        model: wherever it is.
        path: as for :func:`load_trained_model`.
        name: of the model, for messages.

    Raises:
        ValueError: the file holds no weights, or they are not of this model.
        OSError: there is no such file.
    """
    _load(model, _weights_in(_read(Path(path)), path), path, name)


def _read(path: Path) -> Mapping[str, Any]:
    path = path / _RUN_FILE if path.is_dir() else path
    if path.suffix == ".safetensors":
        try:
            safetensors: Any = importlib.import_module("safetensors.torch")
        except ModuleNotFoundError as error:
            raise ValueError(f"{path} needs safetensors. Install it with: pip install safetensors") from error
        return safetensors.load_file(path)
    try:
        # timm keeps its command line beside the weights, which is a plain record.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = cast(object, torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} must be a file of weights by torch.save; it cannot be read without executing what is in it: "
            f"{' '.join(str(error).split())[:300]} Save the model's state_dict() alone."
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a state_dict; it holds {type(content).__name__}. Save model.state_dict().")
    return cast(Mapping[str, Any], content)


def _weights_in(content: Mapping[str, Any], path: str | Path) -> Weights:
    for candidate in (content, *(content.get(key) for key in _WRAPPERS)):
        if isinstance(candidate, Mapping):
            weights = cast(Mapping[str, Any], candidate)
            if weights and all(isinstance(value, torch.Tensor) for value in weights.values()):
                return weights
    raise ValueError(
        f"{path} must hold a state_dict, alone or under {' or '.join(_WRAPPERS)}; its keys are {list(content)[:5]}. "
        "Save model.state_dict()."
    )


def _other_num_classes(weights: Weights, planned: nn.Module) -> int | None:
    """Length of the output that the weights have, where it is all that differs from the model's; else None."""
    expected = planned.state_dict()
    found = _renamed(weights, expected)
    differing = [name for name in expected if name in found and found[name].shape != expected[name].shape]
    lengths = {found[name].shape[0] for name in differing if found[name].ndim and expected[name].ndim}
    same_rest = all(found[name].shape[1:] == expected[name].shape[1:] for name in differing)
    return lengths.pop() if len(lengths) == 1 and same_rest else None


def _adapted(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The model with what its training's schedule added to it, such as BatchNorm for each size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # training has told
        return adapt(model, recipe.build_schedule(), **recipe.adaptation.model_dump())


def _renamed(weights: Weights, expected: Weights) -> Weights:
    """Weights by the names that the model has for them: without what was put before all of them."""
    while not weights.keys() & expected.keys():
        prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in weights)), None)
        if prefix is None:
            break
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _load(model: nn.Module, weights: Weights, path: str | Path, name: str) -> None:
    expected = model.state_dict()
    weights = _renamed(weights, expected)
    shapes = {key: (tuple(weights[key].shape), tuple(expected[key].shape)) for key in weights.keys() & expected.keys()}
    problems = {
        "missing": [key for key in expected if key not in weights],
        "unknown": [key for key in weights if key not in expected],
        "of another shape": [key for key, (found, wanted) in sorted(shapes.items()) if found != wanted],
    }
    listed = [
        f"{len(keys)} {kind}, such as {', '.join(keys[:_MOST_LISTED])}" for kind, keys in problems.items() if keys
    ]
    if listed:
        raise ValueError(
            f"`model` must be what {path} holds the weights of; for {name} there are {'; '.join(listed)}. Name the "
            "model that was trained."
        )
    model.load_state_dict(dict(weights))


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
