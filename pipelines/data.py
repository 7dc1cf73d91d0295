"""The training data of a run."""

from __future__ import annotations

from contextlib import closing

import torch
from torchvision.transforms import v2

import respipe
from respipe.loading.loader import BatchTransform
from respipe.recipe import Data, Jitter, Recipe
from respipe.storage.dataset import Dataset


def build_loader(recipe: Recipe, data: str, *, num_classes: int, device: torch.device) -> respipe.Loader:
    """The loader of the training data.

    Args:
        recipe: of the run.
        data: ``.beton`` file or class folder.
        num_classes: length of the model's output.
        device: where batches end up.
    """
    return respipe.Loader(
        data,
        recipe.build_schedule(),
        batch_size=recipe.data.batch_size,
        backend=recipe.runtime.backend,
        device=device,
        normalize=recipe.data.normalize,
        seed=recipe.seed,
        crop=recipe.data.crop.build(),
        flip_probability=0.0 if recipe.data.flip_each_size else recipe.data.flip_probability,
        repeats=recipe.data.repeats,
        batch_transform=build_batch_transform(recipe.data, num_classes=num_classes),
        num_threads=recipe.runtime.num_threads,
        num_prefetch=recipe.runtime.num_prefetch,
    )


def check_classes(recipe: Recipe, train: Dataset, val: str | None) -> int:
    """The length of the model's output, once training and validation data are known to have the same classes."""
    num_classes = recipe.model.num_classes or int(train.labels.max()) + 1
    if train.labels.max() >= num_classes:
        raise ValueError(
            f"`model.num_classes` must cover every label; got {num_classes} and a label {train.labels.max()}."
        )
    if val is not None:
        with closing(respipe.open_dataset(val)) as dataset:
            if train.classes and dataset.classes and train.classes != dataset.classes:
                differing = sorted(set(train.classes).symmetric_difference(dataset.classes))
                raise ValueError(
                    f"`--val` must have the classes of `--data`; only one of them has {differing[:5]}. "
                    "Give both the same subfolders."
                )
    return num_classes


def build_batch_transform(recipe: Data, *, num_classes: int) -> BatchTransform | None:
    """What the loader is to do to every batch, or None.

    Args:
        recipe: of the training data.
        num_classes: length of the model's output.
    """
    if recipe.flip_each_size:
        return respipe.flip_each_size
    choice = recipe.batch_transform
    if choice is None:
        return None
    if isinstance(choice, Jitter):
        return respipe.ColorJitter(**choice.model_dump(exclude={"name"}), normalize=recipe.normalize)
    mixing = {"MixUp": v2.MixUp, "CutMix": v2.CutMix}
    return mixing[choice.name](alpha=choice.alpha, num_classes=num_classes)
