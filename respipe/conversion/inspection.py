"""What a stored dataset holds, at a glance."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from respipe.jpeg.header import JpegError, read_header
from respipe.jpeg.index import read_index
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.dataset import Dataset
from respipe.storage.folder import FolderDataset
from respipe.storage.open import Data, open_dataset
from respipe.storage.shards import ShardedDataset

# Enough samples to tell what all are like, few enough to be read from a slow disk in a moment.
_MOST_EXAMINED = 256


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
        tiled_share: share of the examined samples whose crops can be cut out of the compressed bytes, 0..1; see
            :class:`respipe.storage.dataset.Dataset`.
        restart_intervals: MCUs per restart interval that those samples have, rising.
    """

    name: str
    median_height: float
    median_width: float
    smallest_side: int
    largest_side: int
    num_images: int
    num_bytes: int
    raw_share: float
    tiled_share: float
    restart_intervals: tuple[int, ...]

    @property
    def bytes_per_image(self) -> float:
        """Mean over the images with bytes of their own."""
        return self.num_bytes / self.num_images if self.num_images else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What a stored dataset holds.

    Args:
        path: the file or folder.
        kind: "beton", "shards" or "folder".
        writer: what wrote the file: "respipe 0.1.0", or "FFCV" for files without respipe's appendix; None for folders.
        num_samples: samples in it.
        classes: class names, or None where the file has none.
        num_labels: distinct labels.
        levels: stored resolutions, largest first.
        num_examined: samples whose headers were read, spread evenly over all.
        decoding: a sentence on how much of an image must be decoded for a crop, and what would make it less.
        num_bytes: of the file, or files, or of all files of the folder.
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
    num_examined: int
    decoding: str
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


def inspect(path: Data) -> Inspection:
    """Look into a ``.beton``, several of them, or a class folder, reading tables and some images' headers only.

    Raises:
        StorageError: there is nothing at the path, or its structure is damaged.
    """
    dataset = open_dataset(path)
    beton = dataset if isinstance(dataset, (BetonDataset, ShardedDataset)) else None
    attributes = beton.attributes if beton else {}
    examined = np.unique(np.linspace(0, len(dataset) - 1, _MOST_EXAMINED).astype(np.int64))
    levels = tuple(_summary(dataset, number, examined) for number in range(len(dataset.levels)))
    return Inspection(
        path=str(dataset.path),
        kind=dataset.kind,
        writer=attributes.get("writer", "FFCV") if beton else None,
        num_samples=len(dataset),
        classes=dataset.classes,
        num_labels=0 if dataset.labels is None else len(np.unique(dataset.labels, axis=0)),
        levels=levels,
        num_examined=len(examined),
        decoding=_decoding(dataset, attributes),
        num_bytes=sum(map(len, dataset.buffers)) if beton else sum(level.num_bytes for level in levels),
        has_checksums=dataset.levels[0].checksums is not None,
        settings=attributes.get("settings"),
        source=attributes.get("source"),
        fingerprint=dataset.fingerprint,
    )


def _decoding(dataset: Dataset, attributes: Mapping[str, Any]) -> str:
    if dataset.tiled:
        return "Crops are cut out of the compressed bytes: no more is decoded than a crop needs."
    settings = {"restart_interval": 0, **attributes.get("settings", {})}
    convert = f"`respipe convert {shlex.quote(str(dataset.path))} TARGET.beton`"
    if isinstance(dataset, FolderDataset):
        return f"Every file is decoded whole; {convert} makes images that crops can be cut out of."
    if all(level.raw.all() for level in dataset.levels):
        return "Images are stored as pixels: nothing is decoded, but much is read."
    if not attributes:
        return f"Every image is decoded whole, as FFCV's files have no restart markers; {convert} adds them."
    if not settings["restart_interval"]:
        return "There are no restart markers, so every image is decoded whole; convert the source again to add them."
    if settings.get("keep") == "bytes":
        return 'Kept source bytes have no restart markers and are decoded whole; convert again with keep="pixels".'
    return "Some images are too large for an index of their restart markers and are decoded whole; use smaller levels."


def _summary(dataset: Dataset, number: int, examined: NDArray[np.int64]) -> LevelSummary:
    level = dataset.levels[number]
    intervals = [_tiled_interval(dataset, index, number) for index in examined.tolist()]
    own = np.asarray(level.offsets != dataset.levels[number - 1].offsets) if number else np.ones(len(dataset), np.bool_)
    return LevelSummary(
        name=level.name,
        median_height=float(np.median(level.heights)),
        median_width=float(np.median(level.widths)),
        smallest_side=int(min(level.heights.min(), level.widths.min())),
        largest_side=int(max(level.heights.max(), level.widths.max())),
        num_images=int(own.sum()),
        num_bytes=int(level.sizes[own].sum()),
        raw_share=float(level.raw.mean()),
        tiled_share=float(np.count_nonzero(intervals) / len(intervals)),
        restart_intervals=tuple(sorted(set(intervals) - {0})),
    )


def _tiled_interval(dataset: Dataset, index: int, number: int) -> int:
    """MCUs per restart interval of an image whose crops can be cut out of its bytes; 0 for any other."""
    if not dataset.buffers or dataset.levels[number].raw[index]:
        return 0
    data = dataset.encoded(index, number)
    try:
        return read_header(data).restart_interval if read_index(data) is not None else 0
    except JpegError:
        return 0  # another format, or damaged
