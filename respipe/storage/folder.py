"""Class folders as datasets: nothing to convert, one stored level, every sample a file of its own."""

from __future__ import annotations

import functools
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from respipe.errors import CorruptImageError, StorageError
from respipe.printable import printable
from respipe.storage.class_folder import ClassFolder, scan_class_folder
from respipe.storage.dataset import Bytes, Level
from respipe.storage.regular_files import open_regular, read_regular
from respipe.storage.upright import BrokenImageError, decode, plain_size, upright_size

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
        keep_unreadable: whether images whose header cannot be read count as samples of one pixel, damaged when they are
            used, for whoever leaves damaged ones out then.

    Raises:
        StorageError: the folder holds no classes or no images, or some image's header cannot be read.
    """

    kind, tiled = "folder", False
    buffers: tuple[Bytes, ...] = ()  # every sample is a file of its own

    def __init__(self, path: str | Path, *, keep_unreadable: bool = False) -> None:
        self._keep_unreadable = keep_unreadable
        self._folder = scan_class_folder(Path(path))
        self.path, self.classes, self.labels = self._folder.root, self._folder.classes, self._folder.labels
        self.fields, self.fingerprint = self._folder.fields, self._folder.fingerprint
        heights, widths = _read_sizes(self._folder, keep_unreadable=keep_unreadable)
        # When each file was written that was found to be plain; 0 for others.
        self._plain = np.zeros(len(heights), np.int64)
        raw = np.zeros(len(self.labels), np.bool_)
        for array in (heights, widths, raw):
            array.flags.writeable = False
        offsets, sizes = np.broadcast_to(np.int64(0), len(raw)), self._folder.sizes
        self.levels = (
            Level(name="image", heights=heights, widths=widths, buffers=None, offsets=offsets, sizes=sizes, raw=raw),
        )

    @property
    def fetched(self) -> None:
        """None: files are read when they are decoded."""

    def __len__(self) -> int:
        return len(self.labels)

    def encoded(self, index: int, level: int = 0) -> Bytes:
        """One image, in bytes that every engine decodes to the same pixels: (n,) uint8, read-only.

        An undamaged, upright, usual JPEG is handed over as it is. Anything else is decoded here, by respipe's one
        decoder, and handed over as a PPM: what damage is, which way is up and what CMYK looks like is not left to the
        engine.

        Raises:
            CorruptImageError: the file is gone, cannot be read or decoded, or has another size than it had.
        """
        assert level == 0, "a folder has one level"
        try:
            with open_regular(self.path / self._folder.names[index]) as file:
                data, written = file.read(), os.fstat(file.fileno()).st_mtime_ns
        except OSError as error:
            raise self._corrupt(index, f"it cannot be read: {error}") from error
        # Looking for damage takes a quarter of the time of decoding: once for each file, and again when it changes.
        if self._plain[index] == written:
            return np.frombuffer(data, np.uint8)
        try:
            size = plain_size(data)
            plain = size is not None
            if size is None:
                image = decode(data).image
                size = (image.height, image.width)
                data = b"P6\n%d %d\n255\n%b" % (*image.size, image.tobytes())
        except BrokenImageError as error:
            raise self._corrupt(index, str(error)) from error
        if size != (self.levels[0].heights[index], self.levels[0].widths[index]):
            raise self._corrupt(index, f"it has another size than when the folder was opened: {size[1]} x {size[0]}")
        if plain:
            self._plain[index] = written
        return np.frombuffer(data, np.uint8)

    def check(self, index: int, level: int = 0) -> None:
        """Look for damage as conversion does.

        Raises:
            CorruptImageError: see :meth:`encoded`.
        """
        self.encoded(index, level)

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
        return functools.partial(FolderDataset, self.path, keep_unreadable=self._keep_unreadable), ()


def _read_sizes(folder: ClassFolder, *, keep_unreadable: bool) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    def size(name: str) -> tuple[int, int] | str:
        path = folder.root / name
        try:
            with open_regular(path) as file:
                return upright_size(file)
        except BrokenImageError:
            pass  # whether it is damaged, and why, is known when it was decoded
        except OSError as error:
            return f"{printable(name)}: {error.strerror or error}"
        try:
            image = decode(read_regular(path)).image
        except (BrokenImageError, OSError) as error:
            return f"{printable(name)}: {error}"
        return image.height, image.width

    Image.init()  # Pillow's own first call of this, in several threads at once, would miss formats
    with ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="respipe-sizes") as threads:
        sizes = list(threads.map(size, folder.names))
    if problems := [found for found in sizes if isinstance(found, str)]:
        found = (
            f"{folder.root}: {len(problems)} of {len(sizes)} images cannot be read, first "
            f"{'; '.join(problems[:_NUM_LISTED])}."
        )
        if not keep_unreadable or len(problems) == len(sizes):
            raise StorageError(
                f"{found} Remove them, run `respipe convert {folder.root} TARGET.beton --allow-corrupt "
                f"{len(problems)}`, which leaves them out and lists them all, or pass on_corrupt='quarantine'."
            )
        logger.warning("%s They are left out where they are used.", found)
    array = np.array([(1, 1) if isinstance(found, str) else found for found in sizes], np.int32)
    return np.ascontiguousarray(array[:, 0]), np.ascontiguousarray(array[:, 1])
