"""Memory with unreadable pages around it: whoever reads a byte too many is ended by the system."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
from numpy.typing import NDArray

_libc = ctypes.CDLL(None, use_errno=True)
_PROT_NONE = 0


class GuardedMemory:
    """Room for bytes that end where an unreadable page begins.

    Args:
        num_bytes: how many must fit, at least.

    Attributes:
        bytes: (n,) uint8, the room; behind its last byte nothing can be read, nor before its first.
    """

    def __init__(self, num_bytes: int) -> None:
        page = mmap.PAGESIZE
        size = -(-num_bytes // page) * page
        self._map = mmap.mmap(-1, size + 2 * page)
        whole = np.frombuffer(self._map, np.uint8)
        start = whole.ctypes.data
        for address in (start, start + page + size):
            if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(page), _PROT_NONE):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.bytes: NDArray[np.uint8] = whole[page : page + size]

    def place(self, data: bytes, before: bytes = b"") -> int:
        """Put bytes at the end of the room, behind others; returns where they begin."""
        start = len(self.bytes) - len(data)
        assert start >= len(before), "there is room"
        self.bytes[:start] = 0
        self.bytes[start - len(before) : start] = np.frombuffer(before, np.uint8)
        self.bytes[start:] = np.frombuffer(data, np.uint8)
        return start
