from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from respipe.conversion import BetonSource, FolderSource, Source
from respipe.conversion.sources import open_source
from respipe.errors import CorruptImageError, StorageError
from respipe.storage import BetonDataset
from tests.small_pages import convert_small
from tests.storage.plain_beton import write_plain_beton


def test_folder_source_gives_the_files(jpeg_folder: Path) -> None:
    source = FolderSource(jpeg_folder)
    assert isinstance(source, Source)
    assert (len(source), source.fields["label"].classes, source.name(7), source.fields["label"][7]) == (
        18,
        ("ant", "bee", "cat"),
        "bee/1.jpg",
        1,
    )
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(7) == source.read(7) == (jpeg_folder / "bee/1.jpg").read_bytes()
    assert copy.fingerprint == source.fingerprint


def test_beton_source_gives_the_largest_level(jpeg_folder: Path, tmp_path: Path) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    source = BetonSource(tmp_path / "x.beton")
    dataset = BetonDataset(tmp_path / "x.beton")
    assert isinstance(source, Source)
    assert (len(source), source.fields["label"].classes, source.name(7), source.fields["label"][7]) == (
        18,
        ("ant", "bee", "cat"),
        "bee/1.jpg",
        1,
    )
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(7) == dataset.encoded(7).tobytes()


def test_raw_pixels_can_be_decoded(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = write_plain_beton(tmp_path / "x.beton", [(1, 7, 5, pixels.tobytes())], [0])
    with Image.open(io.BytesIO(BetonSource(path).read(0))) as image:
        np.testing.assert_array_equal(np.asarray(image), pixels)


def test_damaged_image_of_a_beton_is_quarantined_on_conversion(jpeg_folder: Path, tmp_path: Path) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    offsets = BetonDataset(tmp_path / "x.beton").levels[0].offsets
    data = bytearray((tmp_path / "x.beton").read_bytes())
    data[offsets[3] + 700] ^= 1
    (tmp_path / "damaged.beton").write_bytes(data)
    with pytest.raises(CorruptImageError, match="differ from those"):
        BetonSource(tmp_path / "damaged.beton").read(3)
    report = convert_small(tmp_path / "damaged.beton", tmp_path / "y.beton", allow_corrupt=1)
    assert [note.name for note in report.quarantined] == ["ant/3.jpg"]
    assert BetonDataset(tmp_path / "y.beton").classes == ("ant", "bee", "cat")


def test_converting_a_pyramid_again_keeps_its_largest_level(jpeg_folder: Path, tmp_path: Path) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton", levels=(128,))
    report = convert_small(tmp_path / "x.beton", tmp_path / "y.beton", keep="bytes")
    assert report.num_kept == 18
    one, two = BetonDataset(tmp_path / "x.beton"), BetonDataset(tmp_path / "y.beton")
    assert all(one.encoded(index).tobytes() == two.encoded(index).tobytes() for index in range(18))
    assert [two.name(index) for index in range(18)] == [one.name(index) for index in range(18)]
    assert len(two.levels) == 3


def test_paths_and_sources_are_opened(jpeg_folder: Path, tmp_path: Path) -> None:
    source = FolderSource(jpeg_folder)
    assert open_source(source) is source
    assert open_source(str(jpeg_folder)).kind == "folder"
    assert open_source(write_plain_beton(tmp_path / "x", [(1, 1, 1, b"rgb")], [0])).kind == "beton"
    with pytest.raises(StorageError, match="does not exist"):
        open_source(tmp_path / "nowhere")
