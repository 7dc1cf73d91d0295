"""The encoded images of a batch, cut to their crops where that is possible, for decoders that take nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from respipe.backends.base import ReadJob, corrupt_row, verify
from respipe.backends.pool import DaemonPool, ranges
from respipe.storage.dataset import Bytes, Dataset


class CropReader:
    """Reads the encoded images of jobs, with several threads.

    Args:
        dataset: where the images are. Files of a class folder are read whole; from a memory map JPEGs with restart
            markers are cut, and others are not even copied.
        num_threads: threads that read or cut.
    """

    def __init__(self, dataset: Dataset, *, num_threads: int) -> None:
        self._dataset = dataset
        self._num_threads = num_threads
        self._pool = DaemonPool(num_threads, "respipe-read")
        if dataset.buffers:
            from respipe.backends.compiled import memory  # here, since importing respipe must not wait for Numba

            nothing = np.empty(0, np.uint8), np.empty((0, 4), np.int64)
            memory.prepare(memory.cut_images, memory.NO_TABLE, memory.NO_CROPS, *nothing)

    def read(self, job: ReadJob) -> tuple[Sequence[Bytes], ReadJob]:
        """The images of a batch, each a stored image or what was cut out of one, and the job that remains to be done.

        In that job the crops count in pixels of these images.

        Raises:
            CorruptImageError: an image cannot be read, is not what was written, or its restart markers are damaged.
        """
        parts = ranges(job.covers, self._num_threads)
        if self._dataset.buffers:
            return self._cut(job, parts)
        count = len(parts)
        images = self._pool.map(_read, [self._dataset] * count, [job] * count, parts)
        return [image for some in images for image in some], job

    def close(self) -> None:
        """End the threads."""
        self._pool.close()

    def _cut(self, job: ReadJob, parts: Sequence[slice]) -> tuple[Sequence[Bytes], ReadJob]:
        edges = np.concatenate([[0], np.cumsum(job.rows["length"])])
        cut = np.empty(edges[-1], np.uint8)
        places = np.empty((len(job), 4), np.int64)
        outputs = [(cut[edges[part.start] : edges[part.stop]], places[part]) for part in parts]
        count = len(parts)
        self._pool.map(_cut_part, [self._dataset] * count, [job] * count, parts, outputs)
        for part in parts:
            places[part, :2] += edges[part.start]
        offsets = np.concatenate([places[:, 2:], np.zeros_like(places[:, 2:])], axis=1)
        buffers = self._dataset.buffers
        images: list[Bytes] = []
        whole: list[tuple[int, ...]] = job.rows.tolist()
        for (start, stop, *_), (buffer, offset, length, *_) in zip(places.tolist(), whole, strict=True):
            images.append(cut[start:stop] if stop > start else buffers[buffer][offset : offset + length])
        boxes, hulls = job.boxes - offsets[:, None], job.hulls - offsets[:, None]
        return images, replace(job, boxes=boxes, hulls=hulls, covers=job.covers - offsets)


def _read(dataset: Dataset, job: ReadJob, part: slice) -> list[Bytes]:
    """Files of a range."""
    verify(dataset, job, part)
    places = zip(job.indices[part].tolist(), job.levels[part].tolist(), strict=True)
    return [dataset.encoded(index, level) for index, level in places]


def _cut_part(dataset: Dataset, job: ReadJob, part: slice, output: tuple[Bytes, np.ndarray]) -> None:
    """Cut a range; ``output`` has room for its bytes, and a row per image for where they are."""
    from respipe.backends.compiled.memory import buffer_table, cut_images

    verify(dataset, job, part)
    buffers = dataset.buffers
    failed = cut_images(buffer_table(buffers, job, part), job.crops(part), *output)
    if failed >= 0:
        raise corrupt_row(dataset, job, part.start + failed, "its size or its restart markers are wrong")
