from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from pipelines import demo
from respipe.runs import read_events


def test_demo_leaves_both_runs_and_their_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = ["epochs=4", "data.batch_size=10", "runtime={backend: reference, num_threads: 1, tensorboard: false}"]
    sizes = ["evaluation={sizes: [32], every: 4}", "schedule.full_size=32", "schedule.reduced_size=16"]
    ending = ["schedule.final_full_epochs=2"]
    overrides = [flag for change in (*tiny, *sizes, *ending) for flag in ("--set", change)]
    demo.main(["--output", str(tmp_path), "--images", "40", *overrides])

    fixed, trd = (read_events(tmp_path / name) for name in demo.RUNS)
    assert {size for event in fixed[1:-1] for size in event["sizes"]} == {"32"}
    assert {size for event in trd[1:-1] for size in event["sizes"]} == {"32", "16"}
    totals = [
        sum(totals["images"] for event in log[1:-1] for totals in event["sizes"].values()) for log in (fixed, trd)
    ]
    assert totals == [160, 160]

    output = capsys.readouterr().out
    assert "32 px and 16 px" in output
    assert "last top-1 at 32 px" in output
    pictures = {path.name for path in tmp_path.glob("*.png")}
    has_matplotlib = importlib.util.find_spec("matplotlib") is not None
    assert pictures == ({"schedule.png", "batches.png", "runs.png"} if has_matplotlib else set())
