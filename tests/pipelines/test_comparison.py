"""The comparisons on CIFAR-10 that share :mod:`pipelines.comparison`: what each trains, and what it leaves."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pipelines import comparison, lowmode, mixsize, rsnet, train, trd
from respipe.recipe import load_recipe
from respipe.schedules import Constant, LowMode, RSNet

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


def results(made_by: ModuleType, output: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The runs of a tiny comparison by title; ``table`` is what it printed."""
    paths = ["--data", str(data), "--val", str(data), "--output", str(output)]
    made_by.main([*paths, *(flag for change in TINY for flag in ("--set", change))])
    runs = {run["name"]: run for run in json.loads((output / "results.json").read_text())["runs"]}
    return {**runs, "table": [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]}


@pytest.mark.parametrize(
    ("made_by", "expected"),
    [
        (mixsize, [["evaluation.sizes=[40, 32, 24, 16]", FIXED], *[["evaluation.sizes=[40, 32, 24, 16]"]] * 2]),
        (rsnet, [*([CALIBRATED, f"schedule={{name: Constant, size: {side}}}"] for side in (32, 24, 16)), [CALIBRATED]]),
        (trd, [[CALIBRATED, FIXED], *([CALIBRATED, f"schedule.participation={share}"] for share in (0.3, 0.5))]),
        (lowmode, [[CALIBRATED, FIXED], [CALIBRATED]]),
    ],
)
def test_full_comparison_is_that_of_the_recipes(
    made_by: ModuleType, expected: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines: list[list[str]] = []
    monkeypatch.setattr(train, "main", lines.append)
    monkeypatch.setattr(comparison, "summary", lambda title, _: {"name": title})
    monkeypatch.setattr(comparison, "markdown", lambda _: "")
    for name in ("plot_accuracy", "plot_runs"):
        monkeypatch.setattr(comparison, name, lambda *_: None)
    made_by.main(["--data", "a", "--val", "b", "--output", str(tmp_path), "--full"])
    changes = [[line[place + 1] for place, word in enumerate(line) if word == "--set"] for line in lines]
    assert changes == expected


def test_shortened_runs_keep_their_shape() -> None:
    for name, expected in [
        ("trd_cifar10", {"epochs": 82, "rate": (40, 61), "schedule": [40, 61], "guard": [1, 1]}),
        ("rsnet_cifar10", {"epochs": 82, "rate": (), "schedule": None, "guard": None}),
    ]:
        recipe = load_recipe(name)
        short = load_recipe(name, comparison.shortened(recipe, 0.5))
        assert (short.epochs, short.learning_rate.milestones) == (expected["epochs"], expected["rate"])
        assert short.learning_rate.warmup_epochs == recipe.learning_rate.warmup_epochs / 2
        assert (short.schedule.get("milestones"), short.schedule.get("guard")) == (
            expected["schedule"],
            expected["guard"],
        )
        unchanged = {"epochs", "learning_rate", "schedule", "evaluation"}
        assert short.model_dump(exclude=unchanged) == recipe.model_dump(exclude=unchanged)


def test_what_the_user_sets_comes_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines: list[list[str]] = []
    monkeypatch.setattr(train, "main", lines.append)
    monkeypatch.setattr(comparison, "summary", lambda title, _: {"name": title})
    monkeypatch.setattr(comparison, "markdown", lambda _: "")
    options = ["--full", "--length", "0.1", "--set", "epochs=7", "--output", str(tmp_path)]
    comparison.compare(
        mixsize.COMPARISON,
        comparison.argument_parser(mixsize.COMPARISON).parse_args([*options, "--data", "a", "--val", "b"]),
    )
    for line in lines:
        changes = [line[place + 1] for place, word in enumerate(line) if word == "--set"]
        assert "epochs=20" in changes
        assert changes[-1] == "epochs=7"
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["length"] == 0.1
    assert [run["paper"] for run in written["runs"]] == [0.9284, 0.943, 0.9446]


@pytest.mark.parametrize("length", ["0", "-1", "nan", "inf"])
def test_length_must_be_positive(length: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = comparison.argument_parser(trd.COMPARISON)
    with pytest.raises(SystemExit):
        parser.parse_args(["--data", "a", "--val", "b", "--output", "c", "--length", length])
    assert "must be a positive number" in capsys.readouterr().err


@pytest.mark.parametrize("made_by", [mixsize, rsnet, lowmode, trd])
def test_small_runs_are_valid_and_differ_from_each_other_where_they_are_to(made_by: ModuleType) -> None:
    compared = made_by.COMPARISON
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
    found = results(rsnet, tmp_path, jpeg_folder, capsys)
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
    found = results(lowmode, tmp_path, jpeg_folder, capsys)
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
