from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.ranks import train

ROOT = Path(__file__).parents[2]


def test_two_processes_smooth_as_one_does(tmp_path: Path) -> None:
    # The address, because not every machine can look up its own name.
    options = ["--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "tests.training.ranks", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=150)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["mean_norm"] == second["mean_norm"]
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())

    model, smoothing = train(slice(0, 4), distributed=False)
    assert first["mean_norm"] == pytest.approx(smoothing.state_dict()["mean_norm"], rel=1e-5)
    torch.testing.assert_close(first["model"], dict(model.state_dict()))
