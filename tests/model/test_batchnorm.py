from __future__ import annotations

import copy
import io
import pickle

import pytest
import timm
import torch
from torch import nn

from respipe.model.batchnorm import make_batchnorm_per_size, make_batchnorm_shared
from respipe.model.calibration import calibrate_batchnorm
from respipe.model.resnet_cifar import ResNetCifar

SIZES = (16, 24, 32, 40)


def images(size: int, *, seed: int = 0, width: int | None = None) -> torch.Tensor:
    """Brighter, the larger they are, so that the statistics of all sizes differ."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, size, width or size, generator=generator) + size / 16


def plain() -> ResNetCifar:
    torch.manual_seed(0)
    return ResNetCifar(8, width=4, num_classes=3).eval()


def calibrated_at(size: int) -> ResNetCifar:
    model = plain()
    calibrate_batchnorm(model, [images(size, seed=seed) for seed in range(3)], num_batches=3)
    return model


def split() -> ResNetCifar:
    """A model with calibrated statistics for each of ``SIZES``."""
    model = plain()
    make_batchnorm_per_size(model, SIZES)
    for size in SIZES:
        calibrate_batchnorm(model, [images(size, seed=seed) for seed in range(3)], num_batches=3)
    return model


def same(model: nn.Module, other: nn.Module, batch: torch.Tensor) -> bool:
    with torch.no_grad():
        return torch.allclose(model(batch), other(batch), rtol=1e-4, atol=1e-5)


def test_each_size_is_evaluated_with_its_own_statistics() -> None:
    model = split()
    for size in (*SIZES, *SIZES[::-1]):
        assert same(model, calibrated_at(size), images(size, seed=9))
        assert not same(model, plain(), images(size, seed=9))


@pytest.mark.parametrize(("side", "nearest"), [(8, 16), (19, 16), (20, 24), (21, 24), (28, 32), (33, 32), (64, 40)])
def test_other_sizes_use_the_nearest_statistics_and_the_larger_of_two(side: int, nearest: int) -> None:
    assert same(split(), calibrated_at(nearest), images(side))


def test_shorter_side_counts() -> None:
    model = split()
    assert same(model, calibrated_at(16), images(16, width=40))
    assert same(model, calibrated_at(16), images(40, width=16))


def test_names_and_values_of_what_was_there_stay() -> None:
    model, before = split(), plain()
    assert list(dict(model.named_parameters())) == list(dict(before.named_parameters()))
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in before.state_dict().items())
    added = {name for name in state if name not in before.state_dict()}
    norms = [name for name, module in before.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert added == {
        f"{norm}.per_size.{size}.{buffer}"
        for norm in norms
        for size in SIZES
        for buffer in ("running_mean", "running_var", "num_batches_tracked")
    }


def test_state_dict_restores_all_statistics() -> None:
    buffer = io.BytesIO()
    torch.save(split().state_dict(), buffer)
    buffer.seek(0)
    torch.manual_seed(5)
    model = ResNetCifar(8, width=4, num_classes=3).eval()
    make_batchnorm_per_size(model, SIZES)
    model.load_state_dict(torch.load(buffer, weights_only=True))
    for size in SIZES:
        assert same(model, split(), images(size, seed=9))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copy_is_independent_of_the_original(duplicate: object) -> None:
    original = split()
    made = duplicate(original)  # type: ignore[operator]
    assert isinstance(made, ResNetCifar)
    calibrate_batchnorm(made, [images(32, seed=99) * 5], num_batches=1)
    assert same(original, split(), images(32))
    assert not same(made, split(), images(32))
    assert same(made, split(), images(24))
    make_batchnorm_shared(made)
    assert same(made, plain(), images(24))
    assert same(original, split(), images(24))


def test_plain_model_is_recovered() -> None:
    model = split()
    names = make_batchnorm_shared(model)
    assert names == tuple(name for name, module in plain().named_modules() if isinstance(module, nn.BatchNorm2d))
    assert repr(model) == repr(plain())
    assert model.__dict__.keys() == plain().__dict__.keys()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain().state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert make_batchnorm_shared(model) == ()
    make_batchnorm_per_size(model, (16,))


def test_statistics_of_one_size_can_be_kept_for_all() -> None:
    model = split()
    make_batchnorm_shared(model, 24)
    for size in SIZES:
        assert same(model, calibrated_at(24), images(size))


def test_training_updates_the_statistics_of_the_size_alone() -> None:
    model, single = split().train(), calibrated_at(24).train()
    before = copy.deepcopy(model.state_dict())
    model(images(24, seed=7))
    single(images(24, seed=7))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".per_size.24." in name}
    assert same(model.eval(), single.eval(), images(24))


def test_training_at_a_size_without_statistics_is_refused() -> None:
    model = split().train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"sides 16, 24, 32, 40 px in training, .*; got 48 px"):
        model(images(48))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_gradients_are_those_of_the_plain_model() -> None:
    model, single = split().train(), plain().train()
    for network in (model, single):
        network(images(24)).square().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)


def test_failed_forward_pass_leaves_the_shared_statistics_in_place() -> None:
    model = split()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError):
        model(torch.zeros(2, 5, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert same(model, calibrated_at(40), images(40))


def test_interrupted_forward_pass_is_made_good_by_the_next() -> None:
    """An interruption by the keyboard runs no hooks."""
    model = split()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hook = model.head.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(images(16))
    hook.remove()
    assert same(model, calibrated_at(40), images(40))
    make_batchnorm_shared(model)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain().state_dict().items())


def test_images_given_by_name_count_too() -> None:
    model = split()
    with torch.no_grad():
        assert torch.equal(model(images=images(16)), model(images(16)))


def test_model_called_without_images_is_refused() -> None:
    with pytest.raises(TypeError, match=r"with a tensor of \(N, C, H, W\) images"):
        split()(torch.zeros(3, 3))


def test_other_kinds_of_batchnorm_take_part() -> None:
    model = timm.create_model("mobilenetv3_small_050", num_classes=3).eval()  # BatchNormAct2d
    other = nn.SyncBatchNorm.convert_sync_batchnorm(split())
    assert len(make_batchnorm_per_size(model, (32, 64))) == sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    calibrate_batchnorm(model, [images(64)], num_batches=1)
    with torch.no_grad():
        assert not torch.allclose(model(images(64)), model(images(32)).expand(4, 3))
    assert isinstance(other.stem[1], nn.SyncBatchNorm)
    assert same(other, calibrated_at(24), images(24))


def test_compiled_model_uses_the_statistics_of_each_size() -> None:
    model = torch.compile(split(), backend="eager")
    for size in (*SIZES, 20):
        assert same(model, split(), images(size, seed=9))


def test_layers_without_running_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm2d(3))
    assert make_batchnorm_per_size(model, (8,)) == ("1",)
    assert make_batchnorm_per_size(nn.Sequential(nn.Conv2d(3, 3, 1)), (8,)) == ()
    assert make_batchnorm_per_size(nn.BatchNorm2d(3), (8,)) == ("",)


@pytest.mark.parametrize("sizes", [(), (0,), (16, 16)])
def test_impossible_sizes_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`sizes` must be different sides in pixels"):
        make_batchnorm_per_size(plain(), sizes)


def test_splitting_twice_and_undoing_elsewhere_are_refused() -> None:
    model = split()
    with pytest.raises(ValueError, match=r"layer 'stem.1' has several.*make_batchnorm_shared"):
        make_batchnorm_per_size(model, (8,))
    with pytest.raises(ValueError, match="must be the one that `make_batchnorm_per_size` was called with"):
        make_batchnorm_shared(model.stages)
    with pytest.raises(ValueError, match="must be the one"):
        make_batchnorm_shared(nn.Sequential(model))
    with pytest.raises(ValueError, match="one of 16, 24, 32, 40 px, which have statistics; got 20"):
        make_batchnorm_shared(model, 20)
    assert same(model, split(), images(24))
