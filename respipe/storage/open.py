"""One way into every kind of stored dataset."""

from __future__ import annotations

import os
from pathlib import Path

from respipe.errors import StorageError
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.dataset import Dataset
from respipe.storage.folder import FolderDataset


def open_dataset(data: str | os.PathLike[str] | Dataset, *, keep_unreadable: bool = False) -> Dataset:
    """Open a ``.beton`` file or a class folder. An open dataset is returned as it is.

    Args:
        data: its path, or a dataset.
        keep_unreadable: see :class:`respipe.storage.folder.FolderDataset`.

    Raises:
        StorageError: there is nothing at the path, or it is damaged or of another kind.
        TypeError: ``data`` is neither a path nor a dataset.
    """
    if not isinstance(data, (str, os.PathLike)):
        if not hasattr(data, "levels"):
            raise TypeError(f"`data` must be the path of a .beton file or a folder, or a dataset; got {data!r}.")
        return data
    path = Path(data)
    if path.is_dir():
        return FolderDataset(path, keep_unreadable=keep_unreadable)
    if not path.exists():
        raise StorageError(
            f"{path} does not exist. Give a .beton file, or a folder with one subfolder per class; "
            f"`respipe convert FOLDER {path}` makes the one from the other."
        )
    return BetonDataset(path)
