from __future__ import annotations

import numpy as np
import pytest

from respipe.backends.pool import ranges as threads
from respipe.backends.pool.ranges import ranges


def covers(count: int, side: int) -> np.ndarray:
    return np.tile(np.array([5, 7, side, side]), (count, 1))


@pytest.fixture(autouse=True)
def pixels_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_MIN_PIXELS", 1000)


def test_large_images_are_shared_by_all_threads() -> None:
    assert ranges(covers(10, 100), 4) == [(0, 2), (2, 5), (5, 7), (7, 10)]
    assert ranges(covers(3, 100), 16) == [(0, 1), (1, 2), (2, 3)]


def test_small_images_wake_fewer_threads() -> None:
    assert ranges(covers(64, 4), 16) == [(0, 64)]
    assert ranges(covers(64, 8), 16) == [(0, 16), (16, 32), (32, 48), (48, 64)]


def test_every_image_belongs_to_one_part() -> None:
    for count in range(20):
        for side in (0, 1, 20, 200):
            parts = ranges(covers(count, side), 7)
            assert [row for start, stop in parts for row in range(start, stop)] == list(range(count))
            assert all(start < stop for start, stop in parts)
