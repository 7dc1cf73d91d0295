"""What every kind of stored dataset offers to planning and to the backends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from respipe.storage.fetching import FetchedFiles
from respipe.storage.fields import Column

Bytes = NDArray[np.uint8]


class Records(Protocol):
    """Images with named fields, numbered from 0: the contract that stored datasets share with sources of conversions.

    Attributes:
        kind: what it is, in a word or a few, for reports: "folder", "beton", "tar of class archives".
        fields: the fields beside the image, by name, each with one value per sample. ``label`` is what the Loader gives
            with the images; samples without labels have no such field.
        fingerprint: short text that changes whenever the samples or their order change.
    """

    @property
    def kind(self) -> str: ...
    @property
    def fields(self) -> Mapping[str, Column]: ...
    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Where a sample came from: its path relative to the source folder, or "sample 17" where unknown."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Level:
    """One stored resolution of every sample. All arrays have one entry per sample.

    Args:
        name: field name in a ``.beton`` ("image", "image_344", ...), or "image" for a folder.
        heights, widths: (N,) int32, size in pixels of the stored (upright) image.
        buffers: (N,) int32, number of the buffer in ``Dataset.buffers`` that holds the stored image; None for folders,
            where every sample is a file of its own.
        offsets, sizes: (N,) int64, place and length in bytes of the stored image within its buffer or file.
        raw: (N,) bool, True where the bytes are H x W x 3 uint8 pixels instead of an encoded image.
        checksums: (N,) uint32, CRC-32 of the stored bytes, or None where unknown.
    """

    name: str
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    buffers: NDArray[np.int32] | None
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    raw: NDArray[np.bool_]
    checksums: NDArray[np.uint32] | None = None


class Dataset(Records, Protocol):
    """Encoded images with named fields, read-only and safe to read from several threads.

    Attributes:
        path: the file or folder.
        levels: stored resolutions, largest first; crop boxes count in pixels of ``levels[0]``.
        buffers: whole files as read-only (size,) uint8 memory maps; empty for folders. ``Level.buffers`` says which one
            holds a sample.
        tiled: whether every stored image is a baseline JPEG with the standard Huffman tables, restart markers, and the
            index of them (:mod:`respipe.jpeg.index`), so that crops can be cut out of the compressed bytes.
        fetched: None where all bytes of ``buffers`` are there; else nothing may be read that is not held.
    """

    @property
    def path(self) -> Path: ...
    @property
    def levels(self) -> tuple[Level, ...]: ...
    @property
    def buffers(self) -> tuple[Bytes, ...]: ...
    @property
    def tiled(self) -> bool: ...
    @property
    def fetched(self) -> FetchedFiles | None: ...

    @property
    def labels(self) -> NDArray[Any] | None:
        """Values of the field ``label``: (N,) int64, (N,) float64 or (N, K) float32; None without labels."""
        ...

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Class names in label order, or None where unknown."""
        ...

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

    def revision(self) -> int:
        """A number that changes when the file is written to: what was checked before must be checked again.

        Raises:
            StorageError: the file is shorter than when it was opened, so that reading on would end the process.
        """
        ...

    def close(self) -> None:
        """Release the memory maps. Safe to call twice."""
        ...
