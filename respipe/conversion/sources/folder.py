"""Class folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from respipe.conversion.sources.base import SourceSpec
from respipe.errors import CorruptImageError
from respipe.printable import printable
from respipe.storage.class_folder import scan_class_folder
from respipe.storage.fields import Column
from respipe.storage.regular_files import read_regular


class FolderSource:
    """A folder with one subfolder per class.

    Raises:
        StorageError: it cannot be read, or has no classes or no images.
    """

    kind = "folder"

    def __init__(self, path: str | Path) -> None:
        self._folder = scan_class_folder(Path(path))
        self.fingerprint = self._folder.fingerprint

    @property
    def fields(self) -> Mapping[str, Column]:
        """The label: the place of an image's subfolder among the sorted ones."""
        return self._folder.fields

    def __len__(self) -> int:
        return len(self._folder.labels)

    def read(self, index: int) -> bytes:
        """The bytes of one file; see :meth:`respipe.conversion.Source.read`."""
        try:
            return read_regular(self._folder.root / self._folder.names[index])
        except OSError as error:
            # Where the whole folder is gone, as with a lost mount, no single file is to blame.
            self._folder.root.stat()
            raise CorruptImageError(error.strerror or str(error), index=index) from error

    def name(self, index: int) -> str:
        """Its path relative to the folder."""
        return printable(self._folder.names[index])


SPEC = SourceSpec(
    format="folder",
    title="a folder with one subfolder per class",
    recognise=lambda given: isinstance(given, str) and Path(given).is_dir(),
    open=lambda given, _: FolderSource(given),
    priority=-2,
)
