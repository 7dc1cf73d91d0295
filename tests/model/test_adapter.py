from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from respipe.errors import NoEffectWarning
from respipe.model.adapt import adapt, total_stride
from respipe.model.lowmode import PooledConv2d
from respipe.model.resnet_cifar import ResNetCifar
from respipe.schedules import TRD, Constant, LowMode, MixSize, Progressive, RSNet, Schedule, Step
from tests.model.test_pooling import FixedPoolNet

TORCHVISION = ["resnet18", "vgg11_bn", "mobilenet_v2", "densenet121", "efficientnet_b0"]
TIMM = ["resnet10t", "resnet26d", "mobilenetv3_small_050", "legacy_senet154"]


def small(name: str) -> nn.Module:
    with torch.device("meta"):
        if name in TORCHVISION:
            return torchvision.models.get_model(name, num_classes=3)
        return timm.create_model(name, num_classes=3)


@pytest.mark.parametrize("name", TORCHVISION + TIMM)
def test_models_that_pool_adaptively_are_left_alone_without_a_warning(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = small(name)
    before = repr(model)
    with caplog.at_level(logging.INFO):
        assert adapt(model, TRD(224, (160, 96), 0.5)) is model
    assert repr(model) == before
    assert "takes every size of the schedule as it is, 224, 160 and 96 px" in caplog.text


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_real_models_run_at_every_size_after_adapting(name: str) -> None:
    model = torchvision.models.get_model(name, num_classes=3).eval()
    schedule = Progressive(64, 128, start_epoch=0, end_epoch=4)
    adapt(model, schedule)
    for size in schedule.sizes:
        with torch.inference_mode():
            assert model(torch.zeros(1, 3, size, size)).shape == (1, 3)


def test_model_with_fixed_pooling_runs_at_every_size_after_adapting() -> None:
    schedule = TRD(32, (24, 16), 0.5)
    with pytest.raises(RuntimeError):
        FixedPoolNet()(torch.zeros(1, 3, 16, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = adapt(FixedPoolNet(), schedule)
    assert all(model(torch.zeros(1, 3, size, size)).shape == (1, 10) for size in schedule.sizes)


def test_pooling_is_replaced_once() -> None:
    model = adapt(FixedPoolNet(), Constant(32))
    before = repr(model)
    assert repr(adapt(model, Constant(32))) == before


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"batchnorm": "per_size"}, 'batchnorm="per_size"'),
        ({"kernels": "pooled"}, 'kernels="pooled"'),
        ({"layers": ["0"]}, "layers"),
    ],
)
def test_what_was_asked_for_and_had_no_effect_is_a_warning(options: dict[str, Any], asked: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.warns(NoEffectWarning, match=f"`{asked}` changed nothing: Sequential"):
        adapt(model, TRD(32, 16, 0.5), **options)


@pytest.mark.parametrize(
    ("model", "schedule", "message"),
    [
        (None, TRD(32, 16, 0.5), "`model` must be a torch.nn.Module; got NoneType"),
        (nn.Module, TRD(32, 16, 0.5), "`model` must be a torch.nn.Module; got type"),
        (nn.Identity(), 32, "`schedule` must be a schedule; got 32"),
        (nn.Identity(), TRD, "`schedule` must be a schedule"),
    ],
)
def test_what_is_no_model_or_no_schedule_is_refused(model: Any, schedule: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        adapt(model, schedule)


def test_schedule_of_ones_own_says_what_it_needs_of_a_model() -> None:
    @dataclass(frozen=True)
    class Halves:
        base_size: int = 32
        sizes: tuple[int, ...] = (32, 24, 16)
        batchnorm: str = "per_size"
        kernels: str = "pooled"

        def steps(self, epoch: int, *, num_samples: int, batch_size: int) -> list[Step]:
            return [Step((size,), batch_size) for size in self.sizes]

    model = adapt(ResNetCifar(8, width=4, num_classes=3), Halves())
    assert (per_size(model), pooled_at(model)) == ({"24", "16"}, {16})
    model = adapt(ResNetCifar(8, width=4, num_classes=3), Halves(batchnorm="shared", kernels="full"))
    assert (per_size(model), pooled_at(model)) == (set(), set())


def per_size(model: nn.Module) -> set[str]:
    """Sides that BatchNorms have tensors for, beside their own."""
    return {name.split("per_size.")[1].split(".")[0] for name in model.state_dict() if "per_size." in name}


def pooled_at(model: nn.Module) -> set[int]:
    """Sides at which kernels are pooled."""
    return {side for one in model.modules() if isinstance(one, PooledConv2d) for side in one.poolings}


@pytest.mark.parametrize(
    ("schedule", "options", "sizes", "pooled"),
    [
        (RSNet((32, 24, 16)), {}, {"24", "16"}, set()),
        (LowMode(32), {}, {"16"}, {16}),
        (LowMode(32), {"batchnorm": "shared"}, set(), {16}),
        (LowMode(32), {"kernels": "full"}, {"16"}, set()),
        (RSNet((32, 16)), {"batchnorm": "shared", "kernels": "pooled"}, set(), {16}),
        (MixSize("S28"), {"batchnorm": "per_size"}, {"32", "24", "16"}, set()),
        (TRD(32, (24, 16, 8), 0.5), {"kernels": "pooled"}, set(), {16, 8}),  # at 24 px 3 x 3 stays 3 x 3
        (TRD(32, 16, 0.5), {"batchnorm": "per_size", "kernels": "pooled"}, {"16"}, {16}),
    ],
)
def test_schedule_decides_what_changes_unless_told(
    schedule: Schedule, options: dict[str, Any], sizes: set[str], pooled: set[int], caplog: pytest.LogCaptureFixture
) -> None:
    model = ResNetCifar(8, width=4, num_classes=3)
    with caplog.at_level(logging.INFO), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert adapt(model, schedule, **options) is model
    assert (per_size(model), pooled_at(model)) == (sizes, pooled)
    assert ("9 BatchNorms have a set for each of" in caplog.text) == bool(sizes)
    assert ("6 convolutions pool their kernels below" in caplog.text) == bool(pooled)
    for size in schedule.sizes:
        model(torch.randn(2, 3, size, size)).sum().backward()


@pytest.mark.parametrize("schedule", [RSNet((32, 16)), LowMode(32)])
def test_full_size_is_computed_as_before(schedule: Schedule) -> None:
    torch.manual_seed(0)
    model, images = ResNetCifar(8, width=4, num_classes=3), torch.randn(4, 3, 32, 32)
    expected, names = model(images), list(model.state_dict())
    assert torch.equal(adapt(model, schedule)(images), expected)
    assert [name for name in model.state_dict() if ".per_size." not in name] == names


def test_network_without_batchnorm_needs_no_change_for_rsnet() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    before = repr(model)
    assert repr(adapt(model, RSNet((32, 16)))) == before


@pytest.mark.parametrize("schedule", [RSNet((32, 16)), LowMode(32)])
def test_what_was_done_is_not_done_again(schedule: Schedule) -> None:
    model = adapt(ResNetCifar(8, width=4), schedule)
    with pytest.raises(ValueError, match=r"layer 'stem.1' has several"):
        adapt(model, schedule)


def test_pooling_in_forward_is_refused_naming_the_size() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.fc(nn.functional.avg_pool2d(self.conv(images), 8).flatten(1))

    with pytest.raises(ValueError, match=r"every size of the schedule; at 64 px it raised RuntimeError"):
        adapt(Functional(), Progressive(32, 64, start_epoch=0, end_epoch=1))
    with pytest.raises(ValueError, match=r"at 16 px it raised RuntimeError.*adaptive pooling"):
        adapt(Functional(), TRD(32, 16, 0.5))


def test_size_that_the_stride_does_not_divide_is_logged_with_multiples_close_by(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        adapt(small("resnet18"), TRD(224, 112, 0.5))
    assert re.search(r"32 px does not divide 112 px.*96 and 128 px", caplog.text)


@pytest.mark.parametrize(
    ("name", "size", "stride"),
    [
        ("resnet18", 224, 32),
        ("resnet18", 84, 32),  # 84 px is itself no multiple
        ("densenet121", 96, 32),
        ("efficientnet_b0", 160, 32),
        ("vgg11_bn", 32, 32),
        ("resnet10t", 176, 32),
        ("vit_tiny_patch16_224", 224, 16),
    ],
)
def test_total_stride_is_measured(name: str, size: int, stride: int) -> None:
    assert total_stride(small(name), size) == stride


def test_total_stride_of_cifar_networks() -> None:
    assert total_stride(ResNetCifar(20), 32) == 4
    assert total_stride(ResNetCifar(20, stem_stride=2), 96) == 8
    assert total_stride(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), 30) == 1


def test_total_stride_of_networks_without_padding_is_unknown() -> None:
    with torch.device("meta"):
        model = torchvision.models.inception_v3(init_weights=False)
    assert total_stride(model, 299) is None


@pytest.mark.parametrize("field", ["batchnorm", "kernels"])
def test_unknown_choice_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"`{field}` must be one of"):
        adapt(FixedPoolNet(), Constant(32), **{field: "sometimes"})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deit_tiny_distilled_patch16_224", {"dynamic_img_size": True}),
        ("eva02_tiny_patch14_224", {"dynamic_img_size": True}),
        ("swin_tiny_patch4_window7_224", {"strict_img_size": False}),
        ("convnext_atto", {}),
    ],
)
def test_networks_with_layernorm_need_no_statistics_per_size(
    name: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    before = list(model.state_dict())
    with caplog.at_level(logging.INFO):
        adapt(model, RSNet((224, 112)))
    assert "it has no BatchNorm, so that it needs no statistics per size" in caplog.text
    assert list(model.state_dict()) == before
