from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.demo_images import SHAPES, TEXTURES, render, write_image


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_image_depends_on_its_seed_split_and_number_alone(tmp_path: Path) -> None:
    jobs = [("train", 0), ("val", 0), ("train", 7)]
    for job in jobs:
        write_image(tmp_path / "first", 0, job)
    for job in reversed(jobs):
        write_image(tmp_path / "second", 0, job)
    write_image(tmp_path / "other", 1, jobs[0])
    first = digests(tmp_path / "first")
    assert first == digests(tmp_path / "second")
    assert list(first) == ["train/arrow/00000.jpg", "train/square/00007.jpg", "val/arrow/00000.jpg"]
    assert len(set(first.values()) | set(digests(tmp_path / "other").values())) == 4


def test_images_are_rgb_jpegs_of_varying_size(tmp_path: Path) -> None:
    for number in range(6):
        write_image(tmp_path, 0, ("train", number))
    sizes = set[tuple[int, int]]()
    for path in tmp_path.rglob("*.jpg"):
        with Image.open(path) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert all(170 <= side <= 250 for side in image.size)
            sizes.add(image.size)
    assert len(sizes) > 1


@pytest.mark.parametrize("texture", TEXTURES)
def test_every_texture_covers_its_shape_with_contrast(texture: str) -> None:
    pixels = np.asarray(render(SHAPES["disc"], texture, np.random.default_rng(3)), np.float32)
    assert pixels.shape[2] == 3
    assert pixels.std() > 10


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_shapes_lie_within_the_unit_circle(name: str) -> None:
    for outline in SHAPES[name]:
        assert np.hypot(*outline.T).max() < 1.07
