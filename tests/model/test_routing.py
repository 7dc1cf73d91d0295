"""Adapted models in the hands of others: what replaces, copies or traces their layers keeps them or is refused."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import timm
import torch
from timm.utils import ModelEmaV3
from timm.utils.model import freeze_batch_norm_2d
from torch import nn
from torch.ao.quantization import fuse_modules
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.optim.swa_utils import AveragedModel

import respipe
from respipe.model.batchnorm import make_batchnorm_per_size
from respipe.model.lowmode import make_kernels_pooled
from respipe.model.resnet_cifar import ResNetCifar
from respipe.schedules import LowMode, RSNet

SIZES = (32, 24, 16)


def images(size: int) -> torch.Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(size)) + size / 16


def scatter(model: nn.Module) -> nn.Module:
    """The model with all tensors of BatchNorm drawn at random, in evaluation mode."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 and not name.startswith(("head", "fc")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model.eval()


def adapted(schedule: Any = None) -> nn.Module:
    torch.manual_seed(0)
    return scatter(respipe.adapt(ResNetCifar(8, width=4, num_classes=3), schedule or RSNet(SIZES)))


def logits(model: nn.Module) -> list[torch.Tensor]:
    with torch.no_grad():
        return [model(images(size)) for size in (*SIZES, 20)]


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "keep",
    [
        copy.deepcopy,
        saved_and_loaded,
        lambda model: ModelEmaV3(model).module,
        lambda model: AveragedModel(model, use_buffers=True).module,
        nn.SyncBatchNorm.convert_sync_batchnorm,
        timm.layers.convert_sync_batchnorm,
        lambda model: model.train().eval(),
        nn.Sequential,
        lambda model: model.double().float(),
    ],
    ids=["deepcopy", "torch.save", "timm EMA", "AveragedModel", "SyncBatchNorm", "timm SyncBatchNorm", "modes",
         "part of a model", "dtypes"],
)  # fmt: skip
def test_what_copies_or_converts_a_model_keeps_every_size(keep: Any) -> None:
    expected = logits(adapted())
    assert not torch.allclose(expected[0], expected[2])
    torch.testing.assert_close(logits(keep(adapted())), expected)


def test_batchnorm_of_timm_with_activation_keeps_its_sets_when_synchronized() -> None:
    model = scatter(respipe.adapt(timm.create_model("mobilenetv3_small_050", num_classes=3), RSNet((64, 32))))
    with torch.no_grad():
        expected = [model(images(size)) for size in (64, 32, 48)]
        converted = timm.layers.convert_sync_batchnorm(model)
        torch.testing.assert_close([converted(images(size)) for size in (64, 32, 48)], expected)


def fuse_first(model: nn.Module) -> nn.Module:
    stem = model.get_submodule("stem")
    stem[0] = fuse_conv_bn_eval(stem[0], stem[1])  # type: ignore[operator, index]
    stem[1] = nn.Identity()  # type: ignore[operator]
    return model


@pytest.mark.parametrize(
    ("change", "found"),
    [(freeze_batch_norm_2d, "FrozenBatchNorm2d"), (fuse_first, "Identity")],
    ids=["timm's freezing", "fusing"],
)
def test_what_replaces_a_layer_that_goes_by_the_size_is_refused_by_name(change: Any, found: str) -> None:
    changed = change(adapted())
    with pytest.raises(RuntimeError, match=rf"must keep the layers .*'stem.1' is {found} now.*respipe.extract"):
        changed(images(32))
    torch.testing.assert_close(change(respipe.extract(adapted(), 24))(images(24)), adapted()(images(24)))


def test_block_that_is_replaced_is_refused_and_one_that_is_wrapped_is_not() -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return self.inner(features)

    expected, model = logits(adapted()), adapted()
    model.stages[1] = Wrapper(model.stages[1])  # type: ignore[index, operator]
    torch.testing.assert_close(logits(model), expected)
    model.stages[1] = nn.Identity()  # type: ignore[operator]
    with pytest.raises(RuntimeError, match=r"'stages.1.inner.0.residual.0.1' is gone now, and \d+ more"):
        model(images(32))


def test_replaced_convolution_of_low_mode_is_refused_by_name() -> None:
    model = adapted(LowMode(32))
    model.stages[0][0].residual[0][0] = nn.Conv2d(4, 4, 3, padding=1)  # type: ignore[index, operator]
    with pytest.raises(RuntimeError, match=r"'stages\.0\.0\.residual\.0\.0' is Conv2d now"):
        model(images(16))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_fusing_by_torch_ao_and_tracing_are_refused() -> None:
    with pytest.raises(AssertionError, match=r"did not find fuser method for.*PerSizeBatchNorm2d"):
        fuse_modules(adapted(), [["stem.0", "stem.1"]])
    for schedule in (RSNet(SIZES), LowMode(32)):
        with pytest.raises(RuntimeError, match=r"`torch.fx` cannot trace an adapted model.*respipe.extract"):
            torch.fx.symbolic_trace(adapted(schedule))
    with pytest.raises(RuntimeError, match=r"`torch.jit.trace` would keep one size"):
        torch.jit.trace(adapted(), images(32))
    for schedule in (RSNet(SIZES), LowMode(32)):
        with pytest.raises(RuntimeError, match=r"`torch.jit.script` cannot compile an adapted model.*respipe.extract"):
            torch.jit.script(adapted(schedule))


def test_layers_used_without_the_model_warn_once() -> None:
    model = adapted()
    part = nn.Sequential(*list(model.children())[:3])
    with pytest.warns(UserWarning, match="called outside of a call of the model"):
        part(images(16))
    part(images(16))


@pytest.mark.parametrize("size", [12, 20, 24, 28, 31, 40, 64])
def test_low_mode_off_its_low_size_is_the_full_network(size: int) -> None:
    model = adapted(LowMode(32))
    with torch.no_grad():
        assert torch.equal(model(images(size)), respipe.extract(model, 32)(images(size)))
        assert torch.equal(respipe.extract(model, size)(images(size)), model(images(size)))
        assert not torch.allclose(model(images(16)), respipe.extract(model, 32)(images(16)))


def test_sizes_with_pooled_kernels_take_no_part_in_interpolation() -> None:
    """At 24 px, three quarters of 32, 3 x 3 kernels stay; at 16 px they are pooled."""
    model = adapted()
    make_kernels_pooled(model, 32, (24, 16))
    full = adapted()
    with torch.no_grad():
        torch.testing.assert_close(model(images(28)), full(images(28)))
        assert torch.equal(model(images(20)), respipe.extract(full, 24)(images(20)))
        assert torch.equal(model(images(8)), respipe.extract(full, 24)(images(8)))


def test_statistics_alone_are_those_of_the_nearest_size_with_full_kernels() -> None:
    model = ResNetCifar(8, width=4, num_classes=3)
    make_batchnorm_per_size(model, SIZES)
    make_kernels_pooled(scatter(model), 32, (16,))
    with torch.no_grad():
        assert torch.equal(model(images(18)), respipe.extract(model, 24)(images(18)))


def test_sizes_with_pooled_kernels_alone_leave_nothing_for_others() -> None:
    model = ResNetCifar(8, width=4, num_classes=3)
    make_batchnorm_per_size(model, (16, 8), affine=True)
    make_kernels_pooled(model.eval(), 32, (16, 8))
    with pytest.raises(ValueError, match="one of the sides 8, 16 px, at which kernels are pooled"):
        model(images(32))


def test_state_of_low_mode_from_before_is_loaded_under_the_same_names() -> None:
    model = adapted(LowMode(32))
    added = [name for name in model.state_dict() if name not in ResNetCifar(8, width=4, num_classes=3).state_dict()]
    tensors = ("running_mean", "running_var", "num_batches_tracked", "weight", "bias")
    assert {name.split("per_size.")[1] for name in added} == {f"16.{tensor}" for tensor in tensors}


@pytest.mark.parametrize("schedule", [RSNet(SIZES), LowMode(32)])
def test_channels_last_changes_nothing(schedule: Any) -> None:
    model = adapted(schedule).to(memory_format=torch.channels_last)
    for size in (*SIZES, 20):
        batch = images(size).to(memory_format=torch.channels_last)
        with torch.no_grad():
            torch.testing.assert_close(model(batch), adapted(schedule)(images(size)), rtol=1e-4, atol=1e-4)
