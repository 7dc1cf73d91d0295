"""Datasets at URLs: copied whole and once, within a limit, through lost connections, damage and kills."""

from __future__ import annotations

import gc
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Self

import fsspec
import pytest
import stamina
import torch
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

import respipe
from respipe.cli import app
from respipe.errors import ConversionError, MissingBackendError, StorageError
from respipe.storage import open_dataset
from respipe.storage.remote import Cache, RemoteFolder, access
from respipe.storage.shards import ShardedDataset
from tests.small_pages import convert_small
from tests.storage.range_server import serving

ROOT = Path(__file__).parents[2]


class FlakyFileSystem(MemoryFileSystem):
    """A file system in memory of which some reads fail, or return other bytes than were written."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}  # type: ignore[misc]
    pseudo_dirs: ClassVar[list[str]] = [""]  # type: ignore[misc]
    failures = damages = num_read = 0
    dies_at = "nowhere"
    piece = 4000

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("flaky://", "memory://"))

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super().open(path, mode, **options)
        return _Flaky(file) if mode == "rb" and path.endswith(".beton") else file

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        if not path.endswith(".beton"):
            return super().cat_file(path, start, end)
        if FlakyFileSystem.failures:
            FlakyFileSystem.failures -= 1
            raise ConnectionResetError("the line is dead")
        with super().open(path) as file:
            file.seek(start or 0)
            data = bytearray(file.read(-1 if end is None else end - (start or 0)))
        FlakyFileSystem.num_read += len(data)
        if FlakyFileSystem.damages and start and len(data) > 3000:
            FlakyFileSystem.damages -= 1
            data[3000] ^= 255
        return bytes(data)

    def put_file(self, lpath: str, rpath: str, *_: Any, **__: Any) -> None:
        data = Path(lpath).read_bytes()
        dies = FlakyFileSystem.dies_at in rpath
        self.pipe_file(rpath, data[: len(data) // 2] if dies else data)
        if dies:
            raise ConnectionResetError("the machine is dead")


class _Flaky:
    def __init__(self, file: Any) -> None:
        self._file, self._pieces = file, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def seek(self, place: int) -> None:
        self._file.seek(place)

    def read(self, _: int) -> bytes:
        if FlakyFileSystem.failures and self._pieces:
            FlakyFileSystem.failures -= 1
            raise ConnectionResetError("the line is dead")
        self._pieces += 1
        data = bytearray(self._file.read(FlakyFileSystem.piece))
        FlakyFileSystem.num_read += len(data)
        if FlakyFileSystem.damages and len(data) > 3000:
            FlakyFileSystem.damages -= 1
            data[3000] ^= 255
        return bytes(data)


@pytest.fixture(scope="module")
def local(jpeg_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("local") / "x"
    convert_small(jpeg_folder, folder, shards=3)
    return folder


@pytest.fixture
def url(local: Path) -> Generator[str, None, None]:
    """A folder on the flaky file system, which works as long as nobody says otherwise."""
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    FlakyFileSystem.failures = FlakyFileSystem.damages = FlakyFileSystem.num_read = 0
    FlakyFileSystem.dies_at = "nowhere"
    system = fsspec.filesystem("flaky")
    for file in local.iterdir():
        system.pipe_file(f"/data/x/{file.name}", file.read_bytes())
    with stamina.set_testing(True, attempts=access._ATTEMPTS):
        yield "flaky://data/x/"
    FlakyFileSystem.store.clear()


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.beton*"))


@pytest.fixture
def num_bytes(local: Path) -> int:
    return sum(path.stat().st_size for path in local.iterdir())


def test_batches_of_a_url_are_those_of_the_files(url: str, local: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 4, "backend": "reference", "num_threads": 1}
    schedule = respipe.schedules.Constant(32)
    with (
        respipe.Loader(url, schedule, cache_dir=tmp_path, cache_bytes=1e6, **options) as remote,
        respipe.Loader(local, schedule, **options) as near,
    ):
        assert remote.state_dict() == near.state_dict()
        for (images, labels), (others, of_others) in zip(remote, near, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, of_others)
    before = FlakyFileSystem.num_read
    open_dataset(url, cache=Cache(folder=tmp_path), on_demand=True).close()
    assert FlakyFileSystem.num_read <= before + 3000  # of one file's tables


def test_single_files_and_lists_of_them_are_opened(
    url: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESPIPE_CACHE_DIR", str(tmp_path))
    names = sorted(path.name for path in local.glob("*.beton"))
    with closing(open_dataset(f"{url}{names[1]}")) as one:
        assert len(one) == 6
    with closing(open_dataset([f"{url}{names[0]}", local / names[1]])) as mixed:
        assert len(mixed) == 12
    with closing(open_dataset(local)) as whole:
        assert respipe.inspect(url).fingerprint == whole.fingerprint
    assert respipe.verify(url, num_workers=0).sound
    with pytest.raises(StorageError, match=r"must be a list of \.beton files; flaky://data/x/ is a folder"):
        open_dataset([url])


def test_a_lost_connection_is_tried_again_from_where_it_broke(url: str, tmp_path: Path, num_bytes: int) -> None:
    FlakyFileSystem.failures = 5
    with closing(open_dataset(url, cache=Cache(folder=tmp_path))) as dataset:
        assert len(dataset) == 18
    assert not FlakyFileSystem.failures
    assert FlakyFileSystem.num_read < num_bytes  # the index is not counted: nothing was read twice


def test_a_connection_that_stays_lost_is_named_and_what_was_copied_is_kept(url: str, tmp_path: Path) -> None:
    FlakyFileSystem.failures = 100
    with pytest.raises(StorageError, match=r"flaky://data/x/shard-0000\d-of-00003\.beton cannot be read in 6 attempts"):
        open_dataset(url, cache=Cache(folder=tmp_path))
    kept = size_of(tmp_path)
    assert kept
    FlakyFileSystem.failures = FlakyFileSystem.num_read = 0
    with closing(open_dataset(url, cache=Cache(folder=tmp_path))):
        assert FlakyFileSystem.num_read == size_of(tmp_path) - kept


def test_bytes_that_differ_from_their_checksum_are_fetched_again(url: str, tmp_path: Path) -> None:
    FlakyFileSystem.damages = 2
    with closing(open_dataset(url, cache=Cache(folder=tmp_path))):
        pass
    assert respipe.verify(next(tmp_path.glob("*-x")), num_workers=0).sound
    system = fsspec.filesystem("flaky")
    data = bytearray(system.cat_file("/data/x/shard-00001-of-00003.beton"))
    data[4000] ^= 255
    system.pipe_file("/data/x/shard-00001-of-00003.beton", bytes(data))
    with pytest.raises(StorageError, match=r"shard-00001-of-00003\.beton cannot be read in 6 attempts: .* checksum"):
        open_dataset(url, cache=Cache(folder=tmp_path / "other"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda system: system.rm("/data/x/shard-00001-of-00003.beton"), r"00001-of-00003\.beton cannot be read: File"),
        (lambda system: system.rm("/data/x/index.json"), r"x/index\.json cannot be read: FileNotFoundError"),
        (lambda system: system.pipe_file("/data/x/index.json", b"{}"), r"has an index\.json that is damaged"),
        (lambda system: system.pipe_file("/data/x/shard-00002-of-00003.beton", bytes(9)), "9 bytes came of"),
    ],
)
def test_what_is_missing_or_cut_short_is_named(url: str, tmp_path: Path, change: Any, message: str) -> None:
    change(fsspec.filesystem("flaky"))
    with pytest.raises(StorageError, match=message):
        open_dataset(url, cache=Cache(folder=tmp_path))


def test_unknown_addresses_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingBackendError, match="nonsense://x needs more than is installed"):
        open_dataset("nonsense://x", cache=Cache(folder=tmp_path))


def test_the_cache_stays_within_its_limit_and_removes_nothing_but_its_copies(
    url: str, local: Path, tmp_path: Path, num_bytes: int
) -> None:
    system = fsspec.filesystem("flaky")
    for file in local.iterdir():
        for other in ("y", "z"):
            system.pipe_file(f"/data/{other}/{file.name}", file.read_bytes())
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "copy.json").write_text('{"files": ["precious"], "num_bytes": 5}')
    (mine / "precious").write_text("precious")
    cache = Cache(folder=tmp_path, num_bytes=2 * num_bytes + 100)
    first, second = open_dataset("flaky://data/x", cache=cache), open_dataset("flaky://data/y", cache=cache)
    assert size_of(tmp_path) <= 2 * num_bytes
    with pytest.raises(StorageError, match=r"of `cache_bytes` in .* hold datasets that are in use"):
        open_dataset("flaky://data/z", cache=cache)
    assert isinstance(first, ShardedDataset)
    shard = first.shards[0]
    first.close()
    del first
    gc.collect()
    with pytest.raises(StorageError, match=r"of `cache_bytes` in .* hold datasets that are in use"):
        open_dataset("flaky://data/z", cache=cache)
    del shard
    gc.collect()
    third = open_dataset("flaky://data/z", cache=cache)
    assert size_of(tmp_path) <= 2 * num_bytes
    assert sorted(path.name.partition("-")[2] for path in tmp_path.iterdir() if "-" in path.name) == ["y", "z"]
    assert len(second) == len(third) == 18
    assert sorted(path.name for path in mine.iterdir()) == ["copy.json", "precious"]
    with pytest.raises(StorageError, match="more than the 1,000 of `cache_bytes`"):
        open_dataset("flaky://data/x", cache=Cache(folder=tmp_path, num_bytes=1000))
    second.close()
    third.close()


def test_changed_data_is_copied_anew(url: str, jpeg_folder: Path, tmp_path: Path) -> None:
    with closing(open_dataset(url, cache=Cache(folder=tmp_path / "cache"))) as dataset:
        before = dataset.fingerprint
    convert_small(jpeg_folder, tmp_path / "x", shards=3, quality=50)
    system = fsspec.filesystem("flaky")
    for file in (tmp_path / "x").iterdir():
        system.pipe_file(f"/data/x/{file.name}", file.read_bytes())
    with closing(open_dataset(url, cache=Cache(folder=tmp_path / "cache"))) as dataset:
        assert dataset.fingerprint != before


_OPEN = "import sys; from respipe.storage import open_dataset; print(open_dataset(sys.argv[1]).fingerprint, flush=True)"


def test_ranks_of_a_machine_copy_once_and_a_killed_one_is_taken_over_from(local: Path, tmp_path: Path) -> None:
    def start() -> subprocess.Popen[str]:
        environment = {**os.environ, "RESPIPE_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
        return subprocess.Popen([sys.executable, "-c", _OPEN, server.url], env=environment, stdout=-1, text=True)

    with serving(local) as server:
        server.delay = 0.1
        first = start()
        deadline = time.monotonic() + 60
        while size_of(tmp_path) < 20_000 and time.monotonic() < deadline:
            time.sleep(0.02)
        first.kill()
        first.communicate()
        server.delay = 0.0
        ranks = [start() for _ in range(3)]
        found = {rank.communicate(timeout=120)[0] for rank in ranks}
        with closing(open_dataset(local)) as dataset:
            assert found == {f"{dataset.fingerprint}\n"}
        sent = sum(count for path, count in server.sent.items() if path.endswith(".beton"))
        assert sent < 2 * size_of(local)


_RANK = """
import sys, respipe
options = {"batch_size": 8, "backend": "reference", "num_threads": 1, "with_spec": True, "shuffle": "blocks"}
with respipe.Loader(sys.argv[1], respipe.schedules.Constant(32), **options) as loader:
    for images, _, plan in loader:
        print(plan.number, plan.indices.tolist(), int(images.double().abs().sum() * 1000))
"""


@pytest.mark.slow
def test_four_ranks_on_two_nodes_with_caches_of_their_own_share_the_batches_of_one(local: Path, tmp_path: Path) -> None:
    def run(rank: int, world_size: int, cache: str, data: str) -> subprocess.Popen[str]:
        environment = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "RESPIPE_CACHE_DIR": str(tmp_path / cache)}
        environment |= {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", _RANK, data]
        return subprocess.Popen(command, env={**os.environ, **environment}, stdout=-1, text=True)

    with serving(local) as server:
        ranks = [run(rank, 4, f"node{rank // 2}", server.url) for rank in range(4)]
        parts = [rank.communicate(timeout=170)[0].splitlines() for rank in ranks]
        sent = sum(count for path, count in server.sent.items() if path.endswith(".beton"))
    whole = run(0, 1, "none", str(local)).communicate(timeout=170)[0].splitlines()
    # Once for each node, and some bytes of tables for each rank.
    assert sent < 2.3 * sum(path.stat().st_size for path in local.glob("*.beton"))
    assert len(whole) == 2
    assert {len(lines) for lines in parts} == {2}
    for number, line in enumerate(whole):
        indices = [index for lines in parts for index in json.loads(lines[number].split(" ", 1)[1].rpartition(" ")[0])]
        assert indices == json.loads(line.split(" ", 1)[1].rpartition(" ")[0])


# Sources and targets


def test_a_conversion_from_a_url_to_a_url_in_parts_equals_the_local_one(
    url: str, local: Path, jpeg_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESPIPE_CACHE_DIR", str(tmp_path))
    system = fsspec.filesystem("flaky")
    for file in jpeg_folder.rglob("*.jpg"):
        system.pipe_file(f"/images/{file.relative_to(jpeg_folder)}", file.read_bytes())
    source, target = "flaky://images", "flaky://made/x"
    convert_small(source, target, shards=3, part=(2, 3))
    with pytest.raises(StorageError, match=r"x/index\.json cannot be read: FileNotFoundError"):
        open_dataset(target)
    report = convert_small(source, target, shards=3)
    assert (report.num_images, report.num_resumed, report.target) == (18, 6, target)
    for file in local.iterdir():
        assert system.cat_file(f"/made/x/{file.name}") == file.read_bytes()
    gc.collect()
    assert not [path for path in tmp_path.glob("made-*/**/*") if path.is_file()]
    with pytest.raises(ConversionError, match=r"flaky://made/x/shard-00000-of-00003\.beton exists already"):
        convert_small(source, target, shards=3, quality=50)
    assert respipe.verify(target, num_workers=0).sound
    convert_small(source, f"{target}/more.beton")
    result = CliRunner().invoke(app, ["index", target])
    assert "36 samples in 4 files" in result.stdout
    with closing(open_dataset(target)) as dataset:
        assert len(dataset) == 36


def test_one_file_is_made_at_a_url(
    url: str, local: Path, jpeg_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESPIPE_CACHE_DIR", str(tmp_path / "cache"))
    convert_small(url, "flaky://made/x.beton")
    convert_small(local, tmp_path / "x.beton")
    system = fsspec.filesystem("flaky")
    assert system.cat_file("/made/x.beton") == (tmp_path / "x.beton").read_bytes()
    with pytest.raises(ConversionError, match=r"flaky://made/x\.beton exists already"):
        convert_small(url, "flaky://made/x.beton")
    convert_small(url, "flaky://made/x.beton", overwrite=True)


@pytest.mark.parametrize(("dies_at", "num_made", "num_resumed"), [("shard-00001", 1, 12), ("index.json", 3, 18)])
def test_a_file_gets_its_name_when_it_is_whole(
    url: str,
    local: Path,
    jpeg_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dies_at: str,
    num_made: int,
    num_resumed: int,
) -> None:
    monkeypatch.setenv("RESPIPE_CACHE_DIR", str(tmp_path))
    system, target = fsspec.filesystem("flaky"), "flaky://made/x"
    FlakyFileSystem.dies_at = dies_at
    with pytest.raises(StorageError, match=rf"made/x/{dies_at}.* cannot be written in 6 attempts: .* is dead"):
        convert_small(jpeg_folder, target, shards=3)
    assert len(system.glob("/made/x/*.partial")) == 1
    made = [path for path in system.find("/made/x") if not path.endswith(".partial")]
    assert len(made) == num_made
    FlakyFileSystem.dies_at = "nowhere"
    assert convert_small(jpeg_folder, target, shards=3).num_resumed == num_resumed
    assert len(system.find("/made/x")) == 4
    for file in local.iterdir():
        assert system.cat_file(f"/made/x/{file.name}") == file.read_bytes()
    FlakyFileSystem.dies_at = "index.json"
    assert CliRunner().invoke(app, ["index", target]).exit_code
    assert system.cat_file("/made/x/index.json") == (local / "index.json").read_bytes()


def test_a_file_is_replaced_where_moving_replaces_nothing(
    url: str, local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def move(system: FlakyFileSystem, source: str, target: str, **options: Any) -> None:
        if system.exists(target):
            raise OSError("it exists")
        MemoryFileSystem.mv(system, source, target, **options)

    monkeypatch.setattr(FlakyFileSystem, "mv", move)
    made = RemoteFolder(url, Cache(folder=tmp_path)).make_index()
    assert made == json.loads((local / "index.json").read_bytes())
    assert not fsspec.filesystem("flaky").glob("/data/x/*.partial")


@pytest.mark.parametrize("pattern", ["tars/train-{0..2}.tar", "tars/train-*.tar"])
def test_patterns_name_files_at_urls(
    url: str, jpeg_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.setenv("RESPIPE_CACHE_DIR", str(tmp_path / "cache"))
    system = fsspec.filesystem("flaky")
    (tmp_path / "tars").mkdir()
    for number, name in enumerate(("ant", "bee", "cat")):
        path = tmp_path / "tars" / f"train-{number}.tar"
        with tarfile.open(path, "w") as tar:
            for file in sorted((jpeg_folder / name).iterdir()):
                tar.add(file, f"{name}{file.stem}.jpg")
                label = tarfile.TarInfo(f"{name}{file.stem}.cls")
                label.size = 1
                tar.addfile(label, io.BytesIO(b"%d" % number))
        system.pipe_file(f"/data/tars/{path.name}", path.read_bytes())
    convert_small(f"flaky://data/{pattern}", tmp_path / "x.beton")
    convert_small(str(tmp_path / pattern), tmp_path / "y.beton")
    assert (tmp_path / "x.beton").read_bytes() == (tmp_path / "y.beton").read_bytes()


def test_sources_that_are_missing_are_named(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESPIPE_CACHE_DIR", str(tmp_path / "cache"))
    for missing in ("flaky://data/nothing.tar", "flaky://data/*.tar"):
        with pytest.raises(StorageError, match=f"{re.escape(missing)} cannot be read: FileNotFoundError"):
            convert_small(missing, tmp_path / "x.beton")
