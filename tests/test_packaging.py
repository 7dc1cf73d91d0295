"""What is installed: the extras that tests need, and the wheel in a folder that holds nothing else."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.train_runs import epochs, write_recipe

ROOT = Path(__file__).parents[1]

OPTIONAL = {"all", "cuda", "dali-cuda12", "ffcv"}
"""Extras that are compiled, that exclude another, or that repeat others."""


def test_every_extra_but_ffcv_is_installed() -> None:
    """Or else its tests would be skipped without a word. To install them: make install."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = [Requirement(text) for name, texts in extras.items() if name not in OPTIONAL for text in texts]
    missing = list[str]()
    for requirement in wanted:
        if requirement.marker is None or requirement.marker.evaluate():
            try:
                found = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                missing.append(str(requirement))
            else:
                assert requirement.specifier.contains(found, prereleases=True), f"{requirement}; {found} is installed"
    assert not missing


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    target = folder / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    return target


def run(installed: Path, folder: Path, *arguments: str, several: bool = False) -> str:
    """Run the installed command in a folder; what it wrote to stdout."""
    command = [str(installed / "bin" / "respipe"), *arguments]
    if several:
        options = ["--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2", "--no-python"]
        command = [sys.executable, "-m", "torch.distributed.run", *options, *command]
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=170
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_wheel_plans_a_recipe_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    assert "164 epochs" in run(installed, tmp_path, "plan", "trd_cifar10")


def test_installed_wheel_draws_a_recipe_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "plot", "schedule", "trd_cifar10", "--output", "schedule.png")
    assert (tmp_path / "schedule.png").stat().st_size > 0


@pytest.mark.parametrize("several", [False, True])
def test_installed_wheel_trains_in_an_empty_folder(
    several: bool, installed: Path, tmp_path: Path, jpeg_folder: Path
) -> None:
    changes = ["epochs=1", "model={name: 'cifar:resnet8', options: {width: 4}}", "data={batch_size: 8}"]
    paths = ["--data", str(jpeg_folder), "--val", str(jpeg_folder), "--output", "run"]
    flags = [flag for change in changes for flag in ("--set", change)]
    run(installed, tmp_path, "train", str(write_recipe(tmp_path)), *paths, *flags, several=several)
    assert [epoch["epoch"] for epoch in epochs(tmp_path / "run")] == [0]
