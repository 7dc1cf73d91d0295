"""Runs in two processes, as ``torchrun`` starts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import respipe
from respipe.model.loading import build_model
from tests.torchrun import torchrun
from tests.train_runs import assert_same_run, epochs, saved

# Two samples per rank and step make BatchNorm's gradients too wild for the learning rate of one process.
MORE = ("epochs=2", "data.batch_size=8", "runtime.checkpoint_steps=1")


def train(folder: Path, data: Path, name: str, kind: str, *changes: str, num_steps: int = 1000) -> list[dict[str, Any]]:
    """Train ``folder / name``; what each rank left."""
    torchrun("tests.train_ranks", num_steps, folder, data, folder / name, kind, *changes)
    paths = [folder / f"rank{rank}.pt" for rank in (0, 1)]
    return [torch.load(path, weights_only=True) for path in paths if path.exists()]


def test_two_processes_train_one_model_and_resume_exactly(tmp_path: Path, jpeg_folder: Path) -> None:
    ranks = train(tmp_path, jpeg_folder, "run", "trd", *MORE)
    weights = saved(tmp_path / "run")["model"]
    assert all(torch.equal(value, ranks[1]["model"][name]) for name, value in ranks[0]["model"].items())
    assert all(torch.equal(value, ranks[0]["model"][name]) for name, value in weights.items())

    # 18 samples in batches of 17 leave one rank without a sample in the last batch.
    model = build_model("mobilenet_v2", num_classes=3, options={"width_mult": 0.25})
    model.load_state_dict(weights)
    (alone,) = respipe.evaluate(model, jpeg_folder, 32, backend="reference", num_threads=1)
    for rank in ranks:
        assert (rank["top1"], rank["count"]) == (alone.top1, 18)
        # Batches of another length are added up in another order: in one process, too, 1.26068 to 1.26070.
        assert rank["loss"] == pytest.approx(alone.loss, rel=1e-4)
    images = [sum(totals["images"] for totals in epoch["sizes"].values()) for epoch in epochs(tmp_path / "run")]
    assert images == [16, 16]

    train(tmp_path, jpeg_folder, "killed", "trd", *MORE, num_steps=3)
    train(tmp_path, jpeg_folder, "killed", "trd", "--resume", *MORE)
    assert_same_run(tmp_path / "run", tmp_path / "killed")


@pytest.mark.parametrize("kind", ["rsnet", "lowmode"])
def test_two_processes_train_the_batchnorms_of_every_size(kind: str, jpeg_folder: Path, tmp_path: Path) -> None:
    ranks = train(tmp_path, jpeg_folder, kind, kind, "data.batch_size=8", "runtime.recompute=true")
    first, second = (rank["parameters"] for rank in ranks)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    labels = [label for epoch in epochs(tmp_path / kind) for label in epoch["sizes"]]
    trained = {int(size) for label in labels for size in label.split("+")}
    assert trained == ({32, 24, 16} if kind == "rsnet" else {32, 16})
    for size in trained:
        place = "" if size == 32 else f"per_size.{size}."
        assert (first[f"model.stem.1.{place}weight"] != 1).any()
    assert ("criterion.alpha" in first) == (kind == "rsnet")
    assert kind == "lowmode" or first["criterion.alpha"].std() > 0
