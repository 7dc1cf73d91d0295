"""A function over numbered samples in worker processes: results in order, and nothing waits forever.

Workers are plain Python processes at the other end of a pipe, not :mod:`multiprocessing`'s. Those import the caller's
main module again, so that a script without an ``if __name__ == "__main__":`` would start workers from its workers, and
they stay behind when the caller is killed. Here a closed pipe ends the worker, and a lost worker closes its pipe.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import json
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from respipe.errors import WorkerLostError
from respipe.processes import num_cores

T = TypeVar("T")

STALL_TIMEOUT = 300.0
_CHUNK = 32
_CHUNKS_AHEAD = 3
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from respipe.conversion.workers import serve; serve(int(sys.argv[1]))"
)


def check_num_workers(num_workers: int | None) -> int:
    """A number of workers as given; for None as many as cores this process may use.

    Raises:
        ValueError: it is negative.
    """
    if num_workers is None:
        return num_cores()
    if num_workers < 0:
        raise ValueError(f"`num_workers` must be at least 0; got {num_workers}. With 0 this process does the work.")
    return num_workers


def map_samples(
    function: Callable[[int], T], indices: Iterable[int], *, num_workers: int, stall_timeout: float = STALL_TIMEOUT
) -> Generator[tuple[int, T], None, None]:
    """Call a function on each number: in parallel, yielding in order, a bounded number of calls ahead.

    Args:
        function: can be pickled and is not defined in the main script; every worker receives one copy, once.
        indices: numbers to call it on.
        num_workers: processes; with 0 this one does the work.
        stall_timeout: seconds that a single call may take in a worker.

    Yields:
        the number and what the function returned for it.

    Raises:
        OSError: the function raised it.
        WorkerLostError: a worker ended by any other error, was killed, or took longer than ``stall_timeout``.
    """
    if num_workers == 0:
        for index in indices:
            yield index, function(index)
        return
    workers = [_Worker(function, stall_timeout) for _ in range(num_workers)]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def call(chunk: Sequence[int]) -> list[Any]:
        worker = idle.get()
        try:
            return worker.call(chunk)
        finally:
            idle.put(worker)

    threads = ThreadPoolExecutor(num_workers, thread_name_prefix="respipe-workers")
    try:
        yield from _in_order(threads, call, iter(indices), num_ahead=_CHUNKS_AHEAD * num_workers)
    finally:
        for worker in workers:
            worker.kill()
        threads.shutdown(cancel_futures=True)
        for worker in workers:
            worker.close()


def _in_order(
    threads: ThreadPoolExecutor, call: Callable[[Sequence[int]], list[Any]], indices: Iterator[int], *, num_ahead: int
) -> Generator[tuple[int, Any], None, None]:
    pending: deque[tuple[Sequence[int], Future[list[Any]]]] = deque()
    for chunk in iter(lambda: list(itertools.islice(indices, _CHUNK)), []):
        pending.append((chunk, threads.submit(call, chunk)))
        if len(pending) > num_ahead:
            done, future = pending.popleft()
            yield from zip(done, future.result(), strict=True)
    for done, future in pending:
        yield from zip(done, future.result(), strict=True)


class _Worker:
    """One worker process, as seen from the caller. Used by one thread at a time, but for ``kill``."""

    def __init__(self, function: Callable[[int], Any], stall_timeout: float) -> None:
        self._setup: tuple[Callable[[int], Any], float] | None = (function, stall_timeout)
        self._connection, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-c", _BOOT, str(theirs.fileno()), json.dumps(sys.path)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])

    def call(self, indices: Sequence[int]) -> list[Any]:
        """Results for some numbers.

        Raises:
            OSError: the function raised it.
            WorkerLostError: the process ended.
        """
        try:
            if self._setup is not None:
                self._connection.send(self._setup)
                self._setup = None
            self._connection.send(indices)
            reply = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise WorkerLostError(
                f"A worker process ended with status {self._process.wait()} while it worked on samples {indices[0]} to "
                f"{indices[-1]}; what it had to say is on standard error. Status -9 often means that memory ran out: "
                "try a smaller `num_workers`. Finished work is kept: run the same again to go on."
            ) from error
        if isinstance(reply, OSError):
            raise reply
        return reply

    def kill(self) -> None:
        """End the process, whatever it is doing: it keeps nothing that could be lost."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Release the pipe, once no thread is using it."""
        self._connection.close()


def serve(descriptor: int) -> None:
    """What a worker process does: answer until the caller closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, ConnectionError):
        function, stall_timeout = connection.recv()
        while True:
            indices = connection.recv()
            try:
                reply = [_call(function, index, stall_timeout) for index in indices]
            except OSError as error:
                connection.send(error)
            else:
                connection.send(reply)


def _call(function: Callable[[int], Any], index: int, stall_timeout: float) -> Any:
    # Ends the process, with a traceback on standard error, even where the call is stuck outside of Python.
    faulthandler.dump_traceback_later(stall_timeout, exit=True)
    try:
        return function(index)
    finally:
        faulthandler.cancel_dump_traceback_later()
