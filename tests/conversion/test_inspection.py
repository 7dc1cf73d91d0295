from __future__ import annotations

import json
from pathlib import Path

import pytest

import respipe
from respipe.conversion import inspect
from respipe.errors import StorageError
from respipe.storage import BetonDataset
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
        "quality": 90,
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
    assert folder.num_bytes == folder.levels[0].num_bytes == sum(f.stat().st_size for f in jpeg_folder.rglob("*.jpg"))
    path = write_plain_beton(tmp_path / "y.beton", [(1, 1, 1, b"rgb"), (1, 1, 2, b"rgbrgb")], [4, 4])
    foreign = inspect(path)
    assert (foreign.writer, foreign.classes, foreign.num_labels, foreign.has_checksums) == ("FFCV", None, 1, False)
    assert foreign.levels[0].raw_share == 1
    assert foreign.levels[0].bytes_per_image == 4.5


def test_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        inspect(tmp_path / "nowhere")
