"""What a backend is: its description, what it is told of a batch, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from respipe.errors import CorruptImageError
from respipe.storage.dataset import Dataset

ROW = np.dtype([(name, np.int64) for name in ("buffer", "offset", "length", "height", "width", "raw")])
"""Where a stored image lies: number of the buffer, offset and length in bytes; its height and width in pixels; 1 for
raw pixels, 0 for an encoded image. An image that is a file of its own has buffer -1, and no offset and length."""


Interpolation = Literal["bilinear", "bicubic"]
"""The filter that crops are resized with, widened where it makes them smaller, so that nothing aliases."""


class Crops(NamedTuple):
    """What compiled loops are told of a range of images; see :class:`ReadJob`."""

    rows: NDArray[np.void]
    boxes: NDArray[np.float64]
    hulls: NDArray[np.int64]
    covers: NDArray[np.int64]
    flips: NDArray[np.bool_]
    cubic: bool = False
    exact: bool = False


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class ReadJob:
    """All that a backend is told of a batch of B images, each decoded at K sizes.

    Args:
        sizes: K sides in pixels.
        indices: (B,) int64, sample numbers.
        levels: (B,) int64, number of the stored level that each image is read from, 0 the largest.
        rows: (B,) of ``ROW``, where the stored images are.
        boxes: (B, K, 4) float64, the crop at each size: ``top, left, height, width`` in pixels of the stored image.
        hulls: (B, K, 4) int64, the boxes' integer hulls.
        covers: (B, 4) int64, what holds all hulls of an image.
        flips: (B,) bool, which images to mirror.
        unchecked: (B,) bool, whose stored bytes must be checked before they are decoded. ``verify`` clears what it
            has found sound.
        interpolation: filter of the resize.
        exact: whether pixels are to be the definition's to one grey level, even where that is slower: so in evaluation
            as others do it.
    """

    sizes: tuple[int, ...]
    indices: NDArray[np.int64]
    levels: NDArray[np.int64]
    rows: NDArray[np.void]
    boxes: NDArray[np.float64]
    hulls: NDArray[np.int64]
    covers: NDArray[np.int64]
    flips: NDArray[np.bool_]
    unchecked: NDArray[np.bool_]
    interpolation: Interpolation = "bilinear"
    exact: bool = False

    def __len__(self) -> int:
        return len(self.indices)

    def crops(self, part: slice) -> Crops:
        """Some of the images, for compiled loops."""
        cubic = self.interpolation == "bicubic"
        arrays = (self.rows[part], self.boxes[part], self.hulls[part], self.covers[part], self.flips[part])
        return Crops(*arrays, cubic, self.exact or cubic)

    def row(self, number: int) -> ReadJob:
        """The job of one image alone."""
        only = slice(number, number + 1)
        alike = ("sizes", "interpolation", "exact")
        return replace(self, **{name: getattr(self, name)[only] for name in self.__slots__ if name not in alike})


Outputs = tuple[NDArray[np.uint8], ...]
"""A (B, S, S, 3) uint8 array for each of a job's sizes."""

Decoder = Callable[[Dataset, ReadJob, slice, Outputs], None]
"""Fills in some rows of a job's outputs; called from several threads at once, each with rows of its own.

Raises :class:`CorruptImageError` for an image that cannot be decoded.
"""


class Backend(Protocol):
    """Decodes read jobs in the order they were submitted. Draws nothing at random and keeps no notion of size.

    The pixels of an image are defined as: crop the stored level to the box's integer hull (what lies outside the image
    is black), resize the box within that hull to S x S with an antialiased filter, bilinear (a triangle) or bicubic
    (Keys, a = -1/2), that sees the hull only, then mirror. ``reference`` computes exactly that with Pillow; the others
    stay within the tolerances of the contract suite. Hulls are wider where a filter is to see beyond its box.

    Calls come from one thread at a time. ``submit`` may be called several times before ``collect``.
    """

    @property
    def name(self) -> str:
        """The backend's name as given to ``Loader(backend=...)``."""
        ...

    def prepare(self, max_images: Callable[[], int]) -> None:
        """Expect batches of up to so many images, before the first one is submitted. More are no error.

        Args:
            max_images: tells how many; worth asking only where something is built for that number.
        """
        ...

    def room(self, job: ReadJob) -> int:
        """Number of batches like this one that should be in flight to keep the backend busy, at least 2."""
        ...

    def submit(self, job: ReadJob) -> None:
        """Start decoding a batch in the background."""
        ...

    def collect(self) -> tuple[torch.Tensor, ...]:
        """Wait for the oldest submitted batch.

        Returns:
            A (B, S, S, 3) uint8 tensor, values 0..255, contiguous, for each size of the job. It is the caller's:
            no later batch overwrites it.

        Raises:
            CorruptImageError: an image cannot be decoded, or is not what was written. The batch is lost; call ``reset``
                before going on.
        """
        ...

    def reset(self) -> None:
        """Forget every submitted batch that was not collected."""
        ...

    def close(self) -> None:
        """Release threads, buffers and engine state. Safe to call twice."""
        ...


class BuildBackend(Protocol):
    """Builds a backend. Raises ImportError where what it needs cannot be imported."""

    def __call__(self, dataset: Dataset, *, device: torch.device, num_threads: int) -> Backend: ...


@dataclass(frozen=True, kw_only=True)
class BackendSpec:
    """A backend's description. One that is named ``SPEC`` in a module of :mod:`respipe.backends` is found there.

    Another package offers one as an entry point of the group ``respipe.backends``.

    Args:
        name: as given to ``Loader(backend=...)``.
        summary: what it is good for, in a few words.
        modules: names of the modules that must be importable.
        distributions: names of the packages that decode, of which one is installed; the first found tells the version.
        install: the command that installs what it needs.
        priority: for a device, how early "auto" tries the backend: the largest number first. At 0 or below it is slow,
            and "auto" warns when it must take it.
        refuse: for a dataset, None where the backend can read it, else an error message that says why not and what to
            do instead.
        build: makes the backend for a dataset that it does not refuse.
        interpolations: what it can resize with.
    """

    name: str
    summary: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    install: str
    priority: Callable[[torch.device], int]
    refuse: Callable[[Dataset], str | None]
    build: BuildBackend
    interpolations: tuple[Interpolation, ...] = ("bilinear",)


def verify(dataset: Dataset, job: ReadJob, part: slice) -> None:
    """Check the stored bytes of those rows that were not checked before.

    Raises:
        CorruptImageError: the first of them that is damaged.
    """
    if not job.unchecked[part].any():
        return
    for row in np.flatnonzero(job.unchecked[part]) + part.start:
        dataset.check(int(job.indices[row]), int(job.levels[row]))
        job.unchecked[row] = False


def corrupt_image(dataset: Dataset, index: int, level: int, reason: str) -> CorruptImageError:
    """The error for an image that cannot be decoded."""
    return CorruptImageError(
        f"{dataset.path}: sample {index} ({dataset.name(index)}, {dataset.levels[level].name}) cannot be decoded: "
        f"{reason}. Run `respipe verify {dataset.path}` to list every damaged sample.",
        index=index,
    )


def corrupt_row(dataset: Dataset, job: ReadJob, row: int, reason: str) -> CorruptImageError:
    """The same for an image of a job."""
    return corrupt_image(dataset, int(job.indices[row]), int(job.levels[row]), reason)
