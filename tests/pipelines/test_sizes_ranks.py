from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.pipelines.conftest import Arguments
from tests.pipelines.test_rsnet_run import options
from tests.pipelines.test_train import events

ROOT = Path(__file__).parents[2]


def test_two_processes_train_every_size_and_the_weights_of_the_ensemble(arguments: Arguments, tmp_path: Path) -> None:
    lines = [
        arguments("rsnet", *options("rsnet", "data.batch_size=8", "epochs=1", "runtime.recompute=true")),
        arguments("lowmode", *options("lowmode", "data.batch_size=8")),
    ]
    # The address, because not every machine can look up its own name.
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    subprocess.run(
        [sys.executable, *torchrun, "-m", "tests.pipelines.sizes_ranks", str(tmp_path), json.dumps(lines)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=150,
    )  # fmt: skip
    ranks = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for first, second in zip(*ranks, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    (rsnet, lowmode), *_ = ranks
    assert rsnet["criterion.alpha"].std() > 0
    assert set(lowmode) == {name for name in rsnet if ".per_size.24." not in name and "alpha" not in name}
    # Both modes have occurred, and the BatchNorms of both have learned.
    assert {size for event in events(tmp_path / "lowmode") for size in event.get("sizes", ())} == {"32", "16"}
    for parameters in (rsnet, lowmode):
        assert all((parameters[f"model.stem.1.{place}weight"] != 1).any() for place in ("", "per_size.16."))
