from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from pipelines import demo
from respipe.runs import read_events


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_demo_leaves_both_runs_and_their_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SIZES", (32, 16))
    changes = (
        "epochs=4",
        "data.batch_size=10",
        "runtime={num_threads: 1, tensorboard: false}",
        "evaluation.sizes=[32]",
        "schedule={name: Progressive, start_size: 16, end_size: 32, start_epoch: 0, end_epoch: 3, multiple: 16}",
    )
    overrides = [flag for change in changes for flag in ("--set", change)]
    demo.main(["--output", str(tmp_path), "--images", "80", "--fixed-epochs", "2", "--seconds", "0.01", *overrides])

    logs = {name: read_events(tmp_path / name) for name in demo.RUNS}
    epochs = {name: [event for event in log if event["event"] == "epoch"] for name, log in logs.items()}
    assert {name: len(run) for name, run in epochs.items()} == {"fixed": 2, "scheduled": 4}
    assert {size for event in epochs["fixed"] for size in event["sizes"]} == {"32"}
    assert [next(iter(event["sizes"])) for event in epochs["scheduled"]] == ["16", "16", "32", "32"]
    assert all(event["eval"]["32"]["top1"] >= 0 for run in epochs.values() for event in run)

    output = capsys.readouterr().out
    assert "16 px to 32 px" in output
    assert "last top-1" in output
    assert "top-1 within" in output
    assert "torchvision" in output
    assert "respipe convert FOLDER" in output
    pictures = {path.name for path in tmp_path.glob("*.png")}
    has_matplotlib = importlib.util.find_spec("matplotlib") is not None
    assert pictures == ({"loading.png", "batches.png", "training.png"} if has_matplotlib else set())
