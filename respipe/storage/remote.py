"""Datasets at URLs, by way of local copies of their files in a cache of bounded size.

A cache is a folder with one folder for each dataset that was opened, named after URL and contents. In it lie the copies
and ``copy.json``, which says what is or will be there. A copy gets its name when it is whole and its checksums hold.
Folders without a ``copy.json`` of ours are not the cache's, and left alone. Locks keep the processes of a machine from
copying a file twice, and from removing what another one has open; the system releases those of a killed process.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from respipe.errors import MissingBackendError, StorageError
from respipe.storage.beton.appendix import FOOTER
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.beton.format import FIELD, HEADER, FieldType, metadata_dtype
from respipe.storage.shards import INDEX, ShardedDataset, index_entries, index_shards, open_shards

logger = logging.getLogger(__name__)

T = TypeVar("T")

_ABOUT, _FORMAT = "copy.json", "respipe copy 1"
_CHUNK = 8 << 20
_NUM_THREADS = 4
_ATTEMPTS = 6
_STALL_SECONDS = 300.0
_POLL_SECONDS = 0.2

# Trying again changes nothing about these.
_LASTING = (FileNotFoundError, PermissionError, NotImplementedError, ImportError, MemoryError, StorageError, TypeError)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# File systems where a file appears when it is whole, and moving it would copy it.
_OBJECT_STORES = {"s3", "gs", "abfs", "oss", "oci"}


def is_url(data: object) -> bool:
    """Whether something is the URL of a file system that fsspec knows, such as ``s3://bucket/train/``."""
    return isinstance(data, str) and re.match(r"[A-Za-z][A-Za-z0-9+.:-]*://", data) is not None


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Where copies of remote files are kept.

    Args:
        folder: made where it is missing. Default: ``RESPIPE_CACHE_DIR``, else ``~/.cache/respipe``.
        num_bytes: what all copies in it may take together; 0 for no limit. Default: ``RESPIPE_CACHE_BYTES``, else 0.

    Raises:
        ValueError: ``num_bytes`` is negative or no number.
    """

    folder: str | os.PathLike[str] | None = None
    num_bytes: float | None = None

    @property
    def root(self) -> Path:
        """The folder."""
        chosen = self.folder or os.environ.get("RESPIPE_CACHE_DIR")
        return Path(chosen) if chosen else Path.home() / ".cache" / "respipe"

    @property
    def limit(self) -> float:
        """Bytes that copies may take, infinity for any number."""
        limit = float(os.environ.get("RESPIPE_CACHE_BYTES", "0") if self.num_bytes is None else self.num_bytes)
        if not limit >= 0:
            raise ValueError(f"`cache_bytes` must be at least 0; got {limit}. Use 0 for no limit.")
        return limit or float("inf")


@dataclass(frozen=True)
class _Remote:
    """The files of a dataset at a URL, with their lengths; the index, of several files; and what tells of a change."""

    url: str
    system: Any
    files: dict[str, tuple[str, int]]
    index: bytes | None
    version: str

    @property
    def num_bytes(self) -> int:
        return sum(size for _, size in self.files.values()) + len(self.index or b"")


def open_remote(url: str, cache: Cache) -> BetonDataset | ShardedDataset:
    """Open a ``.beton`` file, or a folder of them with an index, at a URL: its files are copied whole, once.

    Where room is needed, copies of other datasets are removed that no process has open, least recently opened first.

    Raises:
        StorageError: it cannot be read after several attempts, its checksums do not hold, or there is no room for it.
        MissingBackendError: fsspec, stamina, or what fsspec needs for such URLs is not installed.
    """
    remote = _look_up(url)
    entry, in_use = _copied(remote, cache)
    try:
        dataset = open_shards(entry) if remote.index is not None else BetonDataset(entry / next(iter(remote.files)))
    except BaseException:
        os.close(in_use)
        raise
    held = _Held()
    weakref.finalize(held, os.close, in_use).atexit = False
    for file in dataset.shards if isinstance(dataset, ShardedDataset) else (dataset,):
        weakref.finalize(file, _Held.release, held).atexit = False
    return dataset


def _copied(remote: _Remote, cache: Cache) -> tuple[Path, int]:
    """The folder with copies of files, and the descriptor that holds them there."""
    key = hashlib.sha256(f"{remote.url}\0{remote.version}".encode()).hexdigest()[:16]
    entry = cache.root / f"{key}-{re.sub(r'[^A-Za-z0-9._-]', '_', Path(remote.url.rstrip('/')).name)}"
    in_use = _make_room(entry, remote, cache)
    try:
        with _locked(entry / "copying.lock", lambda: _size(entry)):
            with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="respipe-fetch") as threads:
                list(threads.map(partial(_fetch, remote, entry), remote.files))
            if remote.index is not None:
                _write(entry / INDEX, remote.index)
    except BaseException:
        os.close(in_use)
        raise
    return entry, in_use


class _Held:
    """A lock for as long as any of several files is open, which may part from their dataset."""

    def release(self) -> None:
        """Let a file's hold of it go."""


def copy_files(urls: Sequence[str], cache: Cache) -> Path:
    """Copy what some URLs name: files, folders, and patterns, below the folder that all of them are in.

    The copies stay as long as this process does, and until the cache needs room.

    Args:
        urls: of one file system, such as those that a pattern with braces stands for.
        cache: where to.

    Returns:
        The folder of the copies.

    Raises:
        StorageError, MissingBackendError: see :func:`open_remote`.
    """
    root = root_of(urls)
    found: dict[str, tuple[str, int]] = {}
    marks: list[str] = []
    for url in urls:
        system, path = _file_system(url)
        base = str(_file_system(root)[1]).rstrip("/")
        for name, about in _persistently(url, partial(_listed, system, path)).items():
            found[name[len(base) :].lstrip("/")] = name, int(about["size"])
            marks.append(f"{name} {_mark(about)}")
    remote = _Remote(urls[0], _file_system(root)[0], found, None, "\n".join(sorted(marks)))
    entry, _ = _copied(remote, cache)
    return entry


def root_of(urls: Sequence[str]) -> str:
    """The folder that everything which some patterns name is in."""
    parts = [re.split(r"[*?\[]", url, maxsplit=1)[0].rstrip("/").split("/")[:-1] for url in urls]
    shared = [names[0] for names in zip(*parts, strict=False)]
    alike = (len(set(names)) == 1 for names in zip(*parts, strict=False))
    return "/".join(itertools.compress(shared, itertools.accumulate(alike, min))) + "/"


def _listed(system: Any, path: str) -> dict[str, dict[str, Any]]:
    """What a path or pattern names: files with what is known of them."""
    if any(sign in path for sign in "*?["):
        found = dict(system.glob(path, detail=True))
    elif (about := system.info(path))["type"] == "file":
        found = {path: about}
    else:
        found = dict(system.find(path, detail=True))
    files = {name: about for name, about in found.items() if about["type"] == "file"}
    if not files:
        raise FileNotFoundError(path)
    return files


def _mark(about: Mapping[str, Any]) -> str:
    """What changes with a file."""
    marks = [str(about[name]) for name in ("ETag", "mtime", "LastModified", "created") if about.get(name)]
    return " ".join([str(about["size"]), *marks])


def _file_system(url: str) -> tuple[Any, str]:
    """Fsspec's file system for a URL, and the path on it."""
    try:
        import fsspec.core
    except ImportError as error:
        raise MissingBackendError(f"{url} needs fsspec: pip install 'respipe[remote]'.") from error
    try:
        return cast("Any", fsspec.core).url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise MissingBackendError(f"{url} needs more than is installed: {error}") from error


class RemoteFolder:
    """A folder at a URL that files are made in: each is made in a local folder first, and then copied there.

    Args:
        url: of the folder.
        cache: whose folder has room for a file at a time.
    """

    def __init__(self, url: str, cache: Cache) -> None:
        self._url = url.rstrip("/")
        self._system, path = _file_system(self._url)
        self._path = str(path).rstrip("/")
        self.scratch = cache.root / f"made-{hashlib.sha256(self._url.encode()).hexdigest()[:16]}"
        self.scratch.mkdir(parents=True, exist_ok=True)
        # Of this process alone: others may be making other files of the folder.
        self._sketches = Path(tempfile.mkdtemp(prefix="tables-", dir=self.scratch))
        weakref.finalize(self, shutil.rmtree, self._sketches, ignore_errors=True)

    def url(self, name: str) -> str:
        """That of a file."""
        return f"{self._url}/{name}"

    def size(self, name: str) -> int | None:
        """Bytes of a file, or None where there is none."""

        def look() -> int | None:
            self._system.invalidate_cache()
            try:
                return int(self._system.info(f"{self._path}/{name}")["size"])
            except FileNotFoundError:
                return None

        return _persistently(self.url(name), look)

    def names(self) -> list[str]:
        """The ``.beton`` files in the folder."""

        def listed() -> list[str]:
            self._system.invalidate_cache()
            return sorted(str(path).rsplit("/", 1)[-1] for path in self._system.glob(f"{self._path}/*.beton"))

        return _persistently(self._url, listed)

    def sketch(self, name: str) -> Path | None:
        """A file like the one at the URL without its images, which are a hole in it; None where there is none.

        :class:`BetonDataset` opens it: a few requests, however large the file.
        """
        size = self.size(name)
        if size is None:
            return None
        path = self._sketches / name

        def read(start: int, stop: int) -> bytes:
            data: bytes = _persistently(
                self.url(name), lambda: self._system.cat_file(f"{self._path}/{name}", start=start, end=stop)
            )
            with path.open("r+b") as file:
                file.seek(start)
                file.write(data)
            return data

        path.write_bytes(b"")
        os.truncate(path, size)
        header = np.frombuffer(read(0, HEADER.itemsize), HEADER)[0]
        end = HEADER.itemsize + int(header["num_fields"]) * FIELD.itemsize
        table, alloc = np.frombuffer(read(HEADER.itemsize, end), FIELD), int(header["alloc_table_ptr"])
        row = metadata_dtype([FieldType(int(entry["type_id"])) for entry in table])
        read(end, end + int(header["num_samples"]) * row.itemsize)
        footer = np.frombuffer(read(alloc - FOOTER.itemsize, alloc), FOOTER)[0]
        read(int(footer["start"]), size)
        return path

    def put(self, path: Path) -> None:
        """Copy a file to the folder, where it gets its name when it is whole, and remove it here."""
        protocols = self._system.protocol
        whole = not _OBJECT_STORES.isdisjoint([protocols] if isinstance(protocols, str) else protocols)
        name = path.name if whole else f"{path.name}.partial"

        def copy() -> None:
            self._system.makedirs(self._path, exist_ok=True)
            self._system.put_file(str(path), f"{self._path}/{name}")
            if (size := self.size(name)) != path.stat().st_size:
                raise OSError(f"{size} bytes arrived of {path.stat().st_size}")
            if not whole:
                self._rename(name, path.name)

        _persistently(self.url(path.name), copy, "written")
        path.unlink()

    def _rename(self, name: str, target: str) -> None:
        source, target = f"{self._path}/{name}", f"{self._path}/{target}"
        try:
            self._system.mv(source, target)
        except OSError:
            if not (self._system.exists(source) and self._system.exists(target)):
                raise
            self._system.rm_file(target)  # some, such as HDFS, replace nothing
            self._system.mv(source, target)

    def make_index(self) -> dict[str, Any]:
        """Make or renew the folder's index, from the tables of its files; returns it.

        Raises:
            StorageError: see :func:`respipe.storage.shards.index_shards`.
        """
        names = self.names()
        for path in self._sketches.iterdir():
            path.unlink()
        with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="respipe-fetch") as threads:
            list(threads.map(self.sketch, names))
        if self.size(INDEX) is not None:
            index: bytes = _persistently(self.url(INDEX), lambda: self._system.cat_file(f"{self._path}/{INDEX}"))
            (self._sketches / INDEX).write_bytes(index)
        made = index_shards(self._sketches)
        self.put(self._sketches / INDEX)
        return made


def _look_up(url: str) -> _Remote:
    system, path = _file_system(url)
    path = str(path).rstrip("/")
    if path.endswith(".beton"):
        about: dict[str, Any] = _persistently(url, lambda: system.info(path))
        return _Remote(url, system, {path.rsplit("/", 1)[-1]: (path, int(about["size"]))}, None, _mark(about))
    index: bytes = _persistently(f"{url.rstrip('/')}/{INDEX}", lambda: system.cat_file(f"{path}/{INDEX}"))
    try:
        entries = index_entries(json.loads(index))
    except ValueError:
        entries = None
    if entries is None:
        raise StorageError(f"{url} has an {INDEX} that is damaged or of something else. Make it with `respipe index`.")
    files = {entry.name: (f"{path}/{entry.name}", entry.num_bytes) for entry in entries}
    return _Remote(url, system, files, index, hashlib.sha256(index).hexdigest())


def _persistently(url: str, read: Callable[[], T], what: str = "read") -> T:
    """What ``read`` returns, with several attempts.

    Raises:
        StorageError: it failed every time; the message names the URL and the last error.
    """
    try:
        import stamina
    except ImportError as error:
        raise MissingBackendError(f"{url} needs stamina: pip install 'respipe[remote]'.") from error
    try:
        for attempt in stamina.retry_context(on=_may_pass, attempts=_ATTEMPTS, timeout=None):
            with attempt:
                return read()
    except (StorageError, MemoryError):
        raise
    except Exception as error:
        # File systems raise what their libraries do; whatever it is, it is about this URL.
        tries = f" in {_ATTEMPTS} attempts" if _may_pass(error) else ""
        raise StorageError(
            f"{url} cannot be {what}{tries}: {type(error).__name__}: {error}. Check the address, the credentials and "
            "the network; what was copied is kept."
        ) from error
    raise AssertionError("an attempt returns or raises")


def _may_pass(error: Exception) -> bool:
    return not isinstance(error, _LASTING) and not (isinstance(error, OSError) and error.errno in _FULL)


def _fetch(remote: _Remote, entry: Path, name: str) -> None:
    """Copy a file, unless it was."""
    target = entry / name
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    path, size = remote.files[name]
    unfinished = Path(f"{target}.partial")

    def copy() -> None:
        done = unfinished.stat().st_size if unfinished.exists() else 0
        if done > size:
            unfinished.unlink()
            done = 0
        with remote.system.open(path, "rb", block_size=_CHUNK) as source, unfinished.open("ab") as out:
            if done:
                try:
                    source.seek(done)
                except ValueError:  # a server without ranges
                    out.truncate(0)
                    done = 0
            while done <= size and (chunk := source.read(_CHUNK)):
                out.write(chunk)
                done += len(chunk)
        if done != size:
            if done > size:
                unfinished.unlink()
            raise OSError(f"{done} bytes came of {size}")
        if name.endswith(".beton") and (problem := _problem(unfinished)) is not None:
            unfinished.unlink()
            raise OSError(problem)

    url = remote.url if remote.index is None else f"{remote.url.rstrip('/')}/{name}"
    _persistently(url, copy)
    unfinished.replace(target)


def _problem(path: Path) -> str | None:
    """What is wrong with a copy: its tables, or an image that differs from its checksum."""
    try:
        dataset = BetonDataset(path)
    except StorageError as error:
        return str(error)
    try:
        if dataset.levels[0].checksums is None:
            return None
        places = ((index, level) for level in range(len(dataset.levels)) for index in range(len(dataset)))
        found = next((place for place in places if dataset.problem(*place) is not None), None)
        return None if found is None else f"sample {found[0]} differs from its checksum"
    finally:
        dataset.close()


def _make_room(entry: Path, remote: _Remote, cache: Cache) -> int:
    """Reserve the cache's bytes for a dataset; returns the descriptor whose lock tells others that it is in use."""
    limit, needed = cache.limit, remote.num_bytes
    if needed > limit:
        raise StorageError(
            f"{remote.url} takes {needed:,} bytes and is copied whole, more than the {limit:,.0f} of `cache_bytes`. "
            "Raise it, or train on fewer shards."
        )
    cache.root.mkdir(parents=True, exist_ok=True)
    with _locked(cache.root / "respipe.lock", lambda: 0):
        others = {path.parent: _about(path) for path in cache.root.glob(f"*/{_ABOUT}") if path.parent != entry}
        used = sum(about["num_bytes"] for about in others.values())
        for other in sorted(others, key=lambda path: (path / _ABOUT).stat().st_mtime):
            if used + needed > limit and _remove(other, others[other]):
                used -= others[other]["num_bytes"]
        if used + needed > limit:
            raise StorageError(
                f"{remote.url} takes {needed:,} bytes, and {used:,} of the {limit:,.0f} of `cache_bytes` in "
                f"{cache.root} hold datasets that are in use. Raise it, or choose another `cache_dir`."
            )
        entry.mkdir(exist_ok=True)
        names = [*remote.files, *([INDEX] if remote.index is not None else [])]
        about = {"format": _FORMAT, "url": remote.url, "num_bytes": needed, "files": names}
        _write(entry / _ABOUT, json.dumps(about).encode())
        descriptor = os.open(entry / "use.lock", os.O_RDWR | os.O_CREAT, 0o666)
        _lock(descriptor, "LOCK_SH")
        return descriptor


def _about(path: Path) -> dict[str, Any]:
    try:
        about = json.loads(path.read_bytes())
        if about["format"] != _FORMAT:
            raise ValueError(about["format"])
        return {"num_bytes": int(about["num_bytes"]), "files": [str(name) for name in about["files"]]}
    except (OSError, ValueError, KeyError, TypeError):
        return {"num_bytes": 0, "files": []}  # somebody else's, which stays


def _remove(entry: Path, about: dict[str, Any]) -> bool:
    """Remove the copies of a dataset; False where a process has it open."""
    if not about["files"]:
        return False
    descriptor = os.open(entry / "use.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, "LOCK_EX", "LOCK_NB")
    except BlockingIOError:
        return False
    else:
        logger.info("%s: removed to make room", entry)
        names = [name for file in about["files"] for name in (file, f"{file}.partial")]
        for name in (*names, "copying.lock", "use.lock", _ABOUT):
            (entry / name).unlink(missing_ok=True)
        with suppress(OSError):  # somebody else has put something there
            for folder in sorted({parent for name in names for parent in Path(name).parents}, reverse=True):
                (entry / folder).rmdir()
        return True
    finally:
        os.close(descriptor)


def _size(entry: Path) -> int:
    """Bytes in a folder, which another process may be writing to."""
    with suppress(FileNotFoundError):
        return sum(path.stat().st_size for path in entry.iterdir())
    return -1


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    partial.replace(path)


def _lock(descriptor: int, *how: str) -> None:
    import fcntl  # not on every system

    fcntl.flock(descriptor, sum(getattr(fcntl, name) for name in how))


@contextmanager
def _locked(path: Path, progress: Callable[[], int]) -> Generator[None, None, None]:
    """Have a lock, for which there is no limit to wait as long as whoever has it makes progress.

    Raises:
        StorageError: it made none for long.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        seen, deadline = -2, 0.0
        while True:
            try:
                _lock(descriptor, "LOCK_EX", "LOCK_NB")
                break
            except BlockingIOError:
                if (now := progress()) != seen:
                    seen, deadline = now, time.monotonic() + _STALL_SECONDS
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"{path} is locked by a process that has made no progress for {_STALL_SECONDS:g} s. End it "
                        "and run the same again."
                    ) from None
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)
