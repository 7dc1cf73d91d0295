"""What a stored dataset holds, at a glance."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from respipe.storage.beton import BetonDataset
from respipe.storage.dataset import Dataset, Level
from respipe.storage.folder import FolderDataset
from respipe.storage.open import open_dataset


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelSummary:
    """One stored resolution.

    Args:
        name: field name.
        median_height, median_width: in pixels.
        smallest_side, largest_side: in pixels, over all samples.
        num_images: images with bytes of their own; the others share those of the level before.
        num_bytes: of those images together.
        raw_share: share of samples stored as pixels instead of encoded, 0..1.
    """

    name: str
    median_height: float
    median_width: float
    smallest_side: int
    largest_side: int
    num_images: int
    num_bytes: int
    raw_share: float

    @property
    def bytes_per_image(self) -> float:
        """Mean over the images with bytes of their own."""
        return self.num_bytes / self.num_images if self.num_images else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What a stored dataset holds.

    Args:
        path: the file or folder.
        kind: "beton" or "folder".
        writer: what wrote the file: "respipe 0.1.0", or "FFCV" for files without respipe's appendix; None for folders.
        num_samples: samples in it.
        classes: class names, or None where the file has none.
        num_labels: distinct labels.
        levels: stored resolutions, largest first.
        num_bytes: of the file, or of all files of the folder.
        has_checksums: whether changed bytes can be found without decoding.
        settings: the conversion's settings, where recorded.
        source: what was converted, where recorded.
        fingerprint: changes with the samples or their order.
    """

    path: str
    kind: str
    writer: str | None
    num_samples: int
    classes: tuple[str, ...] | None
    num_labels: int
    levels: tuple[LevelSummary, ...]
    num_bytes: int
    has_checksums: bool
    settings: dict[str, Any] | None
    source: dict[str, Any] | None
    fingerprint: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = asdict(self)
        for level, summary in zip(values["levels"], self.levels, strict=True):
            level["bytes_per_image"] = summary.bytes_per_image
        return values


def inspect(path: str | os.PathLike[str] | Dataset) -> Inspection:
    """Look into a ``.beton`` or a class folder, reading tables and headers only.

    Raises:
        StorageError: there is nothing at the path, or its structure is damaged.
    """
    dataset = open_dataset(path)
    beton = dataset if isinstance(dataset, BetonDataset) else None
    attributes = beton.attributes if beton else {}
    levels = tuple(_summary(dataset, number) for number in range(len(dataset.levels)))
    return Inspection(
        path=str(dataset.path),
        kind="beton" if beton else "folder",
        writer=attributes.get("writer", "FFCV") if beton else None,
        num_samples=len(dataset),
        classes=dataset.classes,
        num_labels=len(np.unique(dataset.labels)),
        levels=levels,
        num_bytes=dataset.path.stat().st_size if beton else sum(level.num_bytes for level in levels),
        has_checksums=beton is not None and beton.checksums is not None,
        settings=attributes.get("settings"),
        source=attributes.get("source"),
        fingerprint=dataset.fingerprint,
    )


def _summary(dataset: Dataset, number: int) -> LevelSummary:
    level = dataset.levels[number]
    own = _own_bytes(dataset.levels, number)
    if level.sizes is not None:
        sizes = level.sizes
    else:
        assert isinstance(dataset, FolderDataset), "only folders have no offsets"
        sizes = dataset.folder.sizes
    return LevelSummary(
        name=level.name,
        median_height=float(np.median(level.heights)),
        median_width=float(np.median(level.widths)),
        smallest_side=int(min(level.heights.min(), level.widths.min())),
        largest_side=int(max(level.heights.max(), level.widths.max())),
        num_images=int(own.sum()),
        num_bytes=int(sizes[own].sum()),
        raw_share=float(level.raw.mean()),
    )


def _own_bytes(levels: tuple[Level, ...], number: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """(N,) bool: images that do not share the bytes of the level before."""
    before, this = levels[number - 1].offsets if number else None, levels[number].offsets
    if before is None or this is None:
        return np.ones(len(levels[number].heights), np.bool_)
    return np.asarray(before != this)
