from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from respipe.model.calibration import calibrate_batchnorm
from tests.model.ranks import batches, network

ROOT = Path(__file__).parents[2]


def test_ranks_with_three_and_two_batches_agree_on_the_averages_over_all_five(tmp_path: Path) -> None:
    # The address, because not every machine can look up its own name.
    options = ["--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "tests.model.ranks", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=150)
    model = network()
    expected = calibrate_batchnorm(model, batches(), num_batches=5)
    for rank in (0, 1):
        statistics, state = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(statistics, expected)
        torch.testing.assert_close(state, dict(model.state_dict()))
