"""Accuracy with BatchNorm statistics measured for the size of each evaluation: the cheap way to serve another size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from respipe.evaluation.accuracy import Evaluation, evaluate
from respipe.loading.loader import Loader
from respipe.model.adapt import extract
from respipe.model.calibration import calibrate_batchnorm
from respipe.model.network import device_of, unwrapped
from respipe.storage.open import Data


def evaluate_calibrated(
    model: nn.Module,
    source: Data,
    sizes: Sequence[int],
    training_batches: Callable[[int], Loader],
    *,
    num_batches: int = 200,
    autocast: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> list[Evaluation]:
    """Evaluate plain copies of a model whose BatchNorm statistics were measured at the size of each evaluation.

    Args:
        model: left as it is.
        source: as for :func:`respipe.evaluate`.
        sizes: sides in pixels.
        training_batches: side in pixels -> loader of training batches of that size, which is closed after use.
        num_batches: training batches for each size, or as many as an epoch has.
        autocast, progress, options: as for :func:`respipe.evaluate`. Calibration counts as part of a size's first
            batch.

    Returns:
        one result per size, in the order of ``sizes``.
    """
    results, device = list[Evaluation](), device_of(model)
    for number, size in enumerate(sizes):
        # Of a model that has BatchNorms for some sizes only, the plain one for this size can be calibrated at it.
        calibrated = extract(unwrapped(model), size)
        mixed = torch.autocast(device.type, dtype=autocast) if autocast is not None else ExitStack()
        with training_batches(size) as loader, mixed:
            calibrate_batchnorm(calibrated, loader, min(num_batches, len(loader)))
        report = _part(progress, number, len(sizes))
        results += evaluate(calibrated, source, size, autocast=autocast, progress=report, **options)
    return results


def _part(progress: Callable[[int, int], None] | None, number: int, count: int) -> Callable[[int, int], None]:
    """Progress of the ``number``-th of ``count`` equal parts as progress of the whole."""
    return lambda done, total: progress(number * total + done, count * total) if progress is not None else None
