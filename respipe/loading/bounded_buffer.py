"""A queue between two threads that is full by the size of what it holds, not by the number of items."""

from __future__ import annotations

import queue
import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class BoundedBuffer(Generic[T]):
    """First in, first out, up to a total size.

    An item is let in as soon as it fits beside those that wait, or none waits: an item larger than the capacity passes
    through alone.

    Args:
        capacity: total size of the items that may wait, in whatever unit ``put`` counts, at least 1.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._items: deque[tuple[T, int]] = deque()
        self._total = 0
        self._changed = threading.Condition()

    def put(self, item: T, size: int, *, timeout: float) -> bool:
        """Add an item of the given size; False where there was no room for ``timeout`` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._has_room(size), timeout):
                return False
            self._items.append((item, size))
            self._total += size
            self._changed.notify_all()
            return True

    def get(self, *, timeout: float) -> T:
        """Take the oldest item.

        Raises:
            queue.Empty: there was none for ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: bool(self._items), timeout):
                raise queue.Empty
            item, size = self._items.popleft()
            self._total -= size
            self._changed.notify_all()
            return item

    def _has_room(self, size: int) -> bool:
        return not self._items or self._total + size <= self._capacity
