from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import respipe
from respipe.evaluation import Evaluation, evaluate
from respipe.schedules import Constant


class MeanColour(nn.Module):
    """Six logits from an image's mean colour; remembers the sizes it saw and whether it was in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 6)
        self.norm = nn.BatchNorm1d(6)
        self.seen: list[tuple[int, int]] = []
        self.modes: set[bool] = set()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append((len(images), images.shape[-1]))
        self.modes.add(self.training)
        return self.norm(self.linear(images.mean(dim=(2, 3))))


def model() -> MeanColour:
    torch.manual_seed(0)
    made = MeanColour()
    nn.init.normal_(made.linear.weight, std=3)
    return made


def expected(network: nn.Module, folder: Path, size: int) -> Evaluation:
    """The same numbers, sample by sample in NumPy."""
    top1 = top5 = loss = 0.0
    with respipe.Loader(folder, Constant(size), batch_size=1, training=False, backend="reference") as loader:
        for images, labels in loader:
            logits = network.eval()(images).detach().double().numpy()[0]
            label = int(labels[0])
            rank = int(np.sum(logits > logits[label]))
            top1, top5 = top1 + (rank == 0), top5 + (rank < 5)
            loss += math.log(np.sum(np.exp(logits))) - logits[label]
        count = len(loader.dataset)
    return Evaluation(size=size, top1=top1 / count, top5=top5 / count, loss=loss / count, num_samples=count)


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_results_equal_those_counted_sample_by_sample(jpeg_folder: Path, batch_size: int) -> None:
    results = evaluate(model(), jpeg_folder, (48, 32), batch_size=batch_size, backend="reference")
    for result, size in zip(results, (48, 32), strict=True):
        oracle = expected(model(), jpeg_folder, size)
        assert (result.size, result.num_samples) == (size, 18)
        assert (result.top1, result.top5) == (oracle.top1, oracle.top5)
        assert result.loss == pytest.approx(oracle.loss, rel=1e-5)
    assert 0 < results[0].top1 < 1


def test_every_sample_is_shown_once_at_each_size(jpeg_folder: Path) -> None:
    network = model()
    evaluate(network, jpeg_folder, [40, 24], batch_size=8, backend="reference")
    assert network.seen == [(8, 40), (8, 40), (2, 40), (8, 24), (8, 24), (2, 24)]
    assert network.modes == {False}


def test_model_is_left_in_the_mode_it_was_in_also_after_an_error(jpeg_folder: Path) -> None:
    network = model().train()
    network.norm.eval()
    evaluate(network, jpeg_folder, 32, backend="reference")
    assert (network.training, network.norm.training) == (True, False)
    network.linear = nn.Linear(4, 6)
    with pytest.raises(RuntimeError):
        evaluate(network, jpeg_folder, 32, backend="reference")
    assert (network.training, network.norm.training) == (True, False)


def test_top5_of_a_model_with_few_classes_is_certain(jpeg_folder: Path) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    (result,) = evaluate(network, jpeg_folder, 32, backend="reference")
    assert result.top5 == 1.0


def test_label_without_a_logit_is_an_error(jpeg_folder: Path) -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    with pytest.raises(ValueError, match="a logit for every label; label 2 occurs and it has 2"):
        evaluate(network, jpeg_folder, 32, backend="reference")


def test_no_size_is_an_error(jpeg_folder: Path) -> None:
    with pytest.raises(ValueError, match="`sizes` must name at least one"):
        evaluate(model(), jpeg_folder, ())


def test_progress_counts_batches_of_all_sizes(jpeg_folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    evaluate(model(), jpeg_folder, (32, 16), batch_size=9, backend="reference",
             progress=lambda done, total: calls.append((done, total)))  # fmt: skip
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]
