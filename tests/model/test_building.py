from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision

from respipe.model.loading import build_model
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
        (
            "hub:resnet50",
            {},
            "must be torchvision's, begin with timm: or cifar:, or be module:callable; got hub:resnet50",
        ),
        ("json:resnet50", {}, "module 'json' has no attribute 'resnet50'"),
        ("builtins:dict", {}, "must be a callable that returns a module; builtins:dict made"),
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


def test_callables_of_ones_own_are_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(
        "from torch import nn\ndef small(width=2, num_classes=3):\n    return nn.Linear(width, num_classes)\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert build_model("my_networks:small", options={"width": 4}).weight.shape == (3, 4)
    assert build_model("my_networks:small", num_classes=5).weight.shape == (5, 2)
    assert sys.path == path


def test_without_a_number_of_classes_models_have_their_own() -> None:
    with torch.device("meta"):
        assert build_model("resnet18").fc.out_features == 1000
        assert build_model("cifar:resnet8").head.out_features == 10


def test_missing_timm_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install timm"):
        build_model("timm:resnet18", num_classes=2, options={})
