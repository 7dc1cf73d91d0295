"""The numbers that ``respipe plan`` shows."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from respipe.cli.outline import Outline
from respipe.cost.usage import Usage, usage
from respipe.schedules.mean_batch import Mean, mean_batch_size
from respipe.schedules.step_budget import relative_budget

if TYPE_CHECKING:
    from respipe.cost.macs import Macs


def plan_report(outline: Outline) -> dict[str, Any]:
    """Everything that ``respipe plan`` shows, ready for JSON.

    Raises:
        ValueError: there is no such model, it cannot take one of the sizes, or the dataset holds less than one batch.
    """
    from respipe.cost.macs import by_area, mean_macs, relative_epoch_macs

    schedule = outline.schedule
    run = {name: getattr(outline, name) for name in ("num_epochs", "num_samples", "batch_size")}
    used = usage(schedule, **run)
    counted = _counted(outline)
    costs = {"area": by_area(counted(schedule.base_size), schedule.base_size), "counted": counted}
    means = {rule: mean_macs(schedule, macs, **run) for rule, macs in costs.items()}
    return {
        "source": outline.source,
        "schedule": repr(schedule),
        **run,
        "model": outline.model,
        "base_size": schedule.base_size,
        "num_steps": used.num_steps,
        "mean_batch_size": {over: _mean_batch_size(outline, over) for over in ("steps", "samples")},
        "sizes": [_size_row(used, column, outline) for column in range(len(used.sizes))],
        "cost": {
            rule: {
                "gmacs_per_image": means[rule].per_image / 1e9,
                "relative_to_base_size": means[rule].relative,
                "epoch_relative_to_base_size": relative_epoch_macs(schedule, macs, **run),
            }
            for rule, macs in costs.items()
        },
    }


def _mean_batch_size(outline: Outline, over: Mean) -> float:
    return mean_batch_size(
        outline.schedule,
        epochs=range(outline.num_epochs),
        num_samples=outline.num_samples,
        batch_size=outline.batch_size,
        over=over,
    )


def _size_row(used: Usage, column: int, outline: Outline) -> dict[str, Any]:
    size, base_size = used.sizes[column], outline.schedule.base_size
    steps, images = used.steps[:, column], used.images[:, column]
    kinds = [step for step in used.kinds if size in step.sizes]
    return {
        "size": size,
        "batch_sizes": sorted({step.batch_size for step in kinds}),
        "duplicates": sorted({step.duplicates for step in kinds}),
        "largest_budget": max(
            relative_budget(step, base_size=base_size, base_images=outline.batch_size) for step in kinds
        ),
        "num_epochs": int(np.count_nonzero(steps)),
        "num_steps": int(steps.sum()),
        "image_share": float(images.sum() / used.images.sum()),
        "epochs": _ranges(np.flatnonzero(steps)),
    }


def _ranges(epochs: NDArray[np.int64]) -> list[list[int]]:
    """Ascending numbers as [first, last] of each unbroken run of them."""
    runs = np.split(epochs, np.flatnonzero(np.diff(epochs) > 1) + 1)
    return [[int(run[0]), int(run[-1])] for run in runs if len(run)]


def _counted(outline: Outline) -> Macs:
    """The cost of the model as the schedule needs it, which takes every size of the schedule."""
    import torch

    from respipe.cost.macs import counted
    from respipe.model.adapt import adapt
    from respipe.model.loading import build_model

    with torch.device("meta"):
        model = build_model(outline.model, options=outline.model_options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a stride that does not divide, or no need of changes
        # Shared BatchNorm, which costs the same.
        return counted(adapt(model, outline.schedule, batchnorm="shared", **outline.kernels))
