"""One pool of threads that decodes batches for every backend on the CPU."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from respipe.backends.base import Decoder, Outputs, ReadJob, verify
from respipe.storage.dataset import Dataset

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How long a call that is already running may take to end before its thread is left behind.
PATIENCE_SECONDS = 30.0

# Planning a batch of small images and handing it over takes a good part of the time of decoding it. The thread that
# does so is faster for several in a row, as code and data stay in the processor's cache, and the others need work
# meanwhile.
_ROOM_BYTES = 12 << 20  # of pixels in flight
_LEAST_ROOM, _MOST_ROOM = 2, 8  # batches

# About half a millisecond of decoding. A thread needs the interpreter before it starts and when it is done, and may
# have to wait for it that long.
_MIN_PIXELS = 150_000

# Enough for what a loader decodes ahead. More come back only where a consumer kept many batches at once.
_MOST_FREE = 8

_Tasks = queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]


class PooledBackend:
    """A decoder and the threads that run it. See :class:`respipe.backends.base.Backend`.

    Each batch is cut into one contiguous range of images per thread, or fewer where they are small or the batches
    that are in flight give every thread something to do. So a decoder pays its per-call cost once per range, and
    scratch memory belongs to one thread at a time. The first reading of a stored image, to compare its checksum,
    belongs to the range, too, so that several threads wait for the disk.

    Args:
        name: of the backend; its threads are called after it, as debuggers and profilers show them.
        dataset: where the images are.
        decode: fills in a range of a batch.
        device: where batches are used. For a GPU they are decoded into memory that it can copy from.
        num_threads: decoding threads.
    """

    def __init__(self, name: str, dataset: Dataset, decode: Decoder, *, device: torch.device, num_threads: int) -> None:
        self.name = name
        self._dataset = dataset
        self._decode = decode
        self._num_threads = num_threads
        self._threads = DaemonPool(num_threads, f"respipe-{name}")
        self._buffers = OutputBuffers(pinned=device.type == "cuda")
        self._batches: deque[tuple[tuple[torch.Tensor, ...], list[Future[None]]]] = deque()

    def prepare(self, max_images: Callable[[], int]) -> None:
        """See :class:`respipe.backends.base.Backend`; nothing here is made for a batch's length."""

    def room(self, job: ReadJob) -> int:
        num_bytes = 3 * len(job) * sum(size * size for size in job.sizes)
        return min(max(_ROOM_BYTES // max(num_bytes, 1), _LEAST_ROOM), _MOST_ROOM)

    def submit(self, job: ReadJob) -> None:
        """Start decoding a batch."""
        tensors = self._buffers.allocate([(len(job), size, size, 3) for size in job.sizes])
        outputs = tuple(tensor.numpy() for tensor in tensors)
        # Enough that half of the batches in flight occupy all threads.
        parts = ranges(job.covers, -(-2 * self._num_threads // self.room(job)))
        futures = [
            self._threads.submit(_decode_part, self._decode, self._dataset, job, part, outputs) for part in parts
        ]
        self._batches.append((tensors, futures))

    def collect(self) -> tuple[torch.Tensor, ...]:
        """Wait for the oldest batch; raises what its decoder raised."""
        outputs, futures = self._batches.popleft()
        errors = [future.exception() for future in futures]  # all of them have ended before one is raised
        for error in errors:
            if error is not None:
                raise error
        return outputs

    def reset(self) -> None:
        """Drop every batch that was not collected, after its running parts have ended or are given up."""
        futures = [future for _, futures in self._batches for future in futures]
        self._batches.clear()
        for future in futures:
            future.cancel()
        # A part that hangs goes on to write, if ever, into memory that it keeps alive and nobody else has.
        wait(futures, timeout=PATIENCE_SECONDS)

    def close(self) -> None:
        """End the threads."""
        self.reset()
        self._threads.close()


def _decode_part(decode: Decoder, dataset: Dataset, job: ReadJob, part: slice, outputs: Outputs) -> None:
    """What a thread does with a range of a batch."""
    verify(dataset, job, part)
    decode(dataset, job, part, outputs)


def ranges(covers: NDArray[np.int64], max_parts: int) -> list[slice]:
    """Contiguous parts of a batch, none of them empty: as many as are worth a thread each.

    Args:
        covers: (B, 4) int64, what is decoded of each image: top, left, height and width.
        max_parts: at least 1.
    """
    num_pixels = int(covers[:, 2:].prod(axis=1).sum())
    parts = min(max_parts, len(covers), max(1, num_pixels // _MIN_PIXELS))
    edges = (len(covers) * part // max(parts, 1) for part in range(parts + 1))
    return [slice(start, stop) for start, stop in pairwise(edges)]


class OutputBuffers:
    """Hands out uint8 tensors on the CPU and takes their memory back.

    The system clears fresh memory page by page when it is first written to, which can cost a large batch a third of
    the time to decode it. All buffers are as large as the largest batch so far: batches of changing sizes share them.

    Args:
        pinned: whether a GPU is to copy from them, without another copy on the host. Torch's allocator uses that memory
            again, which waits for copies that still run when a tensor is dropped.
    """

    def __init__(self, *, pinned: bool = False) -> None:
        self._pinned = pinned
        self._num_bytes = 0
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=_MOST_FREE)

    def allocate(self, shapes: Sequence[tuple[int, ...]]) -> tuple[torch.Tensor, ...]:
        """One tensor of each shape, contiguous, its contents undefined.

        Their memory is not handed out again while one of them lives, or any array or tensor that shares it.
        """
        ends = [*accumulate(map(math.prod, shapes))]
        self._num_bytes = max(self._num_bytes, ends[-1])
        whole = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=True) if self._pinned else self._recycled()
        starts = [0, *ends[:-1]]
        return tuple(whole[start:end].view(shape) for start, end, shape in zip(starts, ends, shapes, strict=True))

    def _recycled(self) -> torch.Tensor:
        buffer = self._take()
        # An array whose memory belongs to something that is no array is what every view of it refers to.
        whole = np.frombuffer(buffer.data, np.uint8)
        weakref.finalize(whole, self._free.append, buffer).atexit = False
        return torch.from_numpy(whole)

    def _take(self) -> NDArray[np.uint8]:
        while self._free:
            buffer = self._free.pop()
            if len(buffer) == self._num_bytes:
                return buffer
        return np.empty(self._num_bytes, np.uint8)


class DaemonPool:
    """Calls functions in daemon threads, which nobody waits for longer than ``PATIENCE_SECONDS``.

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
        self._tasks.put((future, function, arguments))
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
        future, function, arguments = task
        task = error = result = None
        if future.set_running_or_notify_cancel():
            try:
                result = function(*arguments)
            except BaseException as raised:  # noqa: BLE001 - handed to whoever asks for the result
                error = raised
            # Before anyone hears of it, who may leave then: a thread that frees a tensor while the interpreter goes
            # ends the process.
            function = arguments = None
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
        # What it worked on must not stay alive while the thread waits for more.
        future = function = arguments = result = error = None
