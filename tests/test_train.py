"""Runs of the trainer: what they leave, how they resume, what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from respipe import train
from respipe.cli import app
from respipe.conversion import convert
from respipe.loading.loader import Loader
from respipe.planning.crops import RandomCrop
from respipe.recipe import RECIPES
from respipe.schedules import Constant
from respipe.storage.open import open_dataset
from respipe.train import warn_of_small_crops
from tests.train_runs import KINDS, assert_same_run, epochs, events, final_state, saved, start, write_recipe

Start = Callable[..., Path]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, jpeg_folder: Path) -> Callable[[str], Path]:
    """The folder of a run of each kind from its first step to its last; "finetune" tunes the one of "trd"."""
    done = dict[str, Path]()

    def folder_of(kind: str) -> Path:
        if kind not in done:
            folder = tmp_path_factory.mktemp(kind)
            if kind == "finetune":
                done[kind] = start(folder, jpeg_folder, folder / "run", init=folder_of("trd") / "checkpoint.pt")
            else:
                done[kind] = start(folder, jpeg_folder, folder / "run", kind=kind)
        return done[kind]

    return folder_of


@pytest.fixture
def tiny(tmp_path: Path, jpeg_folder: Path) -> Start:
    """Start a tiny run in ``tmp_path / "run"``."""
    return lambda *changes, **options: start(tmp_path, jpeg_folder, tmp_path / "run", *changes, **options)


# What a run leaves


def test_run_leaves_the_documented_log(undisturbed: Callable[[str], Path]) -> None:
    first, *steps, end = events(undisturbed("trd"))
    assert (first["event"], first["backend"], first["num_samples"], first["steps_per_epoch"]) == (
        "start", "reference", 18, 4,
    )  # fmt: skip
    assert first["schedule"].startswith("TRD(full_size=64")
    assert first["macs"]["64"] > first["macs"]["32"] > 0
    assert [event["epoch"] for event in steps] == [0, 1, 2]
    for event in steps:
        assert set(event) == {"event", "epoch", "seconds", "elapsed", "train_loss", "lr", "sizes", "eval"}
        assert sum(totals["steps"] for totals in event["sizes"].values()) == 4
        assert sum(totals["images"] for totals in event["sizes"].values()) == 16
        for totals in event["sizes"].values():
            assert 0 <= totals["wait_seconds"] <= totals["seconds"]
            assert totals["images_per_second"] == pytest.approx(totals["images"] / totals["seconds"])
    assert {size for event in steps for size in event["sizes"]} == {"64", "32"}
    assert [set(event["eval"]) for event in steps] == [set(), {"64", "32"}, {"64", "32"}]
    assert set(steps[-1]["eval"]["64"]) == {"top1", "top5", "loss"}
    assert [event["elapsed"] for event in steps] == sorted(event["elapsed"] for event in steps)
    assert end["top1"]["64"]["last"] == steps[-1]["eval"]["64"]["top1"]


def test_checkpoint_names_the_classes(undisturbed: Callable[[str], Path]) -> None:
    assert saved(undisturbed("trd"))["classes"] == ["ant", "bee", "cat"]


def test_mixed_sizes_take_the_planned_steps_at_a_rate_scaled_by_their_mean_batch(
    undisturbed: Callable[[str], Path],
) -> None:
    first, *_ = events(undisturbed("mixsize"))
    # Of 18 samples, 7 at 64 px make three batches of 2, and 11 at 32 px one of 8.
    assert (first["steps_per_epoch"], first["num_steps"], first["lr_scale"]) == (4, 12, 14 / 4 / 2)
    for epoch in epochs(undisturbed("mixsize")):
        counts = {size: (one["steps"], one["images"]) for size, one in epoch["sizes"].items()}
        assert counts == {"64": (3, 6), "32": (1, 8)}
        assert epoch["lr"] == pytest.approx(0.01 * first["lr_scale"])
    assert saved(undisturbed("mixsize"))["optimizer"]["gradient_smoothing"]["mean_norm"] > 0


def test_last_epoch_is_also_evaluated_with_calibrated_batchnorm_which_leaves_the_model_as_it_was(
    undisturbed: Callable[[str], Path], tiny: Start
) -> None:
    logged = epochs(undisturbed("mixsize"))
    assert ["calibrated" in epoch for epoch in logged] == [False, False, True]
    calibrated, plain = logged[-1]["calibrated"], logged[-1]["eval"]
    assert set(calibrated) == set(plain) == {"64", "32"}
    assert all(calibrated[size]["loss"] != plain[size]["loss"] for size in calibrated)
    assert_same_run(undisturbed("mixsize"), tiny("evaluation.calibration_batches=null", kind="mixsize"))


@pytest.mark.parametrize("kind", ["rsnet", "lowmode"])
def test_log_counts_steps_by_their_sizes(kind: str, undisturbed: Callable[[str], Path]) -> None:
    first, *_, end = events(undisturbed(kind))
    logged = epochs(undisturbed(kind))
    assert {label for epoch in logged for label in epoch["sizes"]} == (
        {"32+24+16"} if kind == "rsnet" else {"32", "16"}
    )
    for epoch in logged:
        assert sum(one["steps"] for one in epoch["sizes"].values()) == first["steps_per_epoch"] == 4
        assert sum(one["images"] for one in epoch["sizes"].values()) == 16
    assert set(first["macs"]) == ({"32", "24", "16"} if kind == "rsnet" else {"32", "16"})
    assert set(logged[-1]["eval"]) == set(logged[-1]["calibrated"]) == set(end["top1"]) == {"40", "32", "24", "16"}


def test_weights_of_the_ensemble_are_learned_saved_and_logged(undisturbed: Callable[[str], Path]) -> None:
    alpha, last = saved(undisturbed("rsnet"))["criterion"]["alpha"], epochs(undisturbed("rsnet"))[-1]
    assert alpha.shape == (3,)
    assert alpha.std() > 0
    assert alpha.sum() == pytest.approx(3, abs=1e-5)  # its gradients add up to 0, and it does not decay
    assert last["ensemble"] == pytest.approx(dict(zip(("32", "24", "16"), alpha.softmax(0).tolist(), strict=True)))
    assert not saved(undisturbed("lowmode"))["criterion"]
    assert "ensemble" not in epochs(undisturbed("lowmode"))[-1]


@pytest.mark.parametrize("kind", ["rsnet", "lowmode"])
def test_batchnorms_of_every_size_are_trained(kind: str, undisturbed: Callable[[str], Path]) -> None:
    model = saved(undisturbed(kind))["model"]
    for name in ("stem.1.weight", *(key for key in model if key.startswith("stem.1.per_size") and "weight" in key)):
        assert (model[name] != 1).any(), name
    assert ("stem.1.per_size.16.weight" in model) and ("stem.1.per_size.32.weight" not in model)


def test_tuning_changes_the_end_of_the_trained_network_alone(undisturbed: Callable[[str], Path]) -> None:
    before, after = (saved(undisturbed(kind))["model"] for kind in ("trd", "finetune"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    statistics = {f"features.18.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert changed == {"classifier.1.weight", "classifier.1.bias"} | statistics
    first, *_ = events(undisturbed("finetune"))
    assert first["schedule"] == "Constant(size=64)"
    assert [epoch["lr"] for epoch in epochs(undisturbed("finetune"))] == pytest.approx([0.5, 0.05])


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_batches_have_the_dtype_that_the_recipe_computes_in(
    precision: str, dtype: torch.dtype, tiny: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    dtypes, original = set[torch.dtype](), train.train_step

    def recorded(run: Any, images: torch.Tensor, *rest: Any) -> torch.Tensor:
        dtypes.add(images.dtype)
        return original(run, images, *rest)

    monkeypatch.setattr(train, "train_step", recorded)
    tiny("epochs=1", f"precision={precision}")
    assert dtypes == {dtype}


def test_trained_run_beats_chance(tmp_path: Path) -> None:
    """Images that differ in nothing but their brightness are told apart after two epochs, at both sizes."""
    for label, level in enumerate((40, 120, 210)):
        (tmp_path / "data" / f"{label}").mkdir(parents=True)
        for number in range(24):
            image = Image.new("RGB", (40, 40), (level + number % 7,) * 3)
            image.save(tmp_path / "data" / f"{label}" / f"{number}.jpg")
    output = start(
        tmp_path, tmp_path / "data", tmp_path / "run", "model={name: 'cifar:resnet8', options: {width: 8}}",
        "schedule={name: TRD, full_size: 16, reduced_size: 8, participation: 0.5, unit: step}",
        "data={batch_size: 6, normalize: imagenet}",
        "learning_rate={peak: 0.05, decay: cosine}", "optimizer={}", "label_smoothing=0", "epochs=6",
        "evaluation={sizes: [16, 8], every: 6, batch_size: 36}",
    )  # fmt: skip
    assert all(result["top1"] > 0.6 for result in epochs(output)[-1]["eval"].values())


def test_run_without_validation_data_trains(tmp_path: Path, jpeg_folder: Path) -> None:
    recipe = train_recipe(tmp_path, "epochs=1")
    train.train(recipe, data=str(jpeg_folder), output=tmp_path / "run")
    assert [event["eval"] for event in epochs(tmp_path / "run")] == [{}]


def train_recipe(folder: Path, *changes: str) -> Any:
    from respipe.recipe import load_recipe

    return load_recipe(str(write_recipe(folder)), changes)


def test_each_size_may_be_mirrored_on_its_own(tiny: Start) -> None:
    changes = ("data.flip_each_size=true", "evaluation.calibration_batches=null", "epochs=1")
    assert events(tiny(*changes, kind="rsnet"))[-1]["event"] == "end"


# Resuming


class Killed(BaseException):
    """Ends a run as a signal does."""


@pytest.mark.parametrize(
    ("kind", "place", "changes"),
    [
        ("trd", 4, ()),
        ("trd", 9, ()),
        ("trd", "evaluate_epoch", ()),
        ("trd", "save_checkpoint", ()),
        # Holding one size at a time changes neither results nor what the checkpoint fits.
        ("rsnet", 6, ("runtime.recompute=true",)),
        ("lowmode", 6, ()),
        ("mixsize", 8, ()),
        ("finetune", "evaluate_epoch", ()),
    ],
)
def test_killed_and_resumed_run_equals_an_undisturbed_one(
    kind: str, place: int | str, changes: tuple[str, ...], undisturbed: Callable[[str], Path], tiny: Start
) -> None:
    options: dict[str, Any] = {"kind": kind} if kind in KINDS else {"init": undisturbed("trd") / "checkpoint.pt"}
    expected = undisturbed(kind)
    function = place if isinstance(place, str) else "train_step"
    calls, original = [0], getattr(train, function)

    def killed(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] > (place if isinstance(place, int) else 1):
            raise Killed
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, function, killed)
        with pytest.raises(Killed):
            tiny(**options, resume=True)
    torch.manual_seed(12345)  # whatever state the new process starts with
    assert_same_run(expected, tiny(*changes, **options, resume=True))


def test_finished_run_resumes_to_its_end_without_training(tiny: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    before = final_state(tiny("epochs=1"))
    monkeypatch.setattr(train, "train_step", lambda *_: pytest.fail("trained again"))
    after = final_state(tiny("epochs=1", resume=True))
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_folder_that_holds_a_run_is_not_overwritten(tiny: Start) -> None:
    tiny("epochs=1")
    with pytest.raises(ValueError, match="Pass --resume to go on"):
        tiny("epochs=1")
    with pytest.raises(ValueError, match="epochs: saved 1, now 2"):
        tiny("epochs=2", resume=True)
    tiny("epochs=1", "runtime.num_threads=2", resume=True)


# Mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.num_classes=2", "`model.num_classes` must cover every label; got 2 and a label 2"),
        ("model={name: timm:vit_tiny_patch16_224}", "dynamic_img_size=True"),
        ("runtime.cuda_graphs=true", "must be false unless a single process trains on a GPU; got true for 1 on cpu"),
    ],
)
def test_mistakes_end_with_a_message_before_anything_is_written(
    change: str, message: str, tiny: Start, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(change)
    assert not (tmp_path / "run").exists()


def test_validation_data_of_other_classes_is_refused(tmp_path: Path, tiny: Start, jpeg_folder: Path) -> None:
    other = tmp_path / "other"
    for name, source in (("ant", "ant"), ("dog", "bee")):
        (other / name).mkdir(parents=True)
        (other / name / "0.jpg").write_bytes((jpeg_folder / source / "0.jpg").read_bytes())
    with pytest.raises(ValueError, match=r"only one of them has \['bee', 'cat', 'dog'\].*--classes-from"):
        tiny(val=other)
    convert(jpeg_folder, tmp_path / "other.beton", classes_from=("cat", "bee", "ant"), num_workers=0)
    with pytest.raises(ValueError, match=r"in their order, not \['cat', 'bee', 'ant'\].*--classes-from"):
        tiny(val=tmp_path / "other.beton")


def test_diverged_run_stops(tiny: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "learning_rate", lambda *_, **__: 1e30)
    with pytest.raises(RuntimeError, match=r"The loss of epoch 0 is (nan|inf)"):
        tiny()


# The command


def test_command_trains_a_recipe_and_reports_it(tmp_path: Path, jpeg_folder: Path) -> None:
    recipe = write_recipe(tmp_path)
    line = [
        "train", recipe, "--data", jpeg_folder, "--val", jpeg_folder, "--output", tmp_path / "run", "--epochs", "1",
        "--set", "schedule={name: Constant, size: 32}", "--set", "evaluation.sizes=[32]",
    ]  # fmt: skip
    result = CliRunner().invoke(app, [str(word) for word in line])
    assert result.exit_code == 0, result.stderr
    assert "epoch 1/1  loss" in result.stderr
    assert "last top-1" in result.stdout
    again = CliRunner().invoke(app, [str(word) for word in [*line, "--resume", "--json"]])
    assert [epoch["epoch"] for epoch in json.loads(again.stdout)["epochs"]] == [0]
    refused = CliRunner().invoke(app, [str(word) for word in line])
    assert (refused.exit_code, "Pass --resume to go on" in refused.stderr) == (2, True)


def test_recipe_without_a_part_for_tuning_cannot_start_from_weights(tmp_path: Path) -> None:
    line = ["train", "trd_cifar10", "--data", "x", "--output", str(tmp_path), "--init", "y"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 2
    assert "`RECIPE` must have a `finetune` part" in result.stderr


def test_patches_out_of_large_images_are_warned_about(
    tmp_path: Path, jpeg_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heights = open_dataset(jpeg_folder).levels[0].heights
    side = heights.min()
    for crop, expected in ((RandomCrop(int(side) // 8), True), (RandomCrop(int(side)), False), (None, False)):
        caplog.clear()
        with Loader(jpeg_folder, Constant(16), batch_size=4, crop=crop, backend="reference") as loader:
            warn_of_small_crops(loader)
        assert ("this recipe is for small" in caplog.text) == expected


def test_command_shows_recipes() -> None:
    names = CliRunner().invoke(app, ["recipe"]).stdout.split()
    assert "trd_imagenet" in names
    for name in names:
        shown = CliRunner().invoke(app, ["recipe", name]).stdout
        assert shown == (RECIPES / f"{name}.yaml").read_text()
    assert "must be one of" in CliRunner().invoke(app, ["recipe", "other"]).stderr
