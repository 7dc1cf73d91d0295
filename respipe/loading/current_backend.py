"""The backend that a loader decodes with, replaced where it cannot be used any more."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from respipe.backends.base import Backend
from respipe.loading.read_ahead import Kernel
from respipe.storage.dataset import Bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class BackendInUse:
    """A backend, whether a thread is using it, and the process whose threads do its work.

    Args:
        backend: see there.
        kernel: is told what the backend will read.
        lock: held by the thread that submits batches to it and collects them.
        process: number of the process that built it.
    """

    backend: Backend
    kernel: Kernel
    lock: threading.Lock = field(default_factory=threading.Lock)
    process: int = field(default_factory=os.getpid)

    def close(self) -> None:
        """Release the backend, and end the thread that talks to the kernel."""
        self.backend.close()
        self.kernel.close()

    @property
    def lost(self) -> str | None:
        """Why nobody may use it any more, where that is so while no iteration is under way."""
        if self.process != os.getpid():
            return "this process was forked, and has none of its threads"
        return "a thread that was given up may still use it" if self.lock.locked() else None


class CurrentBackend:
    """A backend that is built anew for the next iteration where the last one is lost.

    That is so in the child of a fork, and after a thread was given up that hangs in it: whatever such a thread does
    when it wakes up must not meet the batches of others. A lost backend is dropped as it is, as closing it might wait
    for ever.

    Args:
        make: builds a backend.
        buffers: the memory maps that it reads.
    """

    def __init__(self, make: Callable[[], Backend], buffers: Sequence[Bytes]) -> None:
        self._make = lambda: BackendInUse(make(), Kernel(buffers))
        self._current: BackendInUse | None = self._make()

    @property
    def name(self) -> str:
        """The backend's name as given to ``Loader(backend=...)``."""
        return self._open().backend.name

    def take(self) -> BackendInUse:
        """The backend for a new iteration, while no other one is under way.

        Raises:
            ValueError: it was closed.
        """
        current = self._open()
        if (why := current.lost) is not None:
            logger.warning("Building the %r backend anew: %s.", current.backend.name, why)
            current = self._current = self._make()
        return current

    def close(self) -> bool:
        """Release the backend, unless it is lost; False where it was closed before."""
        if self._current is None:
            return False
        current, self._current = self._current, None
        if current.lost is None:
            current.close()
        return True

    def _open(self) -> BackendInUse:
        if self._current is None:
            raise ValueError("The loader must be open; it was closed. Build a new one.")
        return self._current
