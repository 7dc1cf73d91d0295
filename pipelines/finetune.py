"""Beginning from a trained network, to tune it at the size that it will be used at."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

import respipe
from pipelines.recipe import Recipe


def start_from(model: nn.Module, path: Path, recipe: Recipe) -> None:
    """Give a model the weights of a trained one and prepare it to be tuned as its recipe says.

    Args:
        model: as built, not wrapped.
        path: of the weights; see :func:`load_weights`.
        recipe: with a ``finetune`` part.

    Raises:
        ValueError: the weights cannot be read or are of another model, or the recipe names layers that it lacks.
    """
    assert recipe.finetune is not None, "recipes for tuning have this part"
    load_weights(model, path)
    size = recipe.build_schedule().base_size
    respipe.prepare_finetune(model, bn_affine=recipe.finetune.bn_affine, layers=recipe.finetune.layers, size=size)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a trained model's weights, all of them, onto the CPU first.

    Args:
        model: of the same kind.
        path: ``checkpoint.pt`` of a run of ``pipelines/train.py``, or a file with a ``state_dict`` as torchvision and
            timm have them, alone or under ``model`` or ``state_dict``. Only tensors and plain values are read.

    Raises:
        ValueError: the file cannot be read, holds no weights, or those of another model.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"`--init` must be a sound file of weights; {path} cannot be read: {error}") from error
    try:
        model.load_state_dict(_weights_in(content))
    except (RuntimeError, TypeError) as error:
        cause = " ".join(str(error).split())
        raise ValueError(
            f"`--init` must hold the weights of the recipe's model for as many classes; {path} does not: "
            f"{cause if len(cause) <= 500 else f'{cause[:500]}...'}"
        ) from error


def _weights_in(content: Any) -> dict[str, torch.Tensor]:
    """The state_dict in a file, without the prefix of names in DistributedDataParallel."""
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise TypeError("it holds no state_dict")
    state = dict(cast(Mapping[str, torch.Tensor], content))
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state
