from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from respipe.model.adapt import make_pooling_adaptive


class FixedPoolNet(nn.Module):
    """A CIFAR network as many repositories have it: stride 4, then a fixed 8 x 8 average pool."""

    def __init__(self, *, pool: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(8, 16, 1))
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.down = nn.MaxPool2d(2)
        self.avgpool = nn.AvgPool2d(pool)
        self.fc = nn.Linear(16, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.conv1(images).relu()
        features = self.down(self.conv2(features) + self.shortcut(features))
        return self.fc(self.avgpool(features).flatten(1))


def test_fixed_global_pool_becomes_adaptive_and_inner_pool_stays() -> None:
    model = FixedPoolNet()
    assert make_pooling_adaptive(model, 32) == ("avgpool",)
    assert isinstance(model.avgpool, nn.AdaptiveAvgPool2d)
    assert isinstance(model.shortcut[0], nn.AvgPool2d)


def test_output_at_native_size_and_state_names_stay() -> None:
    model = FixedPoolNet().eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before, names = model(images), list(model.state_dict())
    make_pooling_adaptive(model, 32)
    torch.testing.assert_close(model(images), before)
    assert list(model.state_dict()) == names


def test_adapted_model_averages_the_whole_map_at_other_sizes() -> None:
    model = FixedPoolNet().eval()
    make_pooling_adaptive(model, 32)
    captured: list[torch.Tensor] = []
    model.avgpool.register_forward_hook(lambda _, inputs, output: captured.extend((inputs[0], output)))
    model(torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)))
    features, pooled = captured
    assert features.shape[2:] == (12, 12)
    torch.testing.assert_close(pooled[..., 0, 0], features.mean(dim=(2, 3)))


def test_pool_registered_under_two_names_is_replaced_under_both() -> None:
    model = FixedPoolNet()
    model.alias = model.avgpool
    assert set(make_pooling_adaptive(model, 32)) == {"avgpool", "alias"}
    assert isinstance(model.alias, nn.AdaptiveAvgPool2d)
    assert isinstance(model.avgpool, nn.AdaptiveAvgPool2d)


def test_transition_pool_that_ends_in_one_pixel_is_not_taken_for_global() -> None:
    # At 32 px, the last transition of a DenseNet turns 2 x 2 into 1 x 1, but convolutions follow.
    model = torchvision.models.densenet121(num_classes=3)
    assert make_pooling_adaptive(model, 32) == ()


def test_weights_modes_and_random_state_are_left_alone() -> None:
    model = FixedPoolNet().train()
    model.conv1.eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    make_pooling_adaptive(model, 32)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model.conv1.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_size_that_the_model_was_not_built_for_raises_what_the_model_says() -> None:
    with pytest.raises(RuntimeError, match="too small"):
        make_pooling_adaptive(FixedPoolNet(), 16)
