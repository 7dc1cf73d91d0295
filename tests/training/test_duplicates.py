from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

import respipe
from respipe.schedules import MixSize
from respipe.training.batches import average_duplicates


def test_copies_of_a_sample_are_adjacent() -> None:
    values = torch.tensor([1.0, 3.0, 5.0, 10.0, 20.0, 60.0])
    assert average_duplicates(values, 3).tolist() == [3.0, 30.0]
    assert average_duplicates(values, 2).tolist() == [2.0, 7.5, 40.0]
    assert average_duplicates(values, 1).tolist() == values.tolist()


def test_outputs_keep_their_further_dimensions_and_dtype() -> None:
    outputs = torch.arange(24, dtype=torch.bfloat16).reshape(4, 2, 3)
    averaged = average_duplicates(outputs, 2)
    assert averaged.dtype == torch.bfloat16
    assert averaged.tolist() == [[[3, 4, 5], [6, 7, 8]], [[15, 16, 17], [18, 19, 20]]]


def test_mean_over_samples_is_the_plain_mean_over_images() -> None:
    logits = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.arange(4).repeat_interleave(3)
    losses = average_duplicates(cross_entropy(logits, labels, reduction="none"), 3)
    torch.testing.assert_close(losses.mean(), cross_entropy(logits, labels))
    torch.testing.assert_close(losses.sum() * 3, cross_entropy(logits, labels, reduction="sum"))
    losses.sum().backward()
    assert logits.grad is not None and (logits.grad.abs().sum(dim=1) > 0).all()


def test_batch_of_no_images_has_no_averages() -> None:
    assert average_duplicates(torch.empty(0, 7), 3).shape == (0, 7)


def test_number_of_copies_comes_with_the_batch(jpeg_folder: Path) -> None:
    schedule = MixSize({32: 0.5, 16: 0.5}, base_size=32, grow="duplicates")
    loader = respipe.Loader(jpeg_folder, schedule, batch_size=3, backend="reference", with_spec=True)
    with loader:
        shapes = {
            (images.shape[-1], len(images), len(average_duplicates(labels.double(), plan.step.duplicates)))
            for images, labels, plan in loader
        }
    assert shapes == {(32, 3, 3), (16, 12, 3)}


@pytest.mark.parametrize(
    ("values", "duplicates", "message"),
    [
        (torch.zeros(6), 4, r"`values` must hold 4 copies of each sample; got shape \(6,\)"),
        (torch.tensor(1.0), 2, r"got shape \(\).*reduction="),
        (torch.zeros(6), 0, "`duplicates` must be at least 1; got 0"),
    ],
)
def test_batches_that_are_no_copies_are_refused(values: torch.Tensor, duplicates: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_duplicates(values, duplicates)
