from __future__ import annotations

import pytest
import torch
from torch import nn

import respipe
from pipelines.passes import GraphedPasses, Passes

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PASSES = [
    pytest.param(Passes, "cpu"),
    pytest.param(Passes, "cuda", marks=pytest.mark.gpu),
    pytest.param(GraphedPasses, "cuda", marks=pytest.mark.gpu),
]
SIZES = (32, 24, 16)


def objective(device: str, *, num_sizes: int = 1, dropout: float = 0.0) -> respipe.AllSizes:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(8, 5),
    )  # fmt: skip
    criterion = (
        respipe.MRED(num_sizes) if num_sizes > 1 else lambda logits, labels: nn.CrossEntropyLoss()(*logits, labels)
    )
    return respipe.AllSizes(model, criterion).to(device)


def batch(size: int, count: int, device: str, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, size, size, generator=generator).contiguous(memory_format=torch.channels_last)
    return images.to(device), torch.randint(5, (count,), generator=generator).to(device)


def scaler(device: str) -> torch.amp.GradScaler:
    return torch.amp.GradScaler(device, enabled=False)


def assert_close(found: object, expected: object, device: str) -> None:
    """Equal but for the order of additions, and on a GPU for TF32."""
    tolerances = {"rtol": 1e-3, "atol": 1e-4} if device == "cuda" else {}
    torch.testing.assert_close(found, expected, **tolerances)


def gradients(module: nn.Module) -> list[torch.Tensor | None]:
    return [None if one.grad is None else one.grad.clone() for one in module.parameters()]


@pytest.mark.parametrize(("kind", "device"), PASSES)
def test_gradients_and_statistics_are_those_of_the_loss(kind: type[Passes], device: str) -> None:
    plain, passed = objective(device), objective(device)
    passes = kind(passed, "float32", scaler(device))
    for number, (size, count) in enumerate([(32, 4), (16, 9), (32, 4), (16, 9), (24, 3)]):
        images, labels = batch(size, count, device, seed=number)
        plain.zero_grad()
        expected = plain(images, labels)
        expected.backward()
        loss = passes(images, labels)
        assert not loss.requires_grad
        assert_close(loss, expected.detach(), device)
        assert_close(gradients(passed), gradients(plain), device)
    assert_close(passed.state_dict(), plain.state_dict(), device)


@pytest.mark.parametrize(("kind", "device"), PASSES)
def test_steps_of_several_sizes_teach_the_ensemble(kind: type[Passes], device: str) -> None:
    plain, passed = (objective(device, num_sizes=3) for _ in range(2))
    passes = kind(passed, "float32", scaler(device))
    for number in range(2):
        pairs = [batch(size, 4, device, seed=number) for size in SIZES]
        images, labels = tuple(images for images, _ in pairs), pairs[0][1]
        plain.zero_grad()
        plain(images, labels).backward()
        passes(images, labels)
        assert_close(gradients(passed), gradients(plain), device)


@pytest.mark.parametrize(("kind", "device"), PASSES)
def test_what_a_step_draws_depends_on_its_seed_alone(kind: type[Passes], device: str) -> None:
    images, labels = batch(16, 64, device)
    losses = list[list[float]]()
    for is_prepared in (True, False):
        passes = kind(objective(device, dropout=0.5), "float32", scaler(device))
        if is_prepared:
            passes.prepare(images, labels)
        losses.append([])
        for seed in (1, 2, 1):
            torch.manual_seed(seed)
            losses[-1].append(passes(images, labels).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] == pytest.approx(losses[0][2], rel=1e-3)  # but for BatchNorm's running statistics, unused here
    assert losses[0][0] != pytest.approx(losses[0][1], rel=1e-3)


@pytest.mark.parametrize(("kind", "device"), PASSES)
def test_preparing_leaves_everything_as_it_was(kind: type[Passes], device: str) -> None:
    module = objective(device)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    passes = kind(module, "float32", scaler(device))
    first, second = batch(16, 4, device), batch(24, 4, device)
    passes(*first)
    kept = gradients(module)
    after = {name: value.clone() for name, value in module.state_dict().items()}
    passes.prepare(*second)
    torch.testing.assert_close(gradients(module), kept)
    torch.testing.assert_close(module.state_dict(), after)
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.gpu
def test_graphs_train_as_passes_do() -> None:
    results = list[dict[str, torch.Tensor]]()
    for kind in (Passes, GraphedPasses):
        module = objective("cuda")
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        respipe.GradientSmoothing(optimizer)
        passes = kind(module, "bfloat16", scaler("cuda"))
        for number in range(20):
            passes(*batch(SIZES[number % 3], 8, "cuda", seed=number))
            optimizer.step()
        results.append(module.state_dict())
    torch.testing.assert_close(results[1], results[0], rtol=2e-2, atol=2e-2)
