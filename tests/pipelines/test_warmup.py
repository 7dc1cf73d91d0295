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
        assert torch.equal(labels, torch.zeros(len(batches[0]), dtype=torch.int64))
        return torch.stack([self.layers(one).sum() for one in batches]).sum()

    def _count(self, *_: object) -> None:
        self.backward_passes += 1


@pytest.mark.parametrize("training", [True, False])
def test_every_shape_is_run_and_nothing_is_left_of_it(training: bool) -> None:
    model = Recorder().train(training)
    frozen = model.layers[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shapes = [(torch.zeros(4, 3, 16, 16), torch.zeros(4, 3, 12, 12)), torch.zeros(9, 3, 8, 8)]
    warm_up(model, iter(shapes), "float32")
    assert model.shapes == [(4, 3, 16, 16), (4, 3, 12, 12), (9, 3, 8, 8)]
    assert model.backward_passes == 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training == (training and module is not frozen) for module in model.modules())
