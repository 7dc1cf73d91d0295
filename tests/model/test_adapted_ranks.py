from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def test_ranks_agree_on_the_weights_of_every_size(tmp_path: Path) -> None:
    # The address, because not every machine can look up its own name.
    options = ["--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "tests.model.adapted_ranks"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path)], cwd=ROOT, env=environment, check=True, timeout=150)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for state, other in zip(first, second, strict=True):
        # Of statistics, each rank has moved its own since they were last shared.
        differing = {name for name, value in state.items() if not torch.equal(value, other[name])}
        assert all(name.endswith((".running_mean", ".running_var")) for name in differing)
        assert any(".per_size.8." in name for name in differing)
        private = [name for name in state if ".per_size.8.weight" in name]
        assert private
        assert all((state[name] != 1).any() for name in private)
