from __future__ import annotations

import json
from pathlib import Path

import pytest

from respipe.evaluation import evaluate
from tests.evaluation.ranks import SIZES, Network
from tests.torchrun import torchrun


def test_ranks_that_do_not_divide_the_batches_show_every_sample_once_and_agree(
    jpeg_folder: Path, tmp_path: Path
) -> None:
    torchrun("tests.evaluation.ranks", jpeg_folder, tmp_path)
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
