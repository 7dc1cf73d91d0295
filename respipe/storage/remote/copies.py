"""Opening datasets at URLs, by way of copies of their files: whole, or block by block."""

from __future__ import annotations

import itertools
import os
import re
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from respipe.errors import StorageError
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.remote.access import Remote, file_system, listed, look_up, mark_of, persistently
from respipe.storage.remote.cache import Cache, copied, entry_of
from respipe.storage.remote.fetched import fetch_tables, gives_parts, open_in_blocks
from respipe.storage.shards import ShardedDataset, open_shards

_CHUNK = 8 << 20


def open_remote(url: str, cache: Cache, *, on_demand: bool = False) -> BetonDataset | ShardedDataset:
    """Open a ``.beton`` file, or a folder of them with an index, at a URL.

    Where room is needed, copies of other datasets are removed that no process has open, least recently opened first.

    Args:
        url: of the file or folder.
        cache: where the copies are.
        on_demand: whether blocks of files are copied when they are read, as far as the server gives parts of files and
            respipe wrote them; else files are copied whole, once.

    Raises:
        StorageError: it cannot be read after several attempts, its checksums do not hold, or there is no room for it.
        MissingBackendError: fsspec, stamina, or what fsspec needs for such URLs is not installed.
    """
    remote = look_up(url)
    whole = not on_demand or _is_copied(remote, cache) or not gives_parts(remote)
    entry, in_use, num_bytes = copied(remote, cache, _fetch if whole else fetch_tables, whole=whole)
    try:
        if not whole:
            dataset = open_in_blocks(remote, entry, num_bytes)
        elif remote.index is not None:
            dataset = open_shards(entry)
        else:
            dataset = BetonDataset(entry / remote.names[0])
    except BaseException:
        os.close(in_use)
        raise
    held = _Held()
    weakref.finalize(held, os.close, in_use).atexit = False
    for file in dataset.shards if isinstance(dataset, ShardedDataset) else (dataset,):
        weakref.finalize(file, _Held.release, held).atexit = False
    return dataset


def _is_copied(remote: Remote, cache: Cache) -> bool:
    return all((entry_of(remote, cache) / name).exists() for name in remote.names)


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
        system, path = file_system(url)
        base = str(file_system(root)[1]).rstrip("/")
        for name, about in persistently(url, partial(listed, system, path)).items():
            found[name[len(base) :].lstrip("/")] = name, int(about["size"])
            marks.append(f"{name} {mark_of(about)}")
    remote = Remote(urls[0], file_system(root)[0], found, None, "\n".join(sorted(marks)))
    entry, _, _ = copied(remote, cache, _fetch)
    return entry


def root_of(urls: Sequence[str]) -> str:
    """The folder that everything which some patterns name is in."""
    parts = [re.split(r"[*?\[]", url, maxsplit=1)[0].rstrip("/").split("/")[:-1] for url in urls]
    shared = [names[0] for names in zip(*parts, strict=False)]
    alike = (len(set(names)) == 1 for names in zip(*parts, strict=False))
    return "/".join(itertools.compress(shared, itertools.accumulate(alike, min))) + "/"


def _fetch(remote: Remote, entry: Path, name: str) -> None:
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

    persistently(remote.url_of(name), copy)
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
