"""Batches in which every sample has several copies (batch augmentation)."""

from __future__ import annotations

import torch


def average_duplicates(values: torch.Tensor, duplicates: int) -> torch.Tensor:
    """Average what belongs to the copies of each sample: losses in training, outputs in evaluation.

    The plain mean of a batch's losses is already the mean of these averages, so a criterion with its usual
    ``reduction="mean"`` needs no help. To weight or select samples::

        losses = cross_entropy(model(images), labels, reduction="none")          # (B * D,)
        loss = (weights * average_duplicates(losses, plan.step.duplicates)).sum()  # with_spec=True yields the plan

    Args:
        values: (B * D, ...) floating, sample-major: the copies of a sample are adjacent, as :class:`respipe.Loader`
            yields them.
        duplicates: D, copies of each sample: ``plan.step.duplicates`` of the batch's plan.

    Returns:
        (B, ...), of the dtype and on the device of ``values``.

    Raises:
        ValueError: ``duplicates`` is less than 1 or does not divide the length of ``values``.
    """
    if duplicates < 1:
        raise ValueError(f"`duplicates` must be at least 1; got {duplicates}. Pass the step's `duplicates`.")
    if values.ndim == 0 or len(values) % duplicates:
        raise ValueError(
            f"`values` must hold {duplicates} copies of each sample; got shape {tuple(values.shape)}. Pass one value "
            'per image (reduction="none") and the `duplicates` of the same step.'
        )
    return values.reshape(len(values) // duplicates, duplicates, *values.shape[1:]).mean(dim=1)
