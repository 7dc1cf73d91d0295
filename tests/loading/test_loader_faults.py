"""What happens to a loader when the world around it fails: dropped, interrupted, forked, stalled, cut short."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from numpy.typing import NDArray

from respipe.errors import CorruptImageError, StorageError, WorkerLostError
from respipe.loading.loader import Loader
from respipe.schedules import Constant
from tests.engines import needs_dali, needs_ffcv
from tests.loaders import flat, make
from tests.memory_dataset import MemoryDataset
from tests.small_pages import convert_small

ROOT = Path(__file__).parents[2]
BACKENDS = ["tiles", "reference", pytest.param("ffcv", marks=needs_ffcv), pytest.param("dali", marks=needs_dali)]


@pytest.fixture(scope="module")
def beton(jpeg_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("faults") / "x.beton"
    convert_small(jpeg_folder, path)
    return path


def load(path: Path, backend: str = "tiles", **options: Any) -> Loader:
    return Loader(path, Constant(32), **({"batch_size": 4, "backend": backend, "num_threads": 2} | options))


def settled(condition: Callable[[], bool]) -> bool:
    """Whether something becomes true within ten seconds: threads that were told to end take a moment."""
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def run(program: str, *arguments: object, timeout: float = 100) -> str:
    """What a program prints, in a process of its own."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout)
    assert result.returncode == 0, result.stderr
    return result.stdout


# Dropped and interrupted


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loader_dropped_in_the_midst_of_an_epoch_leaves_nothing(beton: Path, backend: str) -> None:
    before = threading.active_count()
    loader = load(beton, backend)
    dataset = weakref.ref(loader.dataset)
    for _ in loader:
        break
    del loader
    gc.collect()
    assert settled(lambda: dataset() is None)
    assert settled(lambda: threading.active_count() <= before)


def test_an_iteration_ends_with_its_iterator(beton: Path) -> None:
    with load(beton) as loader:
        batches = iter(loader)
        next(batches)
        del batches
        assert not [thread for thread in threading.enumerate() if thread.name == "respipe-prefetch"]
        assert len(list(loader)) == 4


def test_a_loader_in_a_reference_cycle_is_collected(beton: Path) -> None:
    before = threading.active_count()
    loader = load(beton)
    batches = iter(loader)
    next(batches)
    cycle: list[Any] = [loader, batches]
    cycle.append(cycle)
    del loader, batches, cycle
    gc.collect()
    assert settled(lambda: threading.active_count() <= before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_in_the_users_loop_ends_threads_and_leaves_a_usable_loader(
    beton: Path, error: type[BaseException]
) -> None:
    with load(beton) as loader:
        with pytest.raises(error):
            for _ in loader:
                raise error
        gc.collect()
        assert len(list(loader)) == 4


def test_an_interrupt_while_waiting_for_a_batch_ends_the_wait() -> None:
    program = (
        "import signal, threading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background of a shell
        "from respipe.errors import WorkerLostError\n"
        "from respipe.loading.prefetch import prefetch\n"
        "def slow():\n"
        "    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()\n"
        "    threading.Event().wait(2)\n"
        "    yield 1\n"
        "try:\n"
        "    next(prefetch(slow, capacity=1, stall_timeout=60))\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', [t.name for t in threading.enumerate()])\n"
    )
    assert run(program) == "interrupted ['MainThread']\n"


def test_interrupts_at_any_moment_of_the_wait_are_only_that() -> None:
    program = (
        "import signal, threading, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from respipe.loading.prefetch import prefetch\n"
        "def slow():\n"
        "    kill = lambda: (time.sleep(delay), signal.pthread_kill(threading.main_thread().ident, signal.SIGINT))\n"
        "    threading.Thread(target=kill, daemon=True).start()\n"
        "    time.sleep(0.1)\n"
        "    yield 1\n"
        "for number in range(40):\n"
        "    delay = number * 0.0005\n"
        "    try:\n"
        "        next(prefetch(slow, capacity=1, stall_timeout=60))\n"
        "        time.sleep(1)\n"
        "    except KeyboardInterrupt:\n"
        "        print(number)\n"
    )
    assert run(program).split() == [str(number) for number in range(40)]


def test_fifty_loaders_leave_no_thread_file_or_memory(beton: Path) -> None:
    process = psutil.Process()

    def use() -> None:
        with load(beton) as loader:
            for _ in loader:
                pass

    for _ in range(5):
        use()
    gc.collect()
    threads, files, memory = process.num_threads(), process.num_fds(), process.memory_info().rss
    for _ in range(50):
        use()
    gc.collect()
    assert settled(lambda: process.num_threads() <= threads)
    assert process.num_fds() <= files
    assert process.memory_info().rss - memory < 16 << 20


# Forked

FORKS = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from respipe.errors import WorkerLostError
from tests.loading.test_loader_faults import load
loader = load(sys.argv[1], sys.argv[2], with_spec=True)
batches = iter(loader)
first = next(batches)
def use():
    found = list(loader)
    assert len(found) == 4 and (found[0][0] == first[0]).all()
    loader.close()
def go_on():
    try:
        next(batches)
    except WorkerLostError as error:
        assert "iter(loader)" in str(error)
def leave():
    pass
for task in (use, go_on, leave, loader.close):
    child = os.fork()
    if not child:
        task()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0, task
assert len(list(batches)) == 3
loader.close()
print("fine")
"""


@pytest.mark.parametrize("backend", ["tiles", pytest.param("dali", marks=needs_dali)])
def test_the_child_of_a_fork_may_use_close_or_forget_the_loader(beton: Path, backend: str) -> None:
    assert run(FORKS, beton, backend).endswith("fine\n")


# Stalled and dead


class StalledDataset(MemoryDataset):
    """Stands still where it is told to."""

    def __init__(self) -> None:
        super().__init__([(40 + 3 * i % 17, 60 - 5 * i % 23) for i in range(21)])
        self.stalls = self.fails = False
        self.go_on = threading.Event()

    def encoded(self, index: int, level: int = 0) -> NDArray[Any]:
        if self.fails:
            raise SystemExit(3)
        if self.stalls:
            self.go_on.wait(timeout=60)
        return super().encoded(index, level)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("respipe.loading.prefetch._JOIN_SECONDS", 0.05)
    monkeypatch.setattr("respipe.backends.pool.PATIENCE_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
def test_after_a_stall_the_next_iteration_is_right_whatever_the_stalled_threads_do() -> None:
    dataset = StalledDataset()
    with make(dataset) as loader:
        expected = flat(iter(loader))
    with make(dataset, stall_timeout=0.3) as loader:
        dataset.stalls = True
        with pytest.raises(WorkerLostError, match=r"0\.3 s"):
            list(loader)
        dataset.stalls = False
        batches = iter(loader)
        found = flat([next(batches)])
        dataset.go_on.set()  # now those wake up that were given up
        assert [*found, *flat(batches)] == expected


@pytest.mark.usefixtures("impatient")
def test_a_stalled_loader_closes_in_bounded_time() -> None:
    dataset = StalledDataset()
    loader = make(dataset, stall_timeout=0.3)
    dataset.stalls = True
    with pytest.raises(WorkerLostError):
        list(loader)
    start = time.monotonic()
    loader.close()
    assert time.monotonic() - start < 5
    dataset.go_on.set()


def test_the_interpreter_leaves_while_a_thread_hangs() -> None:
    program = (
        "import respipe.loading.prefetch, respipe.backends.pool\n"
        "respipe.loading.prefetch._JOIN_SECONDS = respipe.backends.pool.PATIENCE_SECONDS = 0.1\n"
        "from tests.loading.test_loader_faults import StalledDataset, WorkerLostError, make\n"
        "dataset = StalledDataset()\n"
        "dataset.stalls = True\n"
        "try:\n"
        "    list(make(dataset, stall_timeout=0.3))\n"
        "except WorkerLostError:\n"
        "    print('lost')\n"
    )
    start = time.monotonic()
    assert run(program) == "lost\n"
    assert time.monotonic() - start < 50  # the thread would go on after a minute


def test_whatever_a_decoding_thread_raises_reaches_the_user() -> None:
    dataset = StalledDataset()
    with make(dataset) as loader:
        dataset.fails = True
        with pytest.raises(SystemExit):
            list(loader)
        dataset.fails = False
        assert len(list(loader)) == 5


# The file changes while it is open


@pytest.fixture
def own(beton: Path, tmp_path: Path) -> Path:
    return Path(tmp_path / "own.beton").write_bytes(beton.read_bytes()) and tmp_path / "own.beton"


def test_a_file_cut_short_is_an_error(own: Path) -> None:
    program = (
        "import os, sys\n"
        "from respipe.errors import StorageError\n"
        "from tests.loading.test_loader_faults import load\n"
        "with load(sys.argv[1]) as loader:\n"
        "    list(loader)\n"
        "    os.truncate(sys.argv[1], os.path.getsize(sys.argv[1]) // 2)\n"
        "    try:\n"
        "        list(loader)\n"
        "    except StorageError as error:\n"
        "        print(error)\n"
    )
    assert "has become shorter while it was open" in run(program, own)


def test_images_are_checked_again_when_the_file_was_written_to(own: Path) -> None:
    with load(own, training=False) as loader:
        list(loader)
        damage(own, {int(level.offsets[5]) + 300 for level in loader.dataset.levels if level.offsets is not None})
        with pytest.raises(CorruptImageError, match="sample 5"):
            list(loader)


def test_a_file_that_is_only_touched_is_still_sound(own: Path) -> None:
    with load(own) as loader:
        list(loader)
        os.utime(own, ns=(1, 1))
        assert len(list(loader)) == 4


def test_a_file_may_be_replaced_or_deleted_while_it_is_open(own: Path) -> None:
    with load(own, training=False) as loader:
        expected = [labels.tolist() for _, labels in loader]
        own.unlink()
        own.write_bytes(b"something else")
        assert [labels.tolist() for _, labels in loader] == expected


def damage(path: Path, places: set[int]) -> None:
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            value = file.read(1)[0]
            file.seek(place)
            file.write(bytes([value ^ 0xFF]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_damaged_image_leaves_the_others_of_its_batch_as_they_are(own: Path, backend: str) -> None:
    options: dict[str, Any] = {"training": False, "dtype": torch.uint8, "normalize": None, "batch_size": 6}
    with load(own, backend, **options) as loader:
        expected = torch.cat([images for images, _ in loader])
        # Levels that share bytes must not be damaged twice.
        places = {int(level.offsets[8]) + 300 for level in loader.dataset.levels if level.offsets is not None}
    damage(own, places)
    with load(own, backend, **options) as loader, pytest.raises(CorruptImageError, match="sample 8"):
        list(loader)
    with load(own, backend, on_corrupt="quarantine", **options) as loader:
        found = torch.cat([images for images, _ in loader])
        assert list(loader.quarantined) == [8]
    assert torch.equal(found, torch.cat([expected[:8], expected[9:]]))


def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.beton")
    with pytest.raises(StorageError, match="no regular file"):
        load(tmp_path / "x.beton")
