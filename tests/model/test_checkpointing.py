"""Parts of an adapted model that are run again in the backward pass, instead of keeping their activations."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import respipe
from respipe.model._routing import Route
from respipe.model.batchnorm import make_batchnorm_per_size
from respipe.schedules import LowMode, RSNet
from respipe.training.objective import MRED, AllSizes

SIZES = (16, 12, 8)


class Network(nn.Module):
    """A stem with max-pooling, and two blocks that can be checkpointed, one within the other where that is wanted."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
        self.outer = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh())
        self.head = nn.Linear(6, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = self.stem(images)
        if self.kind == "plain" or not torch.is_grad_enabled():
            features = self.outer(self.inner(features))
        elif self.kind == "nested":
            features = checkpoint(self._both, features, use_reentrant=False)
        else:
            reentrant = self.kind == "reentrant"
            features = checkpoint(self.inner, features, use_reentrant=reentrant)
            features = checkpoint(self.outer, features, use_reentrant=reentrant)
        return self.head(features.mean((2, 3)))

    def _both(self, features: torch.Tensor) -> torch.Tensor:
        return self.outer(checkpoint(self.inner, features, use_reentrant=False))


def adapted(kind: str, *, kernels: str = "full") -> Network:
    """Private BatchNorms, all different, and pooled kernels where they are asked for."""
    torch.manual_seed(0)
    model = Network(kind)
    respipe.adapt(model, RSNet(SIZES), kernels=kernels)
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if "per_size" in name:
            parameter.data += 0.1 * (number % 7)
    return model


def images(size: int) -> torch.Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(size))


def gradients(model: nn.Module, *, together: bool = True) -> dict[str, torch.Tensor]:
    """Those of a loss at all sizes, each backward pass on its own or one for all."""
    losses = [model(images(size)).square().sum() for size in (*SIZES, SIZES[0])]
    if together:
        torch.stack(losses).sum().backward()
    else:
        for loss in losses:
            loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kernels", ["full", "pooled"])
@pytest.mark.parametrize("kind", ["checkpointed", "reentrant", "nested"])
def test_parts_run_again_are_those_of_the_call_before(kind: str, kernels: str, together: bool) -> None:
    expected = gradients(adapted("plain", kernels=kernels))
    assert any(".per_size.8.weight" in name for name in expected)
    torch.testing.assert_close(gradients(adapted(kind, kernels=kernels), together=together), expected)


def test_statistics_move_at_the_size_alone() -> None:
    model = adapted("checkpointed")
    for size in SIZES:
        before = copy.deepcopy(dict(model.named_buffers()))
        model(images(size)).sum().backward()
        moved = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
        assert moved
        assert all((f".per_size.{size}." in name) if size < SIZES[0] else ".per_size." not in name for name in moved)


def test_all_sizes_recompute_a_model_with_checkpointed_parts() -> None:
    labels = torch.tensor([0, 1, 2, 1])
    found = list[dict[str, torch.Tensor]]()
    for kind, recompute in (("plain", False), ("checkpointed", True)):
        both = AllSizes(adapted(kind, kernels="pooled"), MRED(3), recompute=recompute)
        both([images(size) for size in SIZES], labels).backward()
        found.append(
            {name: parameter.grad for name, parameter in both.named_parameters() if parameter.grad is not None}
        )
    torch.testing.assert_close(*found)


def test_low_mode_with_equal_maps_in_both_modes() -> None:
    """Without max-pooling in low mode, the shape of a map does not tell the mode."""
    found = list[dict[str, torch.Tensor]]()
    for kind in ("plain", "checkpointed"):
        torch.manual_seed(0)
        model = Network(kind)
        model.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(2))
        respipe.adapt(model, LowMode(16))
        for _ in range(2):
            (model(images(16)).square().sum() + model(images(8)).square().sum()).backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*found)


def test_models_of_timm_checkpoint_their_stages() -> None:
    found = list[dict[str, torch.Tensor]]()
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = timm.create_model("resnet10t", num_classes=3)
        make_batchnorm_per_size(model, (64, 32), affine=True)
        model.set_grad_checkpointing(checkpointed)
        loss = model(images(64)).square().sum() + model(images(32)).square().sum()
        loss.backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "changed",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), nn.SyncBatchNorm.convert_sync_batchnorm],
)
def test_copies_and_converted_models_are_run_again_alike(changed: Any) -> None:
    original = adapted("checkpointed", kernels="pooled")
    model = changed(original)
    norms = [module for module in model.modules() if isinstance(module, nn.SyncBatchNorm)]
    for norm in norms:
        norm.eval()  # in training it wants a GPU
    expected_model = adapted("plain", kernels="pooled")
    if norms:
        for module in expected_model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    expected = gradients(expected_model)
    torch.testing.assert_close(gradients(model), expected)


def test_layers_called_by_themselves_in_a_backward_pass_are_plain() -> None:
    model = adapted("plain")
    model(images(8))
    features = torch.randn(4, 6, 8, 8, requires_grad=True)
    norm = model.inner[1].eval()
    seen = list[torch.Tensor]()
    doubled = features * 2
    doubled.register_hook(lambda _: seen.append(norm(features)))
    with pytest.warns(UserWarning, match="called outside of a call of the model"):
        doubled.sum().backward()
    assert torch.equal(seen[0], norm(features))


def test_memory_of_calls_is_bounded_and_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("respipe.model._routing._MOST_CALLS", 5)
    calls = Route()
    for side in range(100):
        calls.enter(side)
        calls.leave()
    assert len(calls._starts) == len(calls._sides) <= 20
    assert calls._sides[-2:] == [99, None]
    assert not copy.deepcopy(calls)._starts
    with torch.no_grad():
        calls.enter(1)
    assert calls._sides[-2:] == [99, None]
