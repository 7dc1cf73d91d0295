from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from respipe.conversion.workers import map_samples
from respipe.errors import WorkerLostError

ROOT = Path(__file__).parents[2]


def square(index: int) -> int:
    return index * index


def process_id(_: int) -> int:
    return os.getpid()


def pixel_limit(_: int) -> int | None:
    return Image.MAX_IMAGE_PIXELS


@dataclass(frozen=True)
class Misbehave:
    """Does something at one number."""

    at: int
    how: str

    def __call__(self, index: int) -> int:
        if index == self.at:
            if self.how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "stall":
                threading.Event().wait()
            if self.how == "fail":
                raise KeyError(index)
            raise OSError(5, "from the worker")
        return index


def assert_processes_end(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        assert select.select([descriptor], [], [], 30)[0], "a process is still there"
        os.close(descriptor)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_results_come_in_order(num_workers: int, count: int) -> None:
    results = list(map_samples(square, range(5, 5 + count), num_workers=num_workers))
    assert results == [(index, index * index) for index in range(5, 5 + count)]


def test_work_is_shared() -> None:
    found = {process for _, process in map_samples(process_id, range(3000), num_workers=2)}
    assert len(found) == 2
    assert os.getpid() not in found


@pytest.mark.parametrize(("how", "timeout", "status"), [("die", 60.0, "status -9"), ("stall", 0.5, "status 1")])
def test_lost_worker_is_an_error_in_bounded_time(how: str, timeout: float, status: str) -> None:
    results = map_samples(Misbehave(40, how), range(100), num_workers=2, stall_timeout=timeout)
    with pytest.raises(WorkerLostError, match=rf"{status} while it worked on samples 32 to 63.*run the same again"):
        list(results)


def test_any_other_error_is_told_with_its_sample(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerLostError, match=r"Sample 40 fails .* KeyError: 40; .*run the same again"):
        list(map_samples(Misbehave(40, "fail"), range(100), num_workers=2))
    assert "Traceback" in capfd.readouterr().err


def test_what_cannot_be_sent_to_workers_is_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"`source` must be .*lambda.*into a module.*num_workers=0"):
        list(map_samples(lambda index: index, range(10), num_workers=1))


def test_workers_have_the_callers_limit_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (None, 1000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert [*map_samples(pixel_limit, range(1), num_workers=1)] == [(0, limit)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_errors_of_the_operating_system_arrive_as_they_are(num_workers: int) -> None:
    with pytest.raises(OSError, match="from the worker") as caught:
        list(map_samples(Misbehave(3, "raise"), range(10), num_workers=num_workers))
    assert caught.value.errno == 5


def test_workers_end_when_the_caller_stops_early() -> None:
    results = map_samples(process_id, range(10_000), num_workers=2)
    workers = {next(results)[1] for _ in range(200)}
    descriptors = [os.pidfd_open(worker) for worker in workers]
    results.close()
    assert_processes_end(descriptors)


def test_workers_do_not_outlive_a_killed_caller() -> None:
    code = (
        "from tests.conversion.test_workers import process_id\n"
        "from respipe.conversion.workers import map_samples\n"
        "results = map_samples(process_id, range(10_000), num_workers=2)\n"
        "print(*{next(results)[1] for _ in range(200)}, flush=True)\n"
        "input()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        descriptors = [os.pidfd_open(int(worker)) for worker in caller.stdout.readline().split()]
        caller.kill()
    assert descriptors
    assert_processes_end(descriptors)


def test_scripts_need_no_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from operator import neg\n"
        "from respipe.conversion.workers import map_samples\n"
        "print(sum(result for _, result in map_samples(neg, range(100), num_workers=2)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stdout == "-4950\n"


def test_what_the_main_script_defines_is_named_with_the_remedy(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from respipe.conversion.workers import map_samples\n"
        "class Double:\n"
        "    def __call__(self, index):\n"
        "        return 2 * index\n"
        "list(map_samples(Double(), range(100), num_workers=2))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "WorkerLostError: A worker process cannot load the source (AttributeError: " in last
    assert "num_workers=0" in last
    assert "memory" not in last
