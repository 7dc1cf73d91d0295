from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from respipe.runs import CHECKPOINT_NAME as NAME
from respipe.runs import (
    LogWriter,
    best_and_last,
    load_checkpoint,
    save_checkpoint,
    total_macs,
    totals_by_sizes,
)

RECIPE = {"epochs": 3, "data": {"batch_size": 8}}


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"recipe": RECIPE, "model": {"weight": torch.arange(3.0)}})
    content = load_checkpoint(tmp_path, RECIPE)
    assert content is not None
    assert torch.equal(content["model"]["weight"], torch.arange(3.0))
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, RECIPE) is None


def test_kill_while_writing_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, {"recipe": RECIPE, "number": 1})

    def killed(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, {"recipe": RECIPE, "number": 2})
    content = load_checkpoint(tmp_path, RECIPE)
    assert content is not None
    assert content["number"] == 1


def test_other_recipe_is_refused_naming_both_sides(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"recipe": RECIPE})
    with pytest.raises(ValueError, match=r"(?s)differ in\n  data.batch_size: saved 8, now 16\n.*another folder"):
        load_checkpoint(tmp_path, {"epochs": 3, "data": {"batch_size": 16}})


def test_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, {"recipe": RECIPE, "model": torch.zeros(1000)})
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path, RECIPE)


def test_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    torch.save({"version": 99, "recipe": RECIPE}, tmp_path / NAME)
    with pytest.raises(ValueError, match=r"version 2; .* has 99"):
        load_checkpoint(tmp_path, RECIPE)


def test_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save(torch.zeros(3), tmp_path / NAME)
    with pytest.raises(ValueError, match=r"version \d; .* has None"):
        load_checkpoint(tmp_path, RECIPE)


def test_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "hacked"),))

    torch.save({"version": 1, "recipe": RECIPE, "model": Hostile()}, tmp_path / NAME)
    with pytest.raises(ValueError, match="cannot be read"):
        load_checkpoint(tmp_path, RECIPE)
    assert not (tmp_path / "hacked").exists()


def test_log_lines_are_json_and_a_torn_line_stays_alone(tmp_path: Path) -> None:
    log = LogWriter(tmp_path, tensorboard=False)
    log.write("start", seed=1)
    log.close()
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text() + '{"event": "epo')
    log = LogWriter(tmp_path, tensorboard=False)
    log.write("resume", epoch=3)
    log.close()
    first, torn, last = path.read_text().splitlines()
    assert json.loads(first) == {"event": "start", "seed": 1}
    assert torn == '{"event": "epo'
    assert json.loads(last) == {"event": "resume", "epoch": 3}


def test_missing_tensorboard_is_said_once_and_the_log_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = LogWriter(tmp_path, tensorboard=True)
    log.write("epoch", epoch=0)
    log.close()
    assert "pip install 'respipe[train]'" in caplog.text
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"event": "epoch", "epoch": 0}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_epochs_are_written_for_tensorboard_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    log = LogWriter(tmp_path, tensorboard=True)
    sizes = {"32": {"images_per_second": 9.0, "wait_seconds": 0.1}}
    result = {"32": {"top1": 0.5, "top5": 0.9, "loss": 1.0}}
    log.write("epoch", epoch=0, train_loss=1.0, lr=0.1, seconds=2.0, sizes=sizes, eval=result)
    log.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert all(name in file.read_bytes() for name in (b"train_loss", b"images_per_second/32", b"top1/32"))


def test_accuracy_is_the_best_and_the_last() -> None:
    epochs = [{"eval": {"32": {"top1": top1}, "64": {"top1": 1 - top1}}} for top1 in (0.25, 0.75, 0.5)]
    assert best_and_last(epochs) == {64: (0.75, 0.5), 32: (0.75, 0.5)}
    assert best_and_last([]) == {}


def test_steps_of_several_sizes_are_one_kind_whose_images_cost_all_of_them() -> None:
    measured = {"steps": 2, "images": 8, "seconds": 4.0, "wait_seconds": 1.0}
    epochs = [{"sizes": {"32+16": measured, "16": measured}}, {"sizes": {"32+16": measured}}]
    totals = totals_by_sizes(epochs)
    assert {sizes: total.images for sizes, total in totals.items()} == {(32, 16): 16, (16,): 8}
    assert total_macs(epochs, {"32": 100.0, "16": 10.0}) == 16 * 110 + 8 * 10
