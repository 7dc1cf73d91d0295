"""Telling the kernel which bytes of a file the next batches need, so that it reads these and nothing else.

Left to itself it reads around every page that is touched first, megabytes on some systems: for small images, which lie
apart, many times what they have. The plan knows better.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from respipe.backends.base import ReadJob
from respipe.backends.pool import DaemonPool
from respipe.planning.batch import BatchPlan
from respipe.storage.dataset import Bytes
from respipe.storage.fetching import FetchedFiles, Held

# How many batches, beside those that are being decoded, the kernel is told of.
_BATCHES_AHEAD = 4

# After so many batches without a read from disk the kernel is told of no more; one in so many asks for reads again.
_QUIET, _ASK_AGAIN = 2, 8

_RANDOM, _WILL_NEED = 1, 3


class Routed(NamedTuple):
    """A plan, a job for each of its views, and what keeps the bytes that these name."""

    plan: BatchPlan
    jobs: tuple[ReadJob, ...]
    held: Sequence[Held] = ()


def routed_ahead(
    plans: Iterable[BatchPlan],
    route: Callable[[BatchPlan], tuple[ReadJob, ...]],
    kernel: Kernel,
    fetched: FetchedFiles | None = None,
) -> Generator[Routed | None, None, None]:
    """Each plan with its jobs, after the kernel was told of some that follow, or these have begun to be fetched.

    Args:
        plans: batches in the order in which they will be decoded.
        route: function of a plan for a job for each of its views.
        kernel: which is told.
        fetched: what fetches the bytes; None where all are there.

    Yields:
        also None, where there is no room for the next batch before an earlier one is dropped.
    """
    waiting: deque[Routed] = deque()
    for plan in plans:
        jobs = route(plan)
        kernel.announce(jobs)
        held: Sequence[Held] | None = ()
        if fetched is not None:
            rows = np.concatenate([job.rows for job in jobs])
            while (held := fetched.hold(rows)) is None:
                yield _ready(waiting.popleft()) if waiting else None
        waiting.append(Routed(plan, jobs, held))
        while len(waiting) > (_BATCHES_AHEAD if kernel.reads or any(one.is_waiting for one in held) else 0):
            yield _ready(waiting.popleft())
    while waiting:
        yield _ready(waiting.popleft())


def _ready(routed: Routed) -> Routed:
    for one in routed.held:
        one.wait()
    return routed


class Kernel:
    """Whom to tell of the bytes that memory-mapped files will be asked for: in the background, and on Linux only.

    Args:
        buffers: the memory maps. From now on no more of them is read than is asked for.
    """

    def __init__(self, buffers: Sequence[Bytes]) -> None:
        self._buffers = buffers  # which thereby stay mapped
        self._disk, self._num_announced = _Disk(), 0
        advise = _madvise() if buffers else None
        self.listens = advise is not None
        if advise is not None:
            self._advise = advise
            self._starts = np.array([buffer.ctypes.data for buffer in buffers], np.int64)
            self._asked: list[Future[None]] = []
            self._thread = DaemonPool(1, "respipe-ahead")
            sizes = np.array([buffer.size for buffer in buffers], np.int64)
            self._thread.submit(_advise_all, advise, _whole_pages(self._starts, sizes), _RANDOM)

    @property
    def reads(self) -> bool:
        """Whether it is told of what it must read, which takes a while."""
        return self.listens and not self._disk.is_quiet

    def announce(self, jobs: Iterable[ReadJob]) -> None:
        """Tell of the stored images of some jobs, unless the kernel is still busy with those of several before."""
        self._num_announced += 1
        if not self.listens or (self._disk.is_quiet and self._num_announced % _ASK_AGAIN):
            return
        self._asked = [future for future in self._asked if not future.done()]
        rows = np.concatenate([job.rows for job in jobs])
        if len(self._asked) < _BATCHES_AHEAD and len(rows):  # the last share of a rank may be empty
            spans = _whole_pages(self._starts[rows["buffer"]] + rows["offset"], rows["length"])
            self._asked.append(self._thread.submit(self._disk.ask_for, self._advise, spans))

    def close(self) -> None:
        """End the thread."""
        if self.listens:
            self.listens = False
            self._thread.close()


class _Disk:
    """Whether there is anything to read: where all is in memory, no advice is given."""

    def __init__(self) -> None:
        self._reads, self._num_quiet = (-1, -1), 0

    @property
    def is_quiet(self) -> bool:
        """Whether this process has read nothing since the last times that it was asked for something."""
        return self._num_quiet >= _QUIET

    def ask_for(self, advise: Callable[[int, int, int], int], spans: NDArray[np.int64]) -> None:
        """See whether anything was read since the last time, by what was asked for or by decoding, and give advice."""
        reads = _reads()
        self._num_quiet = self._num_quiet + 1 if reads == self._reads else 0
        self._reads = reads
        if not self.is_quiet:
            _advise_all(advise, spans, _WILL_NEED)


def _reads() -> tuple[int, int]:
    """Bytes that this process has had read from disks, and page faults that waited for any file system."""
    import resource  # which Windows lacks

    try:
        with Path("/proc/self/io").open("rb") as file:
            num_bytes = next(int(line.split()[1]) for line in file if line.startswith(b"read_bytes"))
    except (OSError, StopIteration):
        num_bytes = time.monotonic_ns()  # nobody knows: more than before
    return num_bytes, resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def _whole_pages(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, 2) start and length of the memory pages that hold some bytes, rising, neighbours as one."""
    order = np.argsort(starts)
    first = starts[order] // mmap.PAGESIZE
    stop = np.maximum.accumulate(-(-(starts[order] + lengths[order]) // mmap.PAGESIZE))
    apart = np.flatnonzero(np.concatenate([[True], first[1:] > stop[:-1]]))
    last = np.append(apart[1:], len(first)) - 1
    return np.stack([first[apart], stop[last] - first[apart]], axis=1) * mmap.PAGESIZE


def _advise_all(advise: Callable[[int, int, int], int], spans: NDArray[np.int64], advice: int) -> None:
    # What it returns is of no use: advice that cannot be taken changes nothing.
    for start, length in spans.tolist():
        advise(start, length, advice)


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The system's function, which other threads need not wait for, unlike Python's own; None beyond Linux."""
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
