from __future__ import annotations

from pathlib import Path

import pytest

from respipe.errors import StorageError
from respipe.storage import BetonDataset, FolderDataset, open_dataset
from tests.memory_dataset import MemoryDataset
from tests.storage.plain_beton import write_plain_beton


def test_the_path_decides_the_kind(jpeg_folder: Path, tmp_path: Path) -> None:
    beton = write_plain_beton(tmp_path / "x.beton", [(1, 1, 1, b"rgb")], [0])
    assert isinstance(open_dataset(jpeg_folder), FolderDataset)
    assert isinstance(open_dataset(str(jpeg_folder)), FolderDataset)
    assert isinstance(open_dataset(beton), BetonDataset)


def test_open_dataset_is_returned_as_it_is() -> None:
    dataset = MemoryDataset([(8, 8)])
    assert open_dataset(dataset) is dataset


def test_missing_path_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"does not exist\. .*respipe convert"):
        open_dataset(tmp_path / "train.beton")
    (tmp_path / "train.beton").touch()
    with pytest.raises(StorageError, match=r"trian.beton does not exist \(did you mean train.beton\?\)"):
        open_dataset(tmp_path / "trian.beton")
    with pytest.raises(StorageError, match="does not exist; nor does its folder"):
        open_dataset(tmp_path / "data" / "train.beton")


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="`data` must be the path"):
        open_dataset(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`data` must be a path; got an empty one"):
        open_dataset("")
