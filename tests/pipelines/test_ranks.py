from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import respipe
from respipe.model.loading import build_model
from tests.pipelines.conftest import Arguments
from tests.pipelines.test_train import assert_same_run, events
from tests.torchrun import torchrun

# Two samples per rank and step make BatchNorm's gradients too wild for the learning rate of one process.
MORE = ("--epochs", "2", "--set", "data.batch_size=8", "--set", "runtime.checkpoint_steps=1")


def train(folder: Path, data: Path, line: list[str], *, num_steps: int = 1000) -> None:
    torchrun("tests.pipelines.ranks", folder, data, num_steps, *line)


def loaded(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def test_two_processes_train_one_model_and_resume_exactly(
    arguments: Arguments,
    tmp_path: Path,
    jpeg_folder: Path,
) -> None:
    train(tmp_path, jpeg_folder, arguments("run", *MORE))
    ranks = [loaded(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    saved = loaded(tmp_path / "run" / "checkpoint.pt")["model"]
    assert all(torch.equal(value, ranks[1]["model"][name]) for name, value in ranks[0]["model"].items())
    assert all(torch.equal(value, ranks[0]["model"][name]) for name, value in saved.items())

    # 18 samples in batches of 17 leave one rank without a sample in the last batch.
    model = build_model("mobilenet_v2", num_classes=3, options={"width_mult": 0.25})
    model.load_state_dict(saved)
    (alone,) = respipe.evaluate(model, jpeg_folder, 32, backend="reference", num_threads=1)
    for rank in ranks:
        assert (rank["top1"], rank["count"]) == (alone.top1, 18)
        assert rank["loss"] == pytest.approx(alone.loss, rel=1e-5)

    epochs = [event for event in events(tmp_path / "run") if event["event"] == "epoch"]
    assert [sum(totals["images"] for totals in event["sizes"].values()) for event in epochs] == [16, 16]

    train(tmp_path, jpeg_folder, arguments("killed", *MORE), num_steps=3)
    train(tmp_path, jpeg_folder, arguments("killed", *MORE, "--resume"))
    assert_same_run(tmp_path / "run", tmp_path / "killed")
