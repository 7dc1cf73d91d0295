from __future__ import annotations

import gc
import threading
import time

import pytest

from respipe.backends.pool.daemon import DaemonPool


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("pooled")}


def test_results_come_in_order_and_threads_end() -> None:
    pool = DaemonPool(3, "pooled")
    assert names() == {"pooled_0", "pooled_1", "pooled_2"}
    assert pool.map(divmod, range(50), [7] * 50) == [divmod(number, 7) for number in range(50)]
    pool.close()
    pool.close()
    assert not names()


def test_the_first_error_is_raised_and_the_threads_go_on() -> None:
    pool = DaemonPool(2, "pooled")
    with pytest.raises(ZeroDivisionError):
        pool.map(divmod, [1, 2, 3], [1, 0, 1])
    assert pool.submit(divmod, 7, 2).result(timeout=10) == (3, 1)
    pool.close()


def test_a_dropped_pool_ends_its_threads() -> None:
    pool = DaemonPool(2, "pooled")
    pool.map(abs, [1, 2])
    del pool
    gc.collect()
    deadline = time.monotonic() + 10
    while names() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not names()


def test_closing_does_not_wait_for_a_call_that_hangs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("respipe.backends.pool.daemon.PATIENCE_SECONDS", 0.05)
    pool, go_on = DaemonPool(1, "pooled"), threading.Event()
    pool.submit(go_on.wait, 60)
    pool.close()
    assert "['pooled_0'] did not end within 0.05 s" in caplog.text
    go_on.set()
