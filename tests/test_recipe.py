from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError

from respipe.cost.macs import counted
from respipe.cost.usage import usage
from respipe.model.adapt import adapt
from respipe.model.loading import build_model
from respipe.model.lowmode import PooledConv2d
from respipe.planning.crops import CenterCrop, RandomCrop, ShiftedCenterCrop, WholeImage
from respipe.planning.random_resized_crop import RandomResizedCrop
from respipe.recipe import RECIPES, Jitter, load_recipe
from respipe.schedules import TRD, Constant, LowMode, MixSize, RSNet
from respipe.train import batch_scale, build_batch_transform
from respipe.training.batches import ColorJitter

ALL = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def test_the_recipes_that_the_readme_names_are_there() -> None:
    mixsize = {f"mixsize_{data}_{kind}" for data in ("imagenet", "cifar10") for kind in "bd"}
    switchable = {"rsnet_imagenet", "rsnet_cifar10", "lowmode_cifar10_resnet18", "lowmode_cifar10_resnet50"}
    others = {"trd_imagenet", "trd_cifar10", "baseline_imagenet", "baseline_cifar10", "demo"}
    assert mixsize | switchable | others <= set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_plans_all_its_epochs_and_its_model_takes_every_size(name: str) -> None:
    recipe = load_recipe(name)
    schedule = recipe.build_schedule()
    sizes = {
        step.sizes
        for epoch in range(recipe.epochs)
        for step in set(
            schedule.steps(epoch, num_samples=50 * recipe.data.batch_size, batch_size=recipe.data.batch_size)
        )
    }
    assert sizes == ({schedule.sizes} if isinstance(schedule, RSNet) else {(size,) for size in schedule.sizes})
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of models that need nothing, and of strides that do not divide
        model = build_model(recipe.model.name, num_classes=10, options=recipe.model.options).eval()
        adapt(model, schedule, **recipe.adaptation.model_dump())
        for size in {*schedule.sizes, *recipe.evaluation.sizes}:
            assert model(torch.empty(2, 3, size, size)).shape == (2, 10)


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_begins_with_the_command_that_runs_it(name: str) -> None:
    header = (RECIPES / f"{name}.yaml").read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"respipe train {name} --data" in header
    assert "Expected" in header


@pytest.mark.parametrize("data", ["imagenet", "cifar10"])
def test_baselines_differ_from_their_trd_recipe_in_the_schedule_alone(data: str) -> None:
    trd, baseline = (load_recipe(f"{kind}_{data}") for kind in ("trd", "baseline"))
    assert trd.model_dump(exclude={"schedule"}) == baseline.model_dump(exclude={"schedule"})
    assert baseline.build_schedule() == Constant(trd.build_schedule().base_size)


def test_trd_imagenet_is_the_papers_schedule() -> None:
    schedule = load_recipe("trd_imagenet").build_schedule()
    assert schedule == TRD(224, 112, 0.5, milestones=(75, 150, 225), guard=(2, 2), num_epochs=300)


def test_trd_cifar10_is_the_papers_augmentation() -> None:
    recipe = load_recipe("trd_cifar10")
    assert recipe.data.crop.build() == RandomCrop(32, padding=4)
    assert recipe.evaluation.crop.build() == WholeImage()
    assert recipe.build_schedule().sizes == (32, 16)


@pytest.mark.parametrize(
    ("name", "regime", "num_samples", "num_steps"),
    [
        ("mixsize_imagenet_b", "S144", 1_281_167, 168_750),
        ("mixsize_imagenet_d", "S144", 1_281_167, 450_180),
        ("mixsize_cifar10_b", "S28", 50_000, 109_200),
        ("mixsize_cifar10_d", "S28", 50_000, 156_000),
    ],
)
def test_mixsize_recipes_take_the_papers_numbers_of_steps(
    name: str, regime: str, num_samples: int, num_steps: int
) -> None:
    recipe = load_recipe(name)
    schedule = recipe.build_schedule()
    assert isinstance(schedule, MixSize)
    assert schedule.regime == regime
    used = usage(schedule, num_epochs=recipe.epochs, num_samples=num_samples, batch_size=recipe.data.batch_size)
    assert used.num_steps == num_steps
    # Larger batches come with a larger learning rate and smoothed gradients; more copies with neither.
    is_b_plus = name.endswith("_b")
    assert batch_scale(recipe, num_samples=num_samples) == pytest.approx(
        {"mixsize_imagenet_b": 2.669, "mixsize_cifar10_b": 1.431}.get(name, 1.0), rel=2e-3
    )
    assert (recipe.optimizer.smoothing is not None) == is_b_plus
    assert recipe.evaluation.calibration_batches == 200


def test_mixsize_cifar10_is_the_papers_crop_resized() -> None:
    for name in ("mixsize_cifar10_b", "mixsize_cifar10_d"):
        recipe = load_recipe(name)
        assert recipe.data.crop.build() == RandomCrop(32, padding=4)
        assert recipe.evaluation.crop.build() == WholeImage()


def test_rsnet_imagenet_is_the_papers_recipe() -> None:
    recipe = load_recipe("rsnet_imagenet")
    assert recipe.build_schedule() == RSNet((224, 192, 160, 128, 96))
    assert (recipe.epochs, recipe.data.batch_size, recipe.optimizer.weight_decay) == (120, 256, 1e-4)
    assert (recipe.learning_rate.peak, recipe.learning_rate.decay, recipe.learning_rate.warmup_epochs) == (
        0.1, "cosine", 0,
    )  # fmt: skip
    assert (recipe.distillation.teachers, recipe.distillation.weight_decay) == ("larger", 0)


@pytest.mark.parametrize(("depth", "blocks"), [(18, 16), (50, 16)])
def test_lowmode_recipes_are_the_papers(depth: int, blocks: int) -> None:
    recipe = load_recipe(f"lowmode_cifar10_resnet{depth}")
    schedule = recipe.build_schedule()
    assert schedule == LowMode(32, 2, 0.5, milestones=(80, 120), guard=(0, 4))
    assert len(schedule.steps(0, num_samples=50_000, batch_size=recipe.data.batch_size)) == 400
    assert (recipe.epochs, recipe.learning_rate.milestones, recipe.learning_rate.factor) == (200, (80, 120), 0.1)
    with torch.device("meta"):
        model = build_model(recipe.model.name, num_classes=10, options=recipe.model.options)
    full = counted(model)(32)
    adapt(model, schedule, **recipe.adaptation.model_dump())
    assert sum(isinstance(module, PooledConv2d) for module in model.modules()) == blocks
    assert counted(model)(16) / full == pytest.approx({18: 0.123, 50: 0.584}[depth], abs=0.001)


def test_images_are_not_mixed_at_one_of_several_sizes() -> None:
    with pytest.raises(ValueError, match=r"`data.batch_transform` must mix nothing.*got MixUp beside RSNet"):
        load_recipe("rsnet_cifar10", ["data.batch_transform={name: MixUp}"])


def test_overrides_reach_nested_fields_and_parse_yaml() -> None:
    recipe = load_recipe(
        "trd_cifar10",
        ["epochs=3", "data.batch_size=64", "schedule={name: Constant, size: 24}", "learning_rate.milestones=[1, 2]"],
    )
    assert (recipe.epochs, recipe.data.batch_size) == (3, 64)
    assert recipe.build_schedule() == Constant(24)
    assert recipe.learning_rate.milestones == (1, 2)
    assert recipe.data.crop.build() == RandomCrop(32, padding=4)


def test_schedule_that_needs_the_length_of_the_run_gets_it() -> None:
    quota = "schedule={name: TRD, full_size: 96, reduced_size: 64, participation: 0.5, draw: quota}"
    schedule = load_recipe("demo", [quota, "epochs=7"]).build_schedule()
    assert isinstance(schedule, TRD)
    assert schedule.num_epochs == 7
    schedule = load_recipe("demo", [quota, "schedule.num_epochs=9"]).build_schedule()
    assert isinstance(schedule, TRD)
    assert schedule.num_epochs == 9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.batch_size=0", r"`data.batch_size`: .*greater than or equal to 1; got 0"),
        ("data.batchsize=3", r"`data.batchsize`: There is no such field; got 3"),
        ("schedule.participation=1.5", r"`participation` must lie between 0 and 1; got 1.5"),
        ("schedule.width=3", r"`schedule.width` must be a field of TRD"),
        ("schedule.name=Trd", r"`schedule.name` must be a known schedule; got 'Trd'"),
        ("adaptation.kernels=small", r"`adaptation.kernels`: .*; got 'small'"),
        ("distillation.teachers=all", r"`distillation.teachers`: .*; got 'all'"),
        (
            "data={batch_size: 8, flip_each_size: true, batch_transform: {name: CutMix}}",
            r"`data`: `flip_each_size` must",
        ),
        ("data.crop={name: RandomCrop}", r"`data.crop`: RandomCrop cannot be built: .*'size'"),
        ("data.crop={name: Scissors}", r"`data.crop.name`: .*; got 'Scissors'"),
        ("evaluation.sizes=[]", r"`evaluation.sizes`: .*at least 1 item"),
        ("precision=int8", r"`precision`: .*; got 'int8'"),
        ("learning_rate.decay=exponential", r"`learning_rate.decay`"),
        ("learning_rate.scale=epochs", r"`learning_rate.scale`: .*; got 'epochs'"),
        ("optimizer.smoothing=1", r"`optimizer.smoothing`: .*less than 1; got 1"),
        ("evaluation.calibration_batches=0", r"`evaluation.calibration_batches`: .*; got 0"),
        ("epochs", r"`--set` must be key=value; got 'epochs'"),
        ("epochs=[", r"`RECIPE` must be YAML"),
    ],
)
def test_wrong_field_is_named_with_its_rule_and_value(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("trd_cifar10", [override])


def test_all_wrong_fields_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)`data.batch_size`.*`label_smoothing`"):
        load_recipe("trd_cifar10", ["data.batch_size=-1", "label_smoothing=1"])


def test_model_schedule_epochs_and_learning_rate_make_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "{model: {name: resnet18}, schedule: {name: TRD, full_size: 64, reduced_size: 32, participation: 0.5}}"
    )
    recipe = load_recipe(str(path), ["epochs=4", "learning_rate={peak: 0.1, decay: cosine}"])
    assert (recipe.evaluation.sizes, recipe.data.batch_size) == ((64,), 256)
    assert load_recipe(str(path), ["epochs=4", "learning_rate.peak=1", "evaluation.every=2"]).evaluation.sizes == (64,)


def test_missing_field_and_missing_file_are_named(tmp_path: Path) -> None:
    content = yaml.safe_load((RECIPES / "demo.yaml").read_text())
    del content["learning_rate"]["peak"]
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=r"own.yaml is not a valid recipe:\n  `learning_rate.peak`: Field required"):
        load_recipe(str(path))
    with pytest.raises(ValueError, match=r"must be a YAML file or one of .*trd_imagenet.*; got 'nowhere.yaml'"):
        load_recipe("nowhere.yaml")
    with pytest.raises(ValueError, match=r"got 'trd_imagnet' \(did you mean trd_imagenet\?\)"):
        load_recipe("trd_imagnet")
    path.write_text("- a list")
    with pytest.raises(ValueError, match=r"must hold a mapping; .* holds list"):
        load_recipe(str(path))


def test_recipe_cannot_be_changed() -> None:
    recipe = load_recipe("demo")
    with pytest.raises(ValidationError, match="frozen"):
        recipe.epochs = 3


TUNED = """
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


def test_mistake_in_the_tuning_is_found_before_the_training(tmp_path: Path) -> None:
    for line in ("  learning_rate: {peek: 1}", "  learning_rate: {peak: -1}", "  batch: 3"):
        path = tmp_path / "wrong.yaml"
        path.write_text(TUNED.replace("  learning_rate: {peak: 0.5, milestones: [1]}", line))
        with pytest.raises(ValueError, match="is not a valid recipe"):
            load_recipe(str(path))


def test_overrides_change_what_is_run(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(TUNED)
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


def test_a_kind_that_is_named_anew_has_its_own_fields_and_lists_need_no_brackets() -> None:
    changes = ["data.crop.name=RandomResizedCrop", "evaluation.sizes=96,128"]
    recipe = load_recipe("trd_cifar10", [*changes, "schedule.name=Constant", "schedule.size=96"])
    assert recipe.data.crop.build() == RandomResizedCrop()
    assert recipe.evaluation.sizes == (96, 128)
    assert recipe.build_schedule() == Constant(96)
