from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Arguments = Callable[..., list[str]]

RECIPE = """
model: {name: mobilenet_v2, options: {width_mult: 0.25, dropout: 0.5}}
schedule: {name: TRD, full_size: 64, reduced_size: 32, participation: 0.5, unit: step}
epochs: 3
data: {batch_size: 4, batch_transform: {name: MixUp, alpha: 0.4}}
learning_rate: {peak: 0.05, decay: cosine, warmup_epochs: 1}
optimizer: {nesterov: true, decay_all: false}
label_smoothing: 0.1
evaluation: {sizes: [64, 32], every: 2, batch_size: 7}
runtime: {device: cpu, backend: reference, num_threads: 1, checkpoint_steps: 3, tensorboard: false}
"""


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory, jpeg_folder: Path) -> list[str]:
    """The command line of a tiny run, without its ``--output``."""
    recipe = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    recipe.write_text(RECIPE)
    return [str(recipe), "--data", str(jpeg_folder), "--val", str(jpeg_folder)]


@pytest.fixture
def arguments(tmp_path: Path, command: list[str]) -> Arguments:
    """The command line of a tiny run in the named folder."""
    return lambda output, *more: [*command, "--output", str(tmp_path / output), *more]
