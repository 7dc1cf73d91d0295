"""What reaches a model's classifier at each image size, which tells why it does worse at some than at others.

After global average pooling an activation map of few pixels leaves sparser and more widely spread values than one of
many, whatever the image shows: the classifier meets statistics that it was not trained on (FixRes, arXiv 1906.06423,
section 3.2 and figure 3).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import nn

from respipe.backends.base import Interpolation
from respipe.checks import check_int
from respipe.loading.loader import Loader
from respipe.model.finetune import classifier_layers
from respipe.model.network import device_of, evaluation_mode, unwrapped
from respipe.normalization import Normalize
from respipe.planning.crops import CenterCrop, Crop
from respipe.schedules.constant import Constant
from respipe.storage.open import Data, open_dataset

_NUM_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class Activations:
    """The distribution of what a model's global pooling gives at one size, over images and channels.

    Args:
        size: side of the images in pixels.
        zeros: share of the values in 0..1 that are exactly zero.
        mean: of all values.
        std: their standard deviation.
        quantiles: 201 values that 0, 0.5, 1, ... 100% of all values are below or equal to: the inverse of the
            cumulative distribution.
        num_images: images that they were measured on.
    """

    size: int
    zeros: float
    mean: float
    std: float
    quantiles: tuple[float, ...]
    num_images: int

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


def measure_activations(
    model: nn.Module,
    source: Data,
    sizes: int | Sequence[int],
    *,
    num_images: int = 1024,
    batch_size: int = 64,
    backend: str = "auto",
    normalize: Normalize = "imagenet",
    crop: Crop | None = None,
    interpolation: Interpolation = "bilinear",
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Activations]:
    """Measure what enters a model's classifier at each size, on the same images, drawn at random from all.

    The first layer with weights after the global pooling is found by running the model without its weights. In a
    process group, each process measures the same by itself.

    Args:
        model: takes (B, 3, S, S) images; left in the mode it was in.
        source: validation data, as for :class:`respipe.Loader`.
        sizes: sides in pixels of the square evaluation images.
        num_images: images to measure on, or all where there are fewer; in whole batches.
        batch_size: images shown at a time.
        backend, normalize, crop, interpolation, num_threads: as for :func:`respipe.evaluate`.
        progress: called with the number of batches done and their total after each batch.

    Raises:
        ValueError: there is no size, the model takes no images of one of them or has no classifier after its pooling.
    """
    sizes = tuple(check_int("sizes", size, least=1) for size in ((sizes,) if isinstance(sizes, int) else sizes))
    if not sizes:
        raise ValueError("`sizes` must name at least one image size; got none.")
    network = unwrapped(model)
    layer = network.get_submodule(classifier_layers(network, max(sizes))[0])
    measured = list[Activations]()
    for number, size in enumerate(sizes):
        dataset = open_dataset(source, on_demand=True)
        batch = min(batch_size, num_images, len(dataset))
        with (
            # A training order, since the first images of a folder all show the same.
            Loader(
                dataset, Constant(size), batch_size=batch, training=True, backend=backend, device=device_of(network),
                normalize=normalize, crop=crop if crop is not None else CenterCrop(), flip_probability=0.0,
                interpolation=interpolation, num_threads=num_threads, rank=0, world_size=1,
            ) as loader,
            evaluation_mode(network),
            _inputs_of(layer) as seen,
        ):  # fmt: skip
            total = min(num_images // batch, len(loader))
            for done, (images, _) in enumerate(islice(loader, total), start=1):
                network(images)
                if progress is not None:
                    progress(number * total + done, len(sizes) * total)
        measured.append(_summary(size, torch.cat(seen)))
    return measured


@contextmanager
def _inputs_of(layer: nn.Module) -> Generator[list[torch.Tensor]]:
    """Collect, without gradients, what a layer is given: (B, C) float32 on the CPU for each call."""
    seen = list[torch.Tensor]()

    def record(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].flatten(1).float().cpu())

    handle = layer.register_forward_pre_hook(record)
    try:
        with torch.inference_mode():
            yield seen
    finally:
        handle.remove()


def _summary(size: int, values: torch.Tensor) -> Activations:
    """Statistics of (N, C) values, all alike."""
    ordered = values.flatten().sort().values
    # The smallest value that so large a share does not exceed; no interpolation, which would blur the step at zero.
    places = torch.linspace(0, len(ordered) - 1, _NUM_STEPS + 1, dtype=torch.float64).round().long()
    return Activations(
        size=size,
        zeros=float((ordered == 0).double().mean()),
        mean=float(ordered.double().mean()),
        std=float(ordered.double().std(correction=0)),
        quantiles=tuple(cast(Iterable[float], ordered[places].tolist())),
        num_images=len(values),
    )
