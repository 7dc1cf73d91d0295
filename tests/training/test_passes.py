from __future__ import annotations

import pytest
import torch
from torch import nn

import respipe
from respipe.training.passes import GraphedPasses, Passes, warm_up

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
    passes = kind(passed, None, scaler(device))
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
    passes = kind(passed, None, scaler(device))
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
        passes = kind(objective(device, dropout=0.5), None, scaler(device))
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
    passes = kind(module, None, scaler(device))
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
        passes = kind(module, torch.bfloat16, scaler("cuda"))
        for number in range(20):
            passes(*batch(SIZES[number % 3], 8, "cuda", seed=number))
            optimizer.step()
        results.append(module.state_dict())
    torch.testing.assert_close(results[1], results[0], rtol=2e-2, atol=2e-2)


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
    warm_up(model, (torch.ones(4, 3, 16, 16), torch.ones(4, 3, 12, 12)), torch.zeros(4, dtype=torch.int64), None)
    assert model.shapes == [(4, 3, 16, 16), (4, 3, 12, 12)]
    assert model.backward_passes == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parameter in model.parameters():
        assert (parameter.grad is not None) == has_gradients
        assert parameter.grad is None or bool((parameter.grad == 1).all())
    assert all(module.training == (training and module is not frozen) for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
