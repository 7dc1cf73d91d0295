"""What a stored dataset or a source holds, at a glance."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from respipe.conversion.engine import known_faults
from respipe.conversion.pyramid import build_pyramid
from respipe.conversion.report import SampleNote
from respipe.conversion.settings import ConversionSettings
from respipe.conversion.sources.base import Derived, Source, SourceOptions, open_source, source_spec
from respipe.conversion.sources.columns import Faulty
from respipe.errors import CorruptImageError
from respipe.jpeg.header import JpegError, read_header
from respipe.jpeg.index import read_index
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.dataset import Dataset, Records
from respipe.storage.fields import Kind
from respipe.storage.folder import FolderDataset
from respipe.storage.open import Data, open_dataset
from respipe.storage.remote import is_url
from respipe.storage.shards import ShardedDataset
from respipe.storage.upright import BrokenImageError, decode

# Enough samples to tell what all are like, few enough to be read from a slow disk in a moment.
_MOST_EXAMINED = 256
# The same where each is decoded and encoded: bytes per image are then known to about a tenth.
_MOST_DECODED = 64


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
    """What a stored dataset, or a source of conversions, holds.

    Args:
        path: the file or folder, or a name for what is no path.
        kind: "beton", "shards", "folder", or what a source is, "tar of class archives".
        writer: what wrote the file: "respipe 0.1.0", or "FFCV" for files without respipe's appendix; None for sources.
        num_samples: samples in it.
        classes: class names, or None where there are none.
        num_labels: distinct labels; None where they are known only when a sample is read.
        fields: kind of each field beside the image, by name, such as "class" or "text".
        levels: stored resolutions, largest first. Of a source the images as they are, told from those examined.
        num_examined: samples whose headers were read, or that of a source were decoded, spread evenly over all.
        decoding: a sentence on how much of an image must be decoded for a crop, and what would make it less.
        num_bytes: of the file, or files; of a source those of its images, about where they are not listed.
        has_checksums: whether changed bytes can be found without decoding.
        settings: the conversion's settings, where recorded.
        source: what was converted, where recorded.
        fingerprint: changes with the samples or their order.
        passed_over: what a source leaves out, ".txt files", and how many.
        faults: samples of a source that cannot be converted, as far as that is known: those that lack something, and
            those among the examined ones that cannot be decoded.
        converted_bytes: about what a conversion of a source makes, with the default settings; None for other data.
    """

    path: str
    kind: str
    writer: str | None
    num_samples: int
    classes: tuple[str, ...] | None
    num_labels: int | None
    fields: dict[str, Kind]
    levels: tuple[LevelSummary, ...]
    num_examined: int
    decoding: str
    num_bytes: int
    has_checksums: bool
    settings: dict[str, Any] | None
    source: dict[str, Any] | None
    fingerprint: str
    passed_over: dict[str, int] = field(default_factory=dict[str, int])
    faults: tuple[SampleNote, ...] = ()
    converted_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        values = asdict(self)
        for level, summary in zip(values["levels"], self.levels, strict=True):
            level["bytes_per_image"] = summary.bytes_per_image
        return values


def inspect(
    path: Data | Source | object,
    *,
    format: str | None = None,
    label_field: str | None = None,
    labels: str | os.PathLike[str] | None = None,
    split: str | None = None,
) -> Inspection:
    """Look into what is stored or can be converted, reading tables, indices and some images only.

    Args:
        path: a ``.beton``, several of them, a class folder, or any source of :func:`respipe.convert`.
        format, label_field, labels, split: see :func:`respipe.convert`.

    Raises:
        StorageError: there is nothing at the path, or its structure is damaged.
    """
    options = SourceOptions(label_field=label_field, labels=labels, split=split)
    if _is_stored(path, format, options):
        return _of_dataset(open_dataset(cast("Data", path), on_demand=True))
    source = open_source(path, format=format, options=options)
    if not isinstance(path, (str, os.PathLike)):
        return _of_source(source, type(path).__name__, 'respipe.convert(..., "TARGET.beton")')
    name = os.fspath(cast("str", path))
    said = {"format": format, **options.given()}
    flags = "".join(
        f" --{key.replace('_', '-')} {shlex.quote(str(value))}" for key, value in said.items() if value is not None
    )
    return _of_source(source, name, f"respipe convert {shlex.quote(name)} TARGET.beton{flags}")


def _is_stored(path: object, format: str | None, options: SourceOptions) -> bool:
    if is_url(path):
        return True
    if isinstance(path, (str, os.PathLike)):
        spec = source_spec(os.fspath(cast("str", path)), format, options)
        return spec.format == "beton"
    if isinstance(path, (list, tuple)):
        return all(isinstance(one, (str, os.PathLike)) for one in cast("Sequence[object]", path))
    return hasattr(path, "levels")


def _of_dataset(dataset: Dataset) -> Inspection:
    beton = dataset if isinstance(dataset, (BetonDataset, ShardedDataset)) else None
    attributes = beton.attributes if beton else {}
    examined = _spread(len(dataset), _MOST_EXAMINED)
    levels = tuple(_summary(dataset, number, examined) for number in range(len(dataset.levels)))
    return Inspection(
        path=str(dataset.path),
        kind=dataset.kind,
        writer=attributes.get("writer", "FFCV") if beton else None,
        num_samples=len(dataset),
        classes=dataset.classes,
        num_labels=0 if dataset.labels is None else len(np.unique(dataset.labels, axis=0)),
        fields=_kinds(dataset),
        levels=levels,
        num_examined=len(examined),
        decoding=_decoding(dataset, attributes),
        num_bytes=sum(map(len, dataset.buffers)) if beton else sum(level.num_bytes for level in levels),
        has_checksums=dataset.levels[0].checksums is not None,
        settings=attributes.get("settings"),
        source=attributes.get("source"),
        fingerprint=dataset.fingerprint,
    )


def _of_source(source: Source, path: str, command: str) -> Inspection:
    settings, missing = ConversionSettings(), known_faults(source)
    faults = dict(missing)
    sizes: list[tuple[int, int, int, int]] = []  # height, width, bytes, bytes when converted
    examined = _spread(len(source), _MOST_DECODED)
    for index in examined.tolist():
        try:
            data = source.read(index)
            image = decode(data).image
            stored = {id(one): len(one.data) for one in build_pyramid(data, settings).images}  # levels may share one
            sizes.append((image.height, image.width, len(data), sum(stored.values())))
        except (CorruptImageError, BrokenImageError) as error:
            faults.setdefault(index, str(error))
    heights, widths, lengths, converted = np.array(sizes or [(0, 0, 0, 0)], np.int64).T
    label = source.fields.get("label")
    values: object = None if label is None else label.values
    values = values.values if isinstance(values, Faulty) else values
    known = None
    if isinstance(values, np.ndarray):
        known = len(np.unique(np.delete(cast("NDArray[Any]", values), [*missing], axis=0), axis=0))
    origin = source.source if isinstance(source, Derived) else source
    about = getattr(origin, "num_bytes", round(float(lengths.mean()) * len(source)))
    return Inspection(
        path=path,
        kind=source.kind,
        writer=None,
        num_samples=len(source),
        classes=None if label is None else label.classes,
        num_labels=0 if label is None else known,
        fields=_kinds(source),
        levels=(
            LevelSummary(
                name="image",
                median_height=float(np.median(heights)),
                median_width=float(np.median(widths)),
                smallest_side=int(min(heights.min(), widths.min())),
                largest_side=int(max(heights.max(), widths.max())),
                num_images=len(source),
                num_bytes=about,
                raw_share=0.0,
                tiled_share=0.0,
                restart_intervals=(),
            ),
        ),
        num_examined=len(examined),
        decoding=f"Every file is decoded whole; `{command}` makes images that crops can be cut out of.",
        num_bytes=about,
        has_checksums=False,
        settings=None,
        source=None,
        fingerprint=source.fingerprint,
        passed_over=dict(getattr(origin, "passed_over", {})),
        faults=tuple(SampleNote(index=i, name=source.name(i), reason=faults[i]) for i in sorted(faults)),
        converted_bytes=round(float(converted.mean()) * len(source)),
    )


def _spread(number: int, most: int) -> NDArray[np.int64]:
    """Some numbers of samples, spread evenly over all."""
    return np.unique(np.linspace(0, number - 1, most).astype(np.int64)) if number else np.zeros(0, np.int64)


def _kinds(records: Records) -> dict[str, Kind]:
    return {name: column.kind for name, column in records.fields.items()}


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
