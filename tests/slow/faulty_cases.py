"""Cases that go wrong in every way, to see whether ``tests.slow.faults.processes`` tells."""

from __future__ import annotations

import ctypes
import os
import signal
import time

from tests.slow.faults.guarded import GuardedMemory
from tests.slow.faults.processes import WARMUP


class FaultyCases:
    def __init__(self, target: str, seed: int) -> None:
        self._runs = 0
        self._guarded = GuardedMemory(100)

    def run(self, number: int) -> str:
        self._runs += 1
        if self._runs <= WARMUP:
            return "warm"
        match number:
            case 1:
                raise KeyError("unforeseen")
            case 2:
                self._guarded.place(b"abc")
                ctypes.string_at(self._guarded.bytes.ctypes.data, len(self._guarded.bytes) + 1)
            case 3:
                bytearray(8 << 30)
            case 4:
                os.kill(os.getpid(), signal.SIGKILL)
            case 5:
                time.sleep(1000)
        return "fine"
