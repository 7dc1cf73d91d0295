"""Local copies of remote files that hold only what was read, in blocks, within a limit, for all processes of a machine.

Each copy is a sparse file as long as the original. Beside the copies lies ``blocks``, a byte for each block of all
files, and for each process that has them open a ``pins.*`` of as many bytes, which it keeps locked: what it is using or
fetching now. Where room is needed, holes are punched where no living process has a pin.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from respipe.errors import StorageError
from respipe.storage.fetching import Numbers
from respipe.storage.remote.access import NUM_REQUESTS
from respipe.storage.remote.cache import PINS, STATE, lock_file, locked

BLOCK = 1 << 14
"""Bytes of a block; a multiple of the pages that files have holes of."""

_MOST_AT_ONCE = 256  # blocks of a request
_MOST_PINS = 16  # users of the copies, whose pins take room, too
_POLL_SECONDS = 0.02
_PATIENCE_SECONDS = 120.0

# In `blocks`. What is absent is a hole; what is counted takes room, but may be incomplete.
_ABSENT, _COUNTED, _PRESENT = range(3)
# In `pins.*`.
_FREE, _IN_USE, _FETCHING = range(3)


class Blocks:
    """The blocks of a dataset's files. Safe to use from several threads, and from the child of a fork.

    Args:
        paths: the copies in one folder, sparse files of their full lengths; all but their images is there.
        images: for each of them, the bytes between which its images lie.
        limit: bytes that all of it may take together.
        read: gives the bytes of a file, by its number, between two places; tries again by itself.

    Raises:
        StorageError: the limit leaves no room for images, or asks for holes where the system has none.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        images: Sequence[tuple[int, int]],
        *,
        limit: float,
        read: Callable[[int, int, int], bytes],
    ) -> None:
        self._paths, self._read, self._folder = paths, read, paths[0].parent
        self._sizes = [path.stat().st_size for path in paths]
        counts = [-(-size // BLOCK) for size in self._sizes]
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._always = np.ones(self._starts[-1], np.bool_)
        for first, (start, stop) in zip(self._starts.tolist(), images, strict=False):
            self._always[first - (-start // BLOCK) : max(first + stop // BLOCK, first)] = False
        self._num_always, total = int(self._always.sum()), len(self._always)
        self.volatile = limit < sum(self._sizes)
        # File systems write down where the holes are, ext4 in pages of 340 places.
        beside = _MOST_PINS * total + 4096 * sum(1 + count // 300 for count in counts)
        self._most = int((limit - beside) // BLOCK) if self.volatile else total
        if self.volatile and (self._num_always >= self._most or _punch_hole() is None):
            raise StorageError(
                f"`cache_bytes` must leave more than the {self._num_always * BLOCK:,} of tables in {self._folder}"
                f"{'' if _punch_hole() else f', and on this system hold all of the {sum(self._sizes):,}'}; it "
                f"leaves {limit:,.0f}. Raise it."
            )
        self._hand, self._refused_since = 0, 0.0
        self._begin()
        with self._locked():
            self._make_room(0)

    def _begin(self) -> None:
        """Have locks, threads and pins of this process's own."""
        self._process, self._thread_lock = os.getpid(), threading.RLock()  # a lease may be dropped at any time
        self._requests = ThreadPoolExecutor(NUM_REQUESTS, thread_name_prefix="respipe-fetch")
        self._uses, self._num_held = self._always.astype(np.uint16), 0
        with self._locked():  # or others might take the pins for those of a killed process
            with (self._folder / STATE).open("ab") as file:
                file.truncate(len(self._uses))
            self._state = np.memmap(self._folder / STATE, np.uint8, "r+")
            self._state[self._always] = _PRESENT
            descriptor, self._own = tempfile.mkstemp(prefix=PINS, dir=self._folder)
            os.truncate(descriptor, len(self._uses))
            lock_file(descriptor, "LOCK_EX")
            self._pins = np.memmap(self._own, np.uint8, "r+")
            self._pins[self._always] = _IN_USE
        weakref.finalize(self, os.close, descriptor).atexit = False
        weakref.finalize(self, _remove, self._own, self._process)

    def hold(self, numbers: Numbers, offsets: Numbers, lengths: Numbers) -> Lease | None:
        """Begin to fetch some stored images, and keep them for as long as what this returns is referred to.

        Args:
            numbers, offsets, lengths: (n,) int64 each: number of the file, and the bytes within it.

        Returns:
            None where there is no room until others, or other leases of this process, are dropped.

        Raises:
            StorageError: there has been no room for long.
        """
        if self._process != os.getpid():
            self._begin()
        blocks = self._blocks(numbers, offsets, lengths)
        if not self.volatile and not self.missing(blocks):
            return Lease(self, blocks, [])
        with self._locked():
            others = self._others()
            added = blocks[self._uses[blocks] == 0]
            # No process may keep what the others need: they may be waiting for each other.
            share = (self._most - self._num_always) // (len(others) + 1)
            fits = not self.volatile or not self._num_held or self._num_held + len(added) <= share
            self._uses[blocks] += 1
            self._num_held += len(added)
            self._pins[added] = _IN_USE
            absent = blocks[self._state[blocks] == _ABSENT]
            if not fits or not self._make_room(len(absent), others):
                self.release(blocks)
                self._refuse(len(blocks))
                return None
            self._refused_since = 0.0
            self._state[absent] = _COUNTED
        lease = Lease(self, blocks, self.fetch(blocks))
        weakref.finalize(lease, self.release, blocks).atexit = False
        return lease

    def _refuse(self, count: int) -> None:
        self._refused_since = self._refused_since or time.monotonic()
        if time.monotonic() - self._refused_since > _PATIENCE_SECONDS:
            raise StorageError(
                f"`cache_bytes` must leave room for the batches that are being decoded; {self._folder} has "
                f"{self._most * BLOCK:,} bytes, and for {_PATIENCE_SECONDS:g} s had no room for the {count * BLOCK:,} "
                "that a batch needs. Raise it, or plan smaller batches."
            )

    def fetch(self, blocks: Numbers) -> list[Future[None]]:
        """Begin to fetch those of some blocks, of which there is a use, that nobody is fetching."""
        if not self.missing(blocks):
            return []
        with self._locked():
            wanted = blocks[(self._state[blocks] != _PRESENT) & (self._pins[blocks] != _FETCHING)]
            for pins in self._others():
                wanted = wanted[pins[wanted] != _FETCHING]
            self._uses[wanted] += 1  # also where the lease is dropped before they are here
            self._pins[wanted] = _FETCHING
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1) if len(wanted) else []
        pieces = [run[at : at + _MOST_AT_ONCE] for run in runs for at in range(0, len(run), _MOST_AT_ONCE)]
        return [self._requests.submit(self._fetch, piece) for piece in pieces]

    def fetch_again(self, number: int, offset: int, length: int) -> None:
        """Replace an image that is not what it should be, and of which there is a use."""
        self._copy(self._blocks(np.array([number]), np.array([offset]), np.array([length])))

    def is_held(self, number: int, offset: int, length: int) -> bool:
        """Whether all of an image is there, and stays."""
        first = int(self._starts[number])
        blocks = slice(first + offset // BLOCK, first - (-(offset + length) // BLOCK))
        return bool((self._uses[blocks].all() or not self.volatile) and not self.missing(blocks))

    def missing(self, blocks: Numbers | slice) -> bool:
        """Whether some blocks are not there yet."""
        return bool((self._state[blocks] != _PRESENT).any())

    def release(self, blocks: Numbers) -> None:
        """End a use of some blocks."""
        with self._thread_lock:
            if self._process == os.getpid():
                self._uses[blocks] -= 1
                free = blocks[self._uses[blocks] == 0]
                self._num_held -= len(free)
                self._pins[free] = _FREE

    def _blocks(self, numbers: Numbers, offsets: Numbers, lengths: Numbers) -> Numbers:
        """The blocks that some bytes lie in, rising, each once."""
        first: Numbers = self._starts[numbers] + offsets // BLOCK
        counts: Numbers = self._starts[numbers] - (-(offsets + lengths) // BLOCK) - first
        places: Numbers = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.unique(np.repeat(first, counts) + places)

    def _by_file(self, blocks: Numbers) -> Generator[tuple[int, Numbers]]:
        """The number of each file that some blocks are of, and those."""
        numbers = np.searchsorted(self._starts, blocks, side="right") - 1
        for number in np.unique(numbers).tolist():
            yield number, blocks[numbers == number]

    def _fetch(self, run: Numbers) -> None:
        try:
            self._copy(run)
        finally:
            self._pins[run] = _IN_USE
            self.release(run)

    def _copy(self, run: Numbers) -> None:
        """Copy neighbouring blocks."""
        for number, blocks in self._by_file(run):
            start = int(blocks[0] - self._starts[number]) * BLOCK
            data = self._read(number, start, min(start + len(blocks) * BLOCK, self._sizes[number]))
            with self._paths[number].open("r+b") as file:
                file.seek(start)
                file.write(data)
            self._state[blocks] = _PRESENT

    def _make_room(self, count: int, others: Sequence[NDArray[np.uint8]] | None = None) -> bool:
        """Punch holes, if need be, for some blocks more; False where too many are in use."""
        excess = int(np.count_nonzero(self._state)) + count - self._most
        if not self.volatile or excess <= 0:
            return True
        unused = (self._state != _ABSENT) & (self._uses == 0)
        for pins in self._others() if others is None else others:
            unused &= pins == _FREE
        blocks = np.flatnonzero(unused)
        if len(blocks) < excess:
            return False
        # Some more than needed, so that not every batch has to; each time behind those of the last.
        chosen = np.roll(blocks, -int(np.searchsorted(blocks, self._hand)))[: excess + self._most // 32]
        self._hand = int(chosen[-1]) + 1
        self._state[chosen] = _ABSENT
        for number, mine in self._by_file(chosen):
            _punch(self._paths[number], (mine - self._starts[number]) * BLOCK)
        return True

    def _others(self) -> list[NDArray[np.uint8]]:
        """The pins of other users of the copies; those of users that were killed are removed."""
        found: list[NDArray[np.uint8]] = []
        for path in self._folder.glob(f"{PINS}*"):
            if str(path) == self._own:
                continue
            try:
                descriptor = os.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                lock_file(descriptor, "LOCK_EX", "LOCK_NB")
                path.unlink(missing_ok=True)
            except BlockingIOError:
                found.append(np.memmap(path, np.uint8, "r", shape=(len(self._uses),)))
            finally:
                os.close(descriptor)
        return found

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Be the only thread of all processes that claims blocks or makes room, which takes moments."""
        with self._thread_lock, locked(self._folder / "blocks.lock", poll=_POLL_SECONDS / 10):
            yield


class Lease:
    """A use of some blocks, which ends when it is dropped."""

    def __init__(self, owner: Blocks, blocks: Numbers, requests: list[Future[None]]) -> None:
        self._owner, self._blocks, self._requests = owner, blocks, requests

    @property
    def is_waiting(self) -> bool:
        """Whether some of it is not there yet."""
        return self._owner.missing(self._blocks)

    def wait(self) -> None:
        """Wait until all is there.

        Raises:
            StorageError: it cannot be read.
        """
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            wait(self._requests)
            for request in self._requests:
                request.result()
            if not self.is_waiting:
                return
            if time.monotonic() > deadline:
                raise StorageError(f"Another process has fetched nothing for {_PATIENCE_SECONDS:g} s. End it.")
            time.sleep(_POLL_SECONDS)
            self._requests = self._owner.fetch(self._blocks)  # unless others do who live


def _remove(path: str, process: int) -> None:
    if process == os.getpid():
        Path(path).unlink(missing_ok=True)


def _punch(path: Path, places: Numbers) -> None:
    """Give back the room of blocks that begin at some places."""
    punch = _punch_hole()
    assert punch is not None, "the limit was refused"
    ends = np.flatnonzero(np.diff(places, append=places[-1] + 2 * BLOCK) != BLOCK)
    with path.open("r+b") as file:
        for start, stop in zip(places[np.append(0, ends[:-1] + 1)].tolist(), places[ends].tolist(), strict=True):
            if punch(file.fileno(), 3, start, stop + BLOCK - start):  # a hole that keeps the file's size
                raise StorageError(
                    f"{path}: the file system cannot punch holes ({os.strerror(ctypes.get_errno())}). Choose a "
                    "`cache_dir` on another one, such as ext4, or a `cache_bytes` that holds all of the data."
                )


@cache
def _punch_hole() -> Callable[..., int] | None:
    """Linux' ``fallocate``."""
    if not sys.platform.startswith("linux"):
        return None
    function: Any = ctypes.CDLL(None, use_errno=True).fallocate64
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return function
