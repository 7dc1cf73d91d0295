from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines import train
from tests.pipelines.conftest import Arguments


def events(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def final_state(output: Path) -> dict[str, torch.Tensor]:
    """Weights and momenta of a finished run."""
    checkpoint = torch.load(output / "checkpoint.pt", weights_only=True)
    momenta = {f"momentum.{k}": v["momentum_buffer"] for k, v in checkpoint["optimizer"]["state"].items()}
    return {**checkpoint["model"], **momenta}


def assert_same_run(first: Path, second: Path) -> None:
    states = final_state(first), final_state(second)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    fields = ("epoch", "train_loss", "lr", "eval")
    logs = [
        {event["epoch"]: [event[field] for field in fields] for event in events(output) if event["event"] == "epoch"}
        for output in (first, second)
    ]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, command: list[str]) -> Path:
    """The folder of a run from its first step to its last."""
    output = tmp_path_factory.mktemp("undisturbed")
    train.main([*command, "--output", str(output)])
    return output


def test_run_leaves_the_documented_log(undisturbed: Path) -> None:
    start, *epochs, end = events(undisturbed)
    assert (start["event"], start["backend"], start["num_samples"], start["steps_per_epoch"]) == (
        "start", "reference", 18, 4,
    )  # fmt: skip
    assert start["schedule"].startswith("TRD(full_size=64")
    assert start["macs"]["64"] > start["macs"]["32"] > 0
    assert [event["epoch"] for event in epochs] == [0, 1, 2]
    for event in epochs:
        assert set(event) == {"event", "epoch", "seconds", "elapsed", "train_loss", "lr", "sizes", "eval"}
        assert sum(totals["steps"] for totals in event["sizes"].values()) == 4
        assert sum(totals["images"] for totals in event["sizes"].values()) == 16
        assert set(event["sizes"]) <= {"64", "32"}
        for totals in event["sizes"].values():
            assert 0 <= totals["wait_seconds"] <= totals["seconds"]
            assert totals["images_per_second"] == pytest.approx(totals["images"] / totals["seconds"])
    assert {size for event in epochs for size in event["sizes"]} == {"64", "32"}
    assert [set(event["eval"]) for event in epochs] == [set(), {"64", "32"}, {"64", "32"}]
    assert set(epochs[-1]["eval"]["64"]) == {"top1", "top5", "loss"}
    assert [event["elapsed"] for event in epochs] == sorted(event["elapsed"] for event in epochs)
    assert end["top1"]["64"]["last"] == epochs[-1]["eval"]["64"]["top1"]


class Killed(BaseException):
    """Ends a run as a signal does."""


@pytest.mark.parametrize("place", [1, 4, 6, 9, "evaluation", "checkpoint"])
def test_killed_and_resumed_run_equals_an_undisturbed_one(
    place: int | str, undisturbed: Path, arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = {"evaluation": "evaluate", "checkpoint": "save_checkpoint"}.get(str(place), "train_step")
    calls, original = [0], getattr(train, function)

    def killed(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] > (place if isinstance(place, int) else 1):
            raise Killed
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(train, function, killed)
        with pytest.raises(Killed):
            train.main(arguments("killed", "--resume"))
    torch.manual_seed(12345)  # whatever state the new process starts with
    train.main(arguments("killed", "--resume"))
    assert_same_run(undisturbed, tmp_path / "killed")


def test_finished_run_resumes_to_its_end_without_training(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train.main(arguments("run"))
    before = final_state(tmp_path / "run")
    monkeypatch.setattr(train, "train_step", lambda *_: pytest.fail("trained again"))
    train.main(arguments("run", "--resume"))
    after = final_state(tmp_path / "run")
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_folder_that_holds_a_run_is_not_overwritten(arguments: Arguments, capsys: pytest.CaptureFixture[str]) -> None:
    train.main(arguments("run", "--epochs", "1"))
    with pytest.raises(SystemExit):
        train.main(arguments("run", "--epochs", "1"))
    assert "Pass --resume to go on" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train.main(arguments("run", "--resume", "--epochs", "2"))
    assert "epochs: saved 1, now 2" in capsys.readouterr().err
    train.main(arguments("run", "--resume", "--epochs", "1", "--set", "runtime.num_threads=2"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "data.batch_size=0"], "`data.batch_size`"),
        (["--set", "model.num_classes=2"], "`model.num_classes` must cover every label; got 2 and a label 2"),
        (["--set", "model={name: timm:vit_tiny_patch16_224}"], "dynamic_img_size=True"),
        (["--val", "nowhere"], "nowhere does not exist"),
        (
            ["--set", "runtime.cuda_graphs=true"],
            "must be false but for a single process on a GPU; got true for 1 on cpu",
        ),
        (
            ["--set", "runtime.cuda_graphs=true", "--set", "runtime.recompute=true"],
            "`cuda_graphs` must be false beside `recompute`",
        ),
    ],
)
def test_mistakes_end_with_a_message_before_anything_is_written(
    more: list[str],
    message: str,
    arguments: Arguments,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        train.main(arguments("run", *more))
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_validation_data_of_other_classes_is_refused(
    arguments: Arguments, tmp_path: Path, jpeg_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    for name, source in (("ant", "ant"), ("dog", "bee")):
        (other / name).mkdir(parents=True)
        (other / name / "0.jpg").write_bytes((jpeg_folder / source / "0.jpg").read_bytes())
    with pytest.raises(SystemExit):
        train.main(arguments("run", "--val", str(other)))
    assert "only one of them has ['bee', 'cat', 'dog']" in capsys.readouterr().err


def test_diverged_run_stops(arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "learning_rate", lambda *_, **__: 1e30)
    with pytest.raises(RuntimeError, match=r"The loss of epoch 0 is (nan|inf)"):
        train.main(arguments("run"))


def test_run_without_validation_data_trains(arguments: Arguments, tmp_path: Path) -> None:
    line = arguments("run", "--epochs", "1")
    place = line.index("--val")
    train.main([*line[:place], *line[place + 2 :]])
    assert [event["eval"] for event in events(tmp_path / "run") if event["event"] == "epoch"] == [{}]
