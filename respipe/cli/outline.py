"""What ``plan`` and ``plot schedule`` need to know of a run: read from a recipe or a schedule expression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from respipe.schedules.parsing import schedule_from_config, schedule_from_expression
from respipe.schedules.step import Schedule

_RECIPES = Path("pipelines", "recipes")
_SUFFIXES = (".yaml", ".yml")
_EPOCHS, _BATCH_SIZE = 90, 256
_IMAGENET_SAMPLES, _CIFAR_SAMPLES = 1_281_167, 50_000


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A planned run: from the command line where given there, else from the recipe, else defaults.

    Args:
        source: the recipe's path, or the expression.
        schedule: the schedule.
        num_epochs: length of the run.
        num_samples: samples in the dataset.
        batch_size: global batch size at the schedule's base size.
        model: name of the recipe's model, ``resnet50`` without a recipe.
        model_options: further arguments of that model.
        kernels: what the recipe says of pooled kernels, as arguments of :func:`respipe.adapt`.
    """

    source: str
    schedule: Schedule
    num_epochs: int
    num_samples: int
    batch_size: int
    model: str = "resnet50"
    model_options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    kernels: Mapping[str, Any] = field(default_factory=dict[str, Any])


def read_outline(source: str, *, epochs: int | None, num_samples: int | None, batch_size: int | None) -> Outline:
    """Read a schedule expression, a recipe by its path, or a recipe by its name in ``pipelines/recipes``.

    Args:
        source: the expression, path or name.
        epochs, batch_size: these count where given, whatever the recipe says.
        num_samples: samples in the dataset; None for as many as ImageNet has, or CIFAR where the recipe normalises so.

    Raises:
        ValueError: there is no such recipe, or it or the expression is wrong; the message names the field.
        OSError: the recipe cannot be read.
    """
    if "(" in source:
        epochs, batch_size = epochs or _EPOCHS, batch_size or _BATCH_SIZE
        schedule = schedule_from_expression(source, num_epochs=epochs)
        return Outline(
            source=source,
            schedule=schedule,
            num_epochs=epochs,
            num_samples=num_samples or _IMAGENET_SAMPLES,
            batch_size=batch_size,
        )
    path = Path(source) if Path(source).is_file() else _named_recipe(source)
    try:
        recipe = _read_yaml(path)
        epochs = epochs or _positive(recipe, "epochs") or _EPOCHS
        model, data = _mapping(recipe, "model"), _mapping(recipe, "data")
        like_cifar = str(data.get("normalize", "")).startswith("cifar")
        return Outline(
            source=str(path),
            schedule=schedule_from_config(_mapping(recipe, "schedule"), num_epochs=epochs),
            num_epochs=epochs,
            num_samples=num_samples or (_CIFAR_SAMPLES if like_cifar else _IMAGENET_SAMPLES),
            batch_size=batch_size or _positive(data, "batch_size") or _BATCH_SIZE,
            model=str(model.get("name", Outline.model)),
            model_options=_mapping(model, "options"),
            kernels={name: value for name, value in _mapping(recipe, "adaptation").items() if name != "batchnorm"},
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _named_recipe(name: str) -> Path:
    """The recipe of this name in the first ``pipelines/recipes`` from the current directory upwards."""
    here = Path.cwd()
    folder = next((top / _RECIPES for top in (here, *here.parents) if (top / _RECIPES).is_dir()), None)
    if folder is None:
        raise ValueError(
            f"`source` must be a recipe's path or a schedule such as 'Constant(224)'; got {name!r}, which is no file, "
            f"and there is no {_RECIPES} here or above to find it in."
        )
    known = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES}
    if name.removesuffix(".yaml") not in known:
        raise ValueError(f"`source` must name a recipe in {folder}; got {name!r}. There are {', '.join(known)}.")
    return known[name.removesuffix(".yaml")]


def _read_yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {error}") from error
    if not isinstance(recipe, dict) or "schedule" not in recipe:
        raise ValueError("a recipe must be a mapping with the key 'schedule'; this is none.")
    return cast(Mapping[str, Any], recipe)


def _mapping(recipe: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value: object = recipe.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"`{name}` must be a mapping; got {value!r}.")
    return cast(Mapping[str, Any], value)


def _positive(recipe: Mapping[str, Any], name: str) -> int | None:
    value = recipe.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"`{name}` must be a whole number from 1; got {value!r}.")
    return value
