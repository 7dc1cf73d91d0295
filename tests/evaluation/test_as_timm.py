"""Evaluation images against those that timm makes for its own models."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from respipe.sampling import ResizedCenterCrop
from respipe.schedules import Constant
from tests.loaders import make
from tests.memory_dataset import MemoryDataset, smooth_image

timm_data = pytest.importorskip("timm.data", reason="timm is not installed")

SHAPES = [(100, 75), (67, 101), (48, 64), (20, 30), (64, 64), (150, 33), (33, 200)]


def harsh_image(height: int, width: int, *, seed: int) -> Image.Image:
    """Pure colours, whose edges JPEG takes out of range."""
    return smooth_image(height, width, seed=seed).point(lambda value: 255 * (value > 128))


@pytest.mark.parametrize("backend", ["reference", "tiles"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "ratio", "mode"),
    [(56, 0.875, "center"), (56, 0.95, "center"), (33, 0.9, "center"), (64, 1.0, "squash"), (48, 0.95, "squash")],
)
def test_images_are_those_of_timm(
    size: int, ratio: float, mode: Any, interpolation: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.memory_dataset.smooth_image", harsh_image)
    dataset = MemoryDataset(SHAPES, fractions=(0.5,), tiled=backend == "tiles")
    theirs = timm_data.create_transform(
        (3, size, size), crop_pct=ratio, crop_mode=mode, interpolation=interpolation, normalize=False
    )
    stored = [Image.open(io.BytesIO(dataset.encoded(index, 0).tobytes())) for index in range(len(dataset))]
    with make(
        dataset, Constant(size), training=False, crop=ResizedCenterCrop(ratio, mode), interpolation=interpolation,
        dtype=torch.uint8, normalize=None, backend=backend,
    ) as loader:  # fmt: skip
        found = torch.cat([images for images, _, _ in loader])
    difference = np.abs(found.numpy().astype(int) - np.stack([np.asarray(theirs(image)) for image in stored]))
    assert np.percentile(difference, 99) <= 1
    # Where a cubic filter overshoots, the order of the two passes shows, which Pillow 13 chooses by an image's shape.
    assert difference.max() <= (1 if (backend, interpolation) == ("reference", "bilinear") else 40)


def test_impossible_geometry_is_refused() -> None:
    for fields in ({"ratio": 0}, {"ratio": 1.5}, {"mode": "border"}):
        with pytest.raises(ValueError, match="must be"):
            ResizedCenterCrop(**fields)
