"""Accuracy at a recipe's sizes, with the model as it is and with BatchNorm calibrated for each size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

import respipe
from pipelines.precision import autocast
from pipelines.recipe import Recipe
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
        results = respipe.evaluate(
            model,
            val,
            sizes,
            batch_size=recipe.evaluation.batch_size,
            backend=recipe.runtime.backend,
            normalize=recipe.data.normalize,
            crop=recipe.evaluation.crop.build(),
            num_threads=recipe.runtime.num_threads,
            progress=on_progress,
        )
    return {str(result.size): {"top1": result.top1, "top5": result.top5, "loss": result.loss} for result in results}


def evaluate_calibrated(
    model: nn.Module, recipe: Recipe, val: str, *, data: str, num_batches: int, on_progress: OnProgress
) -> Accuracies:
    """Evaluate copies of a model whose BatchNorm statistics were measured at the size of each evaluation.

    Args:
        model: adapted by :func:`respipe.adapt`, or plain; left as it is.
        recipe: of its training; its batch size and augmentation are those of the calibration, too.
        val: validation data.
        data: training data.
        num_batches: training batches for each size, or as many as an epoch has.
        on_progress: called with the number of batches done and their total, at each size anew.
    """
    device = next(model.parameters()).device
    results = Accuracies()
    for size in recipe.evaluation.sizes:
        # Of a model that has BatchNorms for some sizes only, the plain one for this size can be calibrated at it.
        calibrated = respipe.extract(model, size)
        with respipe.Loader(
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
        ) as loader:
            loader.set_epoch(recipe.epochs)  # crops that no epoch of the training had
            with autocast(recipe.precision, device):
                respipe.calibrate_batchnorm(calibrated, loader, min(num_batches, len(loader)))
        results |= evaluate_sizes(calibrated, recipe, val, sizes=(size,), on_progress=on_progress)
    return results
