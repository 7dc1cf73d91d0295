"""Adapted models under ``torch.compile``: a graph for each size, and none after the first step at each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import respipe
from respipe.schedules import LowMode, MixSize, RSNet, Schedule
from tests.model.test_checkpointing import Network, adapted, images

SIZES = (16, 12, 8)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Compiled code and counts are the process's: begin without those of other tests, and leave none."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def num_graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def train_step(model: nn.Module, size: int) -> None:
    model(images(size)).square().sum().backward()


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        (RSNet(SIZES), {}),
        (LowMode(16), {}),
        (MixSize({16: 0.5, 12: 0.3, 8: 0.2}, base_size=16), {"batchnorm": "per_size", "kernels": "pooled"}),
    ],
)
def test_there_is_one_graph_for_each_size_and_none_is_compiled_again(
    schedule: Schedule, options: dict[str, str]
) -> None:
    torch.manual_seed(0)
    model = torch.compile(
        respipe.adapt(Network("plain"), schedule, **options),  # type: ignore[arg-type]
        backend="eager", dynamic=False,
    )  # fmt: skip
    for size in schedule.sizes:
        train_step(model, size)
    assert num_graphs() == len(schedule.sizes)
    assert not torch._dynamo.utils.counters["graph_break"]
    for size in (*schedule.sizes, *schedule.sizes[::-1]):
        train_step(model, size)
    assert num_graphs() == len(schedule.sizes)
    model.eval()
    with torch.no_grad():
        for size in schedule.sizes * 2:
            model(images(size))
    assert num_graphs() == 2 * len(schedule.sizes)


def test_without_a_word_about_dynamic_shapes_compilation_ends_after_two_rounds() -> None:
    model = torch.compile(adapted("plain", kernels="pooled"), backend="eager")
    for size in SIZES * 2:  # in the second round TorchDynamo replaces what it compiled for fixed shapes
        train_step(model, size)
    after_first_steps = num_graphs()
    for size in SIZES * 2:
        train_step(model, size)
    assert num_graphs() == after_first_steps


@pytest.mark.parametrize("together", [True, False])
def test_compiled_models_with_checkpointed_parts_have_the_gradients_of_each_size(together: bool) -> None:
    found = list[dict[str, torch.Tensor]]()
    for kind in ("plain", "checkpointed"):
        model: nn.Module = adapted(kind, kernels="pooled")
        parameters = dict(model.named_parameters())
        if kind == "checkpointed":
            model = torch.compile(model, backend="aot_eager", dynamic=False)
        losses = list[torch.Tensor]()
        for size in SIZES:
            loss = model(images(size)).square().sum()
            losses.append(loss)
            if not together:
                loss.backward()
        if together:
            torch.stack(losses).sum().backward()
        found.append({name: one.grad for name, one in parameters.items() if one.grad is not None})
    torch.testing.assert_close(*found)
