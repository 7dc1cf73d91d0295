from __future__ import annotations

import json

import pytest
import torch

from tools.bench_low_step import main


def test_low_and_full_steps_of_a_model_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    num_threads = torch.get_num_threads()
    try:
        main(["--model", "cifar:resnet8", "--option", "stem_stride=2", "--batch-size", "4", "--rounds", "2"])
    finally:
        torch.set_num_threads(num_threads)
    row = json.loads(capsys.readouterr().out)
    assert row["model"] == "cifar:resnet8"
    assert row["low_ms"] > 0
    assert row["full_ms"] > 0
    assert 0 < row["macs_ratio"] < 0.1
