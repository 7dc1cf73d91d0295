from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

import respipe
from respipe.errors import NoEffectWarning
from respipe.model.batchnorm import make_batchnorm_per_size
from respipe.model.calibration import apply_statistics, calibrate_batchnorm
from respipe.model.resnet_cifar import ResNetCifar
from respipe.schedules import Constant

# The worked example of methods that are easy to confuse: the pooled variance would be 8.6667, the biased one 1.6667.
EXAMPLE = [torch.tensor(values).reshape(2, 1) for values in ([0.0, 2.0], [4.0, 8.0], [1.0, 1.0])]
EXAMPLE_STATISTICS = (8 / 3, 10 / 3)


def noise(size: int = 8, count: int = 4, seed: int = 0, **options: torch.dtype) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 3, size, size, generator=generator).to(**options) for _ in range(count)]


def network(*, dropout: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)]
    return nn.Sequential(*(layers[:3] + [nn.Dropout(0.5)] * dropout + layers[3:]))


def averages(inputs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Plain averages over batches of mean and unbiased variance of each channel."""
    rows = [batch.double().transpose(0, 1).flatten(1) for batch in inputs]
    means, variances = (torch.stack([getattr(row, name)(dim=1) for row in rows]) for name in ("mean", "var"))
    return means.mean(dim=0), variances.mean(dim=0)


def test_statistics_are_plain_averages_of_means_and_unbiased_variances() -> None:
    model = nn.BatchNorm1d(1)
    ((mean, variance),) = calibrate_batchnorm(model, EXAMPLE, num_batches=3).values()
    assert (mean.item(), variance.item()) == pytest.approx(EXAMPLE_STATISTICS)
    assert (model.running_mean.item(), model.running_var.item()) == pytest.approx(EXAMPLE_STATISTICS)


@pytest.mark.parametrize(
    ("kind", "sides"),
    [
        (nn.BatchNorm1d, 1),
        (nn.BatchNorm2d, 2),
        (nn.BatchNorm3d, 3),
        (nn.SyncBatchNorm, 2),
        (BatchNormAct2d, 2),
    ],
)
@pytest.mark.parametrize("momentum", [0.1, None, 0.0, 0.0001])
def test_every_kind_of_batchnorm_is_calibrated_whatever_its_momentum(
    kind: type[nn.BatchNorm2d], sides: int, momentum: float | None
) -> None:
    model = kind(3, momentum=momentum)
    model.running_mean.fill_(torch.nan)  # of a run that had diverged
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(2 + number, 3, *[4] * sides, generator=generator) * (1 + number) for number in range(5)]
    calibrate_batchnorm(model, batches, num_batches=5)
    mean, variance = averages(batches)
    torch.testing.assert_close(model.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.running_var.double(), variance, rtol=1e-5, atol=1e-6)
    assert model.momentum == momentum
    assert model.num_batches_tracked == 5


def test_layers_deep_in_a_network_see_what_they_see_in_training() -> None:
    model, reference = network(), network()
    calibrate_batchnorm(model, noise(), num_batches=4)
    inputs: list[torch.Tensor] = []
    reference[4].register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    for batch in noise():
        reference.train()(batch)
    mean, variance = averages(inputs)
    torch.testing.assert_close(model[4].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[4].running_var.double(), variance, rtol=1e-5, atol=1e-6)


def test_layer_that_a_pass_calls_twice_averages_over_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(1, affine=False)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.norm(values) + self.norm(10 + 3 * values)

    model = Twice()
    calibrate_batchnorm(model, EXAMPLE[:1], num_batches=1)
    assert model.norm.running_mean.item() == pytest.approx((1 + 13) / 2)
    assert model.norm.running_var.item() == pytest.approx((2 + 18) / 2)
    assert model.norm.num_batches_tracked == 2


def test_half_precision_buffers_do_not_lose_late_batches() -> None:
    model = nn.BatchNorm1d(1).to(torch.bfloat16)
    batches = [torch.tensor([[1.0], [1.0]])] * 300 + [torch.tensor([[2.0], [2.0]])] * 100
    calibrate_batchnorm(model, batches, num_batches=400)
    assert model.running_mean.item() == 1.25  # a running average in bfloat16 would stay near 1


# What is taken from the batches


@pytest.mark.parametrize("num_batches", [1, 3])
def test_exactly_as_many_batches_are_taken(num_batches: int) -> None:
    batches = iter(noise(count=5))
    calibrate_batchnorm(network(), batches, num_batches)
    assert len(list(batches)) == 5 - num_batches


def test_default_is_two_hundred_batches() -> None:
    batches = iter(EXAMPLE * 100)
    calibrate_batchnorm(nn.BatchNorm1d(1), batches)
    assert len(list(batches)) == 100


def test_too_few_batches_are_averaged_with_a_warning() -> None:
    model = nn.BatchNorm1d(1)
    with pytest.warns(UserWarning, match=r"ended after 3 of 200 batches.*averages over 3.*num_batches=3"):
        calibrate_batchnorm(model, EXAMPLE)
    assert model.running_mean.item() == pytest.approx(EXAMPLE_STATISTICS[0])


def test_images_come_alone_or_first_in_a_tuple() -> None:
    forms = (lambda images: images, lambda images: (images, 0), lambda images: [images, 0, "plan"])
    alone, pair, triple = (calibrate_batchnorm(network(), map(form, noise()), num_batches=4)["4"][0] for form in forms)
    assert torch.equal(pair, alone)
    assert torch.equal(triple, alone)


def test_images_are_given_the_dtype_of_the_model() -> None:
    model = network().double()
    calibrate_batchnorm(model, noise(dtype=torch.bfloat16), num_batches=4)
    expected = network().double()
    calibrate_batchnorm(expected, [batch.double() for batch in noise(dtype=torch.bfloat16)], num_batches=4)
    assert model[1].running_mean.dtype == torch.float64
    assert torch.equal(model[1].running_mean, expected[1].running_mean)


def test_batches_of_a_loader_are_calibrated_with(jpeg_folder: Path) -> None:
    with respipe.Loader(jpeg_folder, Constant(24), batch_size=6, backend="reference") as loader:
        images = [batch for batch, _ in loader]
        loader.set_epoch(0)
        model = network()
        calibrate_batchnorm(model, loader, num_batches=3)
    expected = network()
    calibrate_batchnorm(expected, images, num_batches=3)
    assert torch.equal(model[1].running_mean, expected[1].running_mean)


# What stays as it was


def test_weights_modes_momenta_gradients_and_random_state_stay() -> None:
    model = network(dropout=True).train()
    model[4].eval()
    model[5].momentum = 0.3
    model[1].weight.requires_grad_(False)
    weights = {name: value.clone() for name, value in model.named_parameters()}
    state, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    calibrate_batchnorm(model, noise(), num_batches=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert (model[1].momentum, model[5].momentum) == (0.1, 0.3)
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    assert all(value.grad is None for value in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_dropout_is_off_meanwhile() -> None:
    with_dropout, without = network(dropout=True).train(), network()
    calibrate_batchnorm(with_dropout, noise(), num_batches=4)
    calibrate_batchnorm(without, noise(), num_batches=4)
    assert torch.equal(with_dropout[5].running_mean, without[4].running_mean)


def test_error_leaves_everything_as_it_was() -> None:
    model = network(dropout=True).train()
    model[5].momentum = None
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError):
        calibrate_batchnorm(model, [*noise(), torch.zeros(1, 7, 8, 8)], num_batches=5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert (model[1].momentum, model[5].momentum) == (0.1, None)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_statistics_that_are_not_finite_are_refused(value: float) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"the statistics of '1' are not finite"):
        calibrate_batchnorm(model, [*noise(), torch.full((6, 3, 8, 8), value)], num_batches=5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Choosing(nn.Module):
    """Uses one of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.BatchNorm1d(1), nn.BatchNorm1d(1)
        nn.init.constant_(self.unused.running_mean, 7.0)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.used(values)


def test_layers_that_no_batch_reaches_keep_their_statistics() -> None:
    model = Choosing()
    assert set(calibrate_batchnorm(model, EXAMPLE, num_batches=3)) == {"used"}
    assert model.unused.running_mean.item() == 7.0
    model.used = nn.Identity()
    with pytest.warns(NoEffectWarning, match="no batch reached a BatchNorm of Choosing"):
        assert calibrate_batchnorm(model, EXAMPLE, num_batches=3) == {}


def test_layers_without_running_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.BatchNorm1d(1, track_running_stats=False), nn.BatchNorm1d(1))
    assert set(calibrate_batchnorm(model, EXAMPLE, num_batches=3)) == {"1"}
    with pytest.warns(NoEffectWarning, match="Sequential has no BatchNorm that keeps running statistics"):
        assert calibrate_batchnorm(model[:1], EXAMPLE) == {}


# The result


def test_result_can_be_saved_and_applied_to_another_model() -> None:
    model, other = network(), network()
    statistics = calibrate_batchnorm(model, noise(), num_batches=4)
    assert set(statistics) == {"1", "4"}
    model[1].running_mean.zero_()  # the result is a copy
    buffer = io.BytesIO()
    torch.save(statistics, buffer)
    buffer.seek(0)
    apply_statistics(other, torch.load(buffer, weights_only=True))
    calibrate_batchnorm(model, noise(), num_batches=4)
    for number in (1, 4):
        assert torch.equal(other[number].running_mean, model[number].running_mean)
        assert torch.equal(other[number].running_var, model[number].running_var)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"2": (torch.zeros(4), torch.ones(4))}, "no BatchNorm with statistics called '2'"),
        ({"4": (torch.zeros(5), torch.ones(4))}, r"'4' has 5 channels, got shapes \(5,\) and \(4,\)"),
    ],
)
def test_statistics_of_another_model_are_refused(
    statistics: dict[str, tuple[torch.Tensor, torch.Tensor]], message: str
) -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        apply_statistics(model, {"1": (torch.ones(4), torch.ones(4)), **statistics})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# Models of all kinds


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050", "efficientnet_lite0"])
def test_real_models_evaluate_as_they_train_on_the_batch_they_were_calibrated_with(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, drop_rate=0.0, drop_path_rate=0.0)
    images = torch.randn(16, 3, 64, 64)
    calibrate_batchnorm(model, [images], num_batches=1)
    with torch.no_grad():
        evaluated, trained = model.eval()(images), model.train()(images)
    # Up to the difference between biased and unbiased variance.
    assert torch.corrcoef(torch.stack([evaluated.flatten(), trained.flatten()]))[0, 1] > 0.98


@pytest.mark.parametrize("how", ["wrapped", "in place", "parallel"])
def test_compiled_and_wrapped_models_are_calibrated_under_their_own_names(how: str) -> None:
    model = network()
    images = noise()
    if how == "wrapped":
        given = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
        given = model
    else:
        given = nn.DataParallel(model)
    with torch.no_grad():
        given.eval()(images[0])
    expected = calibrate_batchnorm(network(), images, num_batches=4)
    for _ in range(2):  # compiled code must not remember the first time
        found = calibrate_batchnorm(given, images, num_batches=4)
        assert found.keys() == expected.keys()
        for name, (mean, variance) in expected.items():
            torch.testing.assert_close(found[name], (mean, variance))
    apply_statistics(given, expected)


def test_statistics_per_size_are_those_of_the_batches_of_that_size() -> None:
    model = network()
    make_batchnorm_per_size(model, (8, 12))
    mixed: Iterator[torch.Tensor] = (batch for pair in zip(noise(8), noise(12), strict=True) for batch in pair)
    statistics = calibrate_batchnorm(model, mixed, num_batches=8)
    assert set(statistics) == {f"{layer}.per_size.{size}" for layer in (1, 4) for size in (8, 12)}
    for size in (8, 12):
        alone = calibrate_batchnorm(network(), noise(size), num_batches=4)
        for layer in (1, 4):
            torch.testing.assert_close(statistics[f"{layer}.per_size.{size}"], alone[str(layer)])
            holder = model.get_submodule(f"{layer}.per_size.{size}")
            assert torch.equal(holder.running_mean, statistics[f"{layer}.per_size.{size}"][0])
            assert holder.num_batches_tracked == 4
    assert model[1].num_batches_tracked == 0


def test_calibration_restores_accuracy_that_shared_statistics_lose() -> None:
    """Statistics of images that are smaller and brighter than those that come."""
    torch.manual_seed(0)
    model = ResNetCifar(8, width=8, num_classes=3)
    images = torch.randn(64, 3, 16, 16)
    with torch.no_grad():
        wanted = model.train()(images)
        model(3 + 5 * torch.randn(64, 3, 8, 8))
        lost = (model.eval()(images) - wanted).square().mean()
        calibrate_batchnorm(model, [images[:32], images[32:]], num_batches=2)
        assert (model.eval()(images) - wanted).square().mean() < 0.1 * lost


@pytest.mark.parametrize(
    ("batches", "num_batches", "error", "message"),
    [
        (EXAMPLE, 0, ValueError, "`num_batches` must be at least 1; got 0"),
        ([], 5, ValueError, "`batches` must yield at least one batch"),
        ([{"images": EXAMPLE[0]}], 1, TypeError, "tuples that begin with one; got dict"),
        ([()], 1, TypeError, "tuples that begin with one; got tuple"),
    ],
)
def test_batches_without_images_are_refused(
    batches: list[object], num_batches: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        calibrate_batchnorm(nn.BatchNorm1d(1), batches, num_batches)
