from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import mixsize, train
from respipe.schedules import MixSize

TINY = (
    "model={name: 'cifar:resnet8', options: {width: 4}}",
    "epochs=2",
    "data.batch_size=2",
    "evaluation.batch_size=9",
    "evaluation.calibration_batches=2",
    "runtime={device: cpu, backend: reference, num_threads: 1, tensorboard: false}",
)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, jpeg_folder: Path) -> list[str]:
    """The command line of a tiny comparison."""
    output = str(tmp_path_factory.mktemp("mixsize"))
    changes = [flag for change in TINY for flag in ("--set", change)]
    return ["--data", str(jpeg_folder), "--val", str(jpeg_folder), "--output", output, *changes]


@pytest.fixture(scope="module")
def output(command: list[str]) -> Path:
    """The folder of the tiny comparison, once it is done."""
    mixsize.main(command)
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
    for folder, (name, _, _) in mixsize.COMPARISON.runs.items():
        lines = (output / folder / "log.jsonl").read_text().splitlines()
        last = [event for event in map(json.loads, lines) if event["event"] == "epoch"][-1]
        assert runs(output)[name]["accuracy"] == [
            {"size": size, "before": last["eval"][str(size)]["top1"], "after": last["calibrated"][str(size)]["top1"]}
            for size in (40, 32, 24, 16)
        ]


def test_only_mixsize_in_batches_scales_the_rate_and_smooths_gradients(output: Path) -> None:
    recipes = [run["recipe"] for run in runs(output).values()]
    assert [recipe["optimizer"]["smoothing"] for recipe in recipes] == [None, 0.9, None]
    assert [recipe["learning_rate"]["scale"] for recipe in recipes] == [None, "steps", None]
    assert len({json.dumps(recipe["model"]) for recipe in recipes}) == 1


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
    mixsize.main([*command, "--json", str(tmp_path / "again.json"), "--picture", str(tmp_path / "again.pdf")])
    assert (tmp_path / "again.json").read_text() == (output / "results.json").read_text()
    assert (tmp_path / "again.pdf").exists() == has_matplotlib
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][-12:]
    assert table[0] == "|  | fixed 32 px | MixSize B+ | MixSize D+ |"
    assert table[2].startswith("| steps | 18 |")
    assert table[-1].startswith("| top-1 at 16 px, before / after |")
