"""Accuracy of a model at several image sizes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed
from torch import nn

from respipe.loader import Loader
from respipe.placement import Normalize
from respipe.sampling.crops import Crop
from respipe.schedules.constant import Constant


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How well a model did at one size, over all samples and ranks.

    Args:
        size: side of the images in pixels.
        top1: share of the samples in 0..1 whose label scored highest.
        top5: share of the samples in 0..1 whose label was among the five highest scores, or among all where the model
            knows fewer classes.
        loss: mean cross-entropy in nats.
        num_samples: samples evaluated.
    """

    size: int
    top1: float
    top5: float
    loss: float
    num_samples: int


def evaluate(
    model: nn.Module,
    source: str | os.PathLike[str],
    sizes: int | Sequence[int],
    *,
    batch_size: int = 256,
    backend: str = "auto",
    dtype: torch.dtype = torch.float32,
    normalize: Normalize = "imagenet",
    crop: Crop | None = None,
    num_threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Evaluation]:
    """Evaluate a model at each size, every sample exactly once, on the device that it is on.

    Where ``torch.distributed`` is initialised, call it on all ranks: each takes its share of every batch, and all get
    the same results. The model runs in evaluation mode and is left in the mode it was in. Wrap the call in
    ``torch.autocast`` to evaluate in mixed precision.

    Args:
        model: (B, 3, S, S) images to (B, K) logits.
        source: a ``.beton`` file or a folder with one subfolder per class.
        sizes: sides in pixels of the square evaluation images.
        batch_size: global batch size.
        backend: as for :class:`respipe.Loader`.
        dtype: of the images.
        normalize: as for :class:`respipe.Loader`; what the model was trained with.
        crop: as for :class:`respipe.Loader`; default ``CenterCrop()``, the usual resize and central crop.
        num_threads: decoding threads; default: the cores this process may use.
        progress: called with the number of batches done and their total after each batch.

    Returns:
        one result per size, in the order of ``sizes``.

    Raises:
        ValueError: there is no size, or a label has no logit.
    """
    sizes = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    if not sizes:
        raise ValueError("`sizes` must name at least one image size; got none.")
    # DistributedDataParallel would wait for ranks that have no sample left.
    network = cast(nn.Module, model.module) if isinstance(model, nn.parallel.DistributedDataParallel) else model
    parameters = cast(Iterable[nn.Parameter], network.parameters())
    device = next((parameter.device for parameter in parameters), torch.device("cpu"))
    modes = {module: module.training for module in cast(Iterable[nn.Module], network.modules())}
    network.eval()
    results = list[Evaluation]()
    try:
        for number, size in enumerate(sizes):
            with Loader(
                source, Constant(size), batch_size=batch_size, training=False, backend=backend, device=device,
                dtype=dtype, normalize=normalize, crop=crop, num_threads=num_threads,
            ) as loader:  # fmt: skip
                results.append(_evaluate_one(network, loader, size, device, _offset(progress, number, len(sizes))))
    finally:
        for module, training in modes.items():
            module.training = training
    return results


@torch.inference_mode()
def _evaluate_one(
    model: nn.Module, loader: Loader, size: int, device: torch.device, progress: Callable[[int, int], None]
) -> Evaluation:
    # Samples, correct ones, correct ones among five, summed loss.
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    for number, (images, labels) in enumerate(loader, start=1):
        if len(labels):
            sums += _batch_sums(model(images).float(), labels)
        progress(number, len(loader))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    count, top1, top5, loss = cast(list[float], sums.tolist())
    return Evaluation(size=size, top1=top1 / count, top5=top5 / count, loss=loss / count, num_samples=round(count))


def _batch_sums(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    num_classes = logits.shape[1]
    if int(labels.max()) >= num_classes:
        raise ValueError(
            f"`model` must have a logit for every label; label {int(labels.max())} occurs and it has {num_classes}. "
            "Build it with more classes, or evaluate on the data it was trained for."
        )
    hits = logits.topk(min(5, num_classes), dim=1).indices == labels[:, None]
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([hits.new_tensor(len(labels), dtype=torch.float64), hits[:, 0].sum(), hits.sum(), loss.double()])


def _offset(progress: Callable[[int, int], None] | None, number: int, count: int) -> Callable[[int, int], None]:
    """Progress of the ``number``-th of ``count`` equal parts as progress of the whole."""
    return lambda done, total: progress(number * total + done, count * total) if progress is not None else None
