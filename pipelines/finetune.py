"""Beginning from a trained network, to tune it at the size that it will be used at."""

from __future__ import annotations

from pathlib import Path

from torch import nn

import respipe
from respipe.model.loading import load_weights
from respipe.recipe import Recipe


def start_from(model: nn.Module, path: Path, recipe: Recipe) -> None:
    """Give a model the weights of a trained one and prepare it to be tuned as its recipe says.

    Args:
        model: as built, not wrapped.
        path: of the weights; see :func:`respipe.model.loading.load_trained_model`.
        recipe: with a ``finetune`` part.

    Raises:
        ValueError: the weights cannot be read or are of another model, or the recipe names layers that it lacks.
    """
    assert recipe.finetune is not None, "recipes for tuning have this part"
    try:
        load_weights(model, path, name=recipe.model.name)
    except (OSError, ValueError) as error:
        raise ValueError(f"`--init` must name weights of the recipe's model: {error}") from error
    size = recipe.build_schedule().base_size
    respipe.prepare_finetune(model, bn_affine=recipe.finetune.bn_affine, layers=recipe.finetune.layers, size=size)
