"""A folder with local copies of remote files, of bounded size, for all processes of a machine.

It has one folder for each dataset that was opened, named after URL and contents. In it lie the copies and
``copy.json``, which says what is or will be there. Folders without a ``copy.json`` of ours are not the cache's, and
left alone. Locks keep the processes of a machine from copying a file twice, and from removing what another one has
open; the system releases those of a killed process.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from respipe.errors import StorageError
from respipe.storage.remote.access import NUM_REQUESTS, NUM_THREADS, Remote
from respipe.storage.shards import INDEX

logger = logging.getLogger(__name__)

_ABOUT, _FORMAT = "copy.json", "respipe copy 1"
_STALL_SECONDS = 300.0
_POLL_SECONDS = 0.2

# A dataset that does not fit leaves room for others, such as that of the evaluation.
_SHARE_OF_LARGE = 0.75

STATE, PINS = "blocks", "pins."
"""Names of what lies beside copies in blocks; see :mod:`respipe.storage.remote.blocks`."""


@dataclass(frozen=True, kw_only=True)
class Cache:
    """Where copies of remote files are kept.

    Args:
        folder: made where it is missing. Default: ``RESPIPE_CACHE_DIR``, else ``~/.cache/respipe``.
        num_bytes: what all copies in it may take together; 0 for no limit. Default: ``RESPIPE_CACHE_BYTES``, else 0.
        share: of the limit, what a dataset may take whose blocks are copied when they are read.

    Raises:
        ValueError: ``num_bytes`` is negative or no number.
    """

    folder: str | os.PathLike[str] | None = None
    num_bytes: float | None = None
    share: float = 1.0

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


def entry_of(remote: Remote, cache: Cache, *, whole: bool = True) -> Path:
    """The folder for the copies of a dataset."""
    kind = "" if whole else " blocks"
    key = hashlib.sha256(f"{remote.url}\0{remote.version}{kind}".encode()).hexdigest()[:16]
    return cache.root / f"{key}-{re.sub(r'[^A-Za-z0-9._-]', '_', Path(remote.url.rstrip('/')).name)}"


def copied(
    remote: Remote, cache: Cache, fetch: Callable[[Remote, Path, str], None], *, whole: bool = True
) -> tuple[Path, int, int]:
    """Have copies of a dataset's files, as ``fetch`` makes them of each in a folder.

    Args:
        remote: the files.
        cache: where the copies are.
        fetch: makes a copy, given the folder and the name, unless it is there.
        whole: whether the copies are whole.

    Returns:
        The folder, the descriptor that holds the copies there, and the bytes that they may take.
    """
    entry = entry_of(remote, cache, whole=whole)
    in_use, num_bytes = _make_room(entry, remote, cache, whole=whole)
    try:
        with locked(entry / "copying.lock", lambda: _size(entry)):
            count = NUM_THREADS if whole else NUM_REQUESTS
            with ThreadPoolExecutor(count, thread_name_prefix="respipe-fetch") as threads:
                list(threads.map(partial(fetch, remote, entry), remote.files))
            if remote.index is not None:
                _write(entry / INDEX, remote.index)
    except BaseException:
        os.close(in_use)
        raise
    return entry, in_use, num_bytes


def _make_room(entry: Path, remote: Remote, cache: Cache, *, whole: bool) -> tuple[int, int]:
    """Reserve the cache's bytes for a dataset: for all of it, or for as much as there is room for.

    Returns:
        The descriptor whose lock tells others that the dataset is in use, and the bytes.
    """
    if whole and remote.num_bytes > cache.limit:
        raise StorageError(
            f"{remote.url} takes {remote.num_bytes:,} bytes and is copied whole, more than the {cache.limit:,.0f} of "
            "`cache_bytes`. Raise it, or train on fewer shards."
        )
    cache.root.mkdir(parents=True, exist_ok=True)
    with locked(cache.root / "respipe.lock"):
        if not whole and _is_in_use(entry):
            needed = _about(entry / _ABOUT)["num_bytes"]  # as others count on it
            (entry / _ABOUT).touch()
        else:
            needed = _freed(entry, remote, cache, whole=whole)
            entry.mkdir(exist_ok=True)
            names = [*remote.names, *([] if whole else [STATE])]
            about = {"format": _FORMAT, "url": remote.url, "num_bytes": needed, "files": names}
            _write(entry / _ABOUT, json.dumps(about).encode())
        descriptor = os.open(entry / "use.lock", os.O_RDWR | os.O_CREAT, 0o666)
        lock_file(descriptor, "LOCK_SH")
        return descriptor, needed


def _freed(entry: Path, remote: Remote, cache: Cache, *, whole: bool) -> int:
    """Remove copies of other datasets until there is room for one; the bytes that it may take."""
    limit, needed = cache.limit, remote.num_bytes
    if not whole and needed > limit * cache.share:
        needed = int(limit * cache.share * _SHARE_OF_LARGE)
    others = {path.parent: _about(path) for path in cache.root.glob(f"*/{_ABOUT}") if path.parent != entry}
    used = sum(about["num_bytes"] for about in others.values())
    for other in sorted(others, key=lambda path: (path / _ABOUT).stat().st_mtime):
        if used + needed > limit and _remove(other, others[other]):
            used -= others[other]["num_bytes"]
    if not whole:
        needed = int(min(needed, limit - used))
    if used + needed > limit or needed <= 0:
        raise StorageError(
            f"{remote.url} takes {remote.num_bytes:,} bytes, and {used:,} of the {limit:,.0f} of `cache_bytes` in "
            f"{cache.root} hold datasets that are in use. Raise it, or choose another `cache_dir`."
        )
    return needed


def _is_in_use(entry: Path) -> bool:
    """Whether a process has the copies of a dataset open."""
    try:
        descriptor = os.open(entry / "use.lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        lock_file(descriptor, "LOCK_EX", "LOCK_NB")
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


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
        lock_file(descriptor, "LOCK_EX", "LOCK_NB")
    except BlockingIOError:
        return False
    else:
        logger.info("%s: removed to make room", entry)
        names = [name for file in about["files"] for name in (file, f"{file}.partial")]
        pins = (path.name for path in entry.glob(f"{PINS}*"))
        for name in (*names, *pins, "blocks.lock", "copying.lock", "use.lock", _ABOUT):
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


def lock_file(descriptor: int, *how: str) -> None:
    """``flock`` by the names of its flags."""
    import fcntl  # not on every system

    fcntl.flock(descriptor, sum(getattr(fcntl, name) for name in how))


@contextmanager
def locked(
    path: Path, progress: Callable[[], int] = lambda: 0, *, poll: float = _POLL_SECONDS
) -> Generator[None, None, None]:
    """Have a lock, for which there is no limit to wait as long as whoever has it makes progress.

    Args:
        path: of the lock.
        progress: gives a number that changes with it.
        poll: seconds between attempts.

    Raises:
        StorageError: it made none for long.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        seen, deadline = -2, 0.0
        while True:
            try:
                lock_file(descriptor, "LOCK_EX", "LOCK_NB")
                break
            except BlockingIOError:
                if (now := progress()) != seen:
                    seen, deadline = now, time.monotonic() + _STALL_SECONDS
                if time.monotonic() > deadline:
                    raise StorageError(
                        f"{path} is locked by a process that has made no progress for {_STALL_SECONDS:g} s. End it "
                        "and run the same again."
                    ) from None
            time.sleep(poll)
        yield
    finally:
        os.close(descriptor)
