"""BatchNorm with weights and biases of its own for every size, beside its statistics."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.ao.quantization import FakeQuantize, MovingAveragePerChannelMinMaxObserver
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from respipe.model.batchnorm import make_batchnorm_per_size, make_batchnorm_shared
from respipe.model.calibration import calibrate_batchnorm
from respipe.model.resnet_cifar import ResNetCifar
from respipe.training.objective import MRED

SIZES = (16, 24, 32)


def images(size: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(seed)) + size / 16


def plain() -> ResNetCifar:
    """A model whose BatchNorms have something to lose."""
    torch.manual_seed(0)
    return scatter(ResNetCifar(8, width=4, num_classes=3), seed=0)


def scatter(model: ResNetCifar, *, seed: int) -> ResNetCifar:
    """Give the model's BatchNorms random tensors."""
    generator = torch.Generator().manual_seed(seed)
    for norm in norms_of(model):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            assert tensor is not None
            tensor.data = torch.rand(tensor.shape, generator=generator) + 0.5
    return model.eval()


def norms_of(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def scattered(size: int) -> ResNetCifar:
    """The plain model with the BatchNorms that :func:`private` has at a size."""
    return plain() if size == 32 else scatter(plain(), seed=size)


def private() -> ResNetCifar:
    """A model with BatchNorms of its own at each of ``SIZES``; the largest has those of the plain model."""
    model = plain()
    make_batchnorm_per_size(model, SIZES, affine=True)
    for size in SIZES[:-1]:
        for norm, other in zip(norms_of(model), norms_of(scattered(size)), strict=True):
            norm.get_submodule(f"per_size.{size}").load_state_dict(other.state_dict())
    return model


def between(size: int, other: int, weight: float) -> ResNetCifar:
    """The plain model with BatchNorms between those of two sizes."""
    model = scattered(size)
    for norm, end in zip(norms_of(model), norms_of(scattered(other)), strict=True):
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).data = (1 - weight) * getattr(norm, name).data + weight * getattr(end, name).data
    return model


def same(model: nn.Module, other: nn.Module, batch: torch.Tensor) -> bool:
    with torch.no_grad():
        return torch.allclose(model(batch), other(batch), rtol=1e-4, atol=1e-5)


def test_converted_model_computes_the_same_at_every_size() -> None:
    model = plain()
    names = make_batchnorm_per_size(model, SIZES, affine=True)
    assert len(names) == len(norms_of(plain()))
    for size in (*SIZES, 20, 8, 48):
        with torch.no_grad():
            torch.testing.assert_close(model(images(size)), plain()(images(size)))


def test_each_size_has_tensors_of_its_own() -> None:
    model = private()
    for size in (*SIZES, *SIZES[::-1]):
        assert same(model, scattered(size), images(size))
        assert size == 32 or not same(model, plain(), images(size))


@pytest.mark.parametrize(
    ("side", "ends", "weight"),
    [(20, (16, 24), 0.5), (18, (16, 24), 0.25), (30, (24, 32), 0.75), (8, (16, 24), 0.0), (48, (24, 32), 1.0)],
)
def test_sides_between_sizes_are_interpolated_and_those_beyond_clamped(
    side: int, ends: tuple[int, int], weight: float
) -> None:
    assert same(private(), between(*ends, weight), images(side))


@pytest.mark.parametrize(
    ("name", "total"), [("resnet18", 11_727_912), ("resnet50", 25_769_512), ("mobilenet_v2", 3_641_320)]
)
def test_parameters_of_the_papers_networks_with_five_sizes(name: str, total: int) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
        loss = MRED(5)
    before = sum(parameter.numel() for parameter in model.parameters())
    make_batchnorm_per_size(model, (224, 192, 160, 128, 96), affine=True)
    after = sum(parameter.numel() for parameter in model.parameters())
    assert after == total
    assert after - before == 4 * sum(norm.weight.numel() + norm.bias.numel() for norm in norms_of(model))
    assert sum(parameter.numel() for parameter in loss.parameters()) == 5


def test_gradients_reach_the_shared_weights_and_the_private_ones_of_the_size_alone() -> None:
    model, single = private().train(), scattered(24).train()
    for network in (model, single):
        network(images(24)).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in single.named_parameters():
        is_norm = name.replace("weight", "").replace("bias", "") != name and parameter.ndim == 1
        if is_norm and not name.startswith("head"):
            stem, _, tensor = name.rpartition(".")
            assert gradients.pop(name) is None
            torch.testing.assert_close(gradients.pop(f"{stem}.per_size.24.{tensor}"), parameter.grad)
        else:
            torch.testing.assert_close(gradients.pop(name), parameter.grad)
    assert gradients
    assert all(".per_size.16." in name and gradient is None for name, gradient in gradients.items())


def test_statistics_move_at_the_size_alone() -> None:
    model = private().train()
    for size in SIZES:
        before = copy.deepcopy(model.state_dict())
        model(images(size))
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        moved = {name for name in before if ".running_" in name or ".num_batches" in name}
        part = f".per_size.{size}."
        assert changed == {name for name in moved if part in name or (size == 32 and ".per_size." not in name)}


def test_training_at_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sides 16, 24, 32 px in training.*; got 20 px"):
        private().train()(images(20))


def test_state_is_restored() -> None:
    buffer = io.BytesIO()
    torch.save(private().state_dict(), buffer)
    buffer.seek(0)
    model = ResNetCifar(8, width=4, num_classes=3).eval()
    make_batchnorm_per_size(model, SIZES, affine=True)
    model.load_state_dict(torch.load(buffer, weights_only=True))
    assert all(same(model, private(), images(size)) for size in (*SIZES, 20))


@pytest.mark.parametrize("affine", [True, False])
def test_plain_checkpoint_gives_its_tensors_to_every_size(affine: bool) -> None:
    model = ResNetCifar(8, width=4, num_classes=3).eval()
    make_batchnorm_per_size(model, SIZES, affine=affine)
    checkpoint = plain().state_dict()
    names = list(checkpoint)
    model.load_state_dict(checkpoint)
    assert list(checkpoint) == names
    assert all(same(model, plain(), images(size)) for size in SIZES)
    outer = nn.Sequential(model)
    outer.load_state_dict(nn.Sequential(scattered(16)).state_dict())
    assert all(same(outer, scattered(16), images(size)) for size in SIZES)


def test_checkpoint_that_lacks_a_part_of_a_size_is_refused() -> None:
    state = private().state_dict()
    del state["stem.1.per_size.24.bias"]
    with pytest.raises(RuntimeError, match=r"Missing key.*stem.1.per_size.24.bias"):
        private().load_state_dict(state)


@pytest.mark.parametrize("size", [None, *SIZES])
def test_plain_model_of_a_size_is_recovered(size: int | None) -> None:
    model = private()
    make_batchnorm_shared(model, size)
    assert repr(model) == repr(plain())
    assert model.__dict__.keys() == plain().__dict__.keys()
    assert not model._forward_hooks
    assert not model._load_state_dict_pre_hooks
    torch.testing.assert_close(dict(model.state_dict()), dict(scattered(size or 32).state_dict()))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copy_is_independent_of_the_original(duplicate: Any) -> None:
    original = private()
    made = duplicate(original)
    for parameter in made.parameters():
        parameter.data.zero_()
    made.load_state_dict(plain().state_dict())
    for size in SIZES:
        assert same(original, scattered(size), images(size))
        assert same(made, plain(), images(size))


def test_average_of_weights_over_steps_covers_every_size() -> None:
    model = private()
    average = AveragedModel(model, use_buffers=True)
    average.update_parameters(model)
    assert all(same(average, scattered(size), images(size)) for size in SIZES)


def test_calibration_measures_each_size() -> None:
    model, single = private(), scattered(24)
    for network in (model, single):
        calibrate_batchnorm(network, [images(24, seed=seed) for seed in range(3)], num_batches=3)
    assert same(model, single, images(24))
    assert same(model, scattered(32), images(32))


@pytest.mark.parametrize("first", ["synchronize", "divide"])
def test_synchronized_batchnorm_takes_part(first: str) -> None:
    model = plain()
    if first == "divide":
        model = private()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if first == "synchronize":
        make_batchnorm_per_size(model, SIZES, affine=True)
    assert isinstance(model.stem[1], nn.SyncBatchNorm)
    expected = plain() if first == "synchronize" else scattered(16)
    assert same(model, expected, images(16))


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm1d(3), (2, 3)), (nn.BatchNorm3d(3), (2, 3, 2, 4, 4)), (nn.BatchNorm2d(3), None)]
)
def test_every_kind_of_batchnorm_takes_part(norm: nn.Module, shape: tuple[int, ...] | None) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = copy.deepcopy(norm)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.norm(images if shape is None else images.flatten()[: torch.Size(shape).numel()].reshape(shape))

    model = Network().eval()
    assert make_batchnorm_per_size(model, SIZES, affine=True) == ("norm",)
    nn.init.constant_(model.get_parameter("norm.per_size.16.bias"), 5.0)
    for size in SIZES:
        expected = copy.deepcopy(norm).eval()
        nn.init.constant_(expected.get_parameter("bias"), 5.0 if size == 16 else 0.0)
        bare = Network().eval()
        bare.norm = expected
        torch.testing.assert_close(model(images(size)), bare(images(size)))


def test_batchnorm_with_activation_keeps_it() -> None:
    model = timm.create_model("mobilenetv3_small_050", num_classes=3).eval()
    expected = copy.deepcopy(model)
    make_batchnorm_per_size(model, (64, 32), affine=True)
    with torch.no_grad():
        for size in (64, 32, 48):
            torch.testing.assert_close(model(images(size)), expected(images(size)))


def test_layers_without_statistics_or_without_weights_have_what_they_have_per_size() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.BatchNorm2d(3, affine=False),
        nn.BatchNorm2d(3, affine=False, track_running_stats=False),
    )
    assert make_batchnorm_per_size(model, (8, 4), affine=True) == ("0", "1")
    assert set(model.state_dict()) == {
        *("0.weight", "0.bias", "0.per_size.4.weight", "0.per_size.4.bias"),
        *(f"1.{part}{name}" for part in ("", "per_size.4.") for name in ("running_mean", "running_var")),
        *("1.num_batches_tracked", "1.per_size.4.num_batches_tracked"),
    }
    assert model(images(4)).shape == (4, 3, 4, 4)


def test_quantized_weights_are_trained_with_batchnorm_of_each_size() -> None:
    """Fake quantisation of the shared weights, which RS-Nets are trained with too."""
    model = private().train()
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for conv in convs:
        observer = MovingAveragePerChannelMinMaxObserver
        quantize = FakeQuantize(observer, -8, 7, dtype=torch.qint8, qscheme=torch.per_channel_symmetric)
        parametrize.register_parametrization(conv, "weight", quantize)
    for size in SIZES:
        model(images(size)).square().sum().backward()
    assert all(norm.get_parameter("per_size.16.weight").grad is not None for norm in norms_of(model))
    assert all(len(row.unique()) <= 16 for conv in convs for row in conv.weight)
    restored = copy.deepcopy(model).eval()
    restored.load_state_dict(model.state_dict())
    assert all(same(restored, model.eval(), images(size)) for size in (*SIZES, 20))


def test_compiled_model_has_one_graph_for_each_size() -> None:
    graphs = list[Any]()

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    model, single = torch.compile(private().train(), backend=backend, dynamic=False), scattered(16).train()
    for size in SIZES * 2:
        model(images(size)).sum().backward()
    assert len(graphs) == len(SIZES)
    for network in (model, single):
        network.zero_grad()
        network(images(16)).square().sum().backward()
    gradients = dict(model.named_parameters())
    torch.testing.assert_close(gradients["_orig_mod.stem.1.per_size.16.weight"].grad, single.stem[1].weight.grad)
    torch.testing.assert_close(gradients["_orig_mod.head.weight"].grad, single.head.weight.grad)


def test_other_layouts_and_precisions_work_at_every_size() -> None:
    model = private().to(memory_format=torch.channels_last)
    for size in (*SIZES, 20):
        batch = images(size).to(memory_format=torch.channels_last)
        with torch.no_grad():
            expected = private()(images(size))
            torch.testing.assert_close(model(batch), expected, rtol=1e-4, atol=1e-5)
            with torch.autocast("cpu", torch.bfloat16):
                torch.testing.assert_close(model(batch).float(), expected, rtol=0.05, atol=0.05)
            torch.testing.assert_close(private().double()(images(size).double()).float(), expected)


def test_a_parametrization_that_would_hide_the_weights_of_a_size_is_refused() -> None:
    for affine in (False, True):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        make_batchnorm_per_size(model, (16, 8), affine=affine)
        parametrize.register_parametrization(model[1], "weight", nn.Softplus())
        model(torch.ones(2, 3, 16, 16))
        if affine:
            with pytest.raises(RuntimeError, match=r"BatchNorm2d\(4\) was parametrized"):
                model(torch.ones(2, 3, 8, 8))
        else:
            model(torch.ones(2, 3, 8, 8))
