from __future__ import annotations

import sys

import pytest
import torch
import torchvision

from pipelines.models import build_model
from respipe.model.resnet_cifar import ResNetCifar


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("mobilenet_v2", {"width_mult": 0.25}),
        ("timm:resnet10t", {"drop_path_rate": 0.1}),
        ("cifar:resnet20", {"width": 8}),
    ],
)
def test_models_are_built_by_name_with_the_given_classes(name: str, options: dict[str, float]) -> None:
    with torch.device("meta"):
        model = build_model(name, num_classes=7, options=options).eval()
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 7)


def test_small_stem_keeps_the_maps_of_small_images_large() -> None:
    with torch.device("meta"):
        model = build_model("resnet18", num_classes=10, options={"small_stem": True})
    assert isinstance(model, torchvision.models.ResNet)
    shapes = list[tuple[int, ...]]()
    for layer in (model.conv1, model.layer1, model.layer4):
        layer.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape[2:])))
    model(torch.empty(2, 3, 32, 32, device="meta"))
    assert shapes == [(32, 32), (16, 16), (2, 2)]


def test_names_without_prefix_are_torchvisions_and_cifar_takes_a_depth() -> None:
    with torch.device("meta"):
        assert isinstance(build_model("resnet18", num_classes=2, options={}), torchvision.models.ResNet)
        model = build_model("cifar:resnet56", num_classes=2, options={"block": "bottleneck"})
    assert isinstance(model, ResNetCifar)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet51", {}, "`model.name` must be a known model; got 'resnet51'. Did you mean .*resnet50"),
        ("timm:resnet51", {}, "got 'resnet51'. Did you mean"),
        ("hub:resnet50", {}, "must begin with timm: or cifar:"),
        ("cifar:vgg16", {}, "must be cifar:resnetDEPTH"),
        ("cifar:resnet21", {}, "`depth` must be 6n"),
        (
            "mobilenet_v2",
            {"small_stem": True},
            "`model` must be a ResNet whose first layer is `conv1`.*got MobileNetV2",
        ),
        ("resnet18", {"colour": "red"}, "`model.options` must be arguments of resnet18; got {'colour': 'red'}"),
    ],
)
def test_unknown_models_and_options_are_refused(name: str, options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, num_classes=2, options=options)


def test_missing_timm_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install timm"):
        build_model("timm:resnet18", num_classes=2, options={})
