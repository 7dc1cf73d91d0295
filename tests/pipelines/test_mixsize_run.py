from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines import train
from tests.pipelines.conftest import Arguments
from tests.pipelines.test_train import assert_same_run, events

MIXED = [
    "schedule={name: MixSize, regime: {64: 0.4, 32: 0.6}, base_size: 64}",
    "data={batch_size: 2, crop: {name: RandomResizedCrop}}",
    "learning_rate={peak: 0.01, scale: steps}",
    "optimizer={smoothing: 0.9}",
    "evaluation={sizes: [64, 32], every: 2, batch_size: 7, calibration_batches: 3}",
]


def options(*changes: str) -> list[str]:
    return [flag for change in (*MIXED, *changes) for flag in ("--set", change)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, command: list[str]) -> Path:
    """The folder of a run whose batches change from 2 to 8 samples."""
    output = tmp_path_factory.mktemp("mixed")
    train.main([*command, "--output", str(output), *options()])
    return output


def test_run_takes_the_planned_steps_at_a_rate_scaled_by_their_mean_batch(mixed: Path) -> None:
    start, *epochs, end = events(mixed)
    # Of 18 samples, 7 at 64 px make three batches of 2, and 11 at 32 px one of 8.
    assert (start["steps_per_epoch"], start["num_steps"], start["lr_scale"]) == (4, 12, 14 / 4 / 2)
    for epoch in epochs:
        assert {size: (one["steps"], one["images"]) for size, one in epoch["sizes"].items()} == {
            "64": (3, 6),
            "32": (1, 8),
        }
        assert epoch["lr"] == pytest.approx(0.01 * start["lr_scale"])
    assert end["event"] == "end"


def test_last_epoch_is_also_evaluated_with_calibrated_batchnorm(mixed: Path) -> None:
    _, *epochs, _ = events(mixed)
    assert [set(epoch["eval"]) for epoch in epochs] == [set(), {"64", "32"}, {"64", "32"}]
    assert ["calibrated" in epoch for epoch in epochs] == [False, False, True]
    calibrated, plain = epochs[-1]["calibrated"], epochs[-1]["eval"]
    assert set(calibrated) == {"64", "32"}
    assert all(calibrated[size]["loss"] != plain[size]["loss"] for size in calibrated)


def test_calibration_leaves_the_trained_model_as_it_was(mixed: Path, arguments: Arguments, tmp_path: Path) -> None:
    train.main(arguments("plain", *options("evaluation.calibration_batches=null")))
    assert_same_run(mixed, tmp_path / "plain")


def test_resumed_run_goes_on_with_the_smoothing_of_its_gradients(
    mixed: Path, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, original = [0], train.train_step

    def killed(*args: object) -> torch.Tensor:
        calls[0] += 1
        if calls[0] > 8:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train.main(arguments("killed", *options()))
    train.main(arguments("killed", "--resume", *options()))
    assert_same_run(mixed, tmp_path / "killed")
    state = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)["optimizer"]["gradient_smoothing"]
    assert state["mean_norm"] > 0
