"""What is particular to the FFCV backend: it decodes no more of an image than its crop needs."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
import torch

from respipe.backends.registry import make_backend
from respipe.backends.routing import route
from respipe.errors import CorruptImageError
from respipe.planning.batch import BatchPlan
from respipe.schedules.step import Step
from tests.backends import sources
from tests.engines import needs_ffcv
from tests.memory_dataset import MemoryDataset

pytestmark = needs_ffcv


def top_left(size: int = 16) -> BatchPlan:
    """The first 30 x 30 pixels of every image."""
    count = len(sources.SHAPES)
    return BatchPlan(
        step=Step((size,), count),
        epoch=0,
        number=0,
        indices=np.arange(count),
        boxes=np.tile([0.0, 0.0, 30.0, 30.0], (count, 1)),
        flips=np.zeros(count, np.bool_),
    )


def pixels(dataset: MemoryDataset, plan: BatchPlan) -> torch.Tensor:
    with closing(make_backend("ffcv", dataset, device=torch.device("cpu"), num_threads=2)) as backend:
        backend.submit(route(dataset, plan, margin=1.5))
        return backend.collect()[0]


def test_damage_beside_the_crop_is_not_read() -> None:
    dataset = sources.tiled()
    expected = pixels(dataset, top_left())
    for index in range(len(dataset)):
        dataset.encoded(index)[-100:] = 0x55
    assert torch.equal(pixels(dataset, top_left()), expected)


def test_damage_within_the_crop_is_reported() -> None:
    dataset = sources.tiled()
    stored = dataset.encoded(3)
    first_marker = int(np.flatnonzero((stored[:-1] == 0xFF) & (stored[1:] == 0xD0))[0])
    stored[first_marker + 1] = 0xD1
    with pytest.raises(CorruptImageError, match="sample 3") as caught:
        pixels(dataset, top_left())
    assert caught.value.index == 3


def test_an_image_of_another_size_than_recorded_is_reported() -> None:
    dataset = sources.tiled()
    dataset.levels[0].widths[5] += 1
    with pytest.raises(CorruptImageError, match="sample 5"):
        pixels(dataset, top_left())
