"""A folder at a URL that files are made in."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from respipe.errors import StorageError
from respipe.storage.beton.appendix import image_span
from respipe.storage.remote.access import NUM_THREADS, file_system, persistently
from respipe.storage.remote.cache import Cache
from respipe.storage.shards import INDEX, index_shards

# File systems where a file appears when it is whole, and moving it would copy it.
_OBJECT_STORES = {"s3", "gs", "abfs", "oss", "oci"}


class RemoteFolder:
    """A folder at a URL that files are made in: each is made in a local folder first, and then copied there.

    Args:
        url: of the folder.
        cache: whose folder has room for a file at a time.
    """

    def __init__(self, url: str, cache: Cache) -> None:
        self._url = url.rstrip("/")
        self._system, path = file_system(self._url)
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

        return persistently(self.url(name), look)

    def names(self) -> list[str]:
        """The ``.beton`` files in the folder."""

        def listed() -> list[str]:
            self._system.invalidate_cache()
            return sorted(str(path).rsplit("/", 1)[-1] for path in self._system.glob(f"{self._path}/*.beton"))

        return persistently(self._url, listed)

    def sketch(self, name: str) -> Path | None:
        """A file like the one at the URL without its images, which are a hole in it; None where there is none.

        :class:`BetonDataset` opens it: a few requests, however large the file.
        """
        size = self.size(name)
        if size is None:
            return None
        path = self._sketches / name

        def read(start: int, stop: int) -> bytes:
            data: bytes = persistently(
                self.url(name), lambda: self._system.cat_file(f"{self._path}/{name}", start=start, end=stop)
            )
            with path.open("r+b") as file:
                file.seek(start)
                file.write(data)
            return data

        path.write_bytes(b"")
        os.truncate(path, size)
        tables = image_span(read, size)
        if tables is None:
            raise StorageError(f"{self.url(name)} is not a .beton that respipe wrote. Remove it from the folder.")
        read(0, tables[0])
        read(tables[1], size)
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

        persistently(self.url(path.name), copy, "written")
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
        with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="respipe-fetch") as threads:
            list(threads.map(self.sketch, names))
        if self.size(INDEX) is not None:
            index: bytes = persistently(self.url(INDEX), lambda: self._system.cat_file(f"{self._path}/{INDEX}"))
            (self._sketches / INDEX).write_bytes(index)
        made = index_shards(self._sketches)
        self.put(self._sketches / INDEX)
        return made
