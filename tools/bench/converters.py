"""Ways to make a ``.beton`` of a class folder, each measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import respipe
from respipe.conversion import FolderSource
from respipe.storage.fields import Column

_FFCV_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to convert.

    Args:
        data: class folder of JPEGs.
        num_images: how many to convert; the folder's again and again, so that starting counts as little as it does
            for a large dataset.
        target: the file to write.
        num_workers: processes, and cores to run on.
    """

    data: Path
    num_images: int
    target: Path
    num_workers: int


@dataclass(frozen=True, kw_only=True)
class Converter:
    """A way to convert.

    Args:
        title: its name in tables.
        convert: does it.
    """

    title: str
    convert: Callable[[Job], None]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One conversion.

    Args:
        seconds: from the call, with everything imported, to the finished file.
        bytes_per_image: of all stored resolutions together.
    """

    seconds: float
    bytes_per_image: float


def _with_respipe(**options: Any) -> Callable[[Job], None]:
    def convert(job: Job) -> None:
        source = RepeatedSource(FolderSource(job.data), job.num_images)
        respipe.convert(source, job.target, num_workers=job.num_workers, **options)

    return convert


def _with_ffcv(job: Job) -> None:
    from .stock_ffcv import write_ffcv_file

    write_ffcv_file(
        job.data,
        job.target,
        max_resolution=500,
        quality=_FFCV_QUALITY,
        num_workers=job.num_workers,
        num_images=job.num_images,
    )


BASELINE = "ffcv-500"
CONVERTERS: Mapping[str, Converter] = {
    BASELINE: Converter(title="FFCV 500 px", convert=_with_ffcv),
    "respipe": Converter(title="respipe, five levels", convert=_with_respipe()),
    "respipe-512": Converter(title="respipe 512 px alone", convert=_with_respipe(levels=(512,))),
    "respipe-pixels": Converter(title="respipe, pixels kept", convert=_with_respipe(keep="pixels")),
}


@dataclass(frozen=True)
class RepeatedSource:
    """A folder's images again and again; see :class:`respipe.conversion.Source`."""

    folder: FolderSource
    num_images: int

    @property
    def kind(self) -> str:
        """That of the folder."""
        return self.folder.kind

    @property
    def fields(self) -> dict[str, Column]:
        """Those of the folder."""
        return {
            name: replace(column, values=np.resize(np.asarray(column.values), self.num_images))
            for name, column in self.folder.fields.items()
        }

    @property
    def fingerprint(self) -> str:
        """That of the folder."""
        return self.folder.fingerprint

    def __len__(self) -> int:
        return self.num_images

    def read(self, index: int) -> bytes:
        """See :meth:`respipe.conversion.Source.read`."""
        return self.folder.read(index % len(self.folder))

    def name(self, index: int) -> str:
        """See :meth:`respipe.conversion.Source.name`."""
        return self.folder.name(index % len(self.folder))


def turn(names: Sequence[str], number: int) -> list[str]:
    """The order of one round: each begins with another conversion, so that none always follows the same one."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def measure_conversion(name: str, job: Job) -> Measured:
    """Convert in a new process, and remove the file again."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        try:
            return process.submit(_measure, name, job).result()
        finally:
            job.target.unlink(missing_ok=True)


def _measure(name: str, job: Job) -> Measured:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.num_workers])
    # A spawned process would spawn in turn; FFCV's writer is to start its workers as it does for anyone.
    multiprocessing.set_start_method(None, force=True)
    if name == BASELINE:
        import torchvision.datasets  # noqa: F401 - before the clock starts

        from . import stock_ffcv  # noqa: F401
    start = time.perf_counter()
    CONVERTERS[name].convert(job)
    seconds = time.perf_counter() - start
    stored = sum(level.num_bytes for level in respipe.inspect(job.target).levels)
    return Measured(seconds=seconds, bytes_per_image=stored / job.num_images)
