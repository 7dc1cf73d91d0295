"""The optimizer and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import respipe
from respipe.recipe import LearningRate, Optimizer, Recipe
from respipe.schedules import mean_batch_size


def build_optimizer(model: nn.Module, recipe: Optimizer, more_groups: Sequence[dict[str, Any]] = ()) -> torch.optim.SGD:
    """Make the optimizer; its learning rate is set before every step.

    Args:
        model: that is trained.
        recipe: of the optimizer.
        more_groups: of other parameters, as optimizers take them.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Convolutions and linear layers have weights of two or more dimensions; norms and biases have one.
    decayed = [parameter for parameter in parameters if recipe.decay_all or parameter.ndim > 1]
    others = [parameter for parameter in parameters if not recipe.decay_all and parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
        *more_groups,
    ]
    optimizer = torch.optim.SGD(
        [group for group in groups if group["params"]], lr=0.0, momentum=recipe.momentum, nesterov=recipe.nesterov
    )
    if recipe.smoothing is not None:
        respipe.GradientSmoothing(optimizer, alpha=recipe.smoothing)  # kept and saved by the optimizer
    return optimizer


def batch_scale(recipe: Recipe, *, num_samples: int) -> float:
    """What the recipe multiplies its peak learning rate by, for the batches that its schedule plans.

    Args:
        recipe: of the run.
        num_samples: samples in the training data.
    """
    if recipe.learning_rate.scale is None:
        return 1.0
    batch_size = recipe.data.batch_size
    mean = mean_batch_size(
        recipe.build_schedule(),
        epochs=range(recipe.epochs),
        num_samples=num_samples,
        batch_size=batch_size,
        over=recipe.learning_rate.scale,
    )
    return mean / batch_size


def learning_rate(recipe: LearningRate, *, epoch: int, step: int, num_steps: int, num_epochs: int) -> float:
    """The learning rate of one step, unscaled: a function of its place in the run, so that resuming needs no state.

    Args:
        recipe: peak, warm-up and decay.
        epoch: number of the epoch, from 0.
        step: number of the step within the epoch, from 0.
        num_steps: steps of this epoch.
        num_epochs: length of the run.
    """
    position = epoch + step / num_steps
    if position < recipe.warmup_epochs:
        # The end of the step counts, because a first step at rate 0 would be lost.
        return recipe.peak * min(1.0, (epoch + (step + 1) / num_steps) / recipe.warmup_epochs)
    if recipe.decay == "step":
        return recipe.peak * recipe.factor ** sum(epoch >= milestone for milestone in recipe.milestones)
    share = (position - recipe.warmup_epochs) / max(num_epochs - recipe.warmup_epochs, 1e-9)
    return recipe.peak * 0.5 * (1 + math.cos(math.pi * share))
