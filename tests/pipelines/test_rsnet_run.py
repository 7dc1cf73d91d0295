"""Runs of ``pipelines.train`` with several sizes in a step, and in low mode."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines import train
from tests.pipelines.conftest import Arguments
from tests.pipelines.test_train import assert_same_run, events

COMMON = [
    "model={name: 'cifar:resnet8', options: {width: 4}}",
    "data={batch_size: 4, crop: {name: RandomResizedCrop}}",
    "optimizer={weight_decay: 0.1}",
    "evaluation={sizes: [40, 32, 24, 16], every: 2, batch_size: 9, calibration_batches: 2}",
    "epochs=2",
]
KINDS = {
    "rsnet": ("schedule={name: RSNet, sizes: [32, 24, 16]}",),
    "lowmode": ("schedule={name: LowMode, full_size: 32}",),
}


def options(kind: str, *changes: str) -> list[str]:
    return [flag for change in (*COMMON, *KINDS[kind], *changes) for flag in ("--set", change)]


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, command: list[str]) -> Path:
    """The folder of a run of each kind."""
    output = tmp_path_factory.mktemp("runs") / request.param
    train.main([*command, "--output", str(output), *options(request.param)])
    return output


def test_log_counts_steps_by_their_sizes(run: Path) -> None:
    start, *epochs, end = events(run)
    kinds = {"32+24+16"} if run.name == "rsnet" else {"32", "16"}
    assert {label for epoch in epochs for label in epoch["sizes"]} == kinds
    for epoch in epochs:
        assert sum(one["steps"] for one in epoch["sizes"].values()) == start["steps_per_epoch"] == 4
        assert sum(one["images"] for one in epoch["sizes"].values()) == 16
    assert set(start["macs"]) == ({"32", "24", "16"} if run.name == "rsnet" else {"32", "16"})
    assert set(epochs[-1]["eval"]) == set(epochs[-1]["calibrated"]) == set(end["top1"]) == {"40", "32", "24", "16"}


def test_weights_of_the_ensemble_are_learned_saved_and_logged(run: Path) -> None:
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    _, *epochs, _ = events(run)
    if run.name == "lowmode":
        assert not state["criterion"]
        assert "ensemble" not in epochs[-1]
        return
    alpha = state["criterion"]["alpha"]
    assert alpha.shape == (3,)
    assert alpha.std() > 0
    assert alpha.sum() == pytest.approx(3, abs=1e-5)  # its gradients add up to 0, and it does not decay
    assert list(epochs[-1]["ensemble"].values()) == pytest.approx(alpha.softmax(0).tolist())
    assert list(epochs[-1]["ensemble"]) == ["32", "24", "16"]


def test_batchnorms_of_every_size_are_trained(run: Path) -> None:
    model = torch.load(run / "checkpoint.pt", weights_only=True)["model"]
    for name in ("stem.1.weight", *(key for key in model if key.startswith("stem.1.per_size") and "weight" in key)):
        assert (model[name] != 1).any(), name
    assert ("stem.1.per_size.16.weight" in model) and ("stem.1.per_size.32.weight" not in model)


def test_killed_and_resumed_run_equals_an_undisturbed_one(
    run: Path, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, original = [0], train.train_step

    def killed(*args: object) -> torch.Tensor:
        calls[0] += 1
        if calls[0] > 6:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train.main(arguments("killed", *options(run.name)))
    # Holding one size at a time changes neither results nor what the checkpoint fits.
    train.main(
        arguments("killed", "--resume", *options(run.name, "runtime.recompute=true", "runtime.checkpoint_steps=3"))
    )
    assert_same_run(run, tmp_path / "killed")
    criteria = [torch.load(one / "checkpoint.pt", weights_only=True)["criterion"] for one in (run, tmp_path / "killed")]
    torch.testing.assert_close(criteria[0], criteria[1], rtol=0, atol=0)


def test_each_size_may_be_mirrored_on_its_own(arguments: Arguments, tmp_path: Path) -> None:
    train.main(arguments("run", *options("rsnet", "data.flip_each_size=true", "evaluation.calibration_batches=null")))
    assert events(tmp_path / "run")[-1]["event"] == "end"
