from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from respipe.errors import CorruptImageError, StorageError
from respipe.storage.folder import FolderDataset
from tests.memory_dataset import smooth_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a/0.jpg", "a/1.png", "b/2.webp", "b/3.bmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        smooth_image(24, 40, seed=1).save(tmp_path / name)
    smooth_image(24, 40, seed=1).save(tmp_path / "b/4.jpg", exif=exif)
    return tmp_path


def test_folder_is_a_dataset_of_upright_images(folder: Path) -> None:
    dataset = FolderDataset(folder)
    (level,) = dataset.levels
    assert len(dataset) == 5
    assert dataset.classes == ("a", "b")
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1]
    assert dataset.buffers == ()
    assert level.buffers is None
    assert level.sizes.tolist() == [(folder / dataset.name(index)).stat().st_size for index in range(5)]
    assert level.heights.tolist() == [24, 24, 24, 24, 40]
    assert level.widths.tolist() == [40, 40, 40, 40, 24]
    assert (level.heights.dtype, level.widths.dtype, level.raw.dtype) == (np.int32, np.int32, np.bool_)
    assert not level.raw.any()
    assert dataset.name(2) == "b/2.webp"
    assert dataset.encoded(0).tobytes() == (folder / "a/0.jpg").read_bytes()
    for index, name in ((2, "b/2.webp"), (4, "b/4.jpg")):  # not for engines to judge
        with Image.open(io.BytesIO(dataset.encoded(index))) as found, Image.open(folder / name) as expected:
            assert found.format == "PPM"
            np.testing.assert_array_equal(np.asarray(found), np.asarray(ImageOps.exif_transpose(expected)))
    assert not dataset.encoded(2).flags.writeable
    for index in range(5):
        dataset.check(index)
    dataset.close()
    dataset.close()


def test_pickled_folder_is_the_same_dataset(folder: Path) -> None:
    dataset = FolderDataset(folder)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.fingerprint == dataset.fingerprint
    assert copy.encoded(1).tobytes() == dataset.encoded(1).tobytes()


def test_unreadable_files_are_counted_and_named(folder: Path) -> None:
    (folder / "a/empty.jpg").write_bytes(b"")
    (folder / "b/text.png").write_bytes(b"no image")
    with pytest.raises(
        StorageError, match=r"2 of 7 images cannot be read, first a/empty.jpg: .*; b/text.png: .*convert"
    ):
        FolderDataset(folder)


@pytest.mark.parametrize("name", ["a/0.jpg", "a/1.png", "b/2.webp", "b/4.jpg"])
def test_check_finds_files_cut_off_since_the_folder_was_opened(folder: Path, name: str) -> None:
    dataset = FolderDataset(folder)
    index = [dataset.name(number) for number in range(5)].index(name)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-40])
    with pytest.raises(CorruptImageError, match=f"sample {index} .{name}. is damaged") as caught:
        dataset.check(index)
    assert caught.value.index == index


def test_check_finds_replaced_and_vanished_files(folder: Path) -> None:
    dataset = FolderDataset(folder)
    smooth_image(30, 40, seed=2).save(folder / "a/0.jpg")
    (folder / "a/1.png").write_bytes(b"")
    (folder / "b/2.webp").unlink()
    with pytest.raises(CorruptImageError, match="another size than when the folder was opened: 40 x 30"):
        dataset.check(0)
    with pytest.raises(CorruptImageError, match="sample 1"):
        dataset.check(1)
    with pytest.raises(CorruptImageError, match="cannot be read"):
        dataset.check(2)
    with pytest.raises(CorruptImageError, match="cannot be read"):
        dataset.encoded(2)


def test_unreadable_files_can_be_kept_as_damaged_samples(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "a/2.jpg").write_bytes(b"")
    dataset = pickle.loads(pickle.dumps(FolderDataset(folder, keep_unreadable=True)))
    assert "1 of 6 images cannot be read, first a/2.jpg: the file is empty" in caplog.text
    assert len(dataset) == 6
    with pytest.raises(CorruptImageError, match=r"a/2.jpg.*the file is empty"):
        dataset.check(2)
    for path in folder.glob("*/*"):
        path.write_bytes(b"")
    with pytest.raises(StorageError, match=r"6 of 6 images cannot be read.*on_corrupt='quarantine'"):
        FolderDataset(folder, keep_unreadable=True)
