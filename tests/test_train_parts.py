from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import respipe
from respipe.model.resnet_cifar import ResNetCifar
from respipe.recipe import LearningRate, Optimizer, Recipe, load_recipe
from respipe.schedules import LowMode, MixSize, RSNet, Schedule
from respipe.train import (
    batch_scale,
    build_objective,
    build_optimizer,
    learning_rate,
    leaves_parameters_unused,
    start_from,
)

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


def rate(recipe: LearningRate, epoch: int, step: int, *, num_steps: int = 10, num_epochs: int = 20) -> float:
    return learning_rate(recipe, epoch=epoch, step=step, num_steps=num_steps, num_epochs=num_epochs)


def test_step_decay_falls_at_the_first_step_of_each_milestone() -> None:
    recipe = LearningRate(peak=0.8, milestones=(5, 12), factor=0.5)
    assert [rate(recipe, epoch, step) for epoch, step in [(0, 0), (4, 9), (5, 0), (11, 9), (12, 0), (19, 9)]] == [
        0.8, 0.8, 0.4, 0.4, 0.2, 0.2,
    ]  # fmt: skip


def test_warmup_rises_linearly_and_reaches_the_peak_at_its_last_step() -> None:
    recipe = LearningRate(peak=1.0, warmup_epochs=2)
    rates = [rate(recipe, epoch, step) for epoch in range(3) for step in range(10)]
    assert rates == pytest.approx([min(1.0, (number + 1) / 20) for number in range(30)])


def test_cosine_starts_at_the_peak_is_halved_midway_and_ends_near_zero() -> None:
    recipe = LearningRate(peak=0.4, decay="cosine", warmup_epochs=4)
    assert rate(recipe, 4, 0) == pytest.approx(0.4)
    assert rate(recipe, 12, 0) == pytest.approx(0.2)
    assert rate(recipe, 19, 9) == pytest.approx(0.4 * 0.5 * (1 - math.cos(math.pi * 0.1 / 16)))
    rates = [rate(recipe, epoch, step) for epoch in range(4, 20) for step in range(10)]
    assert rates == sorted(rates, reverse=True)


def test_rate_depends_on_the_place_in_the_epoch_not_on_its_number_of_steps() -> None:
    recipe = LearningRate(peak=0.4, decay="cosine")
    assert rate(recipe, 3, 5, num_steps=10) == rate(recipe, 3, 50, num_steps=100)


def test_norms_and_biases_are_exempt_from_decay_on_request() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    weights, others = build_optimizer(model, Optimizer(weight_decay=0.1, decay_all=False)).param_groups
    assert (weights["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {id(parameter) for parameter in weights["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert len(others["params"]) == 4
    (everything,) = build_optimizer(model, Optimizer(weight_decay=0.1)).param_groups
    assert len(everything["params"]) == 6


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    (group,) = build_optimizer(model, Optimizer()).param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(model.weight)]


def mixed(scale: str) -> Recipe:
    options = [f"learning_rate.scale={scale}", "epochs=2", "data.batch_size=10"]
    return load_recipe(
        "mixsize_cifar10_b", [*options, "schedule.regime=[[32, 0.5], [16, 0.5]]", "schedule.base_size=32"]
    )


@pytest.mark.parametrize(("scale", "expected"), [("null", 1.0), ("steps", 1.6), ("samples", 2.5)])
def test_rate_is_scaled_by_the_mean_batch_asked_for(scale: str, expected: float) -> None:
    # Of 800 samples, 40 steps of 10 and 10 steps of 40.
    assert batch_scale(mixed(scale), num_samples=800) == expected


def test_smoothing_belongs_to_the_optimizer_and_its_state() -> None:
    model = nn.Linear(3, 2)
    plain, smoothed = (build_optimizer(model, Optimizer(smoothing=alpha)) for alpha in (None, 0.5))
    assert "gradient_smoothing" not in plain.state_dict()
    model(torch.ones(1, 3)).sum().backward()
    smoothed.step()
    norm = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in model.parameters()))
    assert smoothed.state_dict()["gradient_smoothing"]["mean_norm"] == pytest.approx(norm)


def test_files_without_these_weights_are_refused(tmp_path: Path) -> None:
    recipe = load_recipe("fixres_cifar10", ["model={name: resnet18, num_classes: 3}"], finetune=True)
    model = torchvision.models.resnet18(num_classes=3)
    path = tmp_path / "weights.pth"

    def refused(cause: str) -> None:
        with pytest.raises(ValueError, match=f"`--init` must name weights of the recipe's model: .*{cause}"):
            start_from(model, path, recipe)

    refused("No such file")
    path.write_bytes(b"nothing")
    refused("must be a file of weights")
    torch.save(model, path)  # code, not weights
    refused("must be a file of weights")
    torch.save([1, 2], path)
    refused("must hold a state_dict")
    torch.save(torchvision.models.resnet18(num_classes=4).state_dict(), path)
    refused("for resnet18 there are 2 of another shape")
