from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
import torchvision

from respipe.cost.macs import by_area, counted, expected_macs, mean_macs, relative_epoch_macs
from respipe.schedules import TRD, Constant, MixSize, Progressive, Step

# Table 1 of the TRD paper: ResNet-50, mean billions of operations and the saving in percent.
IMAGENET = {
    (112, 0.5): (2.58, 37),
    (112, 0.7): (1.96, 52),
    (112, 0.9): (1.34, 67),
    (84, 0.5): (2.35, 43),
    (84, 0.7): (1.64, 60),
    (84, 0.9): (0.93, 77),
    (56, 0.5): (2.19, 47),
    (56, 0.7): (1.42, 66),
    (56, 0.9): (0.64, 84),
}

# Full cost, and the cost printed for participations 0.3 and 0.5, in the unit of each row.
SMALL_IMAGES = {
    "ResNet-56": (90.34, 70.01, 56.46),
    "ResNet-110": (173.3, 134.31, 108.31),
    "VGG19-BN": (399.47, 309.59, 249.67),
    "DenseNet-100-12": (297.86, 230.84, 186.16),
    "DenseNet-190-40": (9.4, 7.29, 5.88),
    "WRN-28-10": (5.25, 4.07, 3.28),
    "ResNet-110, Tiny ImageNet": (693.26, 537.28, 433.29),
}


@pytest.mark.parametrize(("cell", "printed"), IMAGENET.items())
def test_trd_imagenet_table(cell: tuple[int, float], printed: tuple[float, int]) -> None:
    reduced_size, participation = cell
    cost = expected_macs(TRD(224, reduced_size, participation), by_area(4.12, 224))
    billions, saving = printed
    assert round(cost.per_image, 2) == billions
    # The paper derives its percentages from the rounded operations.
    assert round(100 * (1 - round(cost.per_image, 2) / 4.12)) == saving
    assert cost.relative == pytest.approx(cost.per_image / 4.12)


@pytest.mark.parametrize(("full", "at_30", "at_50"), SMALL_IMAGES.values(), ids=SMALL_IMAGES.keys())
def test_trd_small_image_tables(full: float, at_30: float, at_50: float) -> None:
    macs = by_area(full, 32)
    assert expected_macs(TRD(32, 16, 0.3), macs).per_image == pytest.approx(at_30, abs=0.02)
    assert expected_macs(TRD(32, 16, 0.5), macs).per_image == pytest.approx(at_50, abs=0.02)
    assert expected_macs(TRD(32, 16, 0.3), macs).relative == pytest.approx(0.775)
    assert expected_macs(TRD(32, 16, 0.5), macs).relative == pytest.approx(0.625)


def test_counted_operations_of_resnet50() -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet50()
    macs = counted(model)
    assert macs(224) == 4_089_184_256
    assert macs(112) == 1_077_899_264
    assert macs(84) == 684_342_016
    assert macs(56) == 299_027_456
    assert expected_macs(TRD(224, 84, 0.5), macs).per_image == pytest.approx(2.387e9, abs=5e5)
    assert expected_macs(TRD(224, 56, 0.9), macs).per_image == pytest.approx(0.678e9, abs=5e5)


class SmallNet(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = torch.nn.BatchNorm2d(4)
        self.linear = torch.nn.Linear(4, 5)
        self.num_calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        return self.linear(self.norm(self.convolution(images)).mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_counting_leaves_the_model_as_it_is(dtype: torch.dtype) -> None:
    model = SmallNet().to(dtype)
    state = copy.deepcopy(model.state_dict())
    assert counted(model)(10) == 10 * 10 * 4 * 3 * 9 + 4 * 5
    assert model.training
    assert model.norm.training
    assert model.num_calls == 0
    for name, value in model.state_dict().items():
        assert value.device.type == "cpu"
        assert torch.equal(value, state[name])


class NetWithTrainingHead(SmallNet):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs = super().forward(images)
        return outputs + super().forward(images) if self.training else outputs


def test_operations_of_training_alone_are_not_counted() -> None:
    assert counted(NetWithTrainingHead().train())(10) == counted(SmallNet())(10)


def test_each_size_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = SmallNet.forward

    def recorded(self: SmallNet, images: torch.Tensor) -> torch.Tensor:
        calls.append(images.shape[-1])
        return forward(self, images)

    monkeypatch.setattr(SmallNet, "forward", recorded)
    macs = counted(SmallNet())
    assert [macs(8), macs(16), macs(8), macs(16)] == [macs(8), macs(16)] * 2
    assert calls == [8, 16]


def test_constant_schedule_costs_its_size() -> None:
    cost = mean_macs(Constant(112), by_area(4, 224), num_epochs=2, num_samples=10, batch_size=5)
    assert (cost.per_image, cost.relative) == (1, 1)


def test_mean_over_a_ramp() -> None:
    schedule = Progressive(32, 64, start_epoch=1, end_epoch=2)
    cost = mean_macs(schedule, by_area(4, 64), num_epochs=4, num_samples=10, batch_size=5)
    assert cost.per_image == pytest.approx((1 + 1 + 4 + 4) / 4)
    assert cost.relative == pytest.approx(0.625)


def test_mean_counts_guarded_epochs() -> None:
    schedule = TRD(64, 32, 1.0, milestones=(3,), guard=(1, 1), final_full_epochs=1, num_epochs=10)
    cost = mean_macs(schedule, by_area(4, 64), num_epochs=10, num_samples=10, batch_size=5)
    assert cost.per_image == pytest.approx((3 * 4 + 7 * 1) / 10)


@pytest.mark.parametrize("unit", ["epoch", "step"])
def test_mean_of_an_exact_quota_is_the_expectation(unit: str) -> None:
    schedule = TRD(64, 32, 0.3, draw="quota", unit=unit, num_epochs=20)
    mean = mean_macs(schedule, by_area(4, 64), num_epochs=20, num_samples=100, batch_size=2)
    assert mean.per_image == pytest.approx(expected_macs(schedule, by_area(4, 64)).per_image)


@dataclass(frozen=True)
class Uneven:
    """Steps of different batch sizes and duplicates, and one of several sizes."""

    base_size: int = 64
    sizes: tuple[int, ...] = (64, 32)

    def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> list[Step]:
        return [Step((64,), 2), Step((32,), 4, duplicates=3), Step((64, 32), 5)]


def test_mean_is_weighted_by_images() -> None:
    cost = mean_macs(Uneven(), by_area(4, 64), num_epochs=3, num_samples=11, batch_size=2)
    assert cost.per_image == pytest.approx((2 * 4 + 12 * 1 + 5 * (4 + 1)) / 19)


def test_a_run_has_epochs() -> None:
    with pytest.raises(ValueError, match="`num_epochs` must be at least 1; got 0"):
        mean_macs(Constant(32), by_area(1, 32), num_epochs=0, num_samples=4, batch_size=2)


def test_epoch_costs_what_its_images_cost_however_many_there_are() -> None:
    run = {"num_epochs": 3, "num_samples": 11, "batch_size": 2}
    assert relative_epoch_macs(Constant(112), by_area(4, 224), **run) == 1
    assert relative_epoch_macs(TRD(64, 32, 1.0), by_area(4, 64), **run) == 0.25
    copies = MixSize({32: 1.0}, base_size=64, grow="duplicates")
    assert relative_epoch_macs(copies, by_area(4, 64), **run) == 1
    assert mean_macs(copies, by_area(4, 64), **run).relative == 0.25
