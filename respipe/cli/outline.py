"""What ``plan`` and ``plot schedule`` need to know of a run: read from a recipe or a schedule expression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from respipe.schedules.step import Schedule

_EPOCHS, _BATCH_SIZE = 90, 256
_IMAGENET_SAMPLES, _CIFAR_SAMPLES = 1_281_167, 50_000

# What a plan does not depend on, and the usual for the rest: a recipe that is only planned may leave these out.
_DEFAULTS = {
    "model": {"name": "resnet50"},
    "epochs": _EPOCHS,
    "data": {"batch_size": _BATCH_SIZE},
    "learning_rate": {"peak": 0.1},
    "evaluation": {"sizes": [224]},
}


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A planned run: from the command line where given there, else from the recipe, else defaults.

    Args:
        source: name or path of the recipe, or the expression.
        schedule: schedule of the run.
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
    """Read a schedule expression, or a recipe by its path or name.

    Args:
        source: expression, path or name.
        epochs, batch_size: values that count where given, whatever the recipe says.
        num_samples: samples in the dataset; None for as many as ImageNet has, or CIFAR where the recipe normalises so.

    Raises:
        ValueError: there is no such recipe, or it or the expression is wrong; the message names the field.
        OSError: the recipe cannot be read.
    """
    if "(" in source:
        from respipe.schedules.parsing import schedule_from_expression

        epochs = epochs or _EPOCHS
        return Outline(
            source=source,
            schedule=schedule_from_expression(source, num_epochs=epochs),
            num_epochs=epochs,
            num_samples=num_samples or _IMAGENET_SAMPLES,
            batch_size=batch_size or _BATCH_SIZE,
        )
    from respipe.recipe import load_recipe

    given = {"epochs": epochs, "data.batch_size": batch_size}
    changes = [f"{name}={value}" for name, value in given.items() if value is not None]
    recipe = load_recipe(source, changes, defaults=_DEFAULTS)
    like_cifar = (recipe.data.normalize or "").startswith("cifar")
    return Outline(
        source=source,
        schedule=recipe.build_schedule(),
        num_epochs=recipe.epochs,
        num_samples=num_samples or (_CIFAR_SAMPLES if like_cifar else _IMAGENET_SAMPLES),
        batch_size=recipe.data.batch_size,
        model=recipe.model.name,
        model_options=recipe.model.options,
        kernels=recipe.adaptation.model_dump(exclude={"batchnorm"}),
    )
