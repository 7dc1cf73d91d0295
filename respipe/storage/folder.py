"""Class folders as datasets: nothing to convert, one stored level, every sample a file of its own."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from respipe.errors import CorruptImageError, StorageError
from respipe.jpeg.header import is_complete, read_header
from respipe.printable import printable
from respipe.storage.class_folder import ClassFolder, scan_class_folder
from respipe.storage.dataset import Bytes, Level
from respipe.storage.fields import Column
from respipe.storage.regular_files import open_regular, read_regular
from respipe.storage.upright import UNREADABLE, upright_size

logger = logging.getLogger(__name__)

# Reading headers waits for the disk more than for the processor.
_NUM_THREADS = 16
_NUM_LISTED = 3


class FolderDataset:
    """A folder with one subfolder per class. See :class:`respipe.storage.dataset.Dataset`.

    Opening it reads the header of every image, for the sizes. Classes and order are those of torchvision's
    ``ImageFolder``.

    Args:
        path: the folder.

    Raises:
        StorageError: the folder holds no classes or no images, or some image's header cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self._folder = scan_class_folder(Path(path))
        self._fingerprint = self._folder.fingerprint
        heights, widths = _read_sizes(self._folder)
        raw = np.zeros(len(self._folder.labels), np.bool_)
        for array in (heights, widths, raw):
            array.flags.writeable = False
        offsets, sizes = np.broadcast_to(np.int64(0), len(raw)), self._folder.sizes
        self._levels = (
            Level(name="image", heights=heights, widths=widths, buffers=None, offsets=offsets, sizes=sizes, raw=raw),
        )

    @property
    def kind(self) -> str:
        """A word for reports."""
        return "folder"

    @property
    def path(self) -> Path:
        """The folder."""
        return self._folder.root

    @property
    def levels(self) -> tuple[Level, ...]:
        """One level: the files as they are, with their upright sizes."""
        return self._levels

    @property
    def fields(self) -> Mapping[str, Column]:
        """The label: a class."""
        return self._folder.fields

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) class numbers."""
        return self._folder.labels

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the subfolders."""
        return self._folder.classes

    @property
    def buffers(self) -> tuple[Bytes, ...]:
        """None: every sample is a file of its own."""
        return ()

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with the files' names, their order or their lengths."""
        return self._fingerprint

    @property
    def tiled(self) -> bool:
        """False: files are as they are."""
        return False

    def __len__(self) -> int:
        return len(self._folder.labels)

    def encoded(self, index: int, level: int = 0) -> Bytes:
        """The bytes of one file: (n,) uint8, read-only.

        Raises:
            CorruptImageError: the file is gone or cannot be read.
        """
        assert level == 0, "a folder has one level"
        try:
            data = read_regular(self.path / self._folder.names[index])
        except OSError as error:
            raise self._corrupt(index, f"it cannot be read: {error}") from error
        return np.frombuffer(data, np.uint8)

    def check(self, index: int, level: int = 0) -> None:
        """Compare the size in a file's header with the one found when the folder was opened, and look for its end.

        Raises:
            CorruptImageError: they differ, or the file is cut off.
        """
        data = self.encoded(index, level).tobytes()
        try:
            found = upright_size(io.BytesIO(data))
            complete = _is_complete(data)
        except UNREADABLE as error:
            raise self._corrupt(index, str(error)) from error
        stored = self._levels[0]
        if found != (stored.heights[index], stored.widths[index]):
            raise self._corrupt(index, f"it has another size than when the folder was opened: {found[1]} x {found[0]}")
        if not complete:
            raise self._corrupt(index, "its end is missing")

    def _corrupt(self, index: int, what: str) -> CorruptImageError:
        return CorruptImageError(
            f"{self.path}: sample {index} ({self.name(index)}) is damaged: {what}. "
            f"Run `respipe verify {self.path}` to list every damaged file.",
            index=index,
        )

    def name(self, index: int) -> str:
        """The file's path relative to the folder."""
        return printable(self._folder.names[index])

    def revision(self) -> int:
        """Always 0: every file is read anew."""
        return 0

    def close(self) -> None:
        """Nothing is held open."""

    def __reduce__(self) -> tuple[object, ...]:
        return FolderDataset, (self.path,)


def _read_sizes(folder: ClassFolder) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    def size(name: str) -> tuple[int, int] | str:
        try:
            with open_regular(folder.root / name) as file:
                return upright_size(file)
        except UNREADABLE as error:
            return f"{printable(name)}: {error}"

    Image.init()  # Pillow's own first call of this, in several threads at once, would miss formats
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="respipe-sizes") as threads:
        sizes = list(threads.map(size, folder.names))
    if problems := [found for found in sizes if isinstance(found, str)]:
        raise StorageError(
            f"{folder.root}: {len(problems)} of {len(sizes)} images cannot be read, first "
            f"{'; '.join(problems[:_NUM_LISTED])}. Remove them, or run `respipe convert {folder.root} TARGET.beton "
            f"--allow-corrupt {len(problems)}`, which leaves them out and lists them all."
        )
    array = np.array(sizes, np.int32)
    return np.ascontiguousarray(array[:, 0]), np.ascontiguousarray(array[:, 1])


def _is_complete(data: bytes) -> bool:
    """Whether the end of a file is there, for formats that mark it."""
    if data.startswith(b"\xff\xd8"):
        return is_complete(data, read_header(data))
    if data.startswith(b"\x89PNG"):
        return b"IEND" in data[-64:] or b"IEND" in data
    if data.startswith(b"RIFF"):
        return len(data) >= 8 + int.from_bytes(data[4:8], "little")
    return True
