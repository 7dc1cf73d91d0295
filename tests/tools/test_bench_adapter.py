from __future__ import annotations

import json

import pytest
import torch

from tools.bench_adapter import main


def test_every_model_is_measured_plain_and_adapted(capsys: pytest.CaptureFixture[str]) -> None:
    num_threads = torch.get_num_threads()
    try:
        main(["--models", "resnet18", "--rounds", "3"])
    finally:
        torch.set_num_threads(num_threads)
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["model"], row["batchnorms"]) == ("resnet18", 20)
    assert set(row["added_ms"]) == {"per_size, largest", "per_size, other", "low mode, full"}
    assert all(added < 100 for added in row["added_ms"].values())
