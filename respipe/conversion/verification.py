"""Looking for damage in stored datasets, also in the bytes between their images."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from respipe.conversion.sources.folder import FolderSource
from respipe.conversion.workers import check_num_workers, map_samples
from respipe.errors import CorruptImageError
from respipe.storage.beton.dataset import BetonDataset
from respipe.storage.beton.structure import Structure, read_structure
from respipe.storage.open import open_dataset
from respipe.storage.remote import is_url
from respipe.storage.shards import ShardedDataset, is_sharded
from respipe.storage.upright import BrokenImageError, pixel_limit
from respipe.storage.upright import decode as decode_image

_MOST_STRAY = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class DamagedImage:
    """One damaged image.

    Args:
        index: the sample's number.
        level: name of the stored resolution.
        name: where the sample came from.
        reason: what is wrong.
    """

    index: int
    level: str
    name: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class VerificationReport:
    """What a verification looked at and found.

    Args:
        path: the file or folder.
        kind: "beton", "shards" or "folder".
        num_samples: samples in it.
        num_images: images looked at: samples times levels, without those that share another level's bytes.
        has_checksums: whether each image was compared with its checksum.
        decoded: whether each image was decoded.
        damaged: images that differ from what was written, or cannot be decoded.
        warned: images of a folder that were decoded although their decoder complained: worth a look.
        stray_bytes: the first places in the file, or in any of several, where a byte that nobody reads is not zero, as
            it was written.
        seconds: it took.
    """

    path: str
    kind: str
    num_samples: int
    num_images: int
    has_checksums: bool
    decoded: bool
    damaged: tuple[DamagedImage, ...]
    warned: tuple[DamagedImage, ...]
    stray_bytes: tuple[int, ...]
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged and not self.stray_bytes

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "sound": self.sound}


def verify(
    path: str | os.PathLike[str],
    *,
    decode: bool = False,
    num_workers: int | None = None,
    max_pixels: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerificationReport:
    """Check every image of a ``.beton``, of a folder of such files with an index, or of a class folder.

    A ``.beton`` is opened, which checks its structure, and each image is compared with its checksum. In files that
    respipe wrote, what lies between must be zero: there no changed byte goes unseen. Images without checksums, as those
    of a folder, are decoded in any case: the verdict is that of conversion and of the Loader.

    Args:
        path: the file or folder, or its URL.
        decode: decode every image too.
        num_workers: processes, by default one per core; with 0 this one does the work.
        max_pixels: pixels that an image may have at most. Default: Pillow's limit, twice
            ``PIL.Image.MAX_IMAGE_PIXELS``.
        progress: called with the number of samples done and their total.

    Raises:
        ValueError: a number is out of range.
        StorageError: there is nothing at the path, or its structure is damaged.
        WorkerLostError: a worker process died or stalled.
    """
    start = time.perf_counter()
    workers = check_num_workers(num_workers)
    root = Path(path)
    found: list[_Found] = []
    with pixel_limit(max_pixels):
        check = (
            _CheckFolder(FolderSource(root))
            if not is_url(path) and root.is_dir() and not is_sharded(root)
            else _CheckBeton(cast("BetonDataset | ShardedDataset", open_dataset(path)), decode)
        )
        total = len(check)
        if progress is not None:
            progress(0, total)
        with closing(map_samples(check, range(total), num_workers=workers)) as results:
            for index, of_sample in results:
                found.append(of_sample)
                if progress is not None:
                    progress(index + 1, total)
    return VerificationReport(
        path=os.fspath(path),
        kind=check.kind,
        num_samples=total,
        num_images=sum(of_sample.num_images for of_sample in found),
        has_checksums=check.has_checksums,
        decoded=check.decode or not check.has_checksums,
        damaged=tuple(image for of_sample in found for image in of_sample.damaged),
        warned=tuple(image for of_sample in found for image in of_sample.warned),
        stray_bytes=check.stray_bytes() if isinstance(check, _CheckBeton) else (),
        seconds=time.perf_counter() - start,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """Of one sample."""

    num_images: int
    damaged: tuple[DamagedImage, ...] = ()
    warned: tuple[DamagedImage, ...] = ()


@dataclass(frozen=True, slots=True)
class _CheckFolder:
    source: FolderSource
    kind = "folder"
    has_checksums = False
    decode = True

    def __len__(self) -> int:
        return len(self.source)

    def __call__(self, index: int) -> _Found:
        def image(reason: str) -> DamagedImage:
            return DamagedImage(index=index, level="image", name=self.source.name(index), reason=reason)

        try:
            complaints = decode_image(self.source.read(index), collect_warnings=True).warnings
        except (CorruptImageError, BrokenImageError) as error:
            return _Found(num_images=1, damaged=(image(str(error)),))
        return _Found(num_images=1, warned=tuple(map(image, complaints)))


@dataclass(frozen=True, slots=True)
class _CheckBeton:
    dataset: BetonDataset | ShardedDataset
    decode: bool

    @property
    def kind(self) -> str:
        return self.dataset.kind

    def stray_bytes(self) -> tuple[int, ...]:
        files = (self.dataset,) if isinstance(self.dataset, BetonDataset) else self.dataset.shards
        return tuple(place for file in files for place in find_stray_bytes(file, most=_MOST_STRAY))[:_MOST_STRAY]

    @property
    def has_checksums(self) -> bool:
        return self.dataset.levels[0].checksums is not None

    def __len__(self) -> int:
        return len(self.dataset)

    def __call__(self, index: int) -> _Found:
        damaged: list[DamagedImage] = []
        offsets: set[int] = set()
        for number, level in enumerate(self.dataset.levels):
            if level.offsets[index] in offsets:
                continue  # these bytes were looked at on the level before
            offsets.add(int(level.offsets[index]))
            reason = self._problem(index, number)
            if reason is not None:
                name = self.dataset.name(index)
                damaged.append(DamagedImage(index=index, level=level.name, name=name, reason=reason))
        return _Found(num_images=len(offsets), damaged=tuple(damaged))

    def _problem(self, index: int, number: int) -> str | None:
        level = self.dataset.levels[number]
        problem = self.dataset.problem(index, number)
        if problem is not None or level.raw[index] or not self.decode:
            return problem
        try:
            decoded = decode_image(self.dataset.encoded(index, number).tobytes(), collect_warnings=True)
        except BrokenImageError as error:
            return str(error)
        if decoded.image.size != (level.widths[index], level.heights[index]):
            return f"it decodes to {decoded.image.width} x {decoded.image.height} pixels"
        return decoded.warnings[0] if decoded.warnings else None


# How much is looked at together, to bound the memory that it takes.
_CHUNK = 64 << 20


def find_stray_bytes(dataset: BetonDataset, *, most: int) -> tuple[int, ...]:
    """Places of bytes between the parts of a file that are not zero, as respipe writes them.

    They harm nobody, but tell that the file was changed after it was written. With the checksums, which cover all other
    bytes, no change of the file goes unseen.

    Args:
        dataset: an open file.
        most: how many places to return.

    Returns:
        the first places, rising; none for a file without respipe's appendix, whose gaps may hold anything.
    """
    (memory,) = dataset.buffers
    structure = read_structure(dataset.path, memory)
    if structure.appendix is None:
        return ()
    found: list[int] = []
    for start, stop in _gaps(_parts(dataset, structure)):
        for at in range(start, stop, _CHUNK):
            found += (at + np.flatnonzero(memory[at : min(at + _CHUNK, stop)])[: most - len(found)]).tolist()
            if len(found) == most:
                return tuple(found)
    return tuple(found)


def _parts(dataset: BetonDataset, structure: Structure) -> NDArray[np.int64]:
    """(n, 2) start and end of everything that has a checksum."""
    assert structure.appendix is not None
    parts = [np.array([(0, structure.data_start), *structure.appendix.parts], np.int64)]
    parts.extend(np.stack([level.offsets, level.offsets + level.sizes], axis=1) for level in dataset.levels)
    end = len(dataset.buffers[0])
    return np.concatenate([*parts, np.array([[end, end]], np.int64)])


def _gaps(parts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Start and end of what lies between parts, which may overlap."""
    parts = parts[np.argsort(parts[:, 0], kind="stable")]
    covered = np.maximum.accumulate(parts[:, 1])
    rows = np.flatnonzero(parts[1:, 0] > covered[:-1])
    yield from zip(covered[rows].tolist(), parts[rows + 1, 0].tolist(), strict=True)
