from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

import respipe
from respipe.model.adapt import extract
from respipe.model.batchnorm import make_batchnorm_per_size
from respipe.model.lowmode import make_kernels_pooled
from respipe.model.resnet_cifar import ResNetCifar
from respipe.schedules import LowMode, RSNet

Make = Callable[[], nn.Module]


def images(size: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed)) + size / 16


def trained(model: nn.Module, sizes: tuple[int, ...]) -> nn.Module:
    """The model after a few steps at each size, so that all its tensors differ."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for seed in range(3):
        for size in sizes:
            optimizer.zero_grad()
            model.train()(images(size, seed=seed)).logsumexp(1).sum().backward()
            optimizer.step()
    return model.eval()


def rsnet() -> nn.Module:
    torch.manual_seed(0)
    model = respipe.adapt(ResNetCifar(8, width=4, num_classes=3), RSNet((32, 24, 16)))
    return trained(model, (32, 24, 16))


def low_mode() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3)
    return trained(respipe.adapt(model, LowMode(64)), (64, 32))


@pytest.mark.parametrize("size", [32, 24, 16, 20, 8, 64])
def test_plain_model_computes_what_the_adapted_one_does_at_the_size(size: int) -> None:
    model = rsnet()
    plain = extract(model, size)
    assert not plain.training
    with torch.no_grad():
        torch.testing.assert_close(plain(images(size)), model(images(size)), rtol=1e-5, atol=1e-6)
        assert size in (32, 64) or not torch.allclose(plain(images(32)), model(images(32)))


def test_no_trace_of_the_other_sizes_is_left() -> None:
    model = rsnet()
    before = copy.deepcopy(model.state_dict())
    plain, bare = extract(model, 16), ResNetCifar(8, width=4, num_classes=3)
    assert repr(plain) == repr(bare)
    assert list(plain.state_dict()) == list(bare.state_dict())
    for module, other in zip(plain.modules(), bare.modules(), strict=True):
        assert module.__dict__.keys() == other.__dict__.keys()
        assert not (module._forward_hooks or module._forward_pre_hooks or module._load_state_dict_pre_hooks)
    bare.load_state_dict(plain.state_dict())
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0)


@pytest.mark.parametrize("size", [64, 32])
def test_low_mode_becomes_a_network_with_small_kernels(size: int) -> None:
    model = low_mode()
    plain = extract(model, size)
    with torch.no_grad():
        torch.testing.assert_close(plain(images(size)), model(images(size)), rtol=1e-4, atol=1e-5)
    convs = {type(one) for one in plain.modules() if isinstance(one, nn.Conv2d)}
    assert convs == {nn.Conv2d}
    layer = plain.get_submodule("layer1.0.conv1")
    assert isinstance(layer, nn.Conv2d)
    assert layer.kernel_size == ((3, 3) if size == 64 else (1, 1))
    assert type(plain.get_submodule("maxpool")) is (nn.MaxPool2d if size == 64 else nn.Identity)
    assert respipe.cost.counted(plain)(size) == respipe.cost.counted(model)(size)


def test_pooled_kernels_that_cut_their_input_are_extracted_too() -> None:
    torch.manual_seed(0)
    for padding, mode in ((0, "zeros"), ((1, 0), "reflect")):
        conv = nn.Conv2d(4, 4, 5, padding=padding, padding_mode=mode)
        model = nn.Sequential(nn.Conv2d(3, 4, 1), conv, nn.BatchNorm2d(4)).eval()
        make_batchnorm_per_size(model, (32, 16))
        make_kernels_pooled(model, 32, (16,))
        with torch.no_grad():
            torch.testing.assert_close(extract(model, 16)(images(16)), model(images(16)))


@pytest.mark.parametrize("make", [rsnet, low_mode])
@pytest.mark.parametrize("size", [64, 32, 24])
def test_plain_model_is_exported(make: Make, size: int) -> None:
    model = make()
    program = torch.export.export(extract(model, size), (images(size),))
    names = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    assert not any("per_size" in name or "pooling_" in name for name in names.values())
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(size)), model(images(size)), rtol=1e-4, atol=1e-5)


def test_exported_model_takes_batches_of_any_length() -> None:
    model = rsnet()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(extract(model, 24), (images(24),), dynamic_shapes=({0: batch},))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(24)[:1]), model(images(24)[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [rsnet, low_mode])
def test_plain_model_is_exported_to_onnx(make: Make, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx, which respipe does not")
    pytest.importorskip("onnxscript", reason="needs onnxscript, which respipe does not")
    from onnx.reference import ReferenceEvaluator

    model, path = make(), tmp_path / "model.onnx"
    torch.onnx.export(extract(model, 32), (images(32),), path, dynamo=True, verbose=False)
    (name,) = (one.name for one in onnx.load(path).graph.input)
    (found,) = ReferenceEvaluator(str(path)).run(None, {name: images(32).numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(images(32)), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("compile_", [torch.jit.script, lambda model: torch.jit.trace(model, images(32))])
@pytest.mark.parametrize("make", [rsnet, low_mode])
def test_plain_model_becomes_torchscript(
    make: Make, compile_: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    model = make()
    torch.jit.save(compile_(extract(model, 32)), tmp_path / "model.pt")
    with torch.no_grad():
        found = torch.jit.load(tmp_path / "model.pt")(images(32))
        torch.testing.assert_close(found, model(images(32)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mobilenet_v2", "timm:mobilenetv3_small_050", "timm:resnet10t"])
def test_models_of_torchvision_and_timm_are_extracted_and_exported(name: str) -> None:
    torch.manual_seed(0)
    library, _, model_name = name.rpartition(":")
    build = timm.create_model if library else torchvision.models.get_model
    model = respipe.adapt(build(model_name, num_classes=3), RSNet((64, 32)))
    for number, parameter in enumerate(model.parameters()):
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 1.0 + 0.01 * number)
    model.eval()
    plain = extract(model, 32)
    assert list(plain.state_dict()) == list(build(model_name, num_classes=3).state_dict())
    with torch.no_grad():
        expected = model(images(32))
        torch.testing.assert_close(plain(images(32)), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(extract(model, 64)(images(32)), expected, rtol=1e-2)
        program = torch.export.export(plain, (images(32),))
        torch.testing.assert_close(program.module()(images(32)), expected, rtol=1e-4, atol=1e-5)


def test_every_kind_of_batchnorm_is_extracted() -> None:
    class Kinds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.deep = nn.BatchNorm1d(3), nn.BatchNorm3d(3)
            self.sync = nn.SyncBatchNorm(3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = self.sync(images)
            return self.flat(self.deep(features.unsqueeze(2)).mean((2, 3, 4)))

    model = Kinds().eval()
    make_batchnorm_per_size(model, (32, 16), affine=True)
    for name, parameter in model.named_parameters():
        nn.init.constant_(parameter, 3.0 if "per_size.16" in name else 2.0)
    for size in (32, 16, 24):
        plain = extract(model, size)
        assert {type(one) for one in plain.children()} == {nn.BatchNorm1d, nn.BatchNorm3d, nn.SyncBatchNorm}
        assert list(plain.state_dict()) == list(Kinds().state_dict())
        torch.testing.assert_close(plain(images(size)), model(images(size)))
        assert plain.flat.weight[0] == {32: 2, 16: 3, 24: 2.5}[size]


def test_model_that_was_not_adapted_is_copied() -> None:
    model = ResNetCifar(8, width=4).train()
    plain = extract(model, 16)
    assert plain is not model
    assert plain.training
    torch.testing.assert_close(dict(plain.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_parts_wrappers_and_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="`size` must be at least 1; got 0"):
        extract(rsnet(), 0)
    with pytest.raises(ValueError, match="`model` must be the one"):
        extract(nn.Sequential(rsnet()), 16)
    with pytest.raises(ValueError, match="`model` must be the one"):
        extract(nn.Sequential(low_mode()), 32)
