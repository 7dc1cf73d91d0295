from __future__ import annotations

from pathlib import Path

import numpy as np

from respipe.conversion.verification import find_stray_bytes
from respipe.storage import BetonDataset
from tests.small_pages import PAGE_SIZE, convert_small
from tests.storage.plain_beton import write_plain_beton


def test_exactly_the_bytes_without_a_checksum_must_be_zero(jpeg_folder: Path, tmp_path: Path) -> None:
    convert_small(jpeg_folder, tmp_path / "x.beton")
    dataset = BetonDataset(tmp_path / "x.beton")
    assert find_stray_bytes(dataset, most=5) == ()
    data = np.frombuffer((tmp_path / "x.beton").read_bytes(), np.uint8).copy()
    first = dataset.levels[0].offsets
    places = [int(first.min()) - 1, int(first.min()) - 5, PAGE_SIZE - 1]
    data[places] = 1
    (tmp_path / "y.beton").write_bytes(data.tobytes())
    changed = BetonDataset(tmp_path / "y.beton")
    assert find_stray_bytes(changed, most=5) == tuple(sorted(places))
    assert find_stray_bytes(changed, most=1) == (int(first.min()) - 5,)
    assert all(changed.problem(index) is None for index in range(len(changed)))


def test_files_of_other_writers_may_hold_anything_between_images(tmp_path: Path) -> None:
    path = write_plain_beton(tmp_path / "x.beton", [(1, 3, 2, bytes(range(18)))], [0])
    data = bytearray(path.read_bytes())
    data[4000] = 9
    (tmp_path / "y.beton").write_bytes(data)
    assert find_stray_bytes(BetonDataset(tmp_path / "y.beton"), most=5) == ()
