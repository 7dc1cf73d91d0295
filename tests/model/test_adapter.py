from __future__ import annotations

import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn

from respipe.errors import NoEffectWarning
from respipe.model.adapter import adapt, total_stride
from respipe.model.resnet_cifar import ResNetCifar
from respipe.schedules import TRD, Constant, Progressive
from tests.model.test_pooling import FixedPoolNet

TORCHVISION = ["resnet18", "vgg11_bn", "mobilenet_v2", "densenet121", "efficientnet_b0"]
TIMM = ["resnet10t", "resnet26d", "mobilenetv3_small_050", "legacy_senet154"]


def small(name: str) -> nn.Module:
    with torch.device("meta"):
        if name in TORCHVISION:
            return torchvision.models.get_model(name, num_classes=3)
        return timm.create_model(name, num_classes=3)


@pytest.mark.parametrize("name", TORCHVISION + TIMM)
def test_models_that_pool_adaptively_are_left_alone_with_a_warning(name: str) -> None:
    model = small(name)
    before = repr(model)
    with pytest.warns(NoEffectWarning, match="already takes every size of the schedule, 224, 160 and 96 px"):
        assert adapt(model, TRD(224, (160, 96), 0.5)) is model
    assert repr(model) == before


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_real_models_run_at_every_size_after_adapting(name: str) -> None:
    model = torchvision.models.get_model(name, num_classes=3).eval()
    schedule = Progressive(64, 128, start_epoch=0, end_epoch=4)
    with pytest.warns(NoEffectWarning):
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


def test_adapting_twice_warns_that_nothing_was_left_to_do() -> None:
    model = adapt(FixedPoolNet(), Constant(32))
    with pytest.warns(NoEffectWarning):
        adapt(model, Constant(32))


def test_transformer_with_fixed_grid_is_refused_with_the_remedy() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", depth=1)
    with pytest.raises(ValueError, match=r"at 112 px it raised AssertionError.*dynamic_img_size=True"):
        adapt(model, TRD(224, 112, 0.5))


def test_transformer_with_dynamic_grid_is_accepted() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", depth=1, dynamic_img_size=True)
    with pytest.warns(NoEffectWarning):
        adapt(model, TRD(224, 112, 0.5))


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


def test_size_that_the_stride_does_not_divide_warns_with_multiples_close_by() -> None:
    with pytest.warns(NoEffectWarning), pytest.warns(UserWarning, match=r"32 px does not divide 112 px.*96 and 128 px"):
        adapt(small("resnet18"), TRD(224, 112, 0.5))


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
