from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn

import respipe
from respipe.model.batchnorm import make_batchnorm_per_size
from respipe.model.extraction import extract
from respipe.model.kernels import make_kernels_pooled
from respipe.model.resnet_cifar import ResNetCifar
from respipe.schedules import LowMode, RSNet


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
def test_plain_model_is_exported(make: object) -> None:
    model = make()  # type: ignore[operator]
    program = torch.export.export(extract(model, 32), (images(32),))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images(32)), model(images(32)), rtol=1e-4, atol=1e-5)


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
