from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from pipelines import train
from pipelines.data import build_batch_transform
from pipelines.finetune import start_from
from respipe.recipe import Jitter, load_recipe
from respipe.sampling import CenterCrop, ShiftedCenterCrop
from respipe.schedules import Constant
from respipe.training.color_jitter import ColorJitter
from tests.pipelines.test_train import assert_same_run, events

RECIPE = """
model: {name: mobilenet_v2, options: {width_mult: 0.25, dropout: 0.5}}
schedule: {name: Constant, size: 32}
epochs: 1
data: {batch_size: 4, repeats: 2, batch_transform: {name: ColorJitter, brightness: 0.3}}
learning_rate: {peak: 0.05}
evaluation: {sizes: [64, 32], batch_size: 7}
runtime: {device: cpu, backend: reference, num_threads: 1, tensorboard: false}
finetune:
  schedule: {name: Constant, size: 64}
  epochs: 2
  data: {crop: {name: ShiftedCenterCrop}, repeats: 1}
  learning_rate: {peak: 0.5, milestones: [1]}
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, jpeg_folder: Path) -> list[str]:
    recipe = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    recipe.write_text(RECIPE)
    return [str(recipe), "--data", str(jpeg_folder), "--val", str(jpeg_folder)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, command: list[str]) -> Path:
    output = tmp_path_factory.mktemp("trained")
    train.main([*command, "--output", str(output)])
    return output / "checkpoint.pt"


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def test_tuning_changes_the_end_of_the_trained_network_alone(trained: Path, command: list[str], tmp_path: Path) -> None:
    train.main([*command, "--output", str(tmp_path), "--init", str(trained)])
    before, after = weights(trained), weights(tmp_path / "checkpoint.pt")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {f"features.18.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed == {"classifier.1.weight", "classifier.1.bias"} | statistics
    start, *epochs, _ = events(tmp_path)
    assert start["schedule"] == "Constant(size=64)"
    assert [epoch["lr"] for epoch in epochs] == pytest.approx([0.5, 0.05])
    assert list(epochs[0]["sizes"]) == ["64"]


def test_tuning_that_was_cut_off_resumes_to_the_same_weights(trained: Path, command: list[str], tmp_path: Path) -> None:
    common = [*command, "--init", str(trained), "--set", "runtime.checkpoint_steps=3"]
    train.main([*common, "--output", str(tmp_path / "whole")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train.main([*common, "--output", str(tmp_path / "cut")])
    assert not events(tmp_path / "cut")[1:]
    train.main([*common, "--output", str(tmp_path / "cut"), "--resume"])
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


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


def test_recipe_of_another_kind_cannot_start_from_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        train.main(["trd_cifar10", "--data", "x", "--output", str(tmp_path), "--init", "y"])
    assert "`RECIPE` must have a `finetune` part" in capsys.readouterr().err


def test_mistake_in_the_tuning_is_found_before_the_training(tmp_path: Path) -> None:
    for line in ("  learning_rate: {peek: 1}", "  learning_rate: {peak: -1}", "  batch: 3"):
        path = tmp_path / "wrong.yaml"
        path.write_text(RECIPE.replace("  learning_rate: {peak: 0.5, milestones: [1]}", line))
        with pytest.raises(ValueError, match="is not a valid recipe"):
            load_recipe(str(path))


def test_overrides_change_what_is_run(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    overrides = ["epochs=7", "finetune.layers=[classifier]", "data.batch_size=2"]
    tuned = load_recipe(str(path), overrides, finetune=True)
    assert (tuned.epochs, tuned.data.batch_size, tuned.data.repeats) == (7, 2, 1)
    assert tuned.finetune is not None and tuned.finetune.layers == ("classifier",)
    assert tuned.learning_rate.peak == 0.5
    plain = load_recipe(str(path), overrides)
    assert (plain.epochs, plain.build_schedule(), plain.data.repeats) == (7, Constant(32), 2)


def test_fixres_imagenet_is_the_papers() -> None:
    recipe, tuned = load_recipe("fixres_imagenet"), load_recipe("fixres_imagenet", finetune=True)
    assert (recipe.build_schedule(), tuned.build_schedule()) == (Constant(224), Constant(320))
    assert recipe.data.repeats == 3
    assert recipe.data.batch_transform == Jitter(name="ColorJitter", brightness=0.3, contrast=0.3, saturation=0.3)
    # The code's 120 epochs of 5,005 steps, drops after 30, 60 and 90 of them.
    assert recipe.epochs * (1_281_167 // 512) == pytest.approx(120 * 5005, rel=1e-3)
    assert [2 * epoch for epoch in (30, 60, 90)] == list(recipe.learning_rate.milestones)
    assert (tuned.learning_rate.peak, tuned.learning_rate.milestones, tuned.epochs) == (0.008, (30,), 60)
    assert tuned.data.crop.build() == CenterCrop()
    assert (tuned.data.flip_probability, tuned.data.batch_transform, tuned.data.repeats) == (0, None, 1)


def test_commands_for_the_other_augmentations_in_fixres_imagenet_are_valid() -> None:
    jitter = "data.batch_transform={name: ColorJitter, brightness: 0.05, contrast: 0.05, saturation: 0.05}"
    overrides = ["data.crop.name=ShiftedCenterCrop", "data.flip_probability=0.5", jitter]
    recipe = load_recipe("fixres_imagenet", overrides, finetune=True)
    assert recipe.data.crop.build() == ShiftedCenterCrop()
    transform = build_batch_transform(recipe.data, num_classes=10)
    assert transform == ColorJitter(brightness=0.05, contrast=0.05, saturation=0.05, normalize="imagenet")
