"""The encoded images of a batch, cut to their crops where that is possible, for decoders that take nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from respipe.backends.pool.compiled import stored_images
from respipe.backends.pool.daemon import DaemonPool
from respipe.backends.pool.ranges import ranges
from respipe.backends.reference import corrupt_image
from respipe.backends.routing import Route
from respipe.planning.batch import BatchPlan
from respipe.storage.dataset import Bytes, Dataset


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class EncodedCrops:
    """Encoded images with their crops.

    Args:
        images: of each row the bytes, a stored image or what was cut out of one.
        boxes: (B, K, 4) float64, the crop boxes at each of K sizes, in pixels of those images.
        hulls: (B, K, 4) int64, their integer hulls.
        covers: (B, 4) int64, what holds all hulls of an image.
    """

    images: Sequence[Bytes]
    boxes: NDArray[np.float64]
    hulls: NDArray[np.int64]
    covers: NDArray[np.int64]

    def row(self, number: int) -> EncodedCrops:
        """One image of the batch."""
        only = slice(number, number + 1)
        return EncodedCrops(
            images=self.images[only], boxes=self.boxes[only], hulls=self.hulls[only], covers=self.covers[only]
        )


class CropReader:
    """Reads the encoded images of planned batches, with several threads.

    Args:
        dataset: where the images are. Files of a class folder are read whole; from a memory map JPEGs with restart
            markers are cut, and others are not even copied.
        num_threads: threads that read or cut.
    """

    def __init__(self, dataset: Dataset, *, num_threads: int) -> None:
        self._dataset = dataset
        self._num_threads = num_threads
        self._pool = DaemonPool(num_threads, "respipe-read")
        self._cut_images: Any = None
        if dataset.buffers:
            from respipe.jpeg.cut import cut_images  # here, since importing respipe must not wait for Numba

            self._cut_images = cut_images

    def read(self, plan: BatchPlan, routed: Route) -> EncodedCrops:
        """The images of a batch.

        Raises:
            CorruptImageError: an image cannot be read, or its restart markers are damaged.
        """
        if not self._dataset.buffers:
            images = self._pool.map(self._dataset.encoded, plan.indices.tolist(), routed.levels.tolist())
            return EncodedCrops(images=images, boxes=routed.boxes, hulls=routed.hulls, covers=routed.covers)
        return self._cut(self._dataset.buffers[0], plan, routed)

    def close(self) -> None:
        """End the threads."""
        self._pool.close()

    def _cut(self, memory: Bytes, plan: BatchPlan, routed: Route) -> EncodedCrops:
        stored = stored_images(self._dataset, plan, routed)
        edges = np.concatenate([[0], np.cumsum(stored[:, 1])])
        cut = np.empty(edges[-1], np.uint8)
        parts = np.empty((len(plan), 4), np.int64)

        def cut_range(bounds: tuple[int, int]) -> None:
            start, stop = bounds
            rows = slice(start, stop)
            room = cut[edges[start] : edges[stop]]
            failed = self._cut_images(memory, stored[rows], routed.covers[rows], room, parts[rows])
            if failed >= 0:
                index, level = int(plan.indices[start + failed]), int(routed.levels[start + failed])
                raise corrupt_image(self._dataset, index, level, "its size or its restart markers are wrong")
            parts[rows, :2] += edges[start]

        self._pool.map(cut_range, ranges(routed.covers, self._num_threads))
        offsets = np.concatenate([parts[:, 2:], np.zeros_like(parts[:, 2:])], axis=1)
        images = [
            cut[start:stop] if stop > start else memory[offset : offset + size]
            for (start, stop, _, _), (offset, size, *_) in zip(parts.tolist(), stored.tolist(), strict=True)
        ]
        return EncodedCrops(
            images=images,
            boxes=routed.boxes - offsets[:, None],
            hulls=routed.hulls - offsets[:, None],
            covers=routed.covers - offsets,
        )
