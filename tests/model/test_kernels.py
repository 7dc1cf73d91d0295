from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from respipe.cost.macs import counted
from respipe.model.lowmode import PooledConv2d, make_kernels_full, make_kernels_pooled
from respipe.model.resnet_cifar import ResNetCifar


class Stemmed(nn.Module):
    """A stem with max-pooling, a block with kernels of 3 and 5, and a branch that shortens its map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.conv3 = nn.Conv2d(6, 6, 5, padding=2, groups=6)
        self.late_pool = nn.MaxPool2d(2)
        self.conv4 = nn.Conv2d(6, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.maxpool(self.conv1(images).relu())
        features = features + self.bn2(self.conv2(features)).relu()
        return self.fc(self.conv4(self.late_pool(self.conv3(features))).mean((2, 3)))


def plain() -> Stemmed:
    torch.manual_seed(0)
    return Stemmed().eval()


def pooled(**options: Any) -> Stemmed:
    model = plain()
    make_kernels_pooled(model, 32, (16,), **options)
    return model


def images(size: int) -> torch.Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(size))


def by_hand(model: Stemmed, batch: torch.Tensor, *, drop_maxpool: bool = True) -> torch.Tensor:
    """What low mode computes, from the weights of a plain model."""
    features = model.conv1(batch).relu()
    if not drop_maxpool:
        features = model.maxpool(features)
    weight = model.conv2.weight.mean((2, 3), keepdim=True)
    features = features + model.bn2(nn.functional.conv2d(features, weight)).relu()
    weight = nn.functional.avg_pool2d(model.conv3.weight, 2, ceil_mode=True)
    features = nn.functional.conv2d(features, weight, model.conv3.bias, padding=1, groups=6)
    return model.fc(model.conv4(model.late_pool(features)).mean((2, 3)))


def test_small_images_meet_pooled_kernels_and_all_others_the_full_ones() -> None:
    model = pooled()
    for size in (32, 16, 24, 16, 40, 8):
        expected = by_hand(plain(), images(size)) if size == 16 else plain()(images(size))
        torch.testing.assert_close(model(images(size)), expected, rtol=1e-5, atol=1e-6)
        assert size == 16 or torch.equal(model(images(size)), expected)


def test_maxpool_of_the_stem_can_be_kept() -> None:
    model = pooled(drop_maxpool=False)
    expected = by_hand(plain(), images(16), drop_maxpool=False)
    torch.testing.assert_close(model(images(16)), expected, rtol=1e-5, atol=1e-6)


def test_gradients_are_those_of_the_computation_by_hand() -> None:
    model, other = pooled().train(), plain().train()
    model(images(16)).square().sum().backward()
    by_hand(other, images(16)).square().sum().backward()
    for (name, parameter), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, msg=name)
    torch.testing.assert_close(dict(model.state_dict()), dict(other.state_dict()))


def test_parameters_names_and_optimizer_state_stay() -> None:
    model = plain().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(images(32)).sum().backward()
    optimizer.step()
    parameters, state = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    momenta = copy.deepcopy(optimizer.state_dict())
    make_kernels_pooled(model, 32, (16,))
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert list(model.state_dict()) == list(state)
    torch.testing.assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict(), momenta, rtol=0, atol=0)
    model(images(16)).sum().backward()
    optimizer.step()
    plain().load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", [f"layer{i}.{j}.conv{k}" for i in (1, 2, 3, 4) for j in (0, 1) for k in (1, 2)]),
        ("resnet50", [f"layer{i}.{j}.conv2" for i, depth in enumerate((3, 4, 6, 3), start=1) for j in range(depth)]),
    ],
)
def test_layers_of_the_paper_are_pooled_by_default(name: str, expected: list[str]) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    assert list(make_kernels_pooled(model, 224, (112,))) == expected
    assert len(expected) == 16


@pytest.mark.parametrize(
    ("name", "drop_maxpool", "share"),
    [
        ("resnet18", True, 0.130),
        ("resnet18", False, 0.066),
        ("resnet50", True, 0.576),
        ("resnet50", False, 0.223),
    ],
)
def test_counted_operations_of_a_low_step_on_cifar(name: str, drop_maxpool: bool, share: float) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, num_classes=10)
    full = counted(model)(32)
    make_kernels_pooled(model, 32, (16,), drop_maxpool=drop_maxpool)
    count = counted(model)
    assert count(32) == full
    assert count(16) / full == pytest.approx(share, abs=0.001)


def test_number_of_pooled_layers_of_other_networks() -> None:
    for depth, block, number in ((20, "basic", 18), (56, "bottleneck", 18)):
        assert len(make_kernels_pooled(ResNetCifar(depth, block=block), 32, (16,))) == number
    model = timm.create_model("mobilenetv3_small_050", num_classes=3)
    wide = [one for one in model.modules() if isinstance(one, nn.Conv2d) and max(one.kernel_size) > 1]
    assert len(make_kernels_pooled(model, 64, (32,))) == len(wide) - 1


def test_maps_of_a_low_step_without_maxpooling_are_as_large_as_of_a_full_one() -> None:
    model = torchvision.models.resnet18(num_classes=3).eval()
    make_kernels_pooled(model, 64, (32,))
    shapes = list[tuple[int, ...]]()
    model.layer1.register_forward_hook(lambda *call: shapes.append(tuple(call[2].shape)))
    for size in (64, 32):
        model(images(size))
    assert shapes == [(4, 64, 16, 16)] * 2


def test_layers_can_be_named() -> None:
    model = plain()
    assert make_kernels_pooled(model, 32, (16, 8), layers=["conv1"]) == ("conv1",)
    assert isinstance(model.conv1, PooledConv2d)
    assert type(model.conv2) is nn.Conv2d
    assert type(model.maxpool) is nn.MaxPool2d  # runs after the only pooled layer


def test_each_size_has_kernels_of_its_own_ratio() -> None:
    model = plain()
    make_kernels_pooled(model, 32, (24, 16, 8))
    assert isinstance(model.conv2, PooledConv2d)
    assert isinstance(model.conv3, PooledConv2d)
    assert {side: pooling.kernel_size for side, pooling in model.conv2.poolings.items()} == {16: (1, 1), 8: (1, 1)}
    assert {side: pooling.kernel_size for side, pooling in model.conv3.poolings.items()} == {
        24: (3, 3), 16: (3, 3), 8: (1, 1),
    }  # fmt: skip
    for size in (32, 24, 16, 8):
        assert model(images(size)).shape == (4, 3)


def test_ratio_that_leaves_every_kernel_as_it_is_changes_nothing() -> None:
    model = ResNetCifar(8)
    assert make_kernels_pooled(model, 32, (24,)) == ()
    assert repr(model) == repr(ResNetCifar(8))
    assert model.__dict__.keys() == ResNetCifar(8).__dict__.keys()


def test_plain_model_is_recovered() -> None:
    model = pooled()
    assert make_kernels_full(model) == ("conv2", "conv3")
    assert repr(model) == repr(plain())
    assert all(
        module.__dict__.keys() == other.__dict__.keys() and not module._forward_hooks and not module._forward_pre_hooks
        for module, other in zip(model.modules(), plain().modules(), strict=True)
    )
    assert torch.equal(model(images(16)), plain()(images(16)))
    assert make_kernels_full(model) == ()
    assert make_kernels_pooled(model, 32, (16,)) == ("conv2", "conv3")


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copy_is_independent_of_the_original(duplicate: Any) -> None:
    original = pooled()
    made = duplicate(original)
    torch.testing.assert_close(made(images(16)), original(images(16)))
    make_kernels_full(made)
    torch.testing.assert_close(made(images(16)), plain()(images(16)))
    torch.testing.assert_close(original(images(16)), by_hand(plain(), images(16)), rtol=1e-5, atol=1e-6)


def test_failed_call_and_layers_called_by_themselves_leave_full_kernels() -> None:
    model = pooled()
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 5, 16, 16))
    features = torch.randn(1, 6, 16, 16)
    with pytest.warns(UserWarning, match="called outside of a call of the model"):
        assert torch.equal(model.conv2(features), plain().conv2(features))
    assert torch.equal(model(images(32)), plain()(images(32)))


def test_compiled_model_has_one_graph_for_each_size() -> None:
    graphs = list[Any]()

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model = torch.compile(pooled().train(), backend=backend, dynamic=False)
    for size in (32, 16, 24) * 2:
        model(images(size)).sum().backward()
    assert len(graphs) == 3
    model.eval()
    plain_model = plain()
    plain_model.load_state_dict(pooled().state_dict())
    fresh = torch.compile(pooled(), backend="eager", dynamic=False)
    torch.testing.assert_close(fresh(images(16)), by_hand(plain_model, images(16)), rtol=1e-5, atol=1e-6)


def test_other_layouts_and_precisions_work() -> None:
    expected = by_hand(plain(), images(16))
    model = pooled().to(memory_format=torch.channels_last)
    batch = images(16).to(memory_format=torch.channels_last)
    torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(pooled()(images(16)).float(), expected, rtol=0.05, atol=0.02)
    torch.testing.assert_close(pooled().double()(images(16).double()).float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low_sizes": ()}, "`low_sizes` must be sides in pixels below `full_size`, 32"),
        ({"low_sizes": (32,)}, "`low_sizes` must be"),
        ({"low_sizes": (0,)}, "`low_sizes` must be"),
        ({"reduce": "max"}, "`reduce` must be one of"),
        ({"layers": ["conv9"]}, "`layers` must name plain nn.Conv2d.*'conv9' is no layer"),
        ({"layers": ["bn2"]}, r"`layers` must name.*'bn2' is BatchNorm2d\(6"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_kernels_pooled(plain(), 32, **({"low_sizes": (16,)} | arguments))


def test_even_kernels_are_refused_by_name_and_left_out_by_default() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 4), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 7))
    with pytest.raises(ValueError, match=r"kernels of odd sides.*'1' is Conv2d\(4, 4, kernel_size=\(4, 4\)"):
        make_kernels_pooled(model, 32, (16,), layers=["1"])
    assert make_kernels_pooled(model, 32, (16,)) == ("2",)


def test_pooling_twice_and_undoing_elsewhere_are_refused() -> None:
    model = pooled()
    with pytest.raises(ValueError, match=r"`model` must have full kernels.*make_kernels_full"):
        make_kernels_pooled(model, 32, (8,))
    with pytest.raises(ValueError, match="must be the one that `make_kernels_pooled` was called with"):
        make_kernels_full(nn.Sequential(model))
