"""What all tests share: one thread per process, reproducible examples, a folder of JPEGs, skips without a GPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from respipe.backends import pool as threads
from tests.memory_dataset import smooth_image

# How fast a machine is, or how busy, must not decide whether a test passes; neither must chance.
settings.register_profile("respipe", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("respipe")

_COMPILED = [Path(__file__).parents[1] / "respipe" / room for room in ("jpeg", "backends")]

_SHAPES = ((96, 128), (128, 96), (64, 64), (150, 90), (40, 56), (80, 200))
"""Height and width of the images of each class in ``jpeg_folder``."""


def pytest_configure() -> None:
    _forget_stale_compilations()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start
    # oneDNN 3.12 writes outside its buffers in the backward pass of strided 1 x 1 convolutions of fewer than eight
    # channels under AVX2 (channels_last), which the networks of tests have; its kernels for SSE4.1 do not.
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "SSE41")
    torch.set_num_threads(1)


def _forget_stale_compilations() -> None:
    """Remove Numba's cached results where a source is newer: it looks at the calling function's file only."""
    sources = [source for room in _COMPILED for source in room.rglob("*.py")]
    cached = [file for room in _COMPILED for file in room.rglob("__pycache__/*.nb[ic]")]
    if cached and min(map(_modified, cached)) < max(map(_modified, sources)):
        for file in cached:
            file.unlink(missing_ok=True)


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not torch.cuda.is_available():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(autouse=True)
def no_image_is_too_small_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of the small images of tests are divided among threads as those of large images are."""
    monkeypatch.setattr(threads, "_MIN_PIXELS", 1)


@pytest.fixture(scope="session")
def jpeg_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class folder that no test may change: ant, bee and cat, each with JPEGs of the same six shapes, 18 in all."""
    folder = tmp_path_factory.mktemp("jpegs")
    for label, name in enumerate(("ant", "bee", "cat")):
        (folder / name).mkdir()
        for number, (height, width) in enumerate(_SHAPES):
            image = smooth_image(height, width, seed=100 * label + number)
            image.save(folder / name / f"{number}.jpg", quality=92)
    return folder
