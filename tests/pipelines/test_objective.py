from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import respipe
from pipelines.objective import build_objective, leaves_parameters_unused
from respipe.model.resnet_cifar import ResNetCifar
from respipe.recipe import Recipe, load_recipe
from respipe.schedules import LowMode, MixSize, RSNet, Schedule

LABELS = torch.tensor([0, 2, 1, 2])


def recipe(*changes: str) -> Recipe:
    return load_recipe("rsnet_cifar10", ["schedule={name: RSNet, sizes: [16, 12, 8]}", *changes])


def images(*sizes: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(size)) for size in sizes)


def network() -> ResNetCifar:
    torch.manual_seed(0)
    return ResNetCifar(8, width=4, num_classes=3).eval()


@pytest.mark.parametrize(("teachers", "full"), [("larger", True), ("ensemble", False)])
def test_sizes_of_a_step_are_distilled_as_the_recipe_says(teachers: str, full: bool) -> None:
    objective = build_objective(network(), recipe(f"distillation.teachers={teachers}", "label_smoothing=0.1"))
    expected = respipe.MRED(3, full=full, label_smoothing=0.1)([network()(one) for one in images(16, 12, 8)], LABELS)
    torch.testing.assert_close(objective(images(16, 12, 8), LABELS), expected)


def test_without_teachers_each_size_learns_from_the_labels() -> None:
    objective = build_objective(network(), recipe("distillation.teachers=none"))
    expected = sum(F.cross_entropy(network()(one), LABELS) for one in images(16, 12, 8))
    torch.testing.assert_close(objective(images(16, 12, 8), LABELS), expected)
    assert not list(objective.criterion.parameters())


@pytest.mark.parametrize("schedule", ["{name: Constant, size: 16}", "{name: RSNet, sizes: [16]}"])
def test_steps_of_one_size_have_the_cross_entropy(schedule: str) -> None:
    objective = build_objective(network(), recipe(f"schedule={schedule}", "label_smoothing=0.2"))
    expected = F.cross_entropy(network()(*images(16)), LABELS, label_smoothing=0.2)
    torch.testing.assert_close(objective(*images(16), LABELS), expected)


def test_recomputation_is_a_matter_of_the_run() -> None:
    found = [build_objective(network(), recipe(f"runtime.recompute={flag}")).recompute for flag in ("true", "false")]
    assert found == [True, False]


@pytest.mark.parametrize(
    ("schedule", "batchnorm", "expected"),
    [
        (RSNet((32, 16)), "auto", False),  # every step has a gradient for all
        (LowMode(32), "auto", True),
        (LowMode(32), "shared", False),
        (MixSize("S28"), "per_size", True),
    ],
)
def test_parameters_are_unused_where_a_step_leaves_out_a_private_batchnorm(
    schedule: Schedule, batchnorm: str, expected: bool
) -> None:
    model = respipe.adapt(network(), schedule, batchnorm=batchnorm, kernels="pooled")
    assert leaves_parameters_unused(model, schedule) == expected
