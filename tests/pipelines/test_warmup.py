from __future__ import annotations

import pytest
import torch
from torch import nn

from pipelines.warmup import warm_up


class Recorder(nn.Module):
    """A model with its loss that remembers the images it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten())
        self.backward_passes = 0
        self.layers[1].register_full_backward_hook(self._count)

    def forward(self, images: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
        batches = (images,) if isinstance(images, torch.Tensor) else images
        self.shapes += [tuple(one.shape) for one in batches]
        assert self.training
        assert len(labels) == len(batches[0])
        return torch.stack([self.layers(one).sum() for one in batches]).sum()

    def _count(self, *_: object) -> None:
        self.backward_passes += 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("has_gradients", [True, False])
def test_every_size_is_run_and_nothing_is_left_of_it(training: bool, has_gradients: bool) -> None:
    model = Recorder().train(training)
    frozen = model.layers[1].eval()
    if has_gradients:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    warm_up(model, (torch.ones(4, 3, 16, 16), torch.ones(4, 3, 12, 12)), torch.zeros(4, dtype=torch.int64), "float32")
    assert model.shapes == [(4, 3, 16, 16), (4, 3, 12, 12)]
    assert model.backward_passes == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parameter in model.parameters():
        assert (parameter.grad is not None) == has_gradients
        assert parameter.grad is None or bool((parameter.grad == 1).all())
    assert all(module.training == (training and module is not frozen) for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
