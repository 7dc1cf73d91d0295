from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from respipe.model.activation_matching import (
    channel_moments,
    match_before_last_relu,
    match_channels,
    match_frechet,
    match_pooled,
)
from respipe.model.finetune import default_layers
from respipe.model.frechet import Frechet, fit_frechet
from respipe.model.resnet_cifar import ResNetCifar


def batches(size: int, count: int = 3, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(8, 3, size, size, generator=generator), torch.zeros(8)) for _ in range(count)]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=4)
    for images, _ in batches(64):
        model(images)
    return model.train()


def pooled(model: nn.Module, size: int) -> torch.Tensor:
    """What the classifier gets, after whatever changes it."""
    seen = list[torch.Tensor]()
    handle = model.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for images, _ in batches(size):
            model.eval()(images)
    handle.remove()
    model.train()
    return torch.cat(seen)


def test_map_between_two_frechets_is_exact_and_keeps_zeros() -> None:
    reference, observed = Frechet(mu=0.45, sigma=0.2), Frechet(mu=0.3, sigma=0.5)
    p = torch.linspace(0.3, 0.999, 50, dtype=torch.float64)
    moved = match_frechet(observed.quantile(p), reference=reference, observed=observed)
    torch.testing.assert_close(moved, reference.quantile(p))
    rest = match_frechet(torch.tensor([0.0, -5.0]), reference=reference, observed=observed)
    assert rest.tolist() == [0, 0]


def test_channels_get_the_moments_of_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 5.0, 0.1]).view(-1, 1, 1)
    source, target = (torch.randn(16, 3, size, size, generator=generator) for size in (6, 4))
    source, target = source * scale + scale, target / scale - 2
    reference = channel_moments([source[:5], source[5:]])
    torch.testing.assert_close(reference.mean, source.mean((0, 2, 3)).double())
    torch.testing.assert_close(reference.variance, source.double().var((0, 2, 3), correction=0))
    moved = match_channels(target, reference=reference, observed=channel_moments([target]))
    after = channel_moments([moved])
    torch.testing.assert_close(after.mean, reference.mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(after.variance, reference.variance, atol=1e-5, rtol=1e-5)


def test_channel_that_never_varies_is_only_moved() -> None:
    reference = channel_moments([torch.full((2, 1, 2, 2), 3.0)])
    observed = channel_moments([torch.full((2, 1, 2, 2), 1.0)])
    assert match_channels(torch.full((1, 1, 1, 1), 1.5), reference=reference, observed=observed).item() == 3.5


def test_no_maps_have_no_moments() -> None:
    with pytest.raises(ValueError, match="`batches` must hold at least one map"):
        channel_moments([])


def test_model_moves_what_it_pools_until_it_is_undone(model: nn.Module) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    at_64, at_32 = pooled(model, 64), pooled(model, 32)
    with match_pooled(model, batches(64), batches(32), size=64):
        expected = match_frechet(at_32, reference=fit_frechet(at_64), observed=fit_frechet(at_32))
        torch.testing.assert_close(pooled(model, 32), expected)
    torch.testing.assert_close(pooled(model, 32), at_32)
    assert model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_model_matches_its_channels_before_the_last_of_a_shared_relus_calls(model: nn.Module) -> None:
    block = model.layer4[1]
    inputs = list[torch.Tensor]()

    def record(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        inputs.append(arguments[0].clone())

    with match_before_last_relu(model, batches(64), batches(32), size=64) as matching:
        handle = block.relu.register_forward_pre_hook(record)
        pooled(model, 32)
        handle.remove()
        after = channel_moments(inputs[1::2])  # two calls in each pass, the last of which is changed
        matching.close()
        inputs.clear()
        handle = block.relu.register_forward_pre_hook(record)
        pooled(model, 64)
        handle.remove()
        expected = channel_moments(inputs[1::2])
    torch.testing.assert_close(after.mean, expected.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.variance, expected.variance, atol=1e-4, rtol=1e-4)


def test_relu_that_is_no_module_is_not_found() -> None:
    model = torchvision.models.densenet121(num_classes=2)
    assert default_layers(model, 64)[0] == "features.norm5"
    with pytest.raises(ValueError, match=r"`model` must call an nn.ReLU after its last BatchNorm, features\.norm5"):
        match_before_last_relu(model, batches(64), batches(32), size=64)


def test_cifar_network_has_its_pooled_activations_matched() -> None:
    torch.manual_seed(0)
    model = ResNetCifar(8, width=4, num_classes=2)
    with match_pooled(model, batches(32), batches(16), size=32):
        assert model(batches(16)[0][0]).shape == (8, 2)
