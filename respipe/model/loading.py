"""Models by name, and trained ones from files: of runs, of torchvision, of timm, or of anyone's own training."""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import pickle
import re
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from respipe.model.adapt import adapt
from respipe.model.resnet_cifar import ResNetCifar, make_stem_small
from respipe.recipe import Recipe

logger = logging.getLogger(__name__)

Weights = Mapping[str, torch.Tensor]

_RUN_FILE = "checkpoint.pt"
_ENDINGS = (".pt", ".pth", ".pth.tar", ".ckpt")
_WRAPPERS = ("state_dict", "model", "model_state_dict", "module")
_EMA_WRAPPERS = ("ema", "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "model_ema_state_dict")
_PREFIXES = ("module.", "model.")
_MOST_LISTED = 3


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model with its weights, on the CPU.

    Args:
        model: in evaluation mode.
        recipe: recipe of its run by ``respipe train``; None for any other checkpoint.
        classes: names of its outputs in order; None where the checkpoint does not say.
    """

    model: nn.Module
    recipe: Recipe | None
    classes: tuple[str, ...] | None = None


def load_trained_model(
    path: str | Path,
    name: str | None = None,
    *,
    num_classes: int | None = None,
    options: Mapping[str, Any] | None = None,
    ema: bool = False,
) -> TrainedModel:
    """Build a model and give it the weights of a file. Nothing in the file is executed.

    Args:
        path: a run's folder, its ``checkpoint.pt``, or a file of weights by ``torch.save`` or safetensors: a
            ``state_dict``, alone or under the key ``state_dict``, ``model`` or ``model_state_dict``, its names with or
            without what DistributedDataParallel, ``AveragedModel``, compilation or a Lightning module put before them.
        name: as for :func:`respipe.model.loading.build_model`. Not needed for a run, which says what it trained.
        num_classes: length of the model's output; default: as the weights have it.
        options: further arguments of the model.
        ema: take the exponential moving average of the weights instead, where the file holds both (under ``ema``,
            timm's ``state_dict_ema`` or torchvision's ``model_ema``).

    Raises:
        ValueError: the file holds no weights, or no average of them, or they are not of this model.
        OSError: there is no such file.
    """
    content = _read(Path(path))
    weights = _weights_in(content, path, ema=ema)
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
    return TrainedModel(model=model.eval(), recipe=recipe, classes=_classes_in(content))


def load_weights(model: nn.Module, path: str | Path, *, name: str, ema: bool = False) -> None:
    """Give a model the weights of a file, all of them. Nothing in the file is executed.

    Args:
        model: wherever it is.
        path: as for :func:`load_trained_model`.
        name: name of the model, for messages.
        ema: as for :func:`load_trained_model`.

    Raises:
        ValueError: the file holds no weights, or they are not of this model.
        OSError: there is no such file.
    """
    _load(model, _weights_in(_read(Path(path)), path, ema=ema), path, name)


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a run's folder, or a file with one of the usual endings of weights."""
    return (path / _RUN_FILE).is_file() or (path.is_file() and path.name.lower().endswith(_ENDINGS))


def class_names_in(path: str | os.PathLike[str]) -> tuple[str, ...] | None:
    """Names of a trained model's outputs in order, as its checkpoint has them under ``classes``; None without.

    Raises:
        ValueError: the file is no checkpoint.
        OSError: there is no such file.
    """
    return _classes_in(_read(Path(path))) or None


def _read(path: Path) -> Mapping[str, Any]:
    path = path / _RUN_FILE if path.is_dir() else path
    if path.suffix == ".safetensors":
        try:
            safetensors: Any = importlib.import_module("safetensors.torch")
        except ModuleNotFoundError as error:
            raise ValueError(f"{path} needs safetensors. Install it with: pip install safetensors") from error
        return safetensors.load_file(path)
    try:
        # timm keeps its command line beside the weights, others a best accuracy as NumPy's number: plain records.
        with torch.serialization.safe_globals([argparse.Namespace, *_numpy_records()]):
            content = cast(object, torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))  # the rest is advice to execute the file
        cause = f"it holds a {foreign[1]}, which cannot be read without executing code" if foreign else "it is damaged"
        raise ValueError(
            f"{path} must be a file of weights by torch.save; {cause}. Save the model's state_dict() alone."
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a state_dict; it holds {type(content).__name__}. Save model.state_dict().")
    return cast(Mapping[str, Any], content)


def _numpy_records() -> list[Any]:
    """What NumPy's numbers and arrays are pickled with, under the names of both of its major versions."""
    makers = cast(list[Any], [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]])
    old_names = [(maker, f"numpy.core.multiarray.{maker.__name__}") for maker in makers]
    return [np.dtype, np.ndarray, *makers, *old_names, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}]


def _weights_in(content: Mapping[str, Any], path: str | Path, *, ema: bool) -> Weights:
    plain = _first_weights(content, (content, *(content.get(key) for key in _WRAPPERS)))
    averaged = _first_weights(content, [content.get(key) for key in _EMA_WRAPPERS])
    if ema and averaged is None:
        raise ValueError(
            f"`--ema` must be for a checkpoint with averaged weights, under {' or '.join(_EMA_WRAPPERS)}; the keys of "
            f"{path} are {list(content)[:5]}. Leave it out."
        )
    if averaged is not None and plain is not None and not ema:
        logger.warning("%s also holds averaged weights (EMA), which are not used; pass --ema for them", path)
    if averaged is not None and plain is None and not ema:
        logger.warning("%s holds averaged weights (EMA) alone, which are used", path)
    weights = averaged if ema or plain is None else plain
    if weights is None:
        raise ValueError(
            f"{path} must hold a state_dict, alone or under {' or '.join(_WRAPPERS)}; its keys are "
            f"{list(content)[:5]}. Save model.state_dict()."
        )
    return weights


def _first_weights(content: Mapping[str, Any], candidates: Iterable[object]) -> Weights | None:
    """The first of some values that is a ``state_dict``, or holds one under one of the usual keys."""
    for candidate in candidates:
        if isinstance(candidate, Mapping) and candidate:
            weights = cast(Mapping[str, Any], candidate)
            if all(isinstance(value, torch.Tensor) for value in weights.values()):
                return weights
            if candidate is not content:
                inner = _first_weights(content, [weights.get(key) for key in _WRAPPERS])
                if inner is not None:
                    return inner
    return None


def _classes_in(content: Mapping[str, Any]) -> tuple[str, ...] | None:
    classes = cast(object, content.get("classes"))
    if not isinstance(classes, Sequence) or isinstance(classes, str):
        return None
    return tuple(str(name) for name in cast(Sequence[object], classes))


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
    # What averages weights counts its updates; compiled parts bear a name within those of others.
    weights = {name: value for name, value in weights.items() if name != "n_averaged" or name in expected}
    if not any("_orig_mod." in name for name in expected):
        weights = {name.replace("_orig_mod.", ""): value for name, value in weights.items()}
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
