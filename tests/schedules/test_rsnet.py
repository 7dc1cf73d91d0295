from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision

from respipe.cost.macs import by_area, counted, mean_macs, relative_epoch_macs
from respipe.schedules import RSNet, Step, View

PAPER = (224, 192, 160, 128, 96)
RUN = {"num_epochs": 2, "num_samples": 1000, "batch_size": 256}


def test_every_step_has_all_sizes_largest_first() -> None:
    steps = RSNet((96, 224, 160)).steps(5, num_samples=100, batch_size=30)
    assert list(steps) == [Step((224, 160, 96), 30)] * 3


def test_order_of_the_sizes_makes_no_difference() -> None:
    assert RSNet((np.int64(96), 224)) == RSNet([224, 96]) == RSNet((224, 96))
    assert repr(RSNet([96, 224])) == "RSNet(sizes=(224, 96))"


def test_step_of_the_papers_sizes_costs_2_7551_steps_of_the_largest() -> None:
    cost = relative_epoch_macs(RSNet(PAPER), by_area(1, 224), **RUN)
    assert round(cost, 4) == 2.7551
    assert mean_macs(RSNet(PAPER), by_area(1, 224), **RUN).relative == pytest.approx(cost)


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("resnet18", (1_814_073_344, 1_332_924_416, 925_798_400, 592_695_296, 333_615_104)),
        ("resnet50", (4_089_184_256, 3_004_841_984, 2_087_321_600, 1_336_623_104, 752_746_496)),
        ("mobilenet_v2", (300_774_272, 221_316_608, 154_083_200, 99_074_048, 56_289_152)),
    ],
)
def test_counted_operations_of_the_papers_models(name: str, macs: tuple[int, ...]) -> None:
    with torch.device("meta"):
        count = counted(torchvision.models.get_model(name))
    assert tuple(count(size) for size in PAPER) == macs
    assert mean_macs(RSNet(PAPER), count, **RUN).per_image == sum(macs)


def test_crops_of_their_own_may_have_one_size() -> None:
    schedule = RSNet((96, 224, 224), own_crops=True)
    assert schedule.steps(0, num_samples=9, batch_size=9)[0] == Step((224, 224, 96), 9, views=(View(224, 2), View(96)))
    assert repr(schedule) == "RSNet(sizes=(224, 224, 96), own_crops=True)"


@pytest.mark.parametrize("sizes", [(), (224, 224), (0,), (224, -1)])
def test_impossible_sizes_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`sizes` must be"):
        RSNet(sizes)


@pytest.mark.parametrize("sizes", ["224", 224, (224.5,), (True,)])
def test_sizes_of_wrong_types_are_refused(sizes: Any) -> None:
    with pytest.raises(TypeError, match="`sizes` must be"):
        RSNet(sizes)
