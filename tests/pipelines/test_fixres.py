from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pipelines import fixres
from respipe.model.loading import build_model
from tests.train_runs import start

RUN = [
    "model={name: 'cifar:resnet8', options: {width: 4}}",
    "data={batch_size: 4, crop: {name: RandomResizedCrop}}",
    "schedule={name: Constant, size: 32}",
    "epochs=1",
]


def test_three_ways_are_compared_on_a_run_and_the_tuned_weights_kept(
    jpeg_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(tmp_path, jpeg_folder, tmp_path / "run", *RUN)
    paths = [str(tmp_path / "run"), "--data", str(jpeg_folder), "--val", str(jpeg_folder)]
    output = tmp_path / "out"
    fixres.main([*paths, "--sizes", "32,48", "--epochs", "2", "--batch-size", "6", "--output", str(output),
                 "--rate", "0.5", "--device", "cpu"])  # fmt: skip
    report = json.loads((output / "results.json").read_text(encoding="utf-8"))
    assert [run["name"] for run in report["runs"]] == ["as trained", "BatchNorm calibrated", "fine-tuned"]
    assert all([row["size"] for row in run["results"]] == [32, 48] for run in report["runs"])
    losses = [[row["loss"] for row in run["results"]] for run in report["runs"]]
    assert len({loss for row in losses for loss in row}) == 6
    assert (report["train_size"], report["epochs"]) == (32, 2)
    assert (output / "accuracy.png").stat().st_size > 0
    before = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["model"]
    after = torch.load(output / "48.pt", weights_only=True)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"head.weight", "head.bias"} < changed
    assert {name.rpartition(".")[2] for name in changed - {"head.weight", "head.bias"}} == {
        "running_mean", "running_var", "num_batches_tracked",
    }  # fmt: skip
    assert "fine-tuned" in capsys.readouterr().out


def test_weights_from_anywhere_need_the_name_of_their_model(
    jpeg_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(build_model("cifar:resnet8", num_classes=3).state_dict(), tmp_path / "weights.pth")
    data = ["--data", str(jpeg_folder), "--val", str(jpeg_folder)]
    with pytest.raises(SystemExit):
        fixres.main([str(tmp_path / "weights.pth"), *data, "--sizes", "32"])
    assert "`model` must be named" in capsys.readouterr().err
