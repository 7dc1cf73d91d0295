"""One process per loader: no loader's threads, memory or crashes reach another, and each can be stopped for good."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from respipe.errors import MissingBackendError

from .contender import Batch, Contender, Fidelity, Settings
from .fidelity import mean_squared_error, open_original, original_crop, to_psnr
from .registry import LOADERS, make_contender
from .training import EpochTime, Trainer, TrainingRate, normalized, train_epochs

logger = logging.getLogger(__name__)

_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.1
# The kernel counts the time of other processes in steps of 10 ms.
_IDLE_SECONDS = 0.02


class LoaderUnavailableError(RuntimeError):
    """A loader's library is not installed."""


class Runner:
    """Runs one loader, in the loader's own process.

    Args:
        contender: the loader.
        settings: what all loaders have in common.
    """

    def __init__(self, contender: Contender, settings: Settings) -> None:
        self._contender = contender
        self._settings = settings
        self._streams: dict[tuple[int, ...], Iterator[Batch]] = {}
        self._trainers: dict[str, Trainer] = {}

    def first_batch(self, sizes: tuple[int, ...]) -> float:
        """Seconds from nothing but imported modules to the first batch at these sizes."""
        start = time.perf_counter()
        self._streams[sizes] = self._contender.stream(sizes)
        images, labels = next(self._streams[sizes])
        self._settings.synchronize()
        seconds = time.perf_counter() - start
        expected = [(self._settings.batch_size, 3, size, size) for size in sizes]
        tensors = images if isinstance(images, tuple) else (images,)
        found = [tuple(tensor.shape) for tensor in tensors]
        if found != expected or any(tensor.dtype != torch.uint8 for tensor in tensors):
            raise TypeError(f"batches must be uint8 of shape {expected}; got {found} of {tensors[0].dtype}")
        if len(labels) != self._settings.batch_size:
            raise TypeError(f"batches must have {self._settings.batch_size} labels; got {len(labels)}")
        wait_until_idle()
        return seconds

    def throughput(self, sizes: tuple[int, ...], num_batches: int) -> float:
        """Images per second over some batches, in the steady state. Leaves the loader's threads waiting."""
        stream = self._streams[sizes]
        for _ in range(self._contender.batches_ahead):
            next(stream)  # these were ready before the clock starts
        self._settings.synchronize()
        start = time.perf_counter()
        num_images = sum(len(next(stream)[1]) for _ in range(num_batches))
        self._settings.synchronize()
        seconds = time.perf_counter() - start
        wait_until_idle()
        return num_images / seconds

    def fidelity(self, samples: Sequence[str], uniforms: NDArray[np.float64], size: int) -> Fidelity:
        """How good given crops are, and what they are made from."""
        crops = self._contender.crops(samples, uniforms, size)
        references = [
            original_crop(open_original(self._settings.data / sample), box, size=size)
            for sample, box in zip(samples, crops.boxes, strict=True)
        ]
        return Fidelity(to_psnr(mean_squared_error(crops.pixels, np.stack(references))), crops.bytes_read)

    def bytes_per_image(self) -> float:
        """Mean number of bytes stored per sample."""
        return self._contender.bytes_per_image()

    def training(self, size: int, num_batches: int, model: str, *, in_memory: bool) -> TrainingRate:
        """Images per second that a network is trained on, over some batches.

        Args:
            size: side in pixels; :meth:`first_batch` has been called for it.
            num_batches: steps to time, after three that are not. The queue is empty when the clock starts.
            model: see :class:`tools.benchmarks.training.Trainer`.
            in_memory: whether to train on one batch again and again instead of the loader's.
        """
        trainer = self._trainers.setdefault(model, Trainer(model, self._settings.device))
        stream: Iterator[Any] = self._streams[size,]
        if in_memory:
            stream = itertools.repeat(next(stream))
        ahead = 0 if in_memory else self._contender.batches_ahead
        rate = trainer.run(map(normalized, stream), num_batches, batches_ahead=ahead)
        wait_until_idle()
        return rate

    def epochs(self, schedule: str, num_images: int, num_epochs: int, model: str) -> EpochTime:
        """Seconds that epochs of a schedule take in training; of respipe's loaders only."""
        contender: Any = self._contender
        return train_epochs(contender.loader, schedule, num_images, num_epochs, model, self._settings.device)


class LoaderProcess:
    """The parent's end of a loader's process, with the methods of the :class:`Runner` in it.

    Use it as a context manager, so that the process never outlives the run.

    Args:
        name: of the loader; see :mod:`tools.benchmarks.registry`.
        settings: what all loaders have in common.
        stall_timeout: seconds without an answer after which the loader is given up.

    Raises:
        LoaderUnavailableError: the loader's library is not installed.
    """

    def __init__(self, name: str, settings: Settings, *, stall_timeout: float = 600.0) -> None:
        self.name = name
        self._stall_timeout = stall_timeout
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # Not a daemon: DataLoader starts processes of its own.
        self._process = context.Process(target=_serve, args=(theirs, name, settings), daemon=False)
        self._process.start()
        theirs.close()
        try:
            missing = self._receive()
        except BaseException:
            self.close()
            raise
        if missing:
            self.close()
            raise LoaderUnavailableError(missing)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """A method of :class:`Runner`, called there."""
        if method.startswith("_"):
            raise AttributeError(method)

        def call(*arguments: object, **options: object) -> Any:
            self._connection.send((method, arguments, options))
            return self._receive()

        return call

    def close(self) -> None:
        """End the process, by force where it does not end by itself. Safe to call twice."""
        self._connection.close()  # ends the loop that serves
        self._process.join(_STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self) -> Any:
        if not self._connection.poll(self._stall_timeout):
            raise RuntimeError(f"{self.name} gave no answer within {self._stall_timeout:g} s")
        try:
            return self._connection.recv()
        except EOFError as error:
            raise RuntimeError(f"the process of {self.name} has died; its own messages are above") from error


def start_processes(
    names: Sequence[str],
    settings: Settings,
    stack: ExitStack,
    *,
    required: bool = False,
    stall_timeout: float = 600.0,
) -> dict[str, LoaderProcess]:
    """Start a process for each loader, all at once; they end with the stack. Those not installed are left out.

    Raises:
        LoaderUnavailableError: one is not installed, and all are ``required``.
    """
    processes: dict[str, LoaderProcess] = {}
    with ThreadPoolExecutor(len(names)) as pool:
        starting = {name: pool.submit(LoaderProcess, name, settings, stall_timeout=stall_timeout) for name in names}
    errors = {name: started.exception() for name, started in starting.items()}
    for name, error in errors.items():  # all that have started, before an error is raised
        if error is None:
            processes[name] = stack.enter_context(starting[name].result())
    for error in filter(None, errors.values()):
        if required or not isinstance(error, LoaderUnavailableError):
            raise error
        logger.warning("Left out: %s", error)
    return processes


def _serve(connection: Connection, name: str, settings: Settings) -> None:
    """Body of a loader's process: answer calls until the parent hangs up."""
    # As many cores as threads for everyone: what runs beside a loader's threads is part of its cost.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: settings.num_threads])
    # A spawned process would spawn in turn; DataLoader's workers are to start as they do for anyone.
    multiprocessing.set_start_method(None, force=True)
    try:
        contender = make_contender(name, settings)
    except (ImportError, MissingBackendError) as error:
        connection.send(f"{LOADERS[name].title}: {error}")
        return
    connection.send("")
    runner = Runner(contender, settings)
    while True:
        try:
            method, arguments, options = connection.recv()
        except EOFError:
            break
        connection.send(getattr(runner, method)(*arguments, **options))
    # Suspended epochs hold threads that only the end of the process ends.
    for child in multiprocessing.active_children():
        child.terminate()
    os._exit(0)


def wait_until_idle() -> None:
    """Return when this process and its children have stopped computing, so that the next loader has the machine."""
    before = _processor_seconds()
    while True:
        time.sleep(_POLL_SECONDS)
        now = _processor_seconds()
        if now - before < _IDLE_SECONDS:
            return
        before = now


def _processor_seconds() -> float:
    """Processor time that this process and its children have used so far (Linux)."""
    ticks = 0
    for child in multiprocessing.active_children():
        # The fields after the command's name, which is in parentheses; 14 and 15 of all are user and system time.
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")
