"""A pool of threads that nothing waits for for ever: neither whoever closes it, nor the interpreter when it leaves."""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from functools import partial
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long a call that is already running may take to end before its thread is left behind.
PATIENCE_SECONDS = 30.0

_Tasks = queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]


class DaemonPool:
    """Calls functions in daemon threads.

    The interpreter joins the threads of :class:`concurrent.futures.ThreadPoolExecutor` when it leaves, and so would
    never leave while one of them hangs in a file system that has gone. These end with the process. They also end when
    the pool is closed or dropped.

    Args:
        num_threads: how many.
        name: of the threads, as debuggers and profilers show them, with a number behind it.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._tasks: _Tasks = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=_work, args=(self._tasks,), name=f"{name}_{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()
        self._end = weakref.finalize(self, _end, self._tasks, num_threads)
        self._end.atexit = False

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call a function as soon as a thread is free."""
        assert self._end.alive, "the pool is open"
        future: Future[T] = Future()
        self._tasks.put((future, partial(function, *arguments)))
        return future

    def map(self, function: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
        """Call a function on each of the arguments, and wait for all; raises what the first that failed raised."""
        futures = [self.submit(function, *one) for one in zip(*arguments, strict=True)]
        wait(futures)
        return [future.result() for future in futures]

    def close(self) -> None:
        """End the threads. One that does not end within ``PATIENCE_SECONDS`` is left behind. Safe to call twice."""
        self._end()
        deadline = time.monotonic() + PATIENCE_SECONDS
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        if left := [thread.name for thread in self._threads if thread.is_alive()]:
            logger.error("Threads %s did not end within %g s and are left behind.", left, PATIENCE_SECONDS)


def _end(tasks: _Tasks, num_threads: int) -> None:
    for _ in range(num_threads):
        tasks.put(None)


def _work(tasks: _Tasks) -> None:
    """Body of a thread, which must not refer to the pool: it would never be dropped."""
    while (task := tasks.get()) is not None:
        _run(*task)
        del task  # what it worked on must not stay alive while the thread waits for more


def _run(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - handed to whoever asks for the result
        future.set_exception(error)
    else:
        future.set_result(result)
