from __future__ import annotations

import json

import numpy as np
import pytest

from respipe.storage.beton.pages import (
    CHECKSUM,
    SIZE,
    PageBuilder,
    PageRecord,
    Pyramid,
    StoredImage,
    is_shared,
    offsets_in_page,
)


def stored(side: int, length: int, *, tiled: bool = True) -> StoredImage:
    return StoredImage(data=bytes([side]) * length, height=side, width=side, checksum=side * 1000, tiled=tiled)


def pyramid(*images: StoredImage, kept: bool = False, warnings: tuple[str, ...] = ()) -> Pyramid:
    return Pyramid(images=images, original=(9, 9), kept=kept, traits=("PNG",), warnings=warnings)


def test_page_lies_level_by_level_and_its_record_finds_every_image() -> None:
    small = stored(3, 7)
    samples = [
        pyramid(stored(9, 50), stored(5, 20, tiled=False), stored(2, 6)),
        pyramid(small, small, small, kept=True),
        pyramid(shared := stored(4, 11), shared, stored(2, 5), warnings=("odd",)),
    ]
    builder = PageBuilder(page_size=200, num_levels=3)
    for index, sample in zip((10, 11, 13), samples, strict=True):
        assert builder.has_room(sample)
        builder.add(index, sample)
    builder.quarantine(12, "no image")
    data, record = builder.finish(14)

    assert data == bytes([9]) * 50 + bytes([3]) * 7 + bytes([4]) * 11 + bytes([5]) * 20 + bytes([2]) * 11
    offsets = offsets_in_page(record.images)
    for row, sample in enumerate(samples):
        for level, image in enumerate(sample.images):
            start = offsets[row, level]
            assert data[start : start + record.images[row, level, SIZE]] == image.data
            assert record.images[row, level, CHECKSUM] == image.checksum
    assert is_shared(record.images).tolist() == [[False] * 3, [False, True, True], [False, True, False]]
    assert record.indices.tolist() == [10, 11, 13]
    assert (record.stop, record.num_kept, record.num_tiled, record.traits) == (14, 1, 2, {"PNG": 3})
    assert record.quarantined == ((12, "no image"),)
    assert record.warned == ((13, "odd"),)


def test_room_counts_shared_bytes_once() -> None:
    builder = PageBuilder(page_size=20, num_levels=2)
    image = stored(3, 12)
    builder.add(0, pyramid(image, image))
    assert builder.has_room(pyramid(stored(3, 8), stored(2, 0)))
    assert not builder.has_room(pyramid(stored(3, 9), stored(2, 0)))


@pytest.mark.parametrize("num_samples", [0, 2])
def test_record_survives_json(num_samples: int) -> None:
    builder = PageBuilder(page_size=100, num_levels=2)
    for index in range(num_samples):
        builder.add(index, pyramid(stored(3, 8), stored(2, 4)))
    builder.quarantine(5, "reason")
    _, record = builder.finish(6)
    copy = PageRecord.from_dict(json.loads(json.dumps(record.to_dict())), num_levels=2)
    assert np.array_equal(copy.images, record.images)
    assert copy.images.shape == (num_samples, 2, 4)
    assert json.dumps(copy.to_dict()) == json.dumps(record.to_dict())
