from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from respipe.conversion import verify
from respipe.errors import StorageError
from respipe.jpeg.header import read_header
from respipe.storage import BetonDataset
from tests.memory_dataset import jpeg_bytes, smooth_image
from tests.small_pages import convert_small
from tests.storage.plain_beton import write_plain_beton


@pytest.fixture
def pyramid(jpeg_folder: Path, tmp_path: Path) -> Path:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    return tmp_path / "x.beton"


def flip(path: Path, index: int, level: int) -> None:
    """Change one byte in the middle of a stored image."""
    stored = BetonDataset(path).levels[level]
    data = bytearray(path.read_bytes())
    data[stored.offsets[index] + stored.sizes[index] // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_sound_pyramid_is_sound(pyramid: Path, decode: bool, num_workers: int) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(pyramid, decode=decode, num_workers=num_workers, progress=lambda *done: seen.append(done))
    assert report.sound
    assert (report.kind, report.num_samples, report.has_checksums, report.decoded) == ("beton", 18, True, decode)
    # 64 x 64 and 40 x 56 fit the level of 64 px and are stored twice; the four other shapes three times.
    assert report.num_images == 3 * (4 * 3 + 2 * 2)
    assert seen == [(done, 18) for done in range(19)]
    assert json.loads(json.dumps(report.to_dict()))["sound"] is True


def test_one_flipped_byte_is_found_and_named(pyramid: Path) -> None:
    flip(pyramid, 7, 1)
    flip(pyramid, 16, 0)
    report = verify(pyramid, num_workers=0)
    assert not report.sound
    assert [(image.index, image.level, image.name) for image in report.damaged] == [
        (7, "image_64", "bee/1.jpg"),
        (16, "image", "cat/4.jpg"),
    ]
    assert "checksum" in report.damaged[0].reason


def test_damaged_structure_is_an_error(pyramid: Path) -> None:
    pyramid.write_bytes(pyramid.read_bytes()[:-1])
    with pytest.raises(StorageError, match="cannot be read"):
        verify(pyramid)


def test_images_without_checksums_are_decoded(tmp_path: Path) -> None:
    jpegs = [jpeg_bytes(smooth_image(24, 40, seed=seed)).tobytes() for seed in range(4)]
    jpegs[1] = jpegs[1][: (read_header(jpegs[1]).scan_start + len(jpegs[1])) // 2] + b"\xff\xd9"
    jpegs[2] = jpegs[2][:-2]
    path = write_plain_beton(tmp_path / "x.beton", [(0, 40, 24, data) for data in jpegs], range(4))
    report = verify(path, num_workers=0)
    assert not report.has_checksums
    assert report.decoded
    assert [image.index for image in report.damaged] == [1, 2]
    assert "premature end" in report.damaged[0].reason
    assert report.damaged[1].reason == "its end is missing"


def test_limit_of_pixels_can_be_raised_and_lowered(jpeg_folder: Path) -> None:
    assert not verify(jpeg_folder, num_workers=0, max_pixels=20).sound
    assert verify(jpeg_folder, num_workers=2, max_pixels=10**9).sound


def test_folder_is_decoded(jpeg_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(jpeg_folder, tmp_path / "source")
    (folder / "ant/empty.jpg").write_bytes(b"")
    data = (folder / "cat/5.jpg").read_bytes()
    (folder / "bee/3.jpg").write_bytes(data[: len(data) // 2])
    (folder / "cat/5.jpg").write_bytes(data[:-2] + b"extra" + data[-2:])
    report = verify(folder, num_workers=0)
    assert (report.kind, report.num_samples, report.decoded, report.has_checksums) == ("folder", 19, True, False)
    assert [image.name for image in report.damaged] == ["ant/empty.jpg", "bee/3.jpg"]
    assert [image.name for image in report.warned] == ["cat/5.jpg"]


def test_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        verify(tmp_path / "nowhere.beton")
