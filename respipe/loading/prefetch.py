"""A background thread that stays a few items ahead, and never leaves its consumer waiting without end.

The consumer is mostly the main thread, where an interrupt (Ctrl-C) may be raised between any two instructions of
Python, also in the midst of :class:`threading.Condition`, whose lock then stays as it was. So both sides meet at
:class:`queue.SimpleQueue` only, whose calls are one instruction each, and nothing is ever locked.
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from respipe.checks import check_int
from respipe.errors import WorkerLostError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long one side of the buffer sleeps before it looks whether the other side is still there.
_POLL_SECONDS = 0.2
# How long a thread that was told to stop may take to finish the batch it is working on.
_JOIN_SECONDS = 30.0


class BoundedBuffer(Generic[T]):
    """First in, first out, up to a total size, from one thread to one other.

    An item is let in as soon as it fits beside those that wait, or none waits: an item larger than the capacity passes
    through alone.

    Args:
        capacity: total size of the items that may wait, in whatever unit ``put`` counts, at least 1.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: queue.SimpleQueue[tuple[T, int]] = queue.SimpleQueue()
        self._freed: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._total = 0  # as the side that puts knows it
        self._closed = False

    def put(self, item: T, size: int, *, timeout: float = math.inf) -> bool:
        """Add an item of the given size as soon as there is room; False after ``timeout`` seconds or once closed."""
        deadline = time.monotonic() + timeout
        while self._total and self._total + size > self._capacity and not self._closed:
            left = deadline - time.monotonic()
            try:
                self._total -= self._freed.get(timeout=min(max(left, 0), _POLL_SECONDS))
            except queue.Empty:
                if left <= 0:
                    return False
        if self._closed:
            return False
        self._total += size
        self._items.put((item, size))
        return True

    def get(self, *, timeout: float) -> T:
        """Take the oldest item.

        Raises:
            queue.Empty: there was none for ``timeout`` seconds.
        """
        item, size = self._items.get(timeout=timeout)
        self._freed.put(size)
        return item

    def close(self) -> None:
        """Let nothing in any more, and wake the side that waits for room."""
        self._closed = True
        self._freed.put(0)


@dataclass(frozen=True, kw_only=True)
class WorkAhead:
    """How many finished batches may wait for the training step.

    Beside them one more is being finished, and as many are being decoded as keep the backend busy
    (:meth:`respipe.backends.base.Backend.room`).

    Args:
        num_batches: number of the epoch's largest batches, or of as many smaller ones as take the same memory.
        num_bytes: memory of the batches in bytes, instead of ``num_batches``. One may wait whatever its size.

    Raises:
        TypeError, ValueError: a number is not an integer of at least 1.
    """

    num_batches: int = 3
    num_bytes: int | None = None

    def __post_init__(self) -> None:
        check_int("num_prefetch", self.num_batches, least=1)
        if self.num_bytes is not None:
            check_int("prefetch_bytes", self.num_bytes, least=1)

    def capacity(self, largest: int) -> int:
        """Bytes that may wait where the largest batch takes ``largest``; 0 where this rank has no image in any."""
        return self.num_bytes if self.num_bytes is not None else self.num_batches * max(largest, 1)


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _Raised:
    error: BaseException


class _End:
    pass


_Buffer = BoundedBuffer[_Item[T] | _Raised | _End]


def prefetch(
    produce: Callable[[], Iterator[T]],
    *,
    capacity: int,
    size_of: Callable[[T], int] = lambda _: 1,
    stall_timeout: float,
) -> Generator[T, None, None]:
    """Run an iterator in a thread of its own, as far ahead as ``capacity`` allows.

    The thread starts when the first item is asked for, and ends when the items are used up, the generator is closed
    or dropped, or ``produce`` raises, which the consumer then sees at the item where it happened.

    Args:
        produce: maker of the iterator; called in the thread, which also closes the iterator.
        capacity: total size of the finished items that may wait for the consumer; one may wait whatever its size, and
            one more is in the thread's hands.
        size_of: size of an item; the default counts items.
        stall_timeout: seconds without a new item after which the thread is given up.

    Raises:
        WorkerLostError: the thread died, or made no progress for ``stall_timeout`` seconds.
    """
    items: _Buffer[T] = BoundedBuffer(capacity)
    process = os.getpid()
    thread = threading.Thread(target=_run, args=(produce, size_of, items), name="respipe-prefetch", daemon=True)
    try:
        _running[thread] = items.close
        thread.start()
        while True:
            if os.getpid() != process:  # the threads of a process are not in the child of its fork
                raise WorkerLostError(
                    "The process was forked while batches were being decoded; the threads that do so stayed with its "
                    "parent. Begin a new iteration in the child: iter(loader)."
                )
            item = _next_item(items, thread, stall_timeout)
            if isinstance(item, _End):
                return
            if isinstance(item, _Raised):
                raise item.error
            yield item.value
    finally:
        _stop(thread)


# Threads that nobody has stopped yet, with what tells them to stop.
_running: dict[threading.Thread, Callable[[], None]] = {}


def _stop(thread: threading.Thread) -> None:
    close = _running.get(thread)
    if close is None:
        return  # at the interpreter's exit, which came first, or in the child of a fork
    close()
    if thread is threading.current_thread():
        return  # the garbage collector may end an iteration in whatever thread it runs
    # A thread that hangs in an engine cannot be ended; it is a daemon and is left behind.
    _join(thread)
    _running.pop(thread, None)  # only now: an interrupt may have ended the wait, and then it is for the exit to wait
    if thread.is_alive():
        logger.error("The prefetch thread did not end within %g s and is left behind.", _JOIN_SECONDS)


def _join(thread: threading.Thread) -> None:
    """Wait for a thread to end, also where an interrupt came while it was being started."""
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        with suppress(RuntimeError):  # it is not running yet, and perhaps never will
            thread.join(timeout=_JOIN_SECONDS)
            return
        time.sleep(0.001)


# The child of a fork has none of these threads.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_running.clear)


@atexit.register
def _stop_all() -> None:
    """An iteration that was left unfinished must not be in native code when the interpreter goes: that aborts."""
    for thread in list(_running):
        _stop(thread)


def _run(produce: Callable[[], Iterator[T]], size_of: Callable[[T], int], items: _Buffer[T]) -> None:
    """Body of the thread: every way out except a stop puts something into the buffer."""
    try:
        iterator = produce()
        try:
            for value in iterator:
                if not items.put(_Item(value), size_of(value)):
                    return
        finally:
            if isinstance(iterator, Generator):
                iterator.close()
        items.put(_End(), 0)
    except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
        items.put(_Raised(error), 0)


def _next_item(items: _Buffer[T], thread: threading.Thread, stall_timeout: float) -> _Item[T] | _Raised | _End:
    deadline = time.monotonic() + stall_timeout
    while True:
        alive = thread.is_alive()
        try:
            return items.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            # `alive` was read before the wait, so that an item put just before the thread ended is not missed.
            if not alive:
                raise WorkerLostError("The thread that decodes batches has died without saying why.") from None
            if time.monotonic() > deadline:
                raise WorkerLostError(
                    f"No batch arrived within {stall_timeout:g} s. The storage may be stalled; pass a larger "
                    "`stall_timeout` if it is merely slow."
                ) from None
