"""Accuracy at a recipe's sizes, with the model as it is and with BatchNorm calibrated for each size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn

import respipe
from pipelines.precision import autocast
from respipe.evaluation import Evaluation, evaluate_calibrated
from respipe.recipe import Recipe
from respipe.schedules import Constant

Accuracies = dict[str, dict[str, float]]
"""``top1``, ``top5`` and ``loss`` by side in pixels, as the log has them."""

OnProgress = Callable[[int, int], None]


def evaluate_sizes(
    model: nn.Module, recipe: Recipe, val: str, *, sizes: Sequence[int], on_progress: OnProgress
) -> Accuracies:
    """Evaluate a model at several sizes, as its recipe says.

    Args:
        model: on the device where it is to run.
        recipe: of its training.
        val: validation data.
        sizes: sides in pixels.
        on_progress: called with the number of batches done and their total.
    """
    with autocast(recipe.precision, next(model.parameters()).device):
        return _accuracies(respipe.evaluate(model, val, sizes, progress=on_progress, **_options(recipe)))


def evaluate_sizes_calibrated(
    model: nn.Module, recipe: Recipe, val: str, *, data: str, num_batches: int, on_progress: OnProgress
) -> Accuracies:
    """Evaluate copies of a model whose BatchNorm statistics were measured at the size of each evaluation.

    Args:
        model: adapted by :func:`respipe.adapt`, or plain; left as it is.
        recipe: of its training; its batch size and augmentation are those of the calibration, too.
        val: validation data.
        data: training data.
        num_batches: training batches for each size, or as many as an epoch has.
        on_progress: called with the number of batches done and their total.
    """
    device = next(model.parameters()).device

    def training_batches(size: int) -> respipe.Loader:
        loader = respipe.Loader(
            data,
            Constant(size),
            batch_size=recipe.data.batch_size,
            backend=recipe.runtime.backend,
            device=device,
            normalize=recipe.data.normalize,
            seed=recipe.seed,
            crop=recipe.data.crop.build(),
            flip_probability=recipe.data.flip_probability,
            num_threads=recipe.runtime.num_threads,
        )
        loader.set_epoch(recipe.epochs)  # crops that no epoch of the training had
        return loader

    sizes = recipe.evaluation.sizes
    with autocast(recipe.precision, device):
        return _accuracies(
            evaluate_calibrated(
                model, val, sizes, training_batches, num_batches=num_batches, progress=on_progress, **_options(recipe)
            )
        )


def _options(recipe: Recipe) -> dict[str, Any]:
    """How the recipe's evaluation images are made."""
    return {
        "batch_size": recipe.evaluation.batch_size,
        "backend": recipe.runtime.backend,
        "normalize": recipe.data.normalize,
        "crop": recipe.evaluation.crop.build(),
        "num_threads": recipe.runtime.num_threads,
    }


def _accuracies(results: Iterable[Evaluation]) -> Accuracies:
    return {str(result.size): {"top1": result.top1, "top5": result.top5, "loss": result.loss} for result in results}
