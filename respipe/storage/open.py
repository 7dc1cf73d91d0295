"""One way into every kind of stored dataset."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any, NamedTuple, cast

from respipe.checks import check_number, check_path
from respipe.errors import StorageError
from respipe.printable import not_there
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.dataset import Dataset
from respipe.storage.folder import FolderDataset
from respipe.storage.remote import Cache, is_url, open_remote
from respipe.storage.shards import ShardedDataset, is_sharded, open_shards

Data = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Dataset
"""What can be opened: a path, the paths of several ``.beton`` files, or a dataset."""


def open_dataset(
    data: Data, *, keep_unreadable: bool = False, cache: Cache | None = None, on_demand: bool = False
) -> Dataset:
    """Open a ``.beton`` file, several of them, or a class folder. An open dataset is returned as it is.

    Args:
        data: a ``.beton`` file; a folder of such files with an index, as ``convert(shards=...)`` makes; a list of such
            files; a folder with one subfolder per class; or a dataset. All but the last two may be at URLs such as
            ``s3://bucket/train/``, whose files are copied.
        keep_unreadable: see :class:`respipe.storage.folder.FolderDataset`.
        cache: where copies of remote files are kept. Default: ``Cache()``.
        on_demand: whether of files at URLs only that is copied which is read, where the server gives parts of files.
            Nothing may then be read of ``buffers`` that is not held by ``fetched``.

    Raises:
        StorageError: there is nothing at the path, or it is damaged or of another kind.
        TypeError: ``data`` is neither a path nor a dataset.
    """
    cache = cache or Cache()
    if isinstance(data, (list, tuple)):
        paths = cast("Sequence[str | os.PathLike[str]]", data)
        cache = replace(cache, share=cache.share / max(sum(map(is_url, paths)), 1))
        files = [open_remote(cast("str", path), cache, on_demand=on_demand) if is_url(path) else path for path in paths]
        if folders := [path for path, file in zip(paths, files, strict=True) if isinstance(file, ShardedDataset)]:
            raise StorageError(f"`data` must be a list of .beton files; {folders[0]} is a folder. Name its files.")
        return ShardedDataset(cast("Sequence[str | BetonDataset]", files))
    if is_url(data):
        return open_remote(cast("str", data), cache, on_demand=on_demand)
    if not isinstance(data, (str, os.PathLike)):
        if not hasattr(data, "levels"):
            raise TypeError(f"`data` must be the path of a .beton file or a folder, or a dataset; got {data!r}.")
        return cast("Dataset", data)
    path = check_path("data", data)
    if path.is_dir() and is_sharded(path):
        return open_shards(path)
    if path.is_dir():
        return FolderDataset(path, keep_unreadable=keep_unreadable)
    if not path.exists():
        raise StorageError(
            f"{not_there(path)}. Give a .beton file, or a folder with one subfolder per class; "
            f"`respipe convert FOLDER {path}` makes the one from the other."
        )
    return BetonDataset(path)


class Mixture(NamedTuple):
    """Several datasets as one, and how often each is to be drawn from.

    Args:
        dataset: the samples of all of them, one after the other.
        lengths: samples of each.
        shares: share of each in what is drawn, in any unit.
    """

    dataset: Dataset
    lengths: tuple[int, ...]
    shares: tuple[float, ...]


def open_mixture(
    data: Data | Sequence[tuple[Data, float]], *, cache: Cache | None = None, **options: Any
) -> Dataset | Mixture:
    """Open a dataset, or several with shares: ``[(a, 0.7), (b, 0.3)]``, of ``.beton`` files or folders of them.

    Args:
        data: as for :func:`open_dataset`, or pairs of that and a share of at least 0.
        cache, options: of :func:`open_dataset`.

    Raises:
        StorageError, TypeError: as for :func:`open_dataset`; also for a class folder in a mixture.
        ValueError: a share is negative, or all are 0.
    """
    pairs = cast("Sequence[Any]", data)
    if not isinstance(data, (list, tuple)) or not all(_is_pair(one) for one in pairs) or not pairs:
        return open_dataset(cast("Data", data), cache=cache, **options)
    shares = tuple(check_number("data", share, least=0) for _, share in pairs)
    if not sum(shares):
        raise ValueError("`data` must have a share above 0; got zeros only. Pass for example [(a, 0.7), (b, 0.3)].")
    cache = replace(cache or Cache(), share=1 / max(sum(is_url(one) for one, _ in pairs), 1))
    parts = [open_dataset(one, cache=cache, **options) for one, _ in pairs]
    files = list[BetonDataset]()
    for part in parts:
        if not isinstance(part, (BetonDataset, ShardedDataset)):
            raise StorageError(
                f"{part.path} must be a .beton file or a folder of them to be mixed with others. Make one with "
                f"`respipe convert {part.path} TARGET.beton`."
            )
        files += [part] if isinstance(part, BetonDataset) else part.shards
    return Mixture(ShardedDataset(files), tuple(map(len, parts)), shares)


def _is_pair(one: object) -> bool:
    return isinstance(one, tuple) and len(cast("tuple[Any, ...]", one)) == 2 and isinstance(one[1], Real)
