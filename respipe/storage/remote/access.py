"""What is at a URL, by way of fsspec, and trying again where a connection is lost."""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from respipe.errors import MissingBackendError, StorageError
from respipe.storage.shards import INDEX, index_entries

T = TypeVar("T")

NUM_THREADS = 4
"""Files that are copied whole at a time."""

NUM_REQUESTS = 32
"""Parts of files that are fetched at a time."""

_ATTEMPTS = 6

# Trying again changes nothing about these.
_LASTING = (FileNotFoundError, PermissionError, NotImplementedError, ImportError, MemoryError, StorageError, TypeError)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_url(data: object) -> bool:
    """Whether something is the URL of a file system that fsspec knows, such as ``s3://bucket/train/``."""
    return isinstance(data, str) and re.match(r"[A-Za-z][A-Za-z0-9+.:-]*://", data) is not None


@dataclass(frozen=True)
class Remote:
    """The files of a dataset at a URL, with their lengths; the index, of several files; and what tells of a change."""

    url: str
    system: Any
    files: dict[str, tuple[str, int]]
    index: bytes | None
    version: str

    @property
    def names(self) -> list[str]:
        """Names of all files, as they are in a folder of copies."""
        return [*self.files, *([INDEX] if self.index is not None else [])]

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files.values()) + len(self.index or b"")

    def url_of(self, name: str) -> str:
        """That of a file."""
        return self.url if self.index is None else f"{self.url.rstrip('/')}/{name}"


def look_up(url: str) -> Remote:
    """What is at the URL of a ``.beton``, or of a folder of them with an index."""
    system, path = file_system(url)
    path = str(path).rstrip("/")
    if path.endswith(".beton"):
        about: dict[str, Any] = persistently(url, lambda: system.info(path))
        return Remote(url, system, {path.rsplit("/", 1)[-1]: (path, int(about["size"]))}, None, mark_of(about))
    index: bytes = persistently(f"{url.rstrip('/')}/{INDEX}", lambda: system.cat_file(f"{path}/{INDEX}"))
    try:
        entries = index_entries(json.loads(index))
    except ValueError:
        entries = None
    if entries is None:
        raise StorageError(f"{url} has an {INDEX} that is damaged or of something else. Make it with `respipe index`.")
    files = {entry.name: (f"{path}/{entry.name}", entry.num_bytes) for entry in entries}
    return Remote(url, system, files, index, hashlib.sha256(index).hexdigest())


def file_system(url: str) -> tuple[Any, str]:
    """Fsspec's file system for a URL, and the path on it."""
    try:
        import fsspec.core
    except ImportError as error:
        raise MissingBackendError(f"{url} needs fsspec: pip install 'respipe[remote]'.") from error
    try:
        return cast("Any", fsspec.core).url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise MissingBackendError(f"{url} needs more than is installed: {error}") from error


def listed(system: Any, path: str) -> dict[str, dict[str, Any]]:
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


def mark_of(about: Mapping[str, Any]) -> str:
    """What changes with a file."""
    marks = [str(about[name]) for name in ("ETag", "mtime", "LastModified", "created") if about.get(name)]
    return " ".join([str(about["size"]), *marks])


def persistently(url: str, read: Callable[[], T], what: str = "read") -> T:
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
