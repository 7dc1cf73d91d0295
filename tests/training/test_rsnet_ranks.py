from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.training.rsnet_ranks import train

ROOT = Path(__file__).parents[2]


def test_two_processes_learn_weights_and_alpha_as_one_does(tmp_path: Path) -> None:
    # The address, because not every machine can look up its own name.
    options = ["--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "tests.training.rsnet_ranks"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path)], cwd=ROOT, env=environment, check=True, timeout=150)
    alone = train(slice(0, 6), distributed=False, recompute=False)
    assert alone["criterion.alpha"].std() > 1e-4
    for rank in (0, 1):
        for together in torch.load(tmp_path / f"rank{rank}.pt", weights_only=True):
            torch.testing.assert_close(dict(together), dict(alone))
