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
import pickle
import queue
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any, Generic, Self, TypeVar

from PIL import Image

from respipe.checks import check_int
from respipe.errors import WorkerLostError
from respipe.processes import num_cores

T = TypeVar("T")

STALL_TIMEOUT = 300.0
_REMEDY = (
    "Put its class into a module that they can import, not into the main script or a notebook, or pass num_workers=0."
)
_CHUNK = 32
_CHUNKS_AHEAD = 3
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from respipe.conversion.workers import serve; serve(int(sys.argv[1]))"
)


def check_num_workers(num_workers: int | None) -> int:
    """A number of workers as given; for None as many as cores this process may use.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is negative, or above 1024.
    """
    if num_workers is None:
        return num_cores()
    return check_int("num_workers", num_workers, least=0, most=1024)


def map_samples(
    function: Callable[[int], T], indices: Iterable[int], *, num_workers: int, stall_timeout: float = STALL_TIMEOUT
) -> Generator[tuple[int, T], None, None]:
    """Call a function on each number; see :class:`SampleWorkers`."""
    with SampleWorkers(function, num_workers=num_workers, stall_timeout=stall_timeout) as workers:
        yield from workers.map(indices)


class SampleWorkers(Generic[T]):
    """Processes that call a function on numbered samples. They start with the first call of ``map``.

    Args:
        function: can be pickled and is not defined in the main script; every worker receives one copy, once, and the
            caller's ``PIL.Image.MAX_IMAGE_PIXELS``.
        num_workers: processes; with 0 this one does the work.
        stall_timeout: seconds that a single call may take in a worker.
    """

    def __init__(self, function: Callable[[int], T], *, num_workers: int, stall_timeout: float = STALL_TIMEOUT) -> None:
        self._function, self._num_workers, self._stall_timeout = function, num_workers, stall_timeout
        self._workers: list[_Worker] = []
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(max(num_workers, 1), thread_name_prefix="respipe-workers")

    def map(self, indices: Iterable[int]) -> Generator[tuple[int, T], None, None]:
        """Call the function on each number: in parallel, yielding in order, a bounded number of calls ahead.

        One such generator is under way at a time, and once it is left early or has raised no other one follows.

        Args:
            indices: numbers to call it on.

        Yields:
            the number and what the function returned for it.

        Raises:
            TypeError: the function cannot be pickled.
            OSError: the function raised it.
            WorkerLostError: the function raised any other error or cannot be unpickled, or a worker was killed or took
                longer than ``stall_timeout``.
        """
        if self._num_workers == 0:
            for index in indices:
                yield index, self._function(index)
            return
        if not self._workers:
            self._start()
        yield from _in_order(self._threads, self._call, iter(indices), num_ahead=_CHUNKS_AHEAD * self._num_workers)

    def _start(self) -> None:
        try:
            setup = bytes(ForkingPickler.dumps((self._function, self._stall_timeout, Image.MAX_IMAGE_PIXELS)))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                f"`source` must be one that can be pickled for worker processes; {error}. {_REMEDY}"
            ) from error
        for _ in range(self._num_workers):
            self._workers.append(_Worker(setup))
            self._idle.put(self._workers[-1])

    def _call(self, chunk: Sequence[int]) -> list[Any]:
        worker = self._idle.get()
        try:
            return worker.call(chunk)
        finally:
            self._idle.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
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

    def __init__(self, setup: bytes) -> None:
        self._setup = setup
        self._connection, theirs = Pipe()
        with theirs:
            command = [sys.executable, "-c", _BOOT, str(theirs.fileno()), json.dumps(sys.path)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])

    def call(self, indices: Sequence[int]) -> list[Any]:
        """Results for some numbers.

        Raises:
            OSError: the function raised it.
            WorkerLostError: it raised any other error, or the process ended.
        """
        try:
            if self._setup:
                self._connection.send_bytes(self._setup)
                self._setup = b""
            self._connection.send(indices)
            reply = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            status = self._process.wait()
            hint = " It was killed, as the system does when memory runs out: try a smaller `num_workers`."
            hint = hint if status == -signal.SIGKILL else ""
            raise WorkerLostError(
                f"A worker process ended with status {status} while it worked on samples {indices[0]} to "
                f"{indices[-1]}; what it had to say is on standard error.{hint} Finished work is kept: "
                "run the same again to go on."
            ) from error
        if isinstance(reply, OSError):
            raise reply
        if isinstance(reply, _Failure):
            raise WorkerLostError(reply.reason)
        return reply

    def kill(self) -> None:
        """End the process, whatever it is doing: it keeps nothing that could be lost."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Release the pipe, once no thread is using it."""
        self._connection.close()


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a worker has no results."""

    reason: str


def serve(descriptor: int) -> None:
    """What a worker process does: answer until the caller closes the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, ConnectionError):
        setup = connection.recv_bytes()
        try:
            function, stall_timeout, Image.MAX_IMAGE_PIXELS = pickle.loads(setup)
        except Exception as error:  # noqa: BLE001 - unpickling runs anybody's code; the caller raises what it hears of
            connection.recv()
            connection.send(_Failure(f"A worker process cannot load the source ({_described(error)}). {_REMEDY}"))
            return
        while True:
            connection.send(_results(function, connection.recv(), stall_timeout))


def _results(function: Callable[[int], Any], indices: Sequence[int], stall_timeout: float) -> Any:
    results: list[Any] = []
    for index in indices:
        try:
            results.append(_call(function, index, stall_timeout))
        except OSError as error:
            return error
        except Exception as error:  # noqa: BLE001 - the caller raises what it hears of
            traceback.print_exc()
            hint = " Memory ran out: try a smaller `num_workers`." if isinstance(error, MemoryError) else ""
            return _Failure(
                f"Sample {index} fails in a worker process with {_described(error)}; where is on standard error.{hint} "
                "Finished work is kept: run the same again to go on."
            )
    return results


def _described(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _call(function: Callable[[int], Any], index: int, stall_timeout: float) -> Any:
    # Ends the process, with a traceback on standard error, even where the call is stuck outside of Python.
    faulthandler.dump_traceback_later(stall_timeout, exit=True)
    try:
        return function(index)
    finally:
        faulthandler.cancel_dump_traceback_later()
