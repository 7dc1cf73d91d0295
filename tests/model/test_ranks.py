from __future__ import annotations

from pathlib import Path

import torch

from respipe.model.calibration import calibrate_batchnorm
from tests.model.ranks import batches, network
from tests.torchrun import torchrun


def test_ranks_with_three_and_two_batches_agree_on_the_averages_over_all_five(tmp_path: Path) -> None:
    torchrun("tests.model.ranks", tmp_path)
    model = network()
    expected = calibrate_batchnorm(model, batches(), num_batches=5)
    for rank in (0, 1):
        statistics, state = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        torch.testing.assert_close(statistics, expected)
        torch.testing.assert_close(state, dict(model.state_dict()))
