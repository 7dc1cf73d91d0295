"""The kernel is told of the bytes of the next batches, all of them and no others, and batches stay what they are."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import respipe
from respipe.backends.base import ROW
from respipe.backends.routing import route
from respipe.loading import read_ahead
from respipe.storage import open_dataset
from tests.small_pages import convert_small

PAGE = mmap.PAGESIZE


@pytest.fixture(scope="module")
def beton(jpeg_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ahead") / "x.beton"
    convert_small(jpeg_folder, path)
    return path


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What the kernel is told: start, length and advice."""
    calls: list[tuple[int, int, int]] = []

    def advise(*call: int) -> int:
        calls.append(call)
        return 0

    monkeypatch.setattr(read_ahead, "_madvise", lambda: advise)
    monkeypatch.setattr(read_ahead, "_QUIET", 10**9)  # all is in memory here
    monkeypatch.setattr(read_ahead, "DaemonPool", AtOnce)  # or the last advice may come too late to be seen
    return calls


class AtOnce:
    """Stands in for a thread."""

    def __init__(self, *_: object) -> None:
        pass

    def submit(self, function: Callable[..., None], *arguments: Any) -> Future[None]:
        function(*arguments)
        done = Future[None]()
        done.set_result(None)
        return done

    def close(self) -> None:
        pass


def batches(data: Any, size: int = 24) -> list[torch.Tensor]:
    options: dict[str, Any] = {"batch_size": 3, "backend": "reference", "num_threads": 1, "seed": 1}
    with respipe.Loader(data, respipe.schedules.Constant(size), **options) as loader:
        return [images for images, _ in loader]


@pytest.mark.parametrize("size", [24, 60, 120])
def test_the_kernel_is_told_of_the_pages_of_the_stored_images_and_no_others(
    beton: Path, told: list[tuple[int, int, int]], size: int
) -> None:
    with closing(open_dataset(beton)) as dataset:
        with respipe.Loader(
            dataset, respipe.schedules.Constant(size), batch_size=3, backend="reference", with_spec=True
        ) as loader:
            plans = [plan for _, _, plan in loader]
        base = dataset.buffers[0].ctypes.data
        needed = set[int]()
        for plan in plans:
            for row in route(dataset, plan).rows:
                start = base + int(row["offset"])
                needed |= set(range(start // PAGE, -(-(start + int(row["length"])) // PAGE)))
        asked = [set(range(start // PAGE, (start + length) // PAGE)) for start, length, advice in told if advice == 3]
        assert set().union(*asked) == needed
        assert all(start % PAGE == 0 for start, _, _ in told)
        (whole,) = {(start, length) for start, length, advice in told if advice == 1}
        assert whole[0] == base
        assert whole[1] >= dataset.buffers[0].size > whole[1] - PAGE


def test_batches_are_the_same_with_and_without_it(beton: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = batches(beton)
    read_ahead._madvise.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not read_ahead.Kernel((np.zeros(10, np.uint8),)).listens
    without = batches(beton)
    read_ahead._madvise.cache_clear()
    assert len(with_it) == len(without) == 6
    assert all(map(torch.equal, with_it, without))


def test_where_nothing_is_read_from_disk_no_advice_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def advise(_start: int, _length: int, advice: int) -> int:
        calls.extend([1] if advice == 3 else [])
        return 0

    monkeypatch.setattr(read_ahead, "_madvise", lambda: advise)
    job: Any = SimpleNamespace(rows=np.array([(0, 0, PAGE, 1, 1, 0)], ROW))
    kernel = read_ahead.Kernel((np.zeros(PAGE, np.uint8),))
    with closing(kernel):

        def announce(times: int, num_read: int) -> int:
            monkeypatch.setattr(read_ahead, "_reads", lambda: (num_read, 0))
            calls.clear()
            for _ in range(times):
                kernel.announce((job,))
                for future in kernel._asked:
                    future.result(timeout=60)
            return len(calls)

        assert announce(80, num_read=7) == 2  # until it is known
        assert announce(8, num_read=8) == 1
        assert announce(8, num_read=8) == 1


def test_overlapping_and_neighbouring_images_are_one_span() -> None:
    starts, lengths = np.array([9 * PAGE, 10, 2 * PAGE - 5, 20 * PAGE]), np.array([1, PAGE, 10, 0])
    assert read_ahead._whole_pages(starts, lengths).tolist() == [[0, 3 * PAGE], [9 * PAGE, PAGE], [20 * PAGE, 0]]
