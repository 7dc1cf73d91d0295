"""A run that SIGKILL ends in mid-epoch goes on, from what its trainer saved, with the very next batch."""

from __future__ import annotations

import signal
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import pytest

from tests.integrations.runs import NUM_BEFORE_KILL, NUM_SAVED, TRAINERS, Seen, expected

ROOT = Path(__file__).parents[2]


@pytest.mark.filterwarnings("ignore")  # trainers' advice about tiny runs
@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_killed_run_sees_the_batches_of_one_that_was_left_alone(trainer: str, tmp_path: Path) -> None:
    if trainer != "plain":
        pytest.importorskip(trainer)
    killed = subprocess.run(
        [sys.executable, "-m", "tests.integrations.runs", trainer, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=150,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = [literal_eval(line) for line in (tmp_path / "seen").read_text().splitlines()]
    after: list[Seen] = []
    TRAINERS[trainer](tmp_path, after.append, resume=True)
    assert before == expected()[:NUM_BEFORE_KILL]
    assert after == expected()[NUM_SAVED:]
