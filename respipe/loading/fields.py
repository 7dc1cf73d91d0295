"""Fields of a batch beside its images: numbers, text, and masks, which are cropped and mirrored as their images are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray

from respipe.augment.policies import moves_pixels
from respipe.errors import CorruptImageError
from respipe.loading.placement import Placement
from respipe.planning.batch import BatchPlan
from respipe.planning.run import RunPlan
from respipe.storage.dataset import Dataset
from respipe.storage.masks import crop_mask, read_mask


def check_fields(fields: Sequence[str], dataset: Dataset) -> tuple[str, ...]:
    """Names of fields that a dataset has."""
    is_sequence = isinstance(cast(object, fields), Iterable) and not isinstance(fields, str)
    if not is_sequence or not all(isinstance(name, str) for name in fields):
        raise TypeError(f"`fields` must be a sequence of names; got {fields!r}. Pass for example ('label',).")
    known = ", ".join(f"`{name}`" for name in dataset.fields) or "none"
    if missing := [name for name in fields if name not in dataset.fields]:
        raise ValueError(
            f"`fields` must be names of the dataset's fields, which are {known}; got {missing[0]!r}. "
            "Convert the source again with respipe.convert(..., fields=...) to store more of them."
        )
    return tuple(fields)


def check_masks(fields: Iterable[str], dataset: Dataset, plan: RunPlan) -> None:
    """Refuse what would change an image and not its masks."""
    masks = [name for name in fields if dataset.fields[name].kind == "mask"]
    if masks and plan.policy.mix is not None:
        raise ValueError(f"`mixup` and `cutmix` must be left out with masks; `fields` names {masks[0]!r}.")
    views = (view for kind in plan.kinds(0) for view in kind.views)
    policies = (*plan.policy.augment, *(policy for view in views for policy in view.augment or ()))
    if masks and (moving := next(filter(moves_pixels, policies), None)):
        raise ValueError(
            f"`augment` must leave pixels in their places where `fields` names a mask, {masks[0]!r}; got {moving}. "
            "Pass policies of colour, blur and erasing alone."
        )


class BatchFields:
    """The fields of any batch, on the device.

    Args:
        dataset: where they are.
        names: which of them; those that the dataset lacks are left out.
        placement: what copies them.
        num_threads: threads that decode masks; they start with the first one.
    """

    def __init__(self, dataset: Dataset, names: Iterable[str], placement: Placement, num_threads: int) -> None:
        self._dataset, self._placement = dataset, placement
        self._names = [name for name in dict.fromkeys(names) if name in dataset.fields]
        self._threads = ThreadPoolExecutor(num_threads, "respipe-masks")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def of(self, plan: BatchPlan) -> dict[str, Any]:
        """Values by name: numbers as tensors, lists of text, and for masks what images have, a tensor or a tuple."""
        return {name: self._value(name, plan) for name in self._names}

    def _value(self, name: str, plan: BatchPlan) -> Any:
        column = self._dataset.fields[name]
        if column.kind != "mask":
            return self._placement.values(column.take(plan.indices))
        cropped = _cropped_masks(self._dataset, name, plan, self._threads)
        masks = tuple(self._placement.to_device(torch.from_numpy(one)) for one in cropped)
        return masks if len(masks) > 1 else next(iter(masks))


def _cropped_masks(dataset: Dataset, name: str, plan: BatchPlan, threads: Executor) -> tuple[NDArray[np.uint8], ...]:
    """The masks of a batch.

    Args:
        dataset: where they are.
        name: field of masks.
        plan: the batch.
        threads: what decodes them.

    Returns:
        (B, S, S) uint8 for each of the step's sizes, or crops where it has views; what lies outside an image is 0.

    Raises:
        CorruptImageError: a mask cannot be decoded, or is not as large as its image.
    """
    samples = np.unique(plan.indices).tolist()
    masks = dict(zip(samples, threads.map(_reader(dataset, name), samples), strict=True))
    return tuple(_crops(masks, plan))


def _reader(dataset: Dataset, name: str) -> Callable[[int], NDArray[np.uint8]]:
    column, largest = dataset.fields[name], dataset.levels[0]

    def read(index: int) -> NDArray[np.uint8]:
        try:
            mask = read_mask(column[index])
            if mask.shape != (largest.heights[index], largest.widths[index]):
                raise ValueError(f"it has {mask.shape[1]} x {mask.shape[0]} px, unlike its image")
        except ValueError as error:
            where = f"{dataset.path}: sample {index} ({dataset.name(index)})"
            raise CorruptImageError(f"{where}: its field `{name}`: {error}.", index=index) from error
        return mask

    return read


def _crops(masks: dict[int, NDArray[np.uint8]], plan: BatchPlan) -> Iterator[NDArray[np.uint8]]:
    for part in plan.views or (plan,):
        boxes = part.boxes_by_size()
        for number, size in enumerate(part.step.sizes):
            crops = np.empty((len(part), size, size), np.uint8)
            for row, index in enumerate(part.indices.tolist()):
                box = tuple(boxes[row, number].tolist())
                crops[row] = crop_mask(masks[index], box, (size, size), flip=bool(part.flips[row]))
            yield from crops.reshape(-1, len(plan), size, size) if part is not plan else (crops,)
