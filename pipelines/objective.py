"""The network with the loss that it is trained by, for steps of one size and of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

import respipe
from respipe.model.batchnorm import divided_batchnorms
from respipe.recipe import Recipe
from respipe.schedules import RSNet, Schedule


class SumOfCrossEntropies(nn.Module):
    """Cross entropy at each size of a step, added up.

    Args:
        label_smoothing: in [0, 1].
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        """Turn logits (N, K) of each size, and labels (N,) or (N, K), into the mean loss of a sample."""
        losses = [F.cross_entropy(one, labels, label_smoothing=self.label_smoothing) for one in logits]
        return torch.stack(losses).sum()


def build_objective(model: nn.Module, recipe: Recipe) -> respipe.AllSizes:
    """The network and its loss as one module, called with the images of a step and their labels.

    Args:
        model: adapted to the recipe's schedule.
        recipe: says what the loss is.
    """
    num_sizes, distillation = sizes_per_step(recipe.build_schedule()), recipe.distillation
    if num_sizes == 1 or distillation.teachers == "none":
        criterion: nn.Module = SumOfCrossEntropies(label_smoothing=recipe.label_smoothing)
    else:
        is_full = distillation.teachers == "larger"
        criterion = respipe.MRED(num_sizes, full=is_full, label_smoothing=recipe.label_smoothing)
    return respipe.AllSizes(model, criterion, recompute=recipe.runtime.recompute)


def sizes_per_step(schedule: Schedule) -> int:
    """How many sizes a step of one of respipe's schedules shows its images at."""
    return len(schedule.sizes) if isinstance(schedule, RSNet) else 1


def leaves_parameters_unused(model: nn.Module, schedule: Schedule) -> bool:
    """Whether steps have no gradient for some parameters: those of BatchNorms private to sizes that they do not show.

    Args:
        model: adapted to ``schedule``.
        schedule: that it is trained under.
    """
    has_private = any(list(per_size.parameters()) for _, per_size in divided_batchnorms(model).values())
    return has_private and sizes_per_step(schedule) < len(schedule.sizes)
