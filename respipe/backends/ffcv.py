"""The FFCV backend: FFCV's file format and libjpeg-turbo decoder under one compiled loop that checks every result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from respipe.backends.reference import corrupt_image
from respipe.backends.threads import ThreadedBatches
from respipe.errors import MissingBackendError
from respipe.sampling.boxes import hull
from respipe.sampling.plan import BatchPlan
from respipe.storage.dataset import Dataset
from respipe.storage.levels import Route, route

if TYPE_CHECKING:
    from numpy.typing import NDArray


class FfcvBackend:
    """Decodes ``.beton`` files, respipe's own and those of FFCV's writer, on CPU threads that hold no GIL.

    Stock FFCV compiles one pipeline per size, draws its own crops and ignores the decoder's return code. This backend
    calls the same decoder from a loop over the batch which takes sizes and boxes as data. JPEGs with restart markers
    are cut first, so that no more is decoded than the crop needs.

    Args:
        dataset: an open ``.beton``.
        num_threads: decoding threads.
        level_margin: see :func:`respipe.storage.levels.route`.

    Raises:
        MissingBackendError: ffcv is not installed.
        ValueError: the dataset is a folder.
    """

    name = "ffcv"

    def __init__(self, dataset: Dataset, *, num_threads: int, level_margin: float = 1.0) -> None:
        if dataset.memory is None:
            raise ValueError(
                f"`backend` 'ffcv' must be given a .beton file; got the folder {dataset.path}. Convert it with "
                f"`respipe convert {dataset.path} TARGET.beton`, or choose backend='dali' or 'reference'."
            )
        try:
            from respipe.backends import ffcv_kernel
        except ImportError as error:
            raise MissingBackendError(
                f"backend='ffcv' needs the package ffcv, which cannot be imported here ({error}). "
                "Install it with: pip install 'respipe[ffcv]'"
            ) from error
        self._decode_images: Any = ffcv_kernel.decode_images
        self._dataset = dataset
        self._memory = dataset.memory
        self._level_margin = level_margin
        self._batches = ThreadedBatches(num_threads, name="respipe-ffcv")

    def submit(self, plan: BatchPlan) -> None:
        """Start decoding a batch; see :class:`respipe.backends.base.Backend`."""
        routed = route(self._dataset.levels, plan, margin=self._level_margin)
        stored = _stored_images(self._dataset, plan, routed)
        hulls = hull(routed.boxes)
        outputs = tuple(torch.empty((len(plan), size, size, 3), dtype=torch.uint8) for size in plan.step.sizes)
        arrays = tuple(output.numpy() for output in outputs)

        def decode(start: int, stop: int) -> None:
            part = slice(start, stop)
            failed = self._decode_images(
                self._memory,
                stored[part],
                routed.boxes[part],
                hulls[part],
                plan.flips[part],
                tuple(array[part] for array in arrays),
            )
            if failed >= 0:
                row = start + failed
                reason = "its restart markers are misplaced, or libjpeg-turbo reports damaged data"
                raise corrupt_image(self._dataset, int(plan.indices[row]), int(routed.levels[row]), reason)

        self._batches.submit(outputs, len(plan), decode)

    def collect(self) -> tuple[torch.Tensor, ...]:
        """Wait for the oldest batch; see :class:`respipe.backends.base.Backend`."""
        return self._batches.collect()

    def reset(self) -> None:
        """Forget what was submitted."""
        self._batches.reset()

    def close(self) -> None:
        """End the threads."""
        self._batches.close()


def _stored_images(dataset: Dataset, plan: BatchPlan, routed: Route) -> NDArray[np.int64]:
    """(B, 5) int64: offset, size, height, width and 1 for raw pixels, of the stored image each row is cut from."""
    columns = np.empty((len(plan), 5), np.int64)
    for number, level in enumerate(dataset.levels):
        rows = np.flatnonzero(routed.levels == number)
        samples = plan.indices[rows]
        assert level.offsets is not None and level.sizes is not None, "a dataset with a memory map has offsets"
        for column, values in enumerate((level.offsets, level.sizes, level.heights, level.widths, level.raw)):
            columns[rows, column] = values[samples]
    return columns
