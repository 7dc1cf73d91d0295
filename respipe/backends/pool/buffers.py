"""Memory for decoded batches, used again as soon as nobody refers to a batch any more."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Enough for what a loader decodes ahead. More come back only where a consumer kept many batches at once.
_MOST_FREE = 8


class OutputBuffers:
    """Hands out uint8 arrays and takes their memory back.

    The system clears fresh memory page by page when it is first written to, which can cost a large batch a third of
    the time to decode it. All buffers are as large as the largest batch so far: batches of changing sizes share them.
    """

    def __init__(self) -> None:
        self._num_bytes = 0
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=_MOST_FREE)

    def allocate(self, shapes: Sequence[tuple[int, ...]]) -> tuple[NDArray[np.uint8], ...]:
        """One array of each shape, contiguous, its contents undefined.

        Their memory is not handed out again while one of them lives, or any array or tensor that shares it.
        """
        ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
        self._num_bytes = max(self._num_bytes, ends[-1])
        buffer = self._take()
        # An array whose memory belongs to something that is no array is what every view of it refers to.
        whole = np.frombuffer(buffer.data, np.uint8)
        weakref.finalize(whole, self._free.append, buffer).atexit = False
        starts = [0, *ends[:-1]]
        return tuple(whole[start:end].reshape(shape) for start, end, shape in zip(starts, ends, shapes, strict=True))

    def _take(self) -> NDArray[np.uint8]:
        while self._free:
            buffer = self._free.pop()
            if len(buffer) == self._num_bytes:
                return buffer
        return np.empty(self._num_bytes, np.uint8)
