from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from respipe.evaluation import evaluate
from tests.evaluation.ranks import SIZES, Network

ROOT = Path(__file__).parents[2]


def test_ranks_that_do_not_divide_the_batches_show_every_sample_once_and_agree(
    jpeg_folder: Path, tmp_path: Path
) -> None:
    # The address, because not every machine can look up its own name.
    options = ["--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2"]
    module = ["-m", "tests.evaluation.ranks", str(jpeg_folder), str(tmp_path)]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *module]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, timeout=150)
    reports = [json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1)]
    assert reports[0]["outcomes"] == reports[1]["outcomes"]
    alone = evaluate(Network(), jpeg_folder, SIZES, backend="reference")
    for outcomes in reports[0]["outcomes"].values():
        for result, expected in zip(outcomes, alone, strict=True):
            assert (result["size"], result["num_samples"], result["macs"]) == (expected.size, 18, expected.macs)
            assert (result["top1"], result["top5"]) == (expected.top1, expected.top5)
            assert result["loss"] == pytest.approx(expected.loss, rel=1e-6)
    # 18 samples in batches of 5 (shares of 2 and 3, 1 and 2 of the last), then of 17 (8 and 9), with one left over,
    # of which the first rank gets nothing to show.
    shares = [[count for count, size in report["seen"] if size == 40] for report in reports]
    assert shares == [[2, 2, 2, 1, 8], [3, 3, 3, 2, 9, 1]]
