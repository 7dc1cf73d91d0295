from __future__ import annotations

from pathlib import Path

import torch

from tests.torchrun import torchrun
from tests.training.rsnet_ranks import train


def test_two_processes_learn_weights_and_alpha_as_one_does(tmp_path: Path) -> None:
    torchrun("tests.training.rsnet_ranks", tmp_path)
    alone = train(slice(0, 6), distributed=False, recompute=False)
    assert alone["criterion.alpha"].std() > 1e-4
    for rank in (0, 1):
        for together in torch.load(tmp_path / f"rank{rank}.pt", weights_only=True):
            torch.testing.assert_close(dict(together), dict(alone))
