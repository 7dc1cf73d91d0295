from __future__ import annotations

from pathlib import Path

import torch

from tests.torchrun import torchrun


def test_ranks_agree_on_the_weights_of_every_size(tmp_path: Path) -> None:
    torchrun("tests.model.adapted_ranks", tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for state, other in zip(first, second, strict=True):
        # Of statistics, each rank has moved its own since they were last shared.
        differing = {name for name, value in state.items() if not torch.equal(value, other[name])}
        assert all(name.endswith((".running_mean", ".running_var")) for name in differing)
        assert any(".per_size.8." in name for name in differing)
        private = [name for name in state if ".per_size.8.weight" in name]
        assert private
        assert all((state[name] != 1).any() for name in private)


def test_sharded_networks_train_as_whole_ones_do() -> None:
    torchrun("tests.model.sharded_ranks")
