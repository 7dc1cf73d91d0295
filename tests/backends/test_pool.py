"""Threads, ranges and buffers that decoders share."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from respipe.backends import pool as pools
from respipe.backends import reference
from respipe.backends.pool import DaemonPool, OutputBuffers, PooledBackend, ranges
from respipe.backends.routing import route
from tests import plans
from tests.memory_dataset import MemoryDataset
from tests.plans import make_plan


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("pooled")}


def test_results_come_in_order_and_threads_end() -> None:
    pool = DaemonPool(3, "pooled")
    assert names() == {"pooled_0", "pooled_1", "pooled_2"}
    assert pool.map(divmod, range(50), [7] * 50) == [divmod(number, 7) for number in range(50)]
    pool.close()
    pool.close()
    assert not names()


def test_the_first_error_is_raised_and_the_threads_go_on() -> None:
    pool = DaemonPool(2, "pooled")
    with pytest.raises(ZeroDivisionError):
        pool.map(divmod, [1, 2, 3], [1, 0, 1])
    assert pool.submit(divmod, 7, 2).result(timeout=10) == (3, 1)
    pool.close()


def test_a_thread_has_let_go_of_its_work_when_the_result_is_known() -> None:
    class Work:
        pass

    work, dropped, gone = Work(), threading.Event(), list[bool]()
    alive = weakref.ref(work)
    pool = DaemonPool(1, "pooled")
    future = pool.submit(lambda _: dropped.wait(10), work)
    future.add_done_callback(lambda _: gone.append(alive() is None))
    del work
    dropped.set()
    assert future.result(timeout=10)
    pool.close()
    assert gone == [True]


def test_a_dropped_pool_ends_its_threads() -> None:
    pool = DaemonPool(2, "pooled")
    pool.map(abs, [1, 2])
    del pool
    gc.collect()
    deadline = time.monotonic() + 10
    while names() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not names()


def test_closing_does_not_wait_for_a_call_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("respipe.backends.pool.PATIENCE_SECONDS", 0.05)
    pool, go_on = DaemonPool(1, "pooled"), threading.Event()
    pool.submit(go_on.wait, 60)
    pool.close()
    assert "['pooled_0'] did not end within 0.05 s" in caplog.text
    go_on.set()


def covers(count: int, side: int) -> np.ndarray:
    return np.tile(np.array([5, 7, side, side]), (count, 1))


@pytest.fixture
def pixels_of_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_MIN_PIXELS", 1000)


@pytest.mark.usefixtures("pixels_of_a_part")
def test_large_images_are_shared_by_all_threads() -> None:
    assert ranges(covers(10, 100), 4) == [slice(0, 2), slice(2, 5), slice(5, 7), slice(7, 10)]
    assert ranges(covers(3, 100), 16) == [slice(0, 1), slice(1, 2), slice(2, 3)]


@pytest.mark.usefixtures("pixels_of_a_part")
def test_small_images_wake_fewer_threads() -> None:
    assert ranges(covers(64, 4), 16) == [slice(0, 64)]
    assert ranges(covers(64, 8), 16) == [slice(start, start + 16) for start in (0, 16, 32, 48)]


@pytest.mark.usefixtures("pixels_of_a_part")
def test_every_image_belongs_to_one_part() -> None:
    for count in range(20):
        for side in (0, 1, 20, 200):
            parts = ranges(covers(count, side), 7)
            assert [row for part in parts for row in range(part.start, part.stop)] == list(range(count))
            assert all(part.start < part.stop for part in parts)


SHAPES = [(2, 8, 8, 3), (2, 4, 4, 3)]


def allocate(buffers: OutputBuffers, shapes: list[tuple[int, ...]]) -> tuple[NDArray[np.uint8], ...]:
    return tuple(tensor.numpy() for tensor in buffers.allocate(shapes))


def address(array: NDArray[np.uint8]) -> int:
    return array.ctypes.data


def test_arrays_have_the_shapes_asked_for_and_do_not_overlap() -> None:
    first, second = allocate(OutputBuffers(), SHAPES)
    assert (first.shape, second.shape) == (SHAPES[0], SHAPES[1])
    assert first.flags.c_contiguous
    assert second.flags.c_contiguous
    assert not np.shares_memory(first, second)
    first[:], second[:] = 1, 2
    assert (first == 1).all()


def test_memory_comes_back_when_nobody_refers_to_it() -> None:
    buffers = OutputBuffers()
    arrays = allocate(buffers, SHAPES)
    place = address(arrays[0])
    del arrays
    assert address(allocate(buffers, SHAPES)[0]) == place


HOLDERS: dict[str, Callable[[tuple[NDArray[np.uint8], ...]], Any]] = {
    "one of the arrays": lambda arrays: arrays[1],
    "a view": lambda arrays: arrays[0][1:, ::2],
    "a view of a view": lambda arrays: arrays[0][1:][0][2:5],
    "a tensor": lambda arrays: torch.from_numpy(arrays[0]),
    "a view of a tensor": lambda arrays: torch.from_numpy(arrays[1]).permute(0, 3, 1, 2)[:1],
    "an array of a tensor": lambda arrays: torch.from_numpy(arrays[1])[0].numpy(),
    "a memory view": lambda arrays: memoryview(arrays[0]),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_memory_is_not_used_again_while_something_shares_it(holder: str) -> None:
    buffers = OutputBuffers()
    arrays = allocate(buffers, SHAPES)
    for array in arrays:
        array[:] = 7
    held = HOLDERS[holder](arrays)
    del arrays, array
    for _ in range(3):
        others = allocate(buffers, SHAPES)
        for other in others:
            other[:] = 9
    assert (np.asarray(held) == 7).all()


def test_smaller_batches_use_the_memory_of_larger_ones() -> None:
    buffers = OutputBuffers()
    place = address(allocate(buffers, [(4, 8, 8, 3)])[0])
    assert address(allocate(buffers, [(1, 8, 8, 3)])[0]) == place
    assert address(allocate(buffers, [(4, 8, 8, 3)])[0]) == place


def test_memory_of_smaller_batches_is_given_up_for_that_of_a_larger_one() -> None:
    buffers = OutputBuffers()
    allocate(buffers, [(1, 8, 8, 3)])
    (large,) = allocate(buffers, [(64, 8, 8, 3)])
    large[:] = 1
    assert large.nbytes == 64 * 8 * 8 * 3


def test_a_batch_may_be_empty() -> None:
    buffers = OutputBuffers()
    assert [array.shape for array in allocate(buffers, [(0, 8, 8, 3), (0, 4, 4, 3)])] == [(0, 8, 8, 3), (0, 4, 4, 3)]
    assert allocate(buffers, [(1, 8, 8, 3)])[0].shape == (1, 8, 8, 3)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_batches_for_a_gpu_are_decoded_into_memory_that_it_can_copy_from(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    empty = torch.empty

    def without_gpu(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        asked.append(pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", without_gpu)
    dataset = MemoryDataset([(20, 30)] * 4)
    plan = make_plan(dataset, plans.whole, sizes=(16, 8))
    backend = PooledBackend("reference", dataset, reference.decode_part, device=torch.device(kind), num_threads=1)
    with closing(backend):
        backend.submit(route(dataset, plan))
        large, small = backend.collect()
    assert asked == ([True] if kind == "cuda" else [])
    # What the allocator is told of a copy names the memory that it handed out: both must be parts of it.
    assert large.untyped_storage().data_ptr() == small.untyped_storage().data_ptr()
    assert large.any()
    assert (large.shape, small.shape) == ((4, 16, 16, 3), (4, 8, 8, 3))
