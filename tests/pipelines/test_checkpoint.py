from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pipelines.checkpoint import NAME, load_checkpoint, save_checkpoint

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
