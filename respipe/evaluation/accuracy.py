"""Accuracy of a model at several image sizes, and what it costs there."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np
import torch
import torch.distributed
from numpy.typing import ArrayLike
from torch import nn

from respipe.backends.base import Interpolation
from respipe.checks import check_int
from respipe.cost.macs import counted
from respipe.evaluation.passes import Pass, plan_passes
from respipe.evaluation.predictions import Predictions
from respipe.loading.loader import Loader
from respipe.model.network import check_module, device_of, evaluation_mode, unwrapped
from respipe.normalization import Normalize
from respipe.planning.crops import CenterCrop, Crop
from respipe.printable import printable
from respipe.processes import check_group
from respipe.schedules.rsnet import RSNet
from respipe.storage.open import Data, open_dataset

logger = logging.getLogger(__name__)


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
        macs: multiply-accumulate operations that one image took, in both passes where it was also mirrored, as
            :func:`respipe.cost.counted` counts them; None where the model cannot be run without its weights.
    """

    size: int
    top1: float
    top5: float
    loss: float
    num_samples: int
    macs: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return asdict(self)


def evaluate(
    model: nn.Module,
    source: Data,
    sizes: int | Sequence[int],
    *,
    batch_size: int = 256,
    flip: bool = False,
    backend: str = "auto",
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    normalize: Normalize = "imagenet",
    crop: Crop | None = None,
    interpolation: Interpolation = "bilinear",
    indices: ArrayLike | None = None,
    predictions: str | os.PathLike[str] | None = None,
    num_threads: int | None = None,
    classes: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Evaluation]:
    """Evaluate a model at each size, every sample exactly once, on the device that it is on.

    Each image is decoded once for all the sizes that read the same stored copy of it: of a class folder for all of
    them, of a ``.beton`` with several levels for those that the same level serves (see
    :func:`respipe.evaluation.passes.plan_passes`). A size gets the pixels that it would get alone.

    Where ``torch.distributed`` is initialised, call it on all ranks: each takes its share of every batch, and all get
    the same results. The model runs in evaluation mode and is left in the mode it was in.

    Args:
        model: (B, 3, S, S) images to (B, K) logits.
        source: validation data, as for :class:`respipe.Loader`.
        sizes: sides in pixels of the square evaluation images.
        batch_size: global batch size, at most. Batches that several sizes are decoded for are smaller where they would
            take more memory than one of the largest size alone.
        flip: also show the mirror image of each image, and take the mean of both logits. Of logits, as ffcv-imagenet
            does, not of probabilities: the answer stays that of one model whose features see both.
        backend: as for :class:`respipe.Loader`.
        dtype: of the images.
        autocast: run the model in mixed precision with this dtype, such as ``torch.bfloat16``. None leaves it to the
            caller, who may have entered ``torch.autocast``.
        normalize: as for :class:`respipe.Loader`; what the model was trained with.
        crop: as for :class:`respipe.Loader`; default ``CenterCrop()``, the usual resize and central crop.
        interpolation: as for :class:`respipe.Loader`; timm's models are mostly evaluated with "bicubic".
        indices: (M,) numbers of the samples to evaluate on; default: all.
        predictions: file ``.parquet`` or ``.csv`` for a row per sample, as :class:`Predictions` describes.
        num_threads: decoding threads; default: the cores this process may use.
        classes: names of the model's outputs in order, such as those of the data that it was trained on. Labels are
            then matched by the names of the data's classes. Without, or for data without names, by their numbers.
        progress: called after each batch with the number of batches done and their total, a batch counting anew at
            each size.

    Returns:
        one result per size, in the order of ``sizes``.

    Raises:
        ValueError: there is no size, a label has no logit, or a class of the data is none of ``classes``.
        RuntimeError: RANK and WORLD_SIZE name several ranks, and ``torch.distributed`` is not initialised.
        TypeError: a size is no integer, ``model`` is no module, or what it returns are no logits.
    """
    check_group("evaluate")
    check_module(model)
    batch_size = check_int("batch_size", batch_size, least=1)
    sizes = tuple(check_int("sizes", size, least=1) for size in ((sizes,) if isinstance(sizes, int) else sizes))
    if not sizes:
        raise ValueError("`sizes` must name at least one image size; got none.")
    crop = crop if crop is not None else CenterCrop()
    # DistributedDataParallel would wait for ranks that have no sample left.
    network = cast(nn.Module, model.module) if isinstance(model, nn.parallel.DistributedDataParallel) else model
    device = device_of(network)
    answers = Predictions(predictions) if predictions is not None else None
    macs = _macs_by_size(network, sizes, num_passes=2 if flip else 1)
    sums = dict[int, torch.Tensor]()
    with ExitStack() as stack:
        dataset = stack.enter_context(closing(open_dataset(source, on_demand=True)))
        passes = plan_passes(dataset, sizes, crop=crop, batch_size=batch_size)
        outputs = _outputs_of(dataset.classes, classes, device)
        check = functools.cache(functools.partial(_check_counts, dataset.classes if outputs is None else None))
        report = _counting(progress, passes, len(dataset) if indices is None else np.size(indices))
        stack.enter_context(evaluation_mode(network))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.autocast(device.type, dtype=autocast) if autocast is not None else ExitStack())
        for one in passes:
            with Loader(
                dataset, RSNet(one.sizes), batch_size=one.batch_size, training=False,
                backend=backend, device=device, dtype=dtype, normalize=normalize, crop=crop, num_threads=num_threads,
                interpolation=interpolation, indices=indices, with_spec=True,
            ) as loader:  # fmt: skip
                sums |= _sum_up(
                    network, loader, one.sizes, outputs, flip=flip, report=report, check_outputs=check, answers=answers
                )
        if answers is not None:
            answers.write(dataset)
    return [_result(size, sums[size], macs[size]) for size in sizes]


def _outputs_of(data: Sequence[str] | None, classes: Sequence[str] | None, device: torch.device) -> torch.Tensor | None:
    """The output that each class of the data belongs to, (C,) int64; None where labels are their numbers."""
    if data is None or classes is None:
        return None
    data, classes = ([*map(printable, names)] for names in (data, classes))  # as converted files spell them
    if data == classes:
        return None
    numbers = {name: number for number, name in enumerate(classes)}
    if len(numbers) < len(classes):
        raise ValueError(
            f"`classes` must be distinct; got {max(classes, key=classes.count)!r} more than once. Name each output."
        )
    unknown = [name for name in data if name not in numbers]
    if unknown:
        raise ValueError(
            f"`classes` must name every class of the data; {', '.join(map(repr, unknown[:3]))} of {len(data)} "
            f"{'is' if len(unknown) == 1 else 'are'} not among the {len(classes)} that the model was trained for. "
            "Evaluate on data with the same classes, or pass `classes=None` to go by the numbers of the labels."
        )
    logger.info("matching %d classes of the data to the model's %d by name", len(data), len(classes))
    return torch.tensor([numbers[name] for name in data], device=device)


def _check_counts(data: Sequence[str] | None, num_outputs: int) -> None:
    """Say so where labels go by number and the model knows more classes than the data has."""
    if data is not None and len(data) < num_outputs:
        logger.warning(
            "the model has %d outputs and the data %d classes, whose labels are taken as the numbers of the first "
            "outputs. If they are not, name the model's classes: a checkpoint of `respipe train` does; in Python pass "
            "`classes=`; or convert the data with `respipe convert --classes-from TRAIN.beton`.",
            num_outputs, len(data),
        )  # fmt: skip


def _sum_up(
    model: nn.Module,
    loader: Loader,
    sizes: tuple[int, ...],
    outputs: torch.Tensor | None,
    *,
    flip: bool,
    report: Callable[[], None],
    check_outputs: Callable[[int], None],
    answers: Predictions | None,
) -> dict[int, torch.Tensor]:
    """Sums over all samples and ranks by size, (4,) float64 each; see :func:`_batch_sums`."""
    device = device_of(model)
    sums = torch.zeros(len(sizes), 4, dtype=torch.float64, device=device)
    for batches, numbers, plan in loader:
        labels = numbers if outputs is None else outputs[numbers]
        images = cast(tuple[torch.Tensor, ...], batches if isinstance(batches, tuple) else (batches,))
        for number, shown in enumerate(images):
            if len(labels):
                logits = _logits(model, shown)
                if flip:
                    logits = (logits + _logits(model, shown.flip(-1))) / 2
                sums[number] += _batch_sums(logits, labels)
                check_outputs(logits.shape[1])
                if answers is not None:
                    answers.add(sizes[number], plan.indices, labels, logits)
            report()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    return dict(zip(sizes, sums, strict=True))


def _logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """(B, classes) float32; transformers' models return them as an attribute."""
    found: Any = model(images)
    logits = getattr(found, "logits", found)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(images):
        what = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else type(found).__name__
        raise TypeError(
            f"`model` must return logits of shape (B, classes), here ({len(images)}, classes); got {what}. Wrap it in "
            "a module that returns them alone."
        )
    return logits.float()


def _batch_sums(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Samples, correct ones, correct ones among five, summed loss."""
    num_classes = logits.shape[1]
    if int(labels.max()) >= num_classes:
        raise ValueError(
            f"`model` must have a logit for every label; label {int(labels.max())} occurs and it has {num_classes}. "
            "Build it with more classes, or evaluate on the data it was trained for."
        )
    hits = logits.topk(min(5, num_classes), dim=1).indices == labels[:, None]
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([hits.new_tensor(len(labels), dtype=torch.float64), hits[:, 0].sum(), hits.sum(), loss.double()])


def _result(size: int, sums: torch.Tensor, macs: float | None) -> Evaluation:
    count, top1, top5, loss = cast(list[float], sums.tolist())
    return Evaluation(
        size=size, top1=top1 / count, top5=top5 / count, loss=loss / count, num_samples=round(count), macs=macs
    )


def _macs_by_size(model: nn.Module, sizes: Iterable[int], *, num_passes: int) -> dict[int, float | None]:
    try:
        count = counted(unwrapped(model))
        return {size: num_passes * count(size) for size in sizes}
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        # What the model cannot do with real images either, the evaluation will tell.
        logger.warning("The cost of %s is not counted: %s", type(model).__name__, " ".join(str(error).split()))
        return dict.fromkeys(sizes)


def _counting(progress: Callable[[int, int], None] | None, passes: Sequence[Pass], count: int) -> Callable[[], None]:
    """What to call after each batch of each size."""
    total = sum(-(-count // one.batch_size) * len(one.sizes) for one in passes)
    done = 0

    def report() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return report
