"""Copies of ``.beton`` files of which only the blocks are there that were asked for."""

from __future__ import annotations

import logging
import os
import time
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from respipe.errors import StorageError
from respipe.storage.beton.appendix import image_span
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.beton.format import align
from respipe.storage.dataset import Bytes
from respipe.storage.remote.access import Remote, persistently
from respipe.storage.remote.blocks import BLOCK, Blocks, Lease
from respipe.storage.shards import ShardedDataset, open_shards

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.02


class FetchedBeton(BetonDataset):
    """A copy of a ``.beton`` of which only the blocks are there that were asked for.

    Args:
        path: the copy.
        url: of the original, for errors.
    """

    def __init__(self, path: Path, url: str) -> None:
        super().__init__(path)
        self._url = url

    def encoded(self, index: int, level: int = 0) -> Bytes:
        """The stored bytes of one image, fetched if need be: (n,) uint8, read-only."""
        lease = self._hold(index, level)
        data = super().encoded(index, level)
        return data if lease is None else data.copy()

    def problem(self, index: int, level: int = 0) -> str | None:
        """See :class:`BetonDataset`; what was damaged on its way, or on this disk, is fetched again first."""
        lease = self._hold(index, level)
        found = super().problem(index, level)
        if found is not None:
            logger.warning("%s: fetching sample %d again: %s", self._url, index, found)
            blocks, *place = self._where(index, level)
            blocks.fetch_again(*place)
            found = super().problem(index, level)
        del lease
        return found

    def _where(self, index: int, level: int) -> tuple[Blocks, int, int, int]:
        assert self.place is not None, "it is fetched from somewhere"
        stored = self.levels[level]
        source, number = self.place
        return cast("Blocks", source), number, int(stored.offsets[index]), int(stored.sizes[index])

    def _hold(self, index: int, level: int) -> Lease | None:
        """A lease of an image, which is there; None where another one keeps it."""
        blocks, *place = self._where(index, level)
        if blocks.is_held(*place):
            return None
        arrays = [np.array([one], np.int64) for one in place]
        while (lease := blocks.hold(*arrays)) is None:
            time.sleep(_POLL_SECONDS)
        lease.wait()
        return lease

    def revision(self) -> int:
        """Always 0: the copy is written to all the time."""
        return 0

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError(f"{self._url} is fetched in parts, and cannot be pickled. Open the URL where it is used.")


def open_in_blocks(remote: Remote, entry: Path, limit: float) -> BetonDataset | ShardedDataset:
    """Open the copies that ``fetch_tables`` has made in a folder, where they may take so many bytes together."""
    paths = [entry / name for name in remote.files]
    files = [FetchedBeton(path, remote.url_of(path.name)) for path in paths]
    blocks = Blocks(paths, [_images_in(path) for path in paths], limit=limit, read=partial(_read_part, remote))
    for number, file in enumerate(files):
        file.place = blocks, number
    return files[0] if remote.index is None else open_shards(entry, files)


def gives_parts(remote: Remote) -> bool:
    """Whether a server sends parts of files, and these are respipe's."""
    name, (path, size) = next(iter(remote.files.items()))

    def look() -> bool:
        with remote.system.open(path, "rb", block_size=BLOCK) as source:
            try:
                source.seek(1)
            except ValueError:  # a server without ranges
                return False
        return image_span(lambda start, stop: remote.system.cat_file(path, start=start, end=stop), size) is not None

    return persistently(remote.url_of(name), look)


def _read_part(remote: Remote, number: int, start: int, stop: int) -> bytes:
    """Some bytes of a file."""
    name, (path, _) = list(remote.files.items())[number]

    def read() -> bytes:
        data: bytes = remote.system.cat_file(path, start=start, end=stop)
        if len(data) != stop - start:
            raise OSError(f"{len(data)} bytes came of {stop - start}")
        return data

    return persistently(remote.url_of(name), read)


def fetch_tables(remote: Remote, entry: Path, name: str) -> None:
    """Make a copy of a file without its images, unless there is one."""
    target, unfinished, number = entry / name, entry / f"{name}.partial", list(remote.files).index(name)
    size = remote.files[name][1]
    if target.exists():
        return

    def copy() -> None:
        tables = image_span(partial(_read_part, remote, number), size)
        if tables is None:
            raise StorageError(f"{remote.url_of(name)} was not written by respipe, as others there. Convert it anew.")
        unfinished.write_bytes(b"")
        os.truncate(unfinished, size)
        with unfinished.open("r+b") as file:
            for start, stop in ((0, align(tables[0], BLOCK)), (tables[1] // BLOCK * BLOCK, size)):
                file.seek(start)
                file.write(_read_part(remote, number, start, min(stop, size)))
        try:
            BetonDataset(unfinished).close()
        except StorageError as error:
            raise OSError(str(error)) from error

    persistently(remote.url_of(name), copy)
    unfinished.replace(target)


def _images_in(path: Path) -> tuple[int, int]:
    """Where the images in a file begin and end."""
    with path.open("rb") as file:

        def read(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        tables = image_span(read, path.stat().st_size)
    assert tables is not None, "it was looked at when it was copied"
    return tables
