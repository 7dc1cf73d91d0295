"""FFCV itself reads what respipe writes, and the other way round."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from respipe.storage import BetonDataset
from respipe.storage.fields import Column, Computed
from tests.memory_dataset import jpeg_bytes, smooth_image
from tests.small_pages import convert_small

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ffcv") is None, reason="needs the package ffcv")

ROOT = Path(__file__).parents[2]
SIZE = 48


def run_stock_ffcv(*arguments: str) -> None:
    command = [sys.executable, "-m", "tests.conversion.stock_ffcv", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=170)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 square images over several pages; grayscale, progressive and PNG among the sources."""
    folder = tmp_path_factory.mktemp("ffcv")
    for number in range(64):
        image = smooth_image(SIZE, SIZE, seed=number)
        path = folder / f"source/{number % 4}/{number:02}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number % 16 == 5:
            image.save(path.with_suffix(".png"))
        elif number % 16 == 6:
            image.convert("L").save(path.with_suffix(".jpg"))
        else:
            image.save(path.with_suffix(".jpg"), progressive=number % 16 == 7)
    convert_small(folder / "source", folder / "x.beton", levels=(SIZE, 24), quality=95)
    return folder / "x.beton"


@pytest.fixture(scope="module")
def loaded(pyramid: Path) -> dict[str, NDArray[np.int64]]:
    """What stock FFCV makes of it: way/images and way/labels."""
    output = pyramid.with_suffix(".npz")
    run_stock_ffcv("read", str(pyramid), str(output))
    with np.load(output) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("way", ["os_cache", "process_cache"])
def test_stock_loader_gives_the_stored_pixels_and_labels(
    pyramid: Path, loaded: dict[str, NDArray[np.int64]], way: str
) -> None:
    images, labels = loaded[f"{way}/images"], loaded[f"{way}/labels"]
    dataset = BetonDataset(pyramid)
    assert len(dataset.levels) == 2
    assert labels.tolist() == dataset.fields["label"].values.tolist() == [number // 16 for number in range(64)]
    for index in range(64):
        # FFCV asks libjpeg-turbo for its fast, less exact transform.
        expected = simplejpeg.decode_jpeg(dataset.encoded(index).tobytes(), fastdct=True)
        assert np.abs(images[index] - expected.astype(np.int64)).max() <= 1


def test_stock_quasi_random_order_takes_every_sample_once(loaded: dict[str, NDArray[np.int64]]) -> None:
    shuffled, ordered = (loaded[f"{way}/images"] for way in ("quasi_random", "os_cache"))
    assert sorted(image.tobytes() for image in shuffled) == sorted(image.tobytes() for image in ordered)
    assert not np.array_equal(shuffled, ordered)


@dataclass(frozen=True)
class Regression:
    """Images with a float label and a caption."""

    kind: str = "regression"
    fingerprint: str = "regression"

    @property
    def fields(self) -> dict[str, Column]:
        captions = Computed("picture {}".format, len(self))
        return {
            "label": Column(kind="float", values=np.arange(len(self)) / 7),
            "caption": Column(kind="text", values=captions),
        }

    def __len__(self) -> int:
        return 20

    def read(self, index: int) -> bytes:
        return jpeg_bytes(smooth_image(SIZE, SIZE, seed=index)).tobytes()

    def name(self, index: int) -> str:
        return str(index)


def test_stock_loader_sees_no_field_but_image_and_label(tmp_path: Path) -> None:
    convert_small(Regression(), tmp_path / "float.beton", levels=(SIZE, 24), fields=("caption",))
    assert [*BetonDataset(tmp_path / "float.beton").fields] == ["label", "caption"]
    run_stock_ffcv("read", str(tmp_path / "float.beton"), str(tmp_path / "x.npz"))
    with np.load(tmp_path / "x.npz") as arrays:
        assert arrays["os_cache/labels"].tolist() == (np.arange(20) / 7).tolist()
        assert arrays["os_cache/images"].shape == (20, SIZE, SIZE, 3)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    run_stock_ffcv("write", str(folder))
    return folder


@pytest.mark.parametrize("mode", ["jpg", "raw", "smart"])
def test_files_of_the_stock_writer_are_read(written: Path, mode: str) -> None:
    pictures = [np.asarray(smooth_image(20 + 4 * number, 60, seed=number)) for number in range(12)]
    dataset = BetonDataset(written / f"{mode}.beton")
    (level,) = dataset.levels
    assert dataset.labels.tolist() == list(range(-5, 31, 3))
    raw = {"jpg": [False] * 12, "raw": [True] * 12, "smart": [picture.nbytes <= 5000 for picture in pictures]}[mode]
    assert level.raw.tolist() == raw
    for index, picture in enumerate(pictures):
        dataset.check(index)
        stored = dataset.encoded(index)
        assert (level.heights[index], level.widths[index]) == picture.shape[:2]
        if raw[index]:
            np.testing.assert_array_equal(stored.reshape(picture.shape), picture)
            continue
        with Image.open(io.BytesIO(stored)) as image:
            difference = np.asarray(image, np.float64) - picture
        assert np.sqrt(np.mean(difference**2)) < 16
