from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from respipe.training.objective import MRED

Array = NDArray[np.float64]


def problem(num_sizes: int, *, seed: int = 0, samples: int = 6) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(samples, 4, generator=generator, dtype=torch.float64) * 2 for _ in range(num_sizes)]
    return [one.requires_grad_() for one in logits], torch.randint(4, (samples,), generator=generator)


def mred(num_sizes: int, *, full: bool = True, alpha: list[float] | None = None) -> MRED:
    loss = MRED(num_sizes, full).double()
    if alpha is not None:
        loss.alpha.data = torch.tensor(alpha, dtype=torch.float64)
    return loss


def log_softmax(values: Array) -> Array:
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def by_the_book(logits: list[Array], labels: Array, alpha: list[float], *, full: bool) -> float:
    """Equations 5 to 10 of the paper, term by term."""
    count, weights = len(logits), np.exp(log_softmax(np.array(alpha)))
    z = [sum(w * one for w, one in zip(weights, logits, strict=True)), *logits]
    log_p = [log_softmax(one) for one in z]
    entropies = [-np.mean([one[row, label] for row, label in enumerate(labels)]) for one in log_p]
    pairs = [(t, s) for t in range(count) for s in range(t + 1, count + 1) if full or t == 0]
    terms = [np.mean((np.exp(log_p[t]) * (log_p[t] - log_p[s])).sum(axis=1)) for t, s in pairs]
    return float(sum(entropies[1:]) + entropies[0] + (2 / (count + 1) if full else 1) * sum(terms))


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("alpha", [[1.0, 1.0, 1.0], [2.0, 0.5, -1.0]])
def test_loss_is_the_papers(full: bool, alpha: list[float]) -> None:
    logits, labels = problem(3)
    expected = by_the_book([one.detach().numpy() for one in logits], labels.numpy(), alpha, full=full)
    assert mred(3, full=full, alpha=alpha)(logits, labels).item() == pytest.approx(expected)


def test_alpha_begins_with_equal_weights() -> None:
    assert MRED(4).alpha.tolist() == [1, 1, 1, 1]
    assert MRED(4).weights.tolist() == [0.25] * 4


@pytest.mark.parametrize("full", [True, False])
def test_alpha_learns_from_the_loss_of_the_ensemble_alone(full: bool) -> None:
    logits, labels = problem(3)
    loss = mred(3, full=full, alpha=[2.0, 0.5, -1.0])
    loss(logits, labels).backward()
    alpha = loss.alpha.detach().clone().requires_grad_()
    ensemble = sum(w * one.detach() for w, one in zip(alpha.softmax(0), logits, strict=True))
    F.cross_entropy(ensemble, labels).backward()
    torch.testing.assert_close(loss.alpha.grad, alpha.grad)
    assert abs(loss.alpha.grad.sum().item()) < 1e-12
    assert loss.alpha.grad.abs().max() > 1e-3


@pytest.mark.parametrize("full", [True, False])
def test_logits_learn_from_labels_and_teachers_and_teachers_from_nobody_below(full: bool) -> None:
    logits, labels = problem(3)
    loss = mred(3, full=full)
    loss(logits, labels).backward()
    fixed = [one.detach() for one in logits]
    p = [F.softmax(one, dim=1) for one in (torch.stack(fixed).mean(0), *fixed)]
    for place, one in enumerate(logits, start=1):
        teachers = p[:place] if full else p[:1]
        # The gradient of both CE and KL with respect to a student's logits is its softmax minus the target.
        expected = p[place] - F.one_hot(labels, 4)
        expected = expected + (0.5 if full else 1) * sum(p[place] - teacher for teacher in teachers)
        torch.testing.assert_close(one.grad, expected / len(labels))


def test_single_size_has_nothing_to_distill() -> None:
    (logits,), labels = problem(1)
    loss = F.cross_entropy(logits, labels)
    for full in (True, False):
        assert mred(1, full=full)([logits], labels).item() == pytest.approx(2 * loss.item())


@pytest.mark.parametrize("full", [True, False])
def test_sizes_that_agree_have_nothing_to_distill(full: bool) -> None:
    (logits,), labels = problem(1)
    loss = F.cross_entropy(logits, labels).item()
    assert mred(3, full=full)([logits] * 3, labels).item() == pytest.approx(4 * loss)


def test_order_of_the_sizes_counts_for_the_full_form_only() -> None:
    logits, labels = problem(3)
    turned = logits[::-1]
    assert mred(3, full=False)(turned, labels).item() == pytest.approx(mred(3, full=False)(logits, labels).item())
    assert mred(3)(turned, labels).item() != pytest.approx(mred(3)(logits, labels).item(), rel=1e-3)


def test_probabilities_and_smoothing_are_taken_as_labels() -> None:
    logits, labels = problem(2)
    hot = F.one_hot(labels, 4).double()
    assert mred(2)(logits, hot).item() == pytest.approx(mred(2)(logits, labels).item())
    smoothing = MRED(2, label_smoothing=0.2).double()
    assert smoothing(logits, labels).item() == pytest.approx(mred(2)(logits, 0.8 * hot + 0.05).item())


@pytest.mark.parametrize("full", [True, False])
def test_dense_predictions_are_resized_to_the_largest_images(full: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 4, side, side + 1, generator=generator, dtype=torch.float64) for side in (8, 6, 3)]
    labels = torch.randint(4, (2, 16, 18), generator=generator)
    resized = [F.interpolate(one, size=(16, 18), mode="bilinear") for one in logits]
    pixels = [one.permute(0, 2, 3, 1).reshape(-1, 4) for one in resized]
    expected = mred(3, full=full)(pixels, labels.flatten()).item()
    assert mred(3, full=full)(logits, labels).item() == pytest.approx(expected)


def test_half_precision_is_computed_in_single() -> None:
    logits, labels = problem(3)
    half = [(one.detach() * 100).half().requires_grad_() for one in logits]
    loss = MRED(3)(half, labels)
    assert loss.dtype == torch.float32
    exact = mred(3)([one.detach().double() for one in half], labels)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    loss.backward()
    assert all(one.grad is not None and one.grad.dtype == torch.float16 for one in half)


def test_alpha_is_not_decayed_unless_asked_for() -> None:
    loss = MRED(2)
    assert torch.optim.SGD([loss.parameter_group()], lr=0.1, weight_decay=0.5).param_groups[0]["weight_decay"] == 0
    assert loss.parameter_group(weight_decay=1e-4)["weight_decay"] == 1e-4


def test_weights_move_to_the_size_that_is_right() -> None:
    labels = torch.arange(4)
    right, wrong = 5 * F.one_hot(labels, 4).float(), torch.zeros(4, 4)
    loss = MRED(2)
    optimizer = torch.optim.SGD([loss.parameter_group()], lr=1.0)
    for _ in range(20):
        optimizer.zero_grad()
        loss([right, wrong], labels).backward()
        optimizer.step()
    assert loss.weights[0] > 0.6
    assert loss.weights.sum().item() == pytest.approx(1)
    assert MRED(2).load_state_dict(loss.state_dict()).missing_keys == []


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ([torch.zeros(2, 4)], "must be 2 tensors, one for each size; got 1 of them"),
        (torch.zeros(2, 2, 4), r"must be 2 tensors, one for each size; got \(2, 2, 4\)"),
        ([torch.zeros(2, 4), torch.zeros(2, 5)], r"same samples and classes; got shapes \(2, 4\), \(2, 5\)"),
    ],
)
def test_other_logits_are_refused(logits: list[torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MRED(2)(logits, torch.zeros(2, dtype=torch.int64))


def test_bad_values_are_named() -> None:
    with pytest.raises(ValueError, match="`num_sizes` must be at least 1; got 0"):
        MRED(0)
    with pytest.raises(ValueError, match="`label_smoothing` must lie between 0 and 1; got 2"):
        MRED(2, label_smoothing=2)
