from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import respipe
from respipe.evaluation import measure_activations
from respipe.sampling import WholeImage
from respipe.schedules import Constant


class Network(nn.Module):
    """Global pooling as a function, followed by a classifier of two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.hidden = nn.Linear(6, 5)
        self.output = nn.Linear(5, 3)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.convolution(images).relu().mean((2, 3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.output(self.hidden(self.features(images)).relu())


def features(folder: Path, size: int) -> np.ndarray:
    with respipe.Loader(folder, Constant(size), batch_size=18, training=False, backend="reference") as loader:
        ((images, _),) = loader
    return Network().features(images).detach().double().numpy()


def test_statistics_are_those_of_what_is_pooled(jpeg_folder: Path) -> None:
    network = Network().train()
    results = measure_activations(network, jpeg_folder, (48, 16), backend="reference")
    assert network.training
    for result, size in zip(results, (48, 16), strict=True):
        expected = features(jpeg_folder, size)
        assert (result.size, result.num_images) == (size, 18)
        assert result.zeros == pytest.approx((expected == 0).mean())
        assert result.mean == pytest.approx(expected.mean(), rel=1e-5)
        assert result.std == pytest.approx(expected.std(), rel=1e-5)
        shares = np.linspace(0, 1, 201)
        wanted = np.quantile(expected, shares, method="nearest")
        assert np.abs(np.array(result.quantiles) - wanted).max() < 0.05
        assert (result.quantiles[0], result.quantiles[-1]) == pytest.approx((expected.min(), expected.max()), rel=1e-5)


def test_zeros_are_counted(jpeg_folder: Path) -> None:
    network = Network()
    nn.init.constant_(network.convolution.bias, -100.0)  # pyright: ignore[reportArgumentType]
    (result,) = measure_activations(network, jpeg_folder, 32, backend="reference")
    assert (result.zeros, result.mean, set(result.quantiles)) == (1.0, 0.0, {0.0})


def test_few_images_are_drawn_from_all_classes_and_progress_is_told(jpeg_folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    (result, other) = measure_activations(
        Network(), jpeg_folder, (32, 16), num_images=10, batch_size=4, backend="reference", crop=WholeImage(),
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    assert (result.num_images, other.num_images) == (8, 8)
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_result_is_ready_for_json(jpeg_folder: Path) -> None:
    (result,) = measure_activations(Network(), jpeg_folder, 32, num_images=4, backend="reference")
    assert list(result.to_dict()) == ["size", "zeros", "mean", "std", "quantiles", "num_images"]


def test_model_without_a_classifier_is_refused(jpeg_folder: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="`model` must have a classifier after its global pooling"):
        measure_activations(network, jpeg_folder, 32, backend="reference")


def test_no_size_is_an_error(jpeg_folder: Path) -> None:
    with pytest.raises(ValueError, match="`sizes` must name at least one"):
        measure_activations(Network(), jpeg_folder, ())
