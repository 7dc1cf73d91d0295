"""What every kind of stored dataset offers to planning and to the backends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """One stored resolution of every sample. All arrays have one entry per sample.

    Args:
        name: field name in a ``.beton`` ("image", "image_344", ...), or "image" for a folder.
        heights, widths: (N,) int32, size in pixels of the stored (upright) image.
        offsets, sizes: (N,) int64, place and length in bytes of the stored image within ``Dataset.memory``; None
            where every sample is a file of its own.
        raw: (N,) bool, True where the bytes are H x W x 3 uint8 pixels instead of an encoded image.
    """

    name: str
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    offsets: NDArray[np.int64] | None
    sizes: NDArray[np.int64] | None
    raw: NDArray[np.bool_]


class Dataset(Protocol):
    """Encoded images with labels, read-only and safe to read from several threads.

    Attributes:
        path: the file or folder.
        levels: stored resolutions, largest first; crop boxes count in pixels of ``levels[0]``.
        labels: (N,) int64.
        classes: class names in label order, or None where the file does not say.
        memory: the whole file as one read-only (size,) uint8 memory map, or None for folders.
        fingerprint: short text that changes whenever the samples or their order change.
        tiled: whether every stored image is a baseline JPEG with the standard Huffman tables, restart markers, and the
            index of them (:mod:`respipe.jpeg.index`), so that crops can be cut out of the compressed bytes.
    """

    @property
    def path(self) -> Path: ...
    @property
    def levels(self) -> tuple[Level, ...]: ...
    @property
    def labels(self) -> NDArray[np.int64]: ...
    @property
    def classes(self) -> tuple[str, ...] | None: ...
    @property
    def memory(self) -> Bytes | None: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def tiled(self) -> bool: ...

    def __len__(self) -> int: ...

    def encoded(self, index: int, level: int = 0) -> Bytes:
        """The stored bytes of one image: (n,) uint8, read-only; a view of the file's memory map where there is one.

        Raises:
            CorruptImageError: the file is gone or cannot be read.
        """
        ...

    def check(self, index: int, level: int = 0) -> None:
        """Compare the stored bytes with what was written, without decoding them.

        A checksum decides where the file has one, else the image's header, against the recorded size, and whether
        its end is there.

        Raises:
            CorruptImageError: they differ; the message names the file, the sample and where it came from.
        """
        ...

    def name(self, index: int) -> str:
        """Where a sample came from: its path relative to the source folder, or "sample 17" where unknown."""
        ...

    def revision(self) -> int:
        """A number that changes when the file is written to: what was checked before must be checked again.

        Raises:
            StorageError: the file is shorter than when it was opened, so that reading on would end the process.
        """
        ...

    def close(self) -> None:
        """Release the memory map. Safe to call twice."""
        ...
