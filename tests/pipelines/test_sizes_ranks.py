from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.pipelines.conftest import Arguments
from tests.pipelines.test_rsnet_run import options
from tests.pipelines.test_train import events
from tests.torchrun import torchrun


@pytest.mark.parametrize("kind", ["rsnet", "lowmode"])
def test_two_processes_train_the_batchnorms_of_every_size(kind: str, arguments: Arguments, tmp_path: Path) -> None:
    line = arguments(kind, *options(kind, "data.batch_size=8", "runtime.recompute=true"))
    torchrun("tests.pipelines.sizes_ranks", tmp_path, *line)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    labels = [label for event in events(tmp_path / kind) for label in event.get("sizes", ())]
    trained = {int(size) for label in labels for size in label.split("+")}
    assert trained == ({32, 24, 16} if kind == "rsnet" else {32, 16})
    for size in trained:
        place = "" if size == 32 else f"per_size.{size}."
        assert (first[f"model.stem.1.{place}weight"] != 1).any()
    assert ("criterion.alpha" in first) == (kind == "rsnet")
    assert kind == "lowmode" or first["criterion.alpha"].std() > 0
