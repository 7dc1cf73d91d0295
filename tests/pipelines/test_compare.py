"""The comparisons on CIFAR-10: what each trains, and what it leaves."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import compare
from respipe import train
from respipe.recipe import load_recipe
from respipe.schedules import Constant, LowMode, MixSize, RSNet

FIXED = "schedule={name: Constant, size: 32}"
CALIBRATED = "evaluation.calibration_batches=50"

TINY = (
    "model={name: 'cifar:resnet8', options: {width: 4}}",
    "epochs=1",
    "data.batch_size=4",
    "evaluation.batch_size=9",
    "evaluation.calibration_batches=2",
    "runtime={device: cpu, backend: reference, num_threads: 1, tensorboard: false}",
)


def options_of(*arguments: str) -> argparse.Namespace:
    return compare.argument_parser().parse_args([*arguments, "--data", "a", "--val", "b", "--output", "c"])


def results(method: str, output: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The runs of a tiny comparison by title; ``table`` is what it printed."""
    paths = ["--data", str(data), "--val", str(data), "--output", str(output)]
    compare.main([method, *paths, *(flag for change in TINY for flag in ("--set", change))])
    runs = {run["name"]: run for run in json.loads((output / "results.json").read_text())["runs"]}
    return {**runs, "table": [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("mixsize", [(FIXED,), (), ()]),
        ("rsnet", [*((f"schedule={{name: Constant, size: {side}}}",) for side in (32, 24, 16)), ()]),
        ("trd", [(FIXED,), ("schedule.participation=0.3",), ("schedule.participation=0.5",)]),
        ("lowmode", [(FIXED,), ()]),
    ],
)
def test_full_comparison_is_that_of_the_recipes(method: str, expected: list[tuple[str, ...]]) -> None:
    compared, options = compare.COMPARISONS[method], options_of(method, "--full")
    for (folder, (_, name, _)), changes in zip(compared.runs.items(), expected, strict=True):
        assert compare.recipe_of(compared, folder, options) == load_recipe(name, [*compared.always, *changes])


def test_shortened_runs_keep_their_shape() -> None:
    for name, expected in [
        ("trd_cifar10", {"epochs": 82, "rate": (40, 61), "schedule": [40, 61], "guard": [1, 1]}),
        ("rsnet_cifar10", {"epochs": 82, "rate": (), "schedule": None, "guard": None}),
    ]:
        recipe = load_recipe(name)
        short = load_recipe(name, compare.shortened(recipe, 0.5))
        assert (short.epochs, short.learning_rate.milestones) == (expected["epochs"], expected["rate"])
        assert short.learning_rate.warmup_epochs == recipe.learning_rate.warmup_epochs / 2
        assert (short.schedule.get("milestones"), short.schedule.get("guard")) == (
            expected["schedule"],
            expected["guard"],
        )
        unchanged = {"epochs", "learning_rate", "schedule", "evaluation"}
        assert short.model_dump(exclude=unchanged) == recipe.model_dump(exclude=unchanged)


def test_guards_are_never_shortened_to_nothing() -> None:
    for length in (0.5, 0.1, 0.01):
        for name in ("trd_cifar10", "lowmode_cifar10_resnet18"):
            recipe = load_recipe(name)
            before, after = load_recipe(name, compare.shortened(recipe, length)).schedule["guard"]
            assert (before > 0, after > 0) == tuple(epochs > 0 for epochs in recipe.schedule["guard"])


def test_what_the_user_sets_comes_last() -> None:
    options = options_of("mixsize", "--full", "--length", "0.1")
    assert compare.recipe_of(compare.COMPARISONS["mixsize"], "b", options).epochs == 20
    options = options_of("mixsize", "--full", "--length", "0.1", "--set", "epochs=7")
    assert compare.recipe_of(compare.COMPARISONS["mixsize"], "b", options).epochs == 7


@pytest.mark.parametrize("length", ["0", "-1", "nan", "inf"])
def test_length_must_be_positive(length: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options_of("trd", "--length", length)
    assert "must be a positive number" in capsys.readouterr().err


@pytest.mark.parametrize("method", compare.COMPARISONS)
def test_small_runs_are_valid_and_differ_from_each_other_where_they_are_to(method: str) -> None:
    compared = compare.COMPARISONS[method]
    first, *others = (
        load_recipe(recipe, [*compared.small, *compared.always, *changes])
        for _, recipe, changes in compared.runs.values()
    )
    assert first.build_schedule() == Constant(32)
    for other in others:
        assert other.build_schedule() != Constant(32)
        assert (other.model, other.epochs, other.data) == (first.model, first.epochs, first.data)
        assert other.evaluation == first.evaluation


def test_rsnet_is_compared_at_its_sizes_between_them_and_beyond(
    tmp_path: Path, jpeg_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = results("rsnet", tmp_path, jpeg_folder, capsys)
    fixed, switchable = found["fixed 32 px"], found["RS-Net"]
    sizes = (32, 24, 16)
    assert switchable["schedule"] == repr(RSNet(sizes))
    assert (fixed["images"], switchable["images"]) == (16, 16)
    assert switchable["macs"] == pytest.approx(fixed["macs"] * sum(size**2 for size in sizes) / 32**2, rel=0.01)
    assert list(switchable["step_seconds"]) == ["32+24+16"]
    for run in (fixed, switchable):
        assert [row["size"] for row in run["accuracy"]] == [40, 36, 32, 28, 24, 20, 16, 12]
    assert found["table"][0] == "|  | fixed 32 px | fixed 24 px | fixed 16 px | RS-Net |"
    assert (tmp_path / "accuracy.png").exists() == (importlib.util.find_spec("matplotlib") is not None)


def test_low_mode_is_compared_by_the_time_of_its_steps(
    tmp_path: Path, jpeg_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = results("lowmode", tmp_path, jpeg_folder, capsys)
    full, low = found["full mode"], found["low mode"]
    schedule = LowMode(32)
    assert low["schedule"] == repr(schedule)
    planned = [step.sizes[0] for step in schedule.steps(0, num_samples=18, batch_size=4)]
    assert set(low["step_seconds"]) == {str(size) for size in planned} == {"32", "16"}
    # Kernels of 1 x 1 on quarter maps: a low step costs almost nothing beside a full one.
    share = (low["macs"] / full["macs"] - planned.count(32) / 4) / (planned.count(16) / 4)
    assert 0.02 < share < 0.1
    assert any(line.startswith("| time of a step | ") and "ms at 16 px" in line for line in found["table"])
    assert (tmp_path / "runs.png").exists() == (importlib.util.find_spec("matplotlib") is not None)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, jpeg_folder: Path) -> list[str]:
    """The command line of a tiny comparison."""
    output = str(tmp_path_factory.mktemp("mixsize"))
    changes = [flag for change in (*TINY, "epochs=2", "data.batch_size=2") for flag in ("--set", change)]
    return ["mixsize", "--data", str(jpeg_folder), "--val", str(jpeg_folder), "--output", output, *changes]


@pytest.fixture(scope="module")
def output(command: list[str]) -> Path:
    """The folder of the tiny comparison, once it is done."""
    compare.main(command)
    return Path(command[command.index("--output") + 1])


def runs(output: Path) -> dict[str, dict[str, Any]]:
    return {run["name"]: run for run in json.loads((output / "results.json").read_text())["runs"]}


def test_three_runs_over_the_same_images_are_compared(output: Path) -> None:
    fixed, batch, duplicates = runs(output).values()
    assert fixed["schedule"].startswith("Constant(size=32")
    assert (fixed["steps"], fixed["samples"], fixed["images"]) == (18, 36, 36)
    # 4, 5, 5 and 4 samples for 40, 32, 24 and 16 px; 1, 1, 2 and 4 times as many in a batch.
    steps = MixSize("S28", grow="batch", rounding="pow2_ceil").steps(0, num_samples=18, batch_size=2)
    assert batch["steps"] == 2 * len(steps)
    assert batch["samples"] == batch["images"] == 2 * sum(step.batch_size for step in steps)
    assert batch["samples"] <= duplicates["samples"] <= fixed["samples"]
    assert duplicates["images"] > 1.5 * duplicates["samples"]
    assert batch["macs"] < fixed["macs"]


def test_accuracy_is_that_of_the_logs_before_and_after_calibration(output: Path) -> None:
    for folder, (name, _, _) in compare.COMPARISONS["mixsize"].runs.items():
        lines = (output / folder / "log.jsonl").read_text().splitlines()
        last = [event for event in map(json.loads, lines) if event["event"] == "epoch"][-1]
        assert runs(output)[name]["accuracy"] == [
            {"size": size, "before": last["eval"][str(size)]["top1"], "after": last["calibrated"][str(size)]["top1"]}
            for size in (40, 32, 24, 16)
        ]


def test_finished_comparison_is_drawn_again_without_training(
    output: Path,
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    has_matplotlib = importlib.util.find_spec("matplotlib") is not None
    assert (output / "accuracy.png").exists() == has_matplotlib
    capsys.readouterr()
    monkeypatch.setattr(train, "train_step", lambda *_: pytest.fail("trained again"))
    compare.main([*command, "--json", str(tmp_path / "again.json"), "--picture", str(tmp_path / "again.pdf")])
    assert (tmp_path / "again.json").read_text() == (output / "results.json").read_text()
    assert (tmp_path / "again.pdf").exists() == has_matplotlib
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][-12:]
    assert table[0] == "|  | fixed 32 px | MixSize B+ | MixSize D+ |"
    assert table[2].startswith("| steps | 18 |")
    assert table[-1].startswith("| top-1 at 16 px, before / after |")
