"""Files at URLs of which only what is read is copied: within a limit, for all processes, through damage and kills."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stamina
import torch

import respipe
from respipe.errors import CorruptImageError, StorageError
from respipe.storage import open_dataset
from respipe.storage.remote import Cache, blocks, fetched
from respipe.storage.remote.blocks import Blocks
from respipe.storage.shards import ShardedDataset
from tests.small_pages import convert_small
from tests.storage.range_server import RangeServer, serving

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, Any] = {"batch_size": 3, "backend": "reference", "num_threads": 1, "seed": 1}


@pytest.fixture(scope="module")
def local(jpeg_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "x"
    convert_small(jpeg_folder, folder, shards=3)
    return folder


@pytest.fixture
def server(local: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[RangeServer, None, None]:
    for module in (blocks, fetched):
        monkeypatch.setattr(module, "BLOCK", 4096)
    with serving(local) as server, stamina.set_testing(True, attempts=3):
        yield server


def num_sent(server: RangeServer) -> int:
    return sum(count for path, count in server.sent.items() if path.endswith(".beton"))


def on_disk(folder: Path) -> int:
    """Bytes that files take, holes left out."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*.beton"))


def epochs(data: Any, size: int = 24, count: int = 1, **options: Any) -> list[torch.Tensor]:
    with respipe.Loader(data, respipe.schedules.Constant(size), **OPTIONS | options) as loader:
        return [images for _ in range(count) for images, _ in loader]


def test_less_is_fetched_at_a_small_size_than_at_a_large_one_and_nothing_twice(
    server: RangeServer, local: Path, tmp_path: Path
) -> None:
    sent: dict[int, int] = {}
    for size in (16, 200):
        server.sent.clear()
        cache = tmp_path / str(size)
        ours = epochs(server.url, size, training=False, cache_dir=cache)
        assert all(map(torch.equal, ours, epochs(local, size, training=False)))
        sent[size] = num_sent(server)
        server.sent.clear()
        epochs(server.url, size, training=False, cache_dir=cache)
        assert num_sent(server) < 3000  # to see that there are ranges
    assert sent[16] < 0.9 * sent[200]


@pytest.mark.parametrize("backend", ["tiles", "dali", "reference"])
def test_data_larger_than_the_cache_are_trained_on_within_its_limit(
    server: RangeServer, local: Path, tmp_path: Path, backend: str
) -> None:
    whole = sum(path.stat().st_size for path in local.glob("*.beton"))
    limit = int(0.99 * whole)
    most, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            most[0] = max(most[0], on_disk(tmp_path))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        options: dict[str, Any] = {"backend": backend, "cache_dir": tmp_path, "cache_bytes": limit}
        with respipe.Loader(server.url, respipe.schedules.Constant(100), **OPTIONS | options) as loader:
            assert loader.dataset.fetched is not None
            assert loader.dataset.fetched.volatile
            ours = [images for _ in range(4) for images, _ in loader]
    finally:
        done.set()
        watcher.join()
    assert all(map(torch.equal, ours, epochs(local, 100, count=4, backend=backend)))
    assert whole / 3 < most[0] <= limit
    assert num_sent(server) > whole  # holes were punched, and filled again


def test_a_dataset_that_is_resumed_goes_on_where_it_was(server: RangeServer, local: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**OPTIONS, "cache_dir": tmp_path, "cache_bytes": 100_000, "shuffle": "blocks"}
    with respipe.Loader(server.url, respipe.schedules.Constant(24), **options) as loader:
        first = iter(loader)
        next(first)
        state, rest = loader.state_dict(), [images for images, _ in first]
    with respipe.Loader(local, respipe.schedules.Constant(24), **OPTIONS, shuffle="blocks") as near:
        near.load_state_dict(state)
        assert all(map(torch.equal, rest, (images for images, _ in near)))


def test_a_limit_that_leaves_no_room_is_refused(server: RangeServer, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"`cache_bytes` must leave more than .* tables .* leaves 6,750"):
        epochs(server.url, cache_dir=tmp_path, cache_bytes=9000)


def test_a_batch_that_does_not_fit_is_refused(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "_PATIENCE_SECONDS", 0.2)
    with pytest.raises(StorageError, match=r"`cache_bytes` must leave room for the batches .* a batch needs"):
        epochs(server.url, 200, batch_size=18, cache_dir=tmp_path, cache_bytes=90_000)


def test_what_was_damaged_on_its_way_is_fetched_again(
    server: RangeServer, local: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with respipe.Loader(server.url, respipe.schedules.Constant(24), **OPTIONS, cache_dir=tmp_path) as loader:
        server.damages = 3
        assert all(map(torch.equal, (images for images, _ in loader), epochs(local)))
    assert not server.damages
    assert "fetching sample" in caplog.text


def test_what_is_damaged_at_its_source_is_named_or_left_out(
    local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 4096)
    monkeypatch.setattr(fetched, "BLOCK", 4096)
    with closing(open_dataset(local)) as dataset:
        assert isinstance(dataset, ShardedDataset)
        places = [(int(level.offsets[7]), int(level.sizes[7])) for level in dataset.levels]
        name = dataset.shards[1].path.name
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in local.iterdir():
        data = bytearray(file.read_bytes())
        for offset, size in places if file.name == name else ():
            data[offset + size // 2] ^= 255
        (folder / file.name).write_bytes(data)
    with serving(folder) as server:
        with pytest.raises(CorruptImageError, match=rf"{name}: sample 1 .* is damaged: its bytes differ"):
            epochs(server.url, cache_dir=tmp_path / "cache")
        with respipe.Loader(
            server.url, respipe.schedules.Constant(24), **OPTIONS, cache_dir=tmp_path / "cache", on_corrupt="quarantine"
        ) as loader:
            assert len(list(loader)) == 6
            assert list(loader.quarantined) == [7]


def test_a_lost_connection_is_tried_again_and_one_that_stays_lost_is_named(
    server: RangeServer, local: Path, tmp_path: Path
) -> None:
    with respipe.Loader(server.url, respipe.schedules.Constant(24), **OPTIONS, cache_dir=tmp_path) as loader:
        server.failures = 2
        assert all(map(torch.equal, (images for images, _ in loader), epochs(local)))
    with respipe.Loader(server.url, respipe.schedules.Constant(24), **OPTIONS, cache_dir=tmp_path / "other") as loader:
        server.failures = 10**6
        with pytest.raises(StorageError, match=r"shard-0000\d-of-00003\.beton cannot be read in 6 attempts"):
            list(loader)
        server.failures = 0
        assert len(list(loader)) == 6


def test_servers_without_ranges_send_whole_files(server: RangeServer, local: Path, tmp_path: Path) -> None:
    server.ranges = False
    with respipe.Loader(server.url, respipe.schedules.Constant(24), **OPTIONS, cache_dir=tmp_path) as loader:
        assert loader.dataset.fetched is None
        assert all(map(torch.equal, (images for images, _ in loader), epochs(local)))


def test_copies_of_whole_files_are_used_where_they_are(server: RangeServer, tmp_path: Path) -> None:
    open_dataset(server.url, cache=Cache(folder=tmp_path)).close()
    server.sent.clear()
    epochs(server.url, cache_dir=tmp_path)
    assert not num_sent(server)


def test_datasets_that_do_not_fit_leave_room_for_others(server: RangeServer, local: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"count": 3, "batch_size": 1, "cache_dir": tmp_path, "cache_bytes": 190_000}
    ours = epochs([(server.url, 0.5), (f"{server.url}/", 0.5)], **options)
    near = epochs([(local, 0.5), (local, 0.5)], count=3, batch_size=1)
    assert all(map(torch.equal, ours, near))
    assert 50_000 < on_disk(tmp_path) <= 190_000
    with respipe.Loader(
        server.url, respipe.schedules.Constant(24), **OPTIONS, cache_dir=tmp_path / "other", cache_bytes=100_000
    ) as one:
        name = min(path.name for path in local.glob("*.beton"))
        other = epochs(f"{server.url}/{name}", batch_size=1, cache_dir=tmp_path / "other", cache_bytes=100_000)
        assert all(map(torch.equal, other, epochs(local / name, batch_size=1)))
        assert len(list(one)) == 6
    assert on_disk(tmp_path / "other") <= 100_000


def test_a_single_image_is_fetched_when_it_is_asked_for_and_copies_are_not_pickled(
    server: RangeServer, local: Path, tmp_path: Path
) -> None:
    cache = Cache(folder=tmp_path, num_bytes=100_000)
    with (
        closing(open_dataset(server.url, cache=cache, on_demand=True)) as dataset,
        closing(open_dataset(local)) as near,
    ):
        for index in range(len(near)):
            for level in range(len(near.levels)):
                dataset.check(index, level)
                assert np.array_equal(dataset.encoded(index, level), near.encoded(index, level))
        assert isinstance(dataset, ShardedDataset)
        with pytest.raises(TypeError, match="is fetched in parts, and cannot be pickled"):
            dataset.shards[0].__reduce__()


_RANK = """
import sys, time, torch, respipe
from respipe.storage.remote import blocks, fetched
blocks.BLOCK = fetched.BLOCK = 4096
options = {"batch_size": 3, "backend": "reference", "num_threads": 1, "seed": 1, "cache_bytes": float(sys.argv[2])}
with respipe.Loader(sys.argv[1], respipe.schedules.Constant(100), **options) as loader:
    total = 0
    for epoch in range(int(sys.argv[3])):
        for images, _ in loader:
            total += int(images.double().abs().sum() * 1000)
            print("batch", flush=True)
    print(total)
"""


def start(url: str, cache: Path, limit: float, epochs: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "RESPIPE_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _RANK, url, str(limit), str(epochs)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_processes_share_copies_and_what_a_killed_one_held_is_free(
    server: RangeServer, local: Path, tmp_path: Path
) -> None:
    whole = sum(path.stat().st_size for path in local.glob("*.beton"))
    killed = start(server.url, tmp_path, 0.99 * whole, 1000)
    assert killed.stdout is not None
    for _ in range(8):
        killed.stdout.readline()
    ranks = [start(server.url, tmp_path, 0.99 * whole, 3) for _ in range(2)]
    time.sleep(1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    totals = {rank.communicate(timeout=170)[0].splitlines()[-1] for rank in ranks}
    alone = start(str(local), tmp_path, 0, 3).communicate(timeout=170)[0].splitlines()[-1]
    assert totals == {alone}
    assert on_disk(tmp_path) <= 0.99 * whole
    assert len(list(tmp_path.rglob("pins.*"))) <= 1  # of the one that was killed, unless somebody needed its room


# The blocks themselves


def copies(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: float, num_blocks: int = 10
) -> Callable[[], tuple[Blocks, list[int]]]:
    """Makes users of one copy of 4 KiB blocks, each with the list of blocks that it has fetched."""
    monkeypatch.setattr(blocks, "BLOCK", 4096)
    path = folder / "x"
    path.write_bytes(b"")
    os.truncate(path, num_blocks * 4096)

    def make() -> tuple[Blocks, list[int]]:
        seen: list[int] = []

        def read(_: int, start: int, stop: int) -> bytes:
            numbers = range(start // 4096, stop // 4096)
            seen.extend(numbers)
            return b"".join(bytes([number + 1]) * 4096 for number in numbers)

        return Blocks([path], [(0, num_blocks * 4096)], limit=limit, read=read), seen

    return make


def places(*numbers: int) -> tuple[Any, Any, Any]:
    return np.zeros(len(numbers), np.int64), np.array(numbers) * 4096 + 7, np.full(len(numbers), 100)


def test_blocks_in_use_stay_and_others_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = copies(tmp_path, monkeypatch, 6 * 4096)  # of which pins and notes take two
    one, seen = make()
    other, _ = make()
    first = one.hold(*places(0, 1))
    assert first is not None
    first.wait()
    assert one.hold(*places(3)) is None  # half of it is the other's
    second = other.hold(*places(1, 5))
    assert second is not None
    second.wait()
    assert other.hold(*places(7)) is None
    del first
    gc.collect()
    third = one.hold(*places(8, 9))
    assert third is not None
    third.wait()
    data = (tmp_path / "x").read_bytes()
    assert [number for number in range(10) if data[number * 4096]] == [1, 5, 8, 9]
    assert seen == [0, 1, 8, 9]


def test_a_block_is_fetched_by_one_of_those_who_want_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = copies(tmp_path, monkeypatch, 1e9)
    (one, by_one), (other, by_other) = make(), make()
    leases = [user.hold(*places(*range(10))) for user in (one, other, one)]
    for lease in leases:
        assert lease is not None
        lease.wait()
    assert sorted(by_one + by_other) == list(range(10))


def test_what_a_dead_process_was_fetching_is_fetched_by_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = copies(tmp_path, monkeypatch, 1e9)
    one, by_one = make()
    (tmp_path / "pins.dead").write_bytes(bytes([2] * 10))  # which nobody keeps locked
    lease = one.hold(*places(4))
    assert lease is not None
    lease.wait()
    assert by_one == [4]
    assert not (tmp_path / "pins.dead").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_the_child_of_a_fork_has_pins_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = copies(tmp_path, monkeypatch, 6 * 4096)
    one, _ = make()
    held = one.hold(*places(0, 1))
    assert held is not None
    held.wait()
    child = os.fork()
    if not child:
        status = 1
        try:
            mine = one.hold(*places(5))
            status = int(mine is None or len(list(tmp_path.glob("pins.*"))) != 2)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (tmp_path / "x").read_bytes()[:1] == b"\1"
