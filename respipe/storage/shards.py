"""Several ``.beton`` files as one dataset: a list of them, or a folder with an index.

``index.json`` says which files a folder is made of, in their order, and what each must be::

    {"format": "respipe shards 1", "num_samples": 1281167, "fingerprint": "...", "classes": [...], "settings": {...},
     "shards": [{"name": "shard-00000-of-00064.beton", "num_samples": 20018, "num_bytes": ..., "fingerprint": "..."}]}
"""

from __future__ import annotations

import functools
import json
import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields as fields_of
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from respipe.errors import CorruptImageError, StorageError
from respipe.storage.beton.dataset import BetonDataset, fingerprint_of, map_file
from respipe.storage.dataset import Bytes, Level
from respipe.storage.fetching import FetchedFiles
from respipe.storage.fields import Column, joined

logger = logging.getLogger(__name__)

INDEX = "index.json"
_FORMAT = "respipe shards 1"

_TABLES = tuple(field.name for field in fields_of(Level) if field.name not in ("name", "buffers"))

# Opening a file waits for its disk or server as long as it takes to read its tables.
_NUM_THREADS = 8

# Asking for the state of a thousand files takes longer than planning a batch.
_LOOKED_AT = 32


class ShardedDataset:
    """Several ``.beton`` files as one dataset, their samples one after the other.

    It equals the single file that holds the same samples: in fingerprint, so in every plan, and in pixels and states.
    Opening reads the tables of all files, about a millisecond for each.

    Args:
        paths: the files, in order; some may be open.
        path: the folder that they make up, for reports. Default: the one that all of them are in.
        label_field: name of the field that is the label; see :class:`respipe.storage.beton.dataset.BetonDataset`.

    Raises:
        StorageError: a file is missing, not a sound ``.beton``, or differs from the first one in its levels, classes,
            fields or settings. The message names it.
        ValueError: there are no paths.
    """

    kind = "shards"

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str] | BetonDataset],
        *,
        path: Path | None = None,
        label_field: str | None = None,
    ) -> None:
        if not paths:
            raise ValueError("`data` must name at least one .beton file; got an empty list.")
        self._shards = _open_all(paths, label_field)
        self._paths = tuple(shard.path for shard in self._shards)
        self._path, self._label_field = path, label_field
        first = self._shards[0]
        for shard in self._shards[1:]:
            check_alike(first, shard)
        counts = np.array([len(shard) for shard in self._shards], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        numbers = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        self._levels = tuple(
            _joined_level([shard.levels[number] for shard in self._shards], numbers)
            for number in range(len(first.levels))
        )
        self._fields = {name: joined([shard.fields[name] for shard in self._shards]) for name in first.fields}
        for shard, start, stop in zip(self._shards, self._starts, self._starts[1:], strict=False):
            part = slice(int(start), int(stop))
            levels = tuple(_part_of(level, part, one) for level, one in zip(self._levels, shard.levels, strict=True))
            shard.share_tables(levels, {name: self._share(name, shard, part) for name in shard.fields})
        self._buffers = tuple(shard.buffers[0] for shard in self._shards)
        self._revisions, self._looked_at = [shard.revision() for shard in self._shards], 0
        self._fingerprint: str | None = None

    def _share(self, name: str, shard: BetonDataset, part: slice) -> Column:
        values = self._fields[name].values
        if not isinstance(values, np.ndarray):
            return shard.fields[name]
        return replace(shard.fields[name], values=cast("NDArray[Any]", values[part]))

    @property
    def path(self) -> Path:
        """The folder."""
        return self._path or Path(os.path.commonpath([path.absolute().parent for path in self._paths]))

    @property
    def shards(self) -> tuple[BetonDataset, ...]:
        """The files, in order."""
        return self._shards

    @property
    def levels(self) -> tuple[Level, ...]:
        """Stored resolutions, largest first."""
        return self._levels

    @property
    def fields(self) -> Mapping[str, Column]:
        """The fields beside the image."""
        return self._fields

    @property
    def labels(self) -> NDArray[Any] | None:
        """Values of the field ``label``, or None where there is none; see :class:`respipe.storage.dataset.Dataset`."""
        return np.asarray(self._fields["label"].values) if "label" in self._fields else None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in label order, or None where the files do not say."""
        return self._shards[0].classes

    @property
    def buffers(self) -> tuple[Bytes, ...]:
        """Each whole file: (size,) uint8, read-only."""
        if not self._buffers:
            raise ValueError(f"The dataset {self.path} must be open; it was closed. Open it again.")
        return self._buffers

    @property
    def attributes(self) -> dict[str, Any]:
        """What all files record alike about their conversion."""
        first, *others = (_recorded(shard) for shard in self._shards)
        return {name: value for name, value in first.items() if all(other.get(name) == value for other in others)}

    @property
    def fingerprint(self) -> str:
        """That of the single file with the same samples."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint_of(self)
        return self._fingerprint

    @property
    def fetched(self) -> FetchedFiles | None:
        """What fetches the files that are not there; None where all are."""
        places = [shard.place for shard in self._shards]
        return FetchedFiles(places) if any(places) else None

    @property
    def tiled(self) -> bool:
        """Whether crops can be cut out of the compressed bytes of every image."""
        return all(shard.tiled for shard in self._shards)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _find(self, index: int) -> tuple[BetonDataset, int]:
        """The file that holds a sample, and its number there."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._shards[number], index - int(self._starts[number])

    def encoded(self, index: int, level: int = 0) -> Bytes:
        """The stored bytes of one image: (n,) uint8, a read-only view of its file."""
        shard, at = self._find(index)
        return shard.encoded(at, level)

    def check(self, index: int, level: int = 0) -> None:
        """See :class:`respipe.storage.dataset.Dataset`; the message counts samples within the file that it names."""
        shard, at = self._find(index)
        try:
            shard.check(at, level)
        except CorruptImageError as error:
            raise CorruptImageError(str(error), index=index) from error

    def problem(self, index: int, level: int = 0) -> str | None:
        """What ``check`` finds wrong with an image, or None."""
        shard, at = self._find(index)
        return shard.problem(at, level)

    def name(self, index: int) -> str:
        """Where a sample came from."""
        shard, at = self._find(index)
        return shard.name(at)

    def revision(self) -> int:
        """A number that changes when one of the files is written to; of many files each call looks at some, in turn."""
        for _ in range(min(len(self._shards), _LOOKED_AT)):
            number = self._looked_at = (self._looked_at + 1) % len(self._shards)
            self._revisions[number] = self._shards[number].revision()
        return sum(self._revisions)

    def close(self) -> None:
        """Release the memory maps. Safe to call twice."""
        self._buffers = ()
        for shard in self._shards:
            shard.close()

    def __reduce__(self) -> tuple[object, ...]:
        return functools.partial(ShardedDataset, self._paths, path=self._path, label_field=self._label_field), ()


def check_alike(first: BetonDataset, other: BetonDataset) -> None:
    """Compare what files must have in common to be one dataset.

    Raises:
        StorageError: they differ; the message names both and what differs.
    """

    def traits(shard: BetonDataset) -> dict[str, object]:
        return {
            "levels": [level.name for level in shard.levels],
            "settings": shard.attributes.get("settings"),
            "fields": {name: (column.kind, column.length) for name, column in sorted(shard.fields.items())},
            "checksums": shard.levels[0].checksums is not None,
            "classes": shard.classes,
        }

    ours, theirs = traits(first), traits(other)
    for name, value in ours.items():
        if theirs[name] != value:
            raise StorageError(
                f"{other.path} is foreign to {first.path}: its {name} are {theirs[name]!s:.200} where {value!s:.200} "
                "are expected. Convert both with the same settings, classes (--classes-from) and fields, or leave one "
                "out."
            )


def is_sharded(folder: Path) -> bool:
    """Whether a folder has the index of ``.beton`` files, or holds such files and no folders, as of classes."""
    if _read_index(folder) is not None:
        return True
    with os.scandir(folder) as entries:
        kinds = {entry.name.endswith(".beton") and not entry.is_dir() for entry in entries if _counts(entry)}
    return kinds == {True}


def open_shards(folder: Path, files: Sequence[BetonDataset] | None = None) -> ShardedDataset:
    """Open the dataset that a folder's index describes.

    Args:
        folder: where the index and the files are.
        files: the files in their order, where they are open.

    Raises:
        StorageError: there is no index, or a file is missing, cut short, or not the one that the index tells of.
    """
    index = _read_index(folder)
    command = f"`respipe index {shlex.quote(str(folder))}`"
    if index is None:
        lacking = _missing(_open_all(sorted(folder.glob("*.beton"))))
        raise StorageError(
            f"{folder} has no {INDEX} yet"
            + (f", as {lacking[0]} is missing ({len(lacking)} in all). Convert that part" if lacking else "")
            + f". Then {command} makes the index."
        )
    entries = index_entries(index)
    if entries is None:
        raise StorageError(f"{folder / INDEX} is damaged. {command} makes it again.")
    paths = [folder / entry.name for entry in entries]
    for path, entry in zip(paths, entries, strict=True):
        try:
            found = path.stat().st_size
        except FileNotFoundError:
            message = f"{path} is missing, which {INDEX} names. Restore it, or convert that part again."
            raise StorageError(message) from None
        if found < entry.num_bytes:
            raise StorageError(f"{path} is truncated: {found} bytes of {entry.num_bytes}. Copy or convert it again.")
    dataset = ShardedDataset(files or paths, path=folder)
    for shard, entry in zip(dataset.shards, entries, strict=True):
        if shard.fingerprint != entry.fingerprint:
            raise StorageError(
                f"{shard.path} is foreign: its fingerprint is {shard.fingerprint} where {INDEX} has "
                f"{entry.fingerprint}. Restore the file; if it was replaced on purpose, {command}."
            )
    if left := {path.name for path in folder.glob("*.beton")} - {path.name for path in paths}:
        logger.warning(
            "%s: %d files are not in the index and left out, first %s; %s", folder, len(left), min(left), command
        )
    return dataset


class ShardEntry(NamedTuple):
    """A file as the index describes it."""

    name: str
    num_bytes: int
    fingerprint: str


def index_entries(index: object) -> list[ShardEntry] | None:
    """The files of an index, or None where it makes no sense."""
    try:
        shards = cast("Mapping[str, Any]", index)["shards"]
        found = [ShardEntry(str(one["name"]), int(one["num_bytes"]), str(one["fingerprint"])) for one in shards]
    except (KeyError, TypeError, ValueError):
        return None
    return found if found and all(Path(entry.name).name == entry.name for entry in found) else None


def index_shards(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Make or renew the index of a folder; no other file is written to.

    Files that were in the index keep their order, and others follow it: parts of one conversion by their numbers,
    then the rest by name. So samples keep their numbers where files are added. Returns what it has written.

    Raises:
        StorageError: there are no files, one is no sound ``.beton`` or foreign to the others, or a part of a conversion
            is missing or there twice.
    """
    folder = Path(folder)
    before = {entry.name: number for number, entry in enumerate(index_entries(_read_index(folder) or {}) or ())}
    found = _open_all(sorted(folder.glob("*.beton")))
    if not found:
        raise StorageError(f"{folder} must hold .beton files; there are none. Check the path.")
    if lacking := _missing(found):
        raise StorageError(
            f"{folder} lacks {len(lacking)} shards of a conversion, first {lacking[0]}. Convert that part, then run "
            "the same again."
        )
    ordered = sorted(found, key=lambda shard: (before.get(shard.path.name, len(before)), "shard" not in _source(shard)))
    dataset = ShardedDataset(ordered, path=folder)
    attributes = dataset.attributes
    entries = [
        {
            "name": shard.path.name,
            "num_samples": len(shard),
            "num_bytes": len(shard.buffers[0]),
            "fingerprint": shard.fingerprint,
        }
        for shard in dataset.shards
    ]
    classes = None if dataset.classes is None else list(dataset.classes)
    values = {
        "format": _FORMAT,
        "num_samples": len(dataset),
        "fingerprint": dataset.fingerprint,
        "classes": classes,
        "settings": attributes.get("settings"),
        "shards": entries,
    }
    # Under a name of its own until it is whole: whoever comes last may be several.
    partial = folder / f"{INDEX}.{os.uname().nodename}.{os.getpid()}.partial"
    partial.write_text(json.dumps(values, indent=1) + "\n")
    partial.replace(folder / INDEX)
    dataset.close()
    return values


def shard_name(number: int, of: int) -> str:
    """File name of a part of a conversion."""
    return f"shard-{number:05d}-of-{of:05d}.beton"


def _missing(shards: Sequence[BetonDataset]) -> list[str]:
    """Names of the files that are missing of conversions of which others are there.

    Raises:
        StorageError: a part of a conversion is there twice, or has the name of one that was made from another source.
    """
    found: dict[tuple[str, int], dict[int, BetonDataset]] = {}
    for shard in shards:
        source = _source(shard)
        if "shard" in source:
            number, of = source["shard"]
            parts = found.setdefault((str(source.get("fingerprint")), of), {})
            if number in parts:
                raise StorageError(f"{shard.path} holds the same samples as {parts[number].path}. Remove one of them.")
            parts[number] = shard
    by_name = {shard.path.name: shard for shard in shards}
    missing: list[str] = []
    for (_, of), parts in sorted(found.items(), key=lambda item: -len(item[1])):
        names = [shard_name(number, of) for number in range(of) if number not in parts]
        if foreign := [by_name[name] for name in names if name in by_name]:
            raise StorageError(
                f"{foreign[0].path} is foreign to {next(iter(parts.values())).path}: it was made from another source. "
                "Convert that part again, from the source of the others."
            )
        missing += names
    return missing


def _source(shard: BetonDataset) -> dict[str, Any]:
    return shard.attributes.get("source") or {}


def _recorded(shard: BetonDataset) -> dict[str, Any]:
    """A file's attributes without what only concerns this file of several."""
    attributes = shard.attributes
    if "source" in attributes:
        attributes["source"] = {name: value for name, value in attributes["source"].items() if name != "shard"}
    attributes.pop("report", None)
    return attributes


def _counts(entry: os.DirEntry[str]) -> bool:
    """Whether something in a folder tells what the folder is."""
    return not entry.name.startswith(".") and (entry.is_dir() or entry.name.endswith(".beton"))


def _read_index(folder: Path) -> dict[str, Any] | None:
    """A folder's index, or None where there is none of ours."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(index, dict):
        return None
    found = cast("dict[str, Any]", index)
    return found if found.get("format") == _FORMAT else None


def _open_all(
    paths: Sequence[str | os.PathLike[str] | BetonDataset], label_field: str | None = None
) -> tuple[BetonDataset, ...]:
    files = [path if isinstance(path, BetonDataset) else Path(path) for path in paths]
    _allow_open_files(len(files))
    # Threads for what waits for disks alone: at reading tables they would only take the interpreter from each other.
    named = [file for file in files if isinstance(file, Path)]
    parts = [named[number::_NUM_THREADS] for number in range(_NUM_THREADS)]

    def map_files(some: list[Path]) -> list[tuple[os.stat_result, Bytes]]:
        return [*map(map_file, some)]

    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="respipe-open") as threads:
        mapped = dict(zip(chain.from_iterable(parts), chain.from_iterable(threads.map(map_files, parts)), strict=True))
    return tuple(
        BetonDataset(file, label_field=label_field, mapped=mapped[file]) if isinstance(file, Path) else file
        for file in files
    )


def _allow_open_files(count: int) -> None:
    """Raise the limit of open files, where the system allows it: before Python 3.13 each memory map has one."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and count > soft // 4:
            wanted = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _joined_level(levels: Sequence[Level], numbers: NDArray[np.int32]) -> Level:
    tables: dict[str, Any] = {"buffers": numbers}
    for name in _TABLES:
        parts = [getattr(level, name) for level in levels]
        tables[name] = None if parts[0] is None else np.concatenate(parts)
    for table in tables.values():
        if table is not None:
            table.flags.writeable = False
    return Level(name=levels[0].name, **tables)


def _part_of(level: Level, part: slice, own: Level) -> Level:
    """The rows of one file, whose only buffer is its own."""
    rows: dict[str, Any] = {name: None if (table := getattr(level, name)) is None else table[part] for name in _TABLES}
    return Level(name=level.name, buffers=own.buffers, **rows)
