from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import respipe
from respipe.conversion import convert, inspect, inspection
from respipe.errors import StorageError
from respipe.storage import BetonDataset
from tests.conversion import imagenet_layouts as imagenet
from tests.memory_dataset import jpeg_bytes, smooth_image
from tests.small_pages import LEVELS, convert_small
from tests.storage.plain_beton import write_plain_beton


def test_pyramid_tells_how_it_was_made(jpeg_folder: Path, tmp_path: Path) -> None:
    report = convert_small(jpeg_folder, tmp_path / "x.beton")
    found = inspect(tmp_path / "x.beton")
    assert found.kind == "beton"
    assert found.writer == f"respipe {respipe.__version__}"
    assert found.classes == ("ant", "bee", "cat")
    assert (found.num_samples, found.num_labels, found.has_checksums) == (18, 3, True)
    assert found.num_bytes == (tmp_path / "x.beton").stat().st_size
    assert found.settings == {
        "levels": list(LEVELS),
        "quality": 89,
        "subsampling": "4:2:0",
        "restart_interval": 2,
        "keep": "nothing",
    }
    assert found.source is not None
    assert (found.source["kind"], found.source["num_samples"]) == ("folder", 18)
    assert found.fingerprint == BetonDataset(tmp_path / "x.beton").fingerprint
    for level, converted in zip(found.levels, report.levels, strict=True):
        assert (level.name, level.num_images, level.num_bytes) == (
            *(converted.name, converted.num_images, converted.num_bytes),
        )
        assert level.largest_side <= converted.longest_side
        assert level.raw_share == 0
    # The six shapes fit 128 px as 96x128, 128x96, 64x64, 128x77, 40x56 and 51x128.
    assert (found.levels[0].median_height, found.levels[0].median_width) == (80.0, 86.5)
    assert json.loads(json.dumps(found.to_dict()))["levels"][0]["bytes_per_image"] > 0


def test_folder_and_foreign_file(jpeg_folder: Path, tmp_path: Path) -> None:
    folder = inspect(jpeg_folder)
    assert (folder.kind, folder.writer, folder.num_samples, folder.settings) == ("folder", None, 18, None)
    assert "Every file is decoded whole; `respipe convert" in folder.decoding
    assert (folder.levels[0].tiled_share, folder.levels[0].restart_intervals) == (0, ())
    assert folder.num_bytes == folder.levels[0].num_bytes == sum(f.stat().st_size for f in jpeg_folder.rglob("*.jpg"))
    path = write_plain_beton(tmp_path / "y.beton", [(1, 1, 1, b"rgb"), (1, 1, 2, b"rgbrgb")], [4, 4])
    foreign = inspect(path)
    assert (foreign.writer, foreign.classes, foreign.num_labels, foreign.has_checksums) == ("FFCV", None, 1, False)
    assert foreign.levels[0].raw_share == 1
    assert "stored as pixels" in foreign.decoding
    jpeg = jpeg_bytes(smooth_image(24, 40, seed=0)).tobytes()
    mixed = inspect(write_plain_beton(tmp_path / "z.beton", [(1, 1, 1, b"rgb"), (0, 40, 24, jpeg)], [0, 1]))
    assert "FFCV's files have no restart markers" in mixed.decoding
    assert foreign.levels[0].bytes_per_image == 4.5


def test_tiled_file_says_that_crops_are_cut_out(jpeg_folder: Path, tmp_path: Path) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    found = inspect(tmp_path / "x.beton")
    assert "Crops are cut out" in found.decoding
    assert [level.tiled_share for level in found.levels] == [1, 1, 1]
    # Of the widths only 77 pixels, 5 MCUs, cannot be divided into intervals of 2.
    assert found.levels[0].restart_intervals == (1, 2)
    assert found.num_examined == 18


@pytest.mark.parametrize(
    ("options", "shares", "what"),
    [
        ({"restart_interval": 0}, [0, 0, 0], "no restart markers, so every image is decoded whole"),
        # Of the six shapes four fit the first level and so keep their bytes, two of these the second.
        ({"keep": "bytes"}, [2 / 6, 4 / 6, 1], "Kept source bytes have no restart markers"),
    ],
)
def test_file_that_is_not_tiled_says_why(
    jpeg_folder: Path, tmp_path: Path, options: dict[str, Any], shares: list[float], what: str
) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton", **options)
    found = inspect(tmp_path / "x.beton")
    assert what in found.decoding
    assert [level.tiled_share for level in found.levels] == shares


def test_images_too_large_for_an_index_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "source/a").mkdir(parents=True)
    Image.new("RGB", (1200, 1200)).save(tmp_path / "source/a/0.png")
    options: dict[str, Any] = {"subsampling": "4:4:4", "restart_interval": 1, "num_workers": 0}
    convert(tmp_path / "source", tmp_path / "x.beton", levels=(1200,), **options)
    found = inspect(tmp_path / "x.beton")
    assert not BetonDataset(tmp_path / "x.beton").tiled
    assert "too large for an index" in found.decoding
    assert found.levels[0].tiled_share == 0


def test_few_of_many_samples_are_examined(jpeg_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    read: list[tuple[int, int]] = []

    class Counting(BetonDataset):
        def encoded(self, index: int, level: int = 0) -> NDArray[np.uint8]:
            read.append((level, index))
            return super().encoded(index, level)

    monkeypatch.setattr(inspection, "_MOST_EXAMINED", 4)
    assert inspect(Counting(tmp_path / "x.beton")).num_examined == 4
    assert read == [(level, index) for level in range(3) for index in (0, 5, 11, 17)]


def test_sources_are_understood_before_they_are_converted(jpeg_folder: Path, tmp_path: Path) -> None:
    imagenet.validation_tar(jpeg_folder, tmp_path / "val.tar")
    labels = imagenet.table(jpeg_folder, tmp_path / "labels.csv", "{name},{label}\n")
    labels.write_text(labels.read_text() + "nowhere.jpg,ant\n")
    found = inspect(tmp_path / "val.tar", labels=labels)
    assert (found.kind, found.num_samples, found.num_labels) == ("tar of images with labels of labels.csv", 19, 3)
    assert (found.classes, found.fields, found.passed_over) == (("ant", "bee", "cat"), {"label": "class"}, {})
    assert [note.name for note in found.faults] == ["nowhere.jpg"]
    assert (found.levels[0].smallest_side, found.levels[0].largest_side, found.num_examined) == (40, 200, 19)
    assert f"`respipe convert {tmp_path / 'val.tar'} TARGET.beton --labels {labels}`" in found.decoding
    assert found.converted_bytes is not None
    report = convert(tmp_path / "val.tar", tmp_path / "x.beton", labels=labels, allow_corrupt=1, num_workers=0)
    assert found.converted_bytes == pytest.approx(report.num_bytes * 19 / 18, abs=1)
    assert json.loads(json.dumps(found.to_dict()))["converted_bytes"] == found.converted_bytes
    assert inspect([(smooth_image(40, 30, seed=0), 0.5)] * 2).fields == {"label": "float"}
    with pytest.raises(StorageError, match=r"give it with `labels=`"):
        inspect(tmp_path / "val.tar")


def test_damage_that_is_met_while_looking_is_told(jpeg_folder: Path, tmp_path: Path) -> None:
    imagenet.flat_folder(jpeg_folder, tmp_path / "val")
    (tmp_path / "val" / imagenet.validation_name(5)).write_bytes(b"")
    (tmp_path / "val/notes.txt").touch()
    found = inspect(tmp_path / "val", label_field="")
    assert (found.kind, found.fields, found.num_labels, found.passed_over) == ("flat folder", {}, 0, {".txt files": 1})
    assert [(note.index, note.reason) for note in found.faults] == [(4, "the file is empty")]


def test_what_a_class_folder_passes_over_and_what_is_broken_is_told(jpeg_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(jpeg_folder, tmp_path / "x")
    (tmp_path / "x/ant/0.jpg").write_bytes(b"")
    (tmp_path / "x/ant/readme.md").touch()
    found = inspect(tmp_path / "x")
    assert (found.kind, found.num_samples, found.passed_over) == ("folder", 18, {".md files": 1})
    assert [note.name for note in found.faults] == ["ant/0.jpg"]
    with pytest.raises(TypeError, match="`labels` must be a str or a path"):
        inspect(tmp_path / "x", labels=3)  # type: ignore[arg-type]


def test_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        inspect(tmp_path / "nowhere")
