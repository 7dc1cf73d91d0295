from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

RECIPE = """
model: {name: mobilenet_v2, options: {width_mult: 0.25, dropout: 0.5}}
schedule: {name: MixSize, regime: {32: 0.5, 16: 0.5}, base_size: 32, grow: both}
epochs: 2
data: {batch_size: 4, batch_transform: {name: MixUp, alpha: 0.4}}
learning_rate: {peak: 0.05, decay: cosine, warmup_epochs: 1}
evaluation: {sizes: [32], every: 2, batch_size: 7}
runtime: {device: cpu, backend: reference, num_threads: 1, checkpoint_steps: 1, tensorboard: false}
"""


def test_run_killed_at_random_moments_ends_as_if_undisturbed(jpeg_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    training = [str(tmp_path / "tiny.yaml"), "--data", str(jpeg_folder), "--val", str(jpeg_folder)]
    finished = subprocess.run(
        [sys.executable, "-m", "tools.kill_training", "--kills", "3", "--", *training],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=170,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout
    report = json.loads(finished.stdout.splitlines()[-1])
    assert report["kills"] >= 3
    assert report["runs"] == report["identical"] >= 1
