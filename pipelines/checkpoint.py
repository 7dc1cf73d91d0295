"""Saving and continuing a run."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

VERSION = 2
NAME = "checkpoint.pt"


def save_checkpoint(directory: Path, content: Mapping[str, Any]) -> None:
    """Write a run's checkpoint in one step: a kill leaves the old file or the new one, never half of one."""
    path = directory / NAME
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save({"version": VERSION, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_checkpoint(directory: Path, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read a run's checkpoint onto the CPU; None where there is none.

    Args:
        directory: of the run.
        recipe: what the run is to continue with, without what may change.

    Raises:
        ValueError: the checkpoint cannot be read, or was made with another recipe.
    """
    path = directory / NAME
    if not path.is_file():
        return None
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"`--output` must hold a sound checkpoint; {path} cannot be read: {error}") from error
    content: dict[str, Any] = loaded if type(loaded) is dict else {}
    if content.get("version") != VERSION:
        raise ValueError(
            f"`--output` must hold a checkpoint of version {VERSION}; {path} has {content.get('version')}. "
            "Continue with the version of the code that made it, or start anew in another folder."
        )
    saved, given = _flat(content["recipe"]), _flat(recipe)
    differing = sorted(key for key in saved.keys() | given.keys() if saved.get(key) != given.get(key))
    if differing:
        sides = "\n".join(f"  {key}: saved {saved.get(key)!r}, now {given.get(key)!r}" for key in differing)
        raise ValueError(
            f"`RECIPE` must be the one that {path} was made with; they differ in\n{sides}\n"
            "Restore these values, or start anew in another folder."
        )
    return content


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = dict[str, Any]()
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
