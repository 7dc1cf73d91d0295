from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from respipe.model.adapt import adapt
from respipe.model.resnet_cifar import ResNetCifar
from respipe.schedules import RSNet
from respipe.training.objective import MRED, AllSizes

SIZES = (16, 12, 8)
LABELS = torch.tensor([0, 2, 1, 2, 0])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Conv2d(8, 8, 3, padding=1, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def images() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(5, 3, size, size, generator=generator) for size in SIZES)


def step(both: AllSizes, *, autocast: bool = False) -> dict[str, torch.Tensor]:
    """Everything that a step leaves behind."""
    torch.manual_seed(7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = both(images(), LABELS)
    loss.backward()
    left = {f"gradient of {name}": parameter.grad for name, parameter in both.named_parameters()}
    state = {name: value.clone() for name, value in both.state_dict().items()}
    return left | state | {"loss": loss.detach(), "random state": torch.get_rng_state()}


def test_loss_is_that_of_all_outputs() -> None:
    model = network().eval()
    loss = AllSizes(model, MRED(3))(images(), LABELS)
    torch.testing.assert_close(loss, MRED(3)([model(one) for one in images()], LABELS))


def test_single_batch_counts_as_one_size() -> None:
    model, (largest, _, _) = network().eval(), images()
    both = AllSizes(model, lambda outputs, labels: F.cross_entropy(outputs[0], labels))
    assert torch.equal(both(largest, LABELS), F.cross_entropy(model(largest), LABELS))


@pytest.mark.parametrize("autocast", [False, True])
def test_recomputing_leaves_gradients_statistics_and_random_state_as_without(autocast: bool) -> None:
    plain = step(AllSizes(network(), MRED(3)), autocast=autocast)
    recomputed = step(AllSizes(network(), MRED(3), recompute=True), autocast=autocast)
    torch.testing.assert_close(recomputed, plain)
    assert recomputed["model.1.num_batches_tracked"] == 3
    assert all(value.abs().max() > 0 for name, value in plain.items() if name.startswith("gradient"))


def adapted() -> nn.Module:
    """Private BatchNorm and pooled kernels: a pass at one size must not see what another one left."""
    torch.manual_seed(0)
    return adapt(ResNetCifar(8, width=4, num_classes=3), RSNet(SIZES), kernels="pooled")


def test_recomputing_works_with_adapted_networks() -> None:
    plain, recomputed = (step(AllSizes(adapted(), MRED(3), recompute=recompute)) for recompute in (False, True))
    torch.testing.assert_close(recomputed, plain)
    for name in ("stem.1", "stem.1.per_size.12", "stem.1.per_size.8"):
        assert recomputed[f"model.{name}.num_batches_tracked"] == 1
        assert plain[f"gradient of model.{name}.weight"].abs().max() > 0


@pytest.mark.parametrize("recompute", [False, True])
def test_adapted_networks_are_compiled(recompute: bool) -> None:
    expected = step(AllSizes(adapted(), MRED(3)))
    model = torch.compile(adapted(), backend="eager", dynamic=False)
    found = step(AllSizes(model, MRED(3), recompute=recompute))
    torch.testing.assert_close({name.replace("_orig_mod.", ""): value for name, value in found.items()}, expected)


def test_recomputing_holds_the_activations_of_one_size_at_a_time() -> None:
    def saved_bytes(*, recompute: bool) -> int:
        held = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal held
            held += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            AllSizes(network(), MRED(3), recompute=recompute)(images(), LABELS)
        return held

    assert saved_bytes(recompute=True) < 0.1 * saved_bytes(recompute=False)


def test_recomputing_does_nothing_where_no_gradient_is_wanted() -> None:
    both = AllSizes(network().eval(), MRED(3), recompute=True)
    state = copy.deepcopy(both.state_dict())
    with torch.no_grad():
        assert not both(images(), LABELS).requires_grad
    torch.testing.assert_close(both.state_dict(), state)


def test_buffers_are_the_models_own_again_after_recomputing() -> None:
    model = network()
    before = dict(model.named_buffers())
    AllSizes(model, MRED(3), recompute=True)(images(), LABELS).backward()
    assert all(buffer is before[name] for name, buffer in model.named_buffers())
