"""Where a conversion takes its images from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol, runtime_checkable

from respipe.errors import CorruptImageError, StorageError
from respipe.printable import printable
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.class_folder import scan_class_folder
from respipe.storage.regular_files import read_regular


@runtime_checkable
class Source(Protocol):
    """Encoded images with labels.

    Worker processes receive it pickled, so its class must be in a module that they can import, not in the main script.

    Attributes:
        kind: one word for reports: "folder", "beton".
        classes: class names in label order, or None where unknown.
        fingerprint: short text that changes whenever the samples or their order change; decides whether an interrupted
            conversion may be resumed.
    """

    @property
    def kind(self) -> str: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...
    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """One encoded image, of any format that Pillow reads.

        Raises:
            CorruptImageError: this image cannot be read; the message is the reason. Others may still be readable.
            OSError: the whole source is out of reach.
        """
        ...

    def label(self, index: int) -> int:
        """Its class number."""
        ...

    def name(self, index: int) -> str:
        """Where it comes from, for reports and later errors."""
        ...


class FolderSource:
    """A class folder.

    Raises:
        StorageError: it cannot be read, or has no classes or no images.
    """

    kind = "folder"

    def __init__(self, path: str | Path) -> None:
        self._folder = scan_class_folder(Path(path))
        self._fingerprint = self._folder.fingerprint

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the subfolders."""
        return self._folder.classes

    @property
    def fingerprint(self) -> str:
        """Of the files' names and lengths."""
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._folder.labels)

    def read(self, index: int) -> bytes:
        """The bytes of one file; see :meth:`Source.read`."""
        try:
            return read_regular(self._folder.root / self._folder.names[index])
        except OSError as error:
            # Where the whole folder is gone, as with a lost mount, no single file is to blame.
            self._folder.root.stat()
            raise CorruptImageError(error.strerror or str(error), index=index) from error

    def label(self, index: int) -> int:
        """The place of its subfolder among the sorted ones."""
        return int(self._folder.labels[index])

    def name(self, index: int) -> str:
        """Its path relative to the folder."""
        return printable(self._folder.names[index])


class BetonSource:
    """The largest level of a ``.beton``, such as FFCV's own writer makes.

    Args:
        path: the file.
        label_field: name of the field with the class numbers.

    Raises:
        StorageError: it is not a sound ``.beton``.
    """

    kind = "beton"

    def __init__(self, path: str | Path, *, label_field: str = "label") -> None:
        self._dataset = BetonDataset(path, label_field=label_field)
        self._fingerprint = self._dataset.fingerprint

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names where the file has them."""
        return self._dataset.classes

    @property
    def fingerprint(self) -> str:
        """The file's own fingerprint."""
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, index: int) -> bytes:
        """One stored image. Raw pixels come as a PPM, which adds nothing but their size in front."""
        if (problem := self._dataset.problem(index)) is not None:
            raise CorruptImageError(problem, index=index)
        data = self._dataset.encoded(index).tobytes()
        level = self._dataset.levels[0]
        return b"P6 %d %d 255\n%b" % (level.widths[index], level.heights[index], data) if level.raw[index] else data

    def label(self, index: int) -> int:
        """The stored label."""
        return int(self._dataset.labels[index])

    def name(self, index: int) -> str:
        """The name stored with it, or its number."""
        return self._dataset.name(index)


def open_source(source: str | os.PathLike[str] | Source) -> Source:
    """A source for a path; a source is returned as it is.

    Raises:
        StorageError: there is nothing at the path, or nothing that can be converted.
        TypeError: it is neither.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            return FolderSource(path)
        if path.is_file():
            return BetonSource(path)
        raise StorageError(f"{path} does not exist. Give a folder with one subfolder per class, or a .beton file.")
    if isinstance(source, Source):
        return source
    raise TypeError(f"`source` must be a path or offer what respipe.conversion.Source lists; got {source!r}.")
