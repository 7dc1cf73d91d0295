"""A background thread that stays a few items ahead, and never leaves its consumer waiting for ever."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from respipe.errors import WorkerLostError
from respipe.loading.bounded_buffer import BoundedBuffer

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long one side of the buffer sleeps before it looks whether the other side is still there.
_POLL_SECONDS = 0.2
# How long a thread that was told to stop may take to finish the batch it is working on.
_JOIN_SECONDS = 30.0


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _Raised:
    error: BaseException


class _End:
    pass


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
        produce: makes the iterator; called in the thread, which also closes the iterator.
        capacity: total size of the finished items that may wait for the consumer; one may wait whatever its size, and
            one more is in the thread's hands.
        size_of: size of an item; the default counts items.
        stall_timeout: seconds without a new item after which the thread is given up.

    Raises:
        WorkerLostError: the thread died, or made no progress for ``stall_timeout`` seconds.
    """
    items: BoundedBuffer[_Item[T] | _Raised | _End] = BoundedBuffer(capacity)
    stopped = threading.Event()
    process = os.getpid()
    thread = threading.Thread(
        target=_run, args=(produce, size_of, items, stopped), name="respipe-prefetch", daemon=True
    )
    _running[thread] = stopped
    thread.start()
    try:
        while True:
            if os.getpid() != process:  # a lock that the thread held when the process was forked stays locked
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
_running: dict[threading.Thread, threading.Event] = {}


def _stop(thread: threading.Thread) -> None:
    stopped = _running.get(thread)
    if stopped is None:
        return  # at the interpreter's exit, which came first, or in the child of a fork
    stopped.set()
    if thread is threading.current_thread():
        return  # the garbage collector may end an iteration in whatever thread it runs
    # A thread that hangs in an engine cannot be ended; it is a daemon and is left behind.
    thread.join(timeout=_JOIN_SECONDS)
    del _running[thread]  # only now: an interrupt may have ended the waiting, and then it is for the exit to wait
    if thread.is_alive():
        logger.error("The prefetch thread did not end within %g s and is left behind.", _JOIN_SECONDS)


# The child of a fork has none of these threads.
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_running.clear)


@atexit.register
def _stop_all() -> None:
    """An iteration that was left unfinished must not be in native code when the interpreter goes: that aborts."""
    for thread in list(_running):
        _stop(thread)


def _run(
    produce: Callable[[], Iterator[T]],
    size_of: Callable[[T], int],
    items: BoundedBuffer[_Item[T] | _Raised | _End],
    stopped: threading.Event,
) -> None:
    """Body of the thread: every way out except a stop puts something into the buffer."""
    try:
        iterator = produce()
        try:
            for value in iterator:
                if not _put(items, _Item(value), size_of(value), stopped):
                    return
        finally:
            if isinstance(iterator, Generator):
                iterator.close()
        _put(items, _End(), 0, stopped)
    except BaseException as error:  # noqa: BLE001 - handed to the consumer, which raises it
        _put(items, _Raised(error), 0, stopped)


def _put(
    items: BoundedBuffer[_Item[T] | _Raised | _End],
    item: _Item[T] | _Raised | _End,
    size: int,
    stopped: threading.Event,
) -> bool:
    """Wait for room in the buffer; False where the consumer has gone."""
    while not stopped.is_set():
        if items.put(item, size, timeout=_POLL_SECONDS):
            return True
    return False


def _next_item(
    items: BoundedBuffer[_Item[T] | _Raised | _End], thread: threading.Thread, stall_timeout: float
) -> _Item[T] | _Raised | _End:
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
