"""How images are laid out in the pages of a ``.beton``.

A page holds all levels of each of its samples, because FFCV's quasi-random order counts on it. Within a page the images
lie level by level: reading only the small ones of many samples then touches only a small part of the file::

    page   | image 0..99           | image_344 0..99 | ...             | unused |
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from respipe.storage.fields import Column
from respipe.storage.masks import fitted_mask

# Columns of PageRecord.images.
HEIGHT, WIDTH, SIZE, CHECKSUM = range(4)


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredImage:
    """One encoded image.

    Args:
        data: its bytes.
        height, width: in pixels.
        checksum: CRC-32 of the bytes.
        tiled: whether crops can be cut out of the bytes; see :class:`respipe.storage.dataset.Dataset`.
    """

    data: bytes
    height: int
    width: int
    checksum: int
    tiled: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Pyramid:
    """An image at each level.

    Args:
        images: largest first. A level that would not be smaller than the one before is the same object.
        original: height and width in pixels of the upright source.
        kept: whether the first level holds the source's own pixels or bytes.
        traits: what was special about the source, for the report.
        warnings: what its decoder complained about.
    """

    images: tuple[StoredImage, ...]
    original: tuple[int, int]
    kept: bool
    traits: tuple[str, ...]
    warnings: tuple[str, ...]

    def fitted_mask(self, data: bytes) -> bytes:
        """A mask of the source at the size of the largest level; see :func:`respipe.storage.masks.fitted_mask`."""
        return fitted_mask(data, self.original, (self.images[0].height, self.images[0].width))


@dataclass(frozen=True, kw_only=True, eq=False)
class PageRecord:
    """What a finished page holds, and what became of the samples that are not in it.

    Args:
        stop: number in the source of the first sample after this page; it begins where the page before it stopped.
        indices: (n,) int64, numbers in the source of the samples stored here.
        values: each field's n values, as JSON has them; bytes as base64.
        images: (n, levels, 4) int64, height, width, length and CRC-32 of every stored image. A level with the size of
            the one before it shares that one's bytes.
        num_kept: how many samples keep their own pixels or bytes.
        num_tiled: how many samples are tiled on all levels.
        traits: how many samples had each trait.
        quarantined: number in the source and reason, of samples that cannot be decoded.
        warned: number in the source and message, of samples whose decoder complained.
    """

    stop: int
    indices: NDArray[np.int64]
    images: NDArray[np.int64]
    values: dict[str, list[Any]]
    num_kept: int
    num_tiled: int
    traits: dict[str, int]
    quarantined: tuple[tuple[int, str], ...]
    warned: tuple[tuple[int, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**vars(self), "indices": self.indices.tolist(), "images": self.images.tolist()}

    @classmethod
    def from_dict(cls, values: dict[str, Any], *, num_levels: int) -> PageRecord:
        """Back from JSON values."""
        return cls(
            stop=values["stop"],
            indices=np.array(values["indices"], np.int64),
            images=np.array(values["images"], np.int64).reshape(-1, num_levels, 4),
            values=values["values"],
            num_kept=values["num_kept"],
            num_tiled=values["num_tiled"],
            traits=values["traits"],
            quarantined=tuple((int(index), str(text)) for index, text in values["quarantined"]),
            warned=tuple((int(index), str(text)) for index, text in values["warned"]),
        )


def is_shared(images: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(n, levels) bool: which levels have no bytes of their own. Any smaller level has another size in pixels."""
    shared = np.zeros(images.shape[:2], np.bool_)
    shared[:, 1:] = (images[:, 1:, : WIDTH + 1] == images[:, :-1, : WIDTH + 1]).all(axis=2)
    return shared


def gathered(records: Sequence[PageRecord], name: str, column: Column) -> Column:
    """A field of all samples of some pages.

    Args:
        records: the pages.
        name: of the field.
        column: its kind.
    """
    values = [value for record in records for value in record.values.get(name, ())]
    if column.kind in ("bytes", "mask"):
        values = [base64.b64decode(value) for value in values]
    return column.holding(values)


def offsets_in_page(images: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, levels) int64: where each image begins within its page; shared levels repeat the one before."""
    shared = is_shared(images)
    lengths = np.where(shared, 0, images[:, :, SIZE])
    ends = np.cumsum(lengths.T).reshape(lengths.T.shape).T
    offsets = ends - lengths
    for level in range(1, images.shape[1]):
        offsets[shared[:, level], level] = offsets[shared[:, level], level - 1]
    return offsets


class PageBuilder:
    """Collects samples until a page is full.

    Args:
        page_size: bytes of a page.
        num_levels: images per sample.
    """

    def __init__(self, *, page_size: int, num_levels: int) -> None:
        self._page_size = page_size
        self._num_levels = num_levels
        self._num_bytes = 0
        self._samples: list[tuple[int, Pyramid]] = []
        self._values: dict[str, list[Any]] = {}
        self._quarantined: list[tuple[int, str]] = []

    def has_room(self, pyramid: Pyramid) -> bool:
        """Whether a sample still fits in."""
        return self._num_bytes + _num_bytes(pyramid) <= self._page_size

    def add(self, index: int, pyramid: Pyramid, values: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Take in the sample with this number in the source, and the values of its fields."""
        assert self.has_room(pyramid), "pages are large enough for any sample"
        self._num_bytes += _num_bytes(pyramid)
        self._samples.append((index, pyramid))
        for name, value in values.items():
            stored = base64.b64encode(value).decode() if isinstance(value, bytes) else value
            self._values.setdefault(name, []).append(stored)

    def quarantine(self, index: int, reason: str) -> None:
        """Leave out the sample with this number in the source."""
        self._quarantined.append((index, reason))

    def finish(self, stop: int) -> tuple[bytes, PageRecord]:
        """The page's bytes, without the unused ones at its end, and its record."""
        rows = [
            [(image.height, image.width, len(image.data), image.checksum) for image in pyramid.images]
            for _, pyramid in self._samples
        ]
        images = np.array(rows, np.int64).reshape(-1, self._num_levels, 4)
        shared = is_shared(images)
        data = b"".join(
            pyramid.images[level].data
            for level in range(self._num_levels)
            for row, (_, pyramid) in enumerate(self._samples)
            if not shared[row, level]
        )
        traits = Counter(trait for _, pyramid in self._samples for trait in pyramid.traits)
        record = PageRecord(
            stop=stop,
            indices=np.array([index for index, _ in self._samples], np.int64),
            images=images,
            values=self._values,
            num_kept=sum(pyramid.kept for _, pyramid in self._samples),
            num_tiled=sum(all(image.tiled for image in pyramid.images) for _, pyramid in self._samples),
            traits=dict(sorted(traits.items())),
            quarantined=tuple(self._quarantined),
            warned=tuple((index, text) for index, pyramid in self._samples for text in pyramid.warnings),
        )
        return data, record


def _num_bytes(pyramid: Pyramid) -> int:
    return sum({id(image): len(image.data) for image in pyramid.images}.values())
