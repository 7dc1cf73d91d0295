from __future__ import annotations

import queue
import threading

import pytest

from respipe.loading.prefetch import BoundedBuffer


def test_items_wait_up_to_their_total_size_and_leave_in_order() -> None:
    buffer = BoundedBuffer[str](10)
    assert buffer.put("a", 4, timeout=0)
    assert buffer.put("b", 6, timeout=0)
    assert not buffer.put("c", 1, timeout=0)
    assert buffer.get(timeout=0) == "a"
    assert buffer.put("d", 4, timeout=0)
    assert [buffer.get(timeout=0), buffer.get(timeout=0)] == ["b", "d"]


def test_item_larger_than_the_capacity_passes_alone() -> None:
    buffer = BoundedBuffer[str](10)
    assert buffer.put("small", 1, timeout=0)
    assert not buffer.put("large", 11, timeout=0)
    buffer.get(timeout=0)
    assert buffer.put("large", 11, timeout=0)
    assert not buffer.put("small", 1, timeout=0)


def test_items_without_size_need_room_too() -> None:
    buffer = BoundedBuffer[str](10)
    buffer.put("large", 11, timeout=0)
    assert not buffer.put("end", 0, timeout=0)
    buffer.get(timeout=0)
    assert buffer.put("end", 0, timeout=0)


def test_nothing_to_get_is_said_after_the_timeout() -> None:
    with pytest.raises(queue.Empty):
        BoundedBuffer[int](1).get(timeout=0.01)


def test_each_side_wakes_the_other() -> None:
    buffer, received = BoundedBuffer[int](3), list[int]()

    def consume() -> None:
        received.extend(buffer.get(timeout=60) for _ in range(200))

    consumer = threading.Thread(target=consume)
    consumer.start()
    assert all(buffer.put(number, 1 + number % 3, timeout=60) for number in range(200))
    consumer.join(timeout=60)
    assert received == list(range(200))
