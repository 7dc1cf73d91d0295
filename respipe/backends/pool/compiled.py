"""What backends share whose work is one compiled loop over a memory map, on CPU threads that hold no GIL."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from respipe.backends.pool.ranges import DecodeRange, Outputs, ThreadedBackend
from respipe.backends.reference import corrupt_image
from respipe.backends.routing import Route
from respipe.planning.batch import BatchPlan
from respipe.storage.dataset import Bytes, Dataset

logger = logging.getLogger(__name__)

DecodeImages = Callable[
    [Bytes, NDArray[np.int64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], Outputs],
    int,
]
"""Decodes a range of images: ``(memory, stored, boxes, hulls, covers, flips, outputs) -> first damaged row or -1``.

``memory`` is the whole file; ``stored`` (B, 5) int64 has offset, size, height, width and whether raw of each stored
image, checked to lie inside it; ``boxes`` and ``hulls`` (B, K, 4) are the crops at each of K sizes and their integer
hulls, ``covers`` (B, 4) what holds all hulls of an image; ``flips`` (B,) bool tells which to mirror; ``outputs`` holds
a (B, S, S, 3) uint8 array for each size, to be filled.
"""


def announce_compilation(function: Any) -> None:
    """Log a warning if a function compiled by Numba will be compiled anew, for want of a cached result."""
    cache = Path(function.stats.cache_path)
    name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
    if not any(cache.glob(f"{name}-*.py{sys.version_info.major}{sys.version_info.minor}.nbi")):
        logger.warning(
            "Compiling %s.%s: ten to twenty seconds, once. The result is kept in %s.",
            function.__module__,
            function.__name__,
            cache,
        )


class CompiledBackend(ThreadedBackend):
    """A backend around a :data:`DecodeImages`. See :class:`respipe.backends.base.Backend`.

    Args:
        name: of the backend.
        dataset: with a memory map.
        decode_images: does the work; called from several threads at once.
        damage: what a damaged image means, for the error.
        num_threads: decoding threads.
        level_margin: see :func:`respipe.backends.routing.route`.
    """

    def __init__(
        self,
        name: str,
        dataset: Dataset,
        decode_images: DecodeImages,
        *,
        damage: str,
        num_threads: int,
        level_margin: float,
    ) -> None:
        assert len(dataset.buffers) == 1, "there is one memory map"
        super().__init__(name, dataset, num_threads=num_threads, level_margin=level_margin)
        (self._memory,) = dataset.buffers
        self._decode_images = decode_images
        self._damage = damage

    def _decoder(self, plan: BatchPlan, routed: Route, outputs: Outputs) -> DecodeRange:
        stored = stored_images(self._dataset, plan, routed)

        def decode(start: int, stop: int) -> None:
            part = slice(start, stop)
            failed = self._decode_images(
                self._memory,
                stored[part],
                routed.boxes[part],
                routed.hulls[part],
                routed.covers[part],
                plan.flips[part],
                tuple(output[part] for output in outputs),
            )
            if failed >= 0:
                row = start + failed
                raise corrupt_image(self._dataset, int(plan.indices[row]), int(routed.levels[row]), self._damage)

        return decode


def stored_images(dataset: Dataset, plan: BatchPlan, routed: Route) -> NDArray[np.int64]:
    """(B, 5) int64: offset, size, height, width and 1 for raw pixels, of the stored image each row is cut from."""
    columns = np.empty((len(plan), 5), np.int64)
    columns[:, 2:4] = routed.shapes
    for number, level in enumerate(dataset.levels):
        rows = np.flatnonzero(routed.levels == number)
        samples = plan.indices[rows]
        for column, values in ((0, level.offsets), (1, level.sizes), (4, level.raw)):
            columns[rows, column] = values[samples]
    return columns
