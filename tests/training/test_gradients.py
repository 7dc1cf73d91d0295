from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from respipe.training.gradients import GradientSmoothing

Gradients = Sequence[Sequence[float]]
STEPS: tuple[Gradients, ...] = (((3.0, 0.0), (4.0,)), ((6.0, 8.0), (0.0,)), ((0.3, 0.0), (0.4,)), ((0.0, 1.0), (1.0,)))
"""Gradients of two parameters at four steps; their norms are 5, 10, 0.5 and the root of two."""


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2, dtype=dtype)), nn.Parameter(torch.full((1,), -2.0, dtype=dtype))]


def give(tensors: Sequence[torch.Tensor], gradients: Gradients) -> None:
    for tensor, gradient in zip(tensors, gradients, strict=True):
        tensor.grad = torch.tensor(gradient, dtype=tensor.dtype, device=tensor.device)


def factors(norms: Sequence[float], alpha: float) -> list[float]:
    """The paper's formula, number by number."""
    mean, result = norms[0], [1.0]
    for norm in norms[1:]:
        mean = alpha * mean + (1 - alpha) * norm
        result.append(mean / (norm + 1e-6))
    return result


def last_mean(norms: Sequence[float], alpha: float = 0.9) -> float:
    return factors(norms, alpha)[-1] * (norms[-1] + 1e-6)


def norms(steps: Sequence[Gradients]) -> list[float]:
    return [math.hypot(*(value for gradient in step for value in gradient)) for step in steps]


@pytest.mark.parametrize("alpha", [0.9, 0.5, 0.0])
def test_gradients_are_scaled_to_the_running_mean_of_their_norm(alpha: float) -> None:
    tensors = parameters()
    optimizer = torch.optim.SGD([{"params": tensors[:1]}, {"params": tensors[1:], "lr": 0.5}], lr=0.1)
    GradientSmoothing(optimizer, alpha)
    for step, factor in zip(STEPS, factors(norms(STEPS), alpha), strict=True):
        give(tensors, step)
        optimizer.step()
        for tensor, gradient in zip(tensors, step, strict=True):
            assert tensor.grad is not None
            np.testing.assert_allclose(tensor.grad, np.array(gradient) * factor, rtol=1e-6)


def test_first_step_leaves_gradients_bit_for_bit() -> None:
    tensors = parameters()
    optimizer = torch.optim.SGD(tensors, lr=0.1)
    GradientSmoothing(optimizer)
    give(tensors, ((0.1, 1e-20), (1 / 3,)))
    before = [tensor.grad.clone() for tensor in tensors if tensor.grad is not None]
    optimizer.step()
    assert all(torch.equal(tensor.grad, old) for tensor, old in zip(tensors, before, strict=True))


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_weight_decay_is_added_to_the_smoothed_gradient(options: dict[str, bool]) -> None:
    tensors = parameters()
    optimizer = torch.optim.SGD(tensors, lr=0.1, weight_decay=0.5, **options)
    GradientSmoothing(optimizer)
    weights = [tensor.detach().double().numpy().copy() for tensor in tensors]
    for step, factor in zip(STEPS, factors(norms(STEPS), 0.9), strict=True):
        give(tensors, step)
        optimizer.step()
        weights = [w - 0.1 * (np.array(g) * factor + 0.5 * w) for w, g in zip(weights, step, strict=True)]
    for tensor, weight in zip(tensors, weights, strict=True):
        np.testing.assert_allclose(tensor.detach(), weight, rtol=1e-5)


def test_clipped_gradients_are_what_is_smoothed() -> None:
    tensors = parameters()
    optimizer = torch.optim.SGD(tensors, lr=0.1)
    smoothing = GradientSmoothing(optimizer)
    for step in STEPS[:2]:
        give(tensors, step)
        nn.utils.clip_grad_norm_(tensors, 1.0)
        optimizer.step()
    assert smoothing.state_dict()["mean_norm"] == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("place", [0, 2])
def test_step_with_a_norm_that_is_not_finite_changes_neither_gradients_nor_state(bad: float, place: int) -> None:
    """Also where it is the first step: the next one then is."""
    tensors = parameters()
    optimizer = torch.optim.SGD(tensors, lr=0.0)
    smoothing = GradientSmoothing(optimizer)
    steps = [*STEPS[:place], ((bad, 2.0), (7.0,)), *STEPS[place:]]
    expected = factors(norms(STEPS), 0.9)
    expected.insert(place, 1.0)
    for number, (step, factor) in enumerate(zip(steps, expected, strict=True)):
        give(tensors, step)
        before = smoothing.state_dict()
        optimizer.step()
        assert tensors[1].grad is not None
        np.testing.assert_allclose(tensors[1].grad, np.array(step[1]) * factor, rtol=1e-6)
        assert (smoothing.state_dict() == before) == (number == place)


def test_parameters_without_a_gradient_do_not_count() -> None:
    tensors = [*parameters(), nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.SGD(tensors, lr=0.1)
    smoothing = GradientSmoothing(optimizer)
    optimizer.step()
    assert smoothing.state_dict() == {"mean_norm": None}
    give(tensors[:2], STEPS[0])
    optimizer.step()
    assert smoothing.state_dict() == {"mean_norm": 5.0}


def test_half_precision_gradients_are_summed_without_overflow() -> None:
    tensors = [*parameters(torch.float16), *parameters(torch.bfloat16), *parameters(torch.float64)]
    optimizer = torch.optim.SGD(tensors, lr=0.0)
    smoothing = GradientSmoothing(optimizer)
    give(tensors, (*((60000.0, 60000.0), (60000.0,)), *STEPS[0], *STEPS[1]))
    optimizer.step()
    half = torch.tensor(60000.0, dtype=torch.float16).item()
    assert smoothing.state_dict()["mean_norm"] == pytest.approx(math.sqrt(3 * half**2 + 25 + 100), rel=1e-6)


# Mixed precision


@pytest.mark.parametrize("unscale", [False, True], ids=["scaled", "unscaled_by_user"])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("fused", [False, True], ids=["foreach", "fused"])
def test_loss_scaling_changes_nothing(
    make: Callable[..., torch.optim.Optimizer], *, fused: bool, unscale: bool
) -> None:
    """Whether or not the user unscales, with a scale that doubles at every step and with steps that overflow."""
    runs: list[tuple[list[nn.Parameter], GradientSmoothing]] = []
    for scaled in (False, True):
        tensors = parameters()
        optimizer = make(tensors, lr=0.1, weight_decay=0.1, fused=fused)
        smoothing = GradientSmoothing(optimizer)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0, growth_interval=1)
        for number, step in enumerate((*STEPS, *STEPS)):
            if number == 3 and not scaled:  # whose gradients are infinite in the other run
                continue
            scaler.scale(torch.zeros((), requires_grad=True))  # as the loss would be
            scale = scaler.get_scale()
            overflow = math.inf if number == 3 else 1.0
            give(tensors, [[value * scale * overflow + 0.0 for value in gradient] for gradient in step])
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        runs.append((tensors, smoothing))
    (plain, plain_smoothing), (amp, amp_smoothing) = runs
    torch.testing.assert_close(amp, plain)
    assert amp_smoothing.state_dict()["mean_norm"] == pytest.approx(plain_smoothing.state_dict()["mean_norm"], rel=1e-6)


# Optimizers that evaluate a closure


@pytest.mark.parametrize("by_name", [False, True])
def test_gradients_of_a_closure_are_smoothed_after_it_ran(*, by_name: bool) -> None:
    runs: list[list[nn.Parameter]] = []
    for with_closure in (False, True):
        tensors = parameters()
        optimizer = torch.optim.SGD(tensors, lr=0.1, momentum=0.9)
        GradientSmoothing(optimizer)
        for number, step in enumerate(STEPS):

            def closure(gradients: Gradients = step, loss: int = number) -> float:
                give(tensors, gradients)  # noqa: B023 - called within this turn of the loop
                return float(loss)

            if not with_closure:
                closure()
                optimizer.step()
            else:
                loss = optimizer.step(closure=closure) if by_name else optimizer.step(closure)
                assert loss == float(number)
        runs.append(tensors)
    torch.testing.assert_close(runs[1], runs[0])


def test_optimizer_that_evaluates_its_closure_repeatedly_is_refused() -> None:
    tensors = parameters()
    optimizer = torch.optim.LBFGS(tensors)
    GradientSmoothing(optimizer)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum((tensor**2).sum() for tensor in tensors)
        assert isinstance(loss, torch.Tensor)
        loss.backward()
        return loss

    with pytest.raises(ValueError, match="must evaluate its closure once per step; got LBFGS"):
        optimizer.step(closure)


# State


def run(steps: Sequence[Gradients], state: dict[str, Any] | None = None) -> tuple[list[nn.Parameter], Any]:
    """Train from the beginning, or from a state of weights and optimizer; returns weights and state."""
    tensors = parameters()
    optimizer = torch.optim.SGD(tensors, lr=0.1, momentum=0.9)
    GradientSmoothing(optimizer)
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        for tensor, weight in zip(tensors, state["weights"], strict=True):
            tensor.data.copy_(weight)
    for step in steps:
        give(tensors, step)
        optimizer.step()
    buffer = io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "weights": [tensor.detach() for tensor in tensors]}, buffer)
    buffer.seek(0)
    return tensors, torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("place", range(5))
def test_state_travels_in_that_of_the_optimizer(place: int) -> None:
    expected, _ = run(STEPS)
    _, state = run(STEPS[:place])
    resumed, _ = run(STEPS[place:], state)
    assert all(torch.equal(tensor, other) for tensor, other in zip(resumed, expected, strict=True))


def test_optimizer_without_smoothing_takes_the_state_of_one_with_it() -> None:
    _, state = run(STEPS)
    plain = torch.optim.SGD(parameters(), lr=0.1, momentum=0.9)
    plain.load_state_dict(state["optimizer"])
    assert set(plain.state_dict()) == {"state", "param_groups"}


def test_smoothing_starts_anew_from_the_state_of_an_optimizer_without_it() -> None:
    plain = torch.optim.SGD(parameters(), lr=0.1)
    tensors = parameters()
    optimizer = torch.optim.SGD(tensors, lr=0.1)
    smoothing = GradientSmoothing(optimizer)
    give(tensors, STEPS[0])
    optimizer.step()
    optimizer.load_state_dict(plain.state_dict())
    assert smoothing.state_dict() == {"mean_norm": None}


def test_own_state_serves_where_that_of_the_optimizer_is_not_kept() -> None:
    first, second = (GradientSmoothing(torch.optim.SGD(parameters(), lr=0.1)) for _ in range(2))
    first.load_state_dict({"mean_norm": 1 / 3})
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == {"mean_norm": 1 / 3}


def test_removed_smoothing_leaves_the_optimizer_as_it_was() -> None:
    tensors = parameters()
    optimizer = torch.optim.SGD(tensors, lr=0.1)
    smoothing = GradientSmoothing(optimizer)
    give(tensors, STEPS[0])
    optimizer.step()
    smoothing.remove()
    smoothing.remove()
    give(tensors, STEPS[1])
    optimizer.step()
    assert tensors[0].grad is not None
    assert tensors[0].grad.tolist() == [6.0, 8.0]
    assert set(optimizer.state_dict()) == {"state", "param_groups"}


# Devices


def test_no_number_is_read_back_during_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = parameters()
    optimizer = torch.optim.SGD(tensors, lr=0.1)
    smoothing = GradientSmoothing(optimizer)
    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "numpy", "__bool__", "__float__", "__int__"):
            patch.setattr(torch.Tensor, name, lambda *_, name=name: pytest.fail(f"Tensor.{name} waits for the GPU"))
        for step in STEPS:
            give(tensors, step)
            optimizer.step()
    assert smoothing.state_dict()["mean_norm"] == pytest.approx(last_mean(norms(STEPS)))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_steps_on_a_gpu_do_not_wait_for_it() -> None:
    tensors = [nn.Parameter(tensor.detach().cuda()) for tensor in parameters()]
    optimizer = torch.optim.SGD(tensors, lr=0.1)
    smoothing = GradientSmoothing(optimizer)
    gradients = [[torch.tensor(gradient, device="cuda") for gradient in step] for step in STEPS]
    for number, step in enumerate(gradients):
        for tensor, gradient in zip(tensors, step, strict=True):
            tensor.grad = gradient.clone()
        torch.cuda.set_sync_debug_mode("error" if number else "default")  # the first step moves the state to the GPU
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert smoothing.state_dict()["mean_norm"] == pytest.approx(last_mean(norms(STEPS)))


@pytest.mark.gpu
def test_parameters_on_several_devices_have_one_norm() -> None:
    tensors = [parameters()[0], nn.Parameter(parameters()[1].detach().cuda())]
    optimizer = torch.optim.SGD(tensors, lr=0.1)
    GradientSmoothing(optimizer)
    for step, factor in zip(STEPS, factors(norms(STEPS), 0.9), strict=True):
        give(tensors, step)
        optimizer.step()
        for tensor, gradient in zip(tensors, step, strict=True):
            assert tensor.grad is not None
            np.testing.assert_allclose(tensor.grad.cpu(), np.array(gradient) * factor, rtol=1e-6)


# Mistakes


def test_sparse_gradients_are_refused() -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SGD(embedding.parameters(), lr=0.1)
    GradientSmoothing(optimizer)
    embedding(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(ValueError, match=r"dense gradients for GradientSmoothing; got one of layout torch.sparse_coo"):
        optimizer.step()


@pytest.mark.parametrize("alpha", [-0.1, 1.0, math.nan])
def test_impossible_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="`alpha` must be at least 0 and less than 1"):
        GradientSmoothing(torch.optim.SGD(parameters(), lr=0.1), alpha)


def test_wrapper_of_an_optimizer_is_refused() -> None:
    class Wrapper:
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer; got Wrapper"):
        GradientSmoothing(Wrapper(torch.optim.SGD(parameters(), lr=0.1)))  # type: ignore[arg-type]
