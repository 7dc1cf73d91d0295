from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.torchrun import torchrun
from tests.training.ranks import train


def test_two_processes_smooth_as_one_does(tmp_path: Path) -> None:
    torchrun("tests.training.ranks", tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["mean_norm"] == second["mean_norm"]
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())

    model, smoothing = train(slice(0, 4), distributed=False)
    assert first["mean_norm"] == pytest.approx(smoothing.state_dict()["mean_norm"], rel=1e-5)
    torch.testing.assert_close(first["model"], dict(model.state_dict()))
