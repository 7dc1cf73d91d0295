"""``assert_resumes_exactly``: that loaders pass it, and that it finds those that do not resume exactly."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

import respipe
from respipe.loading.loader import Loader
from respipe.planning.crops import Draws, Sides
from respipe.sampling import RandomResizedCrop
from respipe.schedules import Constant, RSNet
from tests.engines import needs_dali, needs_ffcv
from tests.loaders import SCHEDULE, InTurn, Mixed, make
from tests.memory_dataset import MemoryDataset

SHAPES = [(40 + 3 * i % 17, 60 - 5 * i % 23) for i in range(21)]


def make_loader(schedule: Any = SCHEDULE, **options: Any) -> Loader:
    return make(MemoryDataset(SHAPES, fractions=(0.5,), tiled=True), schedule, **options)


@pytest.mark.parametrize(
    "backend",
    ["reference", "tiles", pytest.param("ffcv", marks=needs_ffcv), pytest.param("dali", marks=needs_dali)],
)
def test_every_schedule_resumes_exactly_on_every_backend(backend: str) -> None:
    loader = partial(make_loader, InTurn(), backend=backend)
    respipe.testing.assert_resumes_exactly(loader, num_epochs=len(InTurn.schedules), tail=6)


def make_evaluation() -> Loader:
    # The last of three batches is short, and one rank has no sample of it.
    return make_loader(Constant(16), batch_size=10, training=False, rank=0, world_size=3, with_spec=False)


def test_evaluation_resumes_exactly() -> None:
    assert [len(labels) for _, labels in make_evaluation()] == [3, 3, 0]
    respipe.testing.assert_resumes_exactly(make_evaluation)


def make_mixing() -> Loader:
    mix = v2.RandomChoice([v2.MixUp(num_classes=3), v2.CutMix(num_classes=3)])
    return make_loader(batch_transform=mix, rank=1, world_size=2, dtype=torch.bfloat16, num_prefetch=1)


def test_what_batch_transforms_draw_resumes_exactly() -> None:
    respipe.testing.assert_resumes_exactly(make_mixing, steps=(0, 3, 5, 9))


class Drifting(RandomResizedCrop):
    """Draws from a state of its own, which a new loader does not have."""

    calls = itertools.count()

    def boxes(
        self, heights: Sides, widths: Sides, *, size: int | NDArray[np.int64], draws: Draws
    ) -> NDArray[np.float64]:
        boxes = super().boxes(heights, widths, size=size, draws=draws)
        boxes[5, 0] = next(self.calls)
        return boxes


class Forgetful(Loader):
    """Starts its epoch anew."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict({**state_dict, "step": 0})


def make_drifting() -> Loader:
    return make_loader(RSNet((32, 16)), crop=Drifting())


def make_forgetful() -> Loader:
    return Forgetful(MemoryDataset(SHAPES), Mixed(), batch_size=4, backend="reference")


def make_dying(parent: int) -> Loader:
    if os.getpid() != parent:
        os._exit(3)
    return make_loader()


NOT_EXACT = {
    "drifting": (
        make_drifting,
        r"Resumed at step 0 of epoch 1: the batch at step \d of epoch 1 differs: the pixels at 32 px of image \d "
        r"\(sample 5\), and 0 more of 4",
    ),
    "forgetful": (
        make_forgetful,
        "Resumed at step 2 of epoch 0: the batch at step 2 of epoch 0 differs: step 0 of epoch 0 came",
    ),
    "dying": (partial(make_dying, os.getpid()), "The process that resumed has ended"),
}


@pytest.mark.parametrize(("loader", "message"), NOT_EXACT.values(), ids=NOT_EXACT)
def test_what_does_not_resume_exactly_is_found(loader: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        respipe.testing.assert_resumes_exactly(loader, steps=(2, 5))


@pytest.mark.parametrize(
    ("loader", "options", "error", "message"),
    [
        (
            lambda: make(MemoryDataset(SHAPES)),
            {},
            TypeError,
            "`make_loader` must be a function that can be pickled.*top level",
        ),
        (partial(int, "3"), {}, TypeError, "`make_loader` must return a respipe.Loader; got 3"),
        (make_loader, {"num_epochs": 0}, ValueError, "`num_epochs`"),
        (make_loader, {"tail": 0}, ValueError, "`tail`"),
        (make_loader, {"steps": (3, 99)}, ValueError, r"`steps` must lie in 0\.\.10"),
    ],
)
def test_wrong_arguments_are_refused(loader: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        respipe.testing.assert_resumes_exactly(loader, **options)
