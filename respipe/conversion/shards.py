"""Datasets of several files: which samples each part of a conversion has, and files put together or taken apart.

Merging and splitting copy the stored images as they are; each is compared with its checksum on the way.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from respipe.checks import check_int
from respipe.conversion.report import ConversionReport, LevelReport
from respipe.conversion.sources.base import Source
from respipe.errors import ConversionError
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.beton.format import HEADER
from respipe.storage.beton.pages import PageBuilder, PageRecord, Pyramid, StoredImage
from respipe.storage.beton.writer import BetonWriter
from respipe.storage.fields import Column
from respipe.storage.open import Data, open_dataset
from respipe.storage.shards import ShardedDataset, index_shards, shard_name

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Portion:
    """The samples of a source that one of several files gets: a run of them.

    Args:
        whole: the source.
        number: of the file, from 0.
        of: files in all, at most as many as there are samples.
    """

    whole: Source
    number: int
    of: int

    @property
    def start(self) -> int:
        """Number of its first sample in the source."""
        return len(self.whole) * self.number // self.of

    @property
    def kind(self) -> str:
        return self.whole.kind

    @property
    def fields(self) -> Mapping[str, Column]:
        stop = self.start + len(self)
        return {name: column.part(self.start, stop) for name, column in self.whole.fields.items()}

    @property
    def fingerprint(self) -> str:
        """That of the source."""
        return self.whole.fingerprint

    def __len__(self) -> int:
        return len(self.whole) * (self.number + 1) // self.of - self.start

    def read(self, index: int) -> bytes:
        return self.whole.read(self.start + index)

    def name(self, index: int) -> str:
        return self.whole.name(self.start + index)


def check_part(shards: int, part: tuple[int, int] | None) -> range:
    """Numbers of the files that a part of a conversion makes.

    Args:
        shards: files in all.
        part: ``(i, n)``, the i-th of n parts, counted from 0; None for all.

    Raises:
        TypeError, ValueError: they are out of range.
    """
    check_int("shards", shards, least=1)
    if part is None:
        return range(shards)
    number, of = part
    if not 0 <= number < of <= shards:
        raise ValueError(
            f"`part` must be (i, n), i from 0 to n - 1 and n at most the {shards} shards; got {part}. With 16 parts "
            "the last is 15/16."
        )
    return range(shards * number // of, shards * (number + 1) // of)


def combined(reports: Sequence[ConversionReport], starts: Sequence[int], target: str) -> ConversionReport:
    """The report of several files as one.

    Args:
        reports: of each file.
        starts: number of the first sample of each in the source.
        target: their folder.
    """
    first = reports[0]
    counts: dict[str, Any] = {
        name: sum(getattr(report, name) for report in reports)
        for name in ("num_samples", "num_images", "num_kept", "num_reencoded", "num_resumed", "seconds")
    }
    notes: dict[str, Any] = {
        name: tuple(
            replace(note, index=note.index + start)
            for report, start in zip(reports, starts, strict=True)
            for note in getattr(report, name)
        )
        for name in ("quarantined", "warned")
    }
    levels = tuple(
        LevelReport(
            name=level.name,
            longest_side=level.longest_side,
            num_images=sum(report.levels[number].num_images for report in reports),
            num_bytes=sum(report.levels[number].num_bytes for report in reports),
        )
        for number, level in enumerate(first.levels)
    )
    traits = sum((Counter(report.traits) for report in reports), Counter[str]())
    return ConversionReport(target=target, traits=dict(sorted(traits.items())), levels=levels, **counts, **notes)


def merge(
    sources: Data, target: str | os.PathLike[str], *, overwrite: bool = False, progress: Progress | None = None
) -> None:
    """Write one ``.beton`` with the samples of several, in their order, without encoding anything anew.

    Of the shards of a conversion without undecodable images it makes the very file of a conversion to one.

    Args:
        sources: the files, or a folder of them with an index.
        target: the file to make. It appears when it is finished.
        overwrite: replace an existing ``target``.
        progress: called with the number of samples done and their total.

    Raises:
        StorageError: a file is missing, damaged, or foreign to the others.
        CorruptImageError: a stored image is damaged.
        ConversionError: the target exists, or a file is not one that respipe wrote.
    """
    with closing(_open_own(sources)) as dataset:
        _copy(dataset, range(len(dataset)), Path(target), {}, overwrite=overwrite, progress=progress)


def split(
    source: Data,
    target: str | os.PathLike[str],
    *,
    shards: int,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a folder of ``.beton`` files, and their index, with the samples of one, without encoding anything anew.

    Args:
        source: a file; or a folder of some with an index, to have another number of files.
        target: the folder to make.
        shards: files to make.
        overwrite: replace existing files of the same names.
        progress: called with the number of samples done and their total.

    Raises:
        StorageError, CorruptImageError, ConversionError: see :func:`merge`.
        ValueError: there are more files than samples.
    """
    with closing(_open_own(source)) as dataset:
        if check_int("shards", shards, least=1) > len(dataset):
            raise ValueError(
                f"`shards` must be at most the number of samples, {len(dataset)}; got {shards}. Use fewer."
            )
        folder = Path(target)
        folder.mkdir(exist_ok=True)
        origin = {**dataset.attributes.get("source", {}), "fingerprint": dataset.fingerprint}
        for number in range(shards):
            samples = range(len(dataset) * number // shards, len(dataset) * (number + 1) // shards)
            attributes = {"source": {**origin, "shard": [number, shards]}}
            path = folder / shard_name(number, shards)
            _copy(dataset, samples, path, attributes, overwrite=overwrite, progress=progress)
    index_shards(folder)


def _open_own(data: Data) -> ShardedDataset:
    """Open one or several files that respipe wrote."""
    dataset = open_dataset(data)
    files = dataset if isinstance(dataset, ShardedDataset) else None
    if isinstance(dataset, BetonDataset):
        files = ShardedDataset([dataset])
    if files is None or files.levels[0].checksums is None:
        raise ConversionError(
            f"{dataset.path} must be a .beton file that respipe wrote, for its images to be copied as they are. "
            "Convert it first."
        )
    return files


def _copy(
    dataset: ShardedDataset,
    samples: range,
    target: Path,
    attributes: Mapping[str, Any],
    *,
    overwrite: bool,
    progress: Progress | None,
) -> None:
    """Write a file of some samples."""
    if target.exists() and not overwrite:
        raise ConversionError(
            f"{target} exists already. Choose another target, remove it, or pass overwrite=True (--overwrite)."
        )
    partial = Path(f"{target}.partial")
    fields = {name: column.part(samples.start, samples.stop) for name, column in dataset.fields.items()}
    page_size = int(dataset.buffers[0][: HEADER.itemsize].view(HEADER)[0]["page_size"])
    records: list[PageRecord] = []
    with BetonWriter(
        partial,
        num_samples=len(samples),
        levels=[level.name for level in dataset.levels],
        label=fields["label"].kind if "label" in fields else None,
        page_size=page_size,
    ) as writer:
        writer.truncate(records)

        def new_page() -> PageBuilder:
            return PageBuilder(page_size=writer.page_bounds(len(records))[1], num_levels=len(dataset.levels))

        def finish_page(stop: int) -> None:
            data, record = page.finish(stop)
            writer.write_page(len(records), data)
            records.append(record)

        page = new_page()
        for index in samples:
            pyramid = _stored(dataset, index)
            while not page.has_room(pyramid):
                finish_page(index)
                page = new_page()
            page.add(index, pyramid)
            if progress is not None:
                progress(index + 1, len(dataset))
        finish_page(samples.stop)
        writer.finish(
            records,
            names=(dataset.name(index) for index in samples),
            fields=fields,
            attributes={"classes": None, **dataset.attributes, **attributes},
        )
    partial.replace(target)


def _stored(dataset: ShardedDataset, index: int) -> Pyramid:
    images: list[StoredImage] = []
    tiled = dataset.tiled
    for number, level in enumerate(dataset.levels):
        if number and level.offsets[index] == dataset.levels[number - 1].offsets[index]:
            images.append(images[-1])
            continue
        dataset.check(index, number)
        assert level.checksums is not None and not level.raw[index], "respipe's files hold JPEGs with checksums"
        image = StoredImage(
            data=dataset.encoded(index, number).tobytes(),
            height=int(level.heights[index]),
            width=int(level.widths[index]),
            checksum=int(level.checksums[index]),
            tiled=tiled,
        )
        images.append(image)
    return Pyramid(
        images=tuple(images), original=(images[0].height, images[0].width), kept=False, traits=(), warnings=()
    )
