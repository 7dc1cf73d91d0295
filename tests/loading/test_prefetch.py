"""The prefetch thread: order, errors, early exits and a producer that stalls or dies."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from respipe.errors import WorkerLostError
from respipe.loading.prefetch import prefetch


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "respipe-prefetch"]


@pytest.mark.parametrize("capacity", [1, 2, 7])
def test_items_arrive_in_order_at_any_capacity(capacity: int) -> None:
    assert list(prefetch(lambda: iter(range(50)), capacity=capacity, stall_timeout=10)) == list(range(50))
    assert not prefetch_threads()


def test_an_empty_iterator_ends_at_once() -> None:
    assert list(prefetch(lambda: iter(()), capacity=1, stall_timeout=10)) == []


def test_an_error_is_raised_after_the_items_before_it() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError("at item 2")

    items = prefetch(failing, capacity=3, stall_timeout=10)
    assert next(items) == 1
    with pytest.raises(ZeroDivisionError, match="at item 2"):
        next(items)
    assert not prefetch_threads()


def test_an_error_while_making_the_iterator_is_raised() -> None:
    def broken() -> Iterator[int]:
        raise KeyError("no iterator")

    with pytest.raises(KeyError, match="no iterator"):
        next(prefetch(broken, capacity=1, stall_timeout=10))


def test_leaving_early_ends_the_thread_and_closes_the_iterator() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    for _ in prefetch(endless, capacity=2, stall_timeout=10):
        break
    assert closed.wait(timeout=10)
    assert not prefetch_threads()


def test_no_more_items_wait_than_fit_for_the_consumer() -> None:
    made = 0
    third_made = threading.Event()

    def counting() -> Iterator[int]:
        nonlocal made
        for number in range(100):
            made += 1
            if made == 5:
                third_made.set()
            yield number

    items = prefetch(counting, capacity=3, stall_timeout=10)
    assert next(items) == 0
    assert third_made.wait(timeout=10)
    # One item was consumed, three wait in the buffer, and the fifth is in the producer's hands.
    assert not third_made.wait(timeout=0) or made == 5
    items.close()
    assert made == 5


def test_a_stalled_producer_raises_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("respipe.loading.prefetch._JOIN_SECONDS", 0.01)
    release = threading.Event()

    def stalled() -> Iterator[int]:
        yield 1
        release.wait(timeout=60)

    items = prefetch(stalled, capacity=1, stall_timeout=0.3)
    assert next(items) == 1
    with pytest.raises(WorkerLostError, match=r"0\.3 s.*stall_timeout"):
        next(items)
    release.set()
    for thread in prefetch_threads():
        thread.join(timeout=10)


def test_a_thread_that_dies_silently_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("respipe.loading.prefetch._run", lambda *_: None)
    with pytest.raises(WorkerLostError, match="died"):
        next(prefetch(lambda: iter(range(3)), capacity=1, stall_timeout=10))


def test_leaving_the_interpreter_in_the_midst_ends_the_thread_first() -> None:
    program = (
        "import atexit, itertools, sys, threading\n"
        "def check():\n"  # registered first, so called last
        "    sys.stdout.write(' '.join(thread.name for thread in threading.enumerate()))\n"
        "atexit.register(check)\n"
        "from respipe.loading.prefetch import prefetch\n"
        "items = prefetch(itertools.count, capacity=3, stall_timeout=10)\n"
        "next(items)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "MainThread", "")
