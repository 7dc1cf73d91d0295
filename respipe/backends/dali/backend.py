"""The DALI backend: NVIDIA's image decoders, on the CPU or on a GPU, fed with planned batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch

from respipe.backends.base import ReadJob, corrupt_row
from respipe.backends.dali.pipeline import DaliPipeline, Variant, blames_the_machine, import_dali
from respipe.backends.encoded import CropReader
from respipe.backends.reference import decode_upright
from respipe.errors import CorruptImageError
from respipe.storage.dataset import Bytes, Dataset


class DaliBackend:
    """Decodes class folders and ``.beton`` files with JPEG levels, and every other format that DALI knows.

    JPEGs of a ``.beton`` that have restart markers are cut before DALI sees them, so that it decodes no more than the
    crop needs.

    One DALI pipeline for each number of sizes is built when it is first needed, for the largest batch that
    :meth:`prepare` was told of; on a CPU another one for crops that reach over the edge. Pixels come back on
    ``device``.

    Args:
        dataset: where the images are.
        num_threads: threads of each pipeline, and for reading and cutting.
        device: a CUDA device decodes and resizes there.

    Raises:
        ImportError: DALI is not installed.
    """

    name = "dali"

    def __init__(self, dataset: Dataset, *, num_threads: int, device: torch.device) -> None:
        import_dali()
        self._dataset = dataset
        self._num_threads = num_threads
        self._device = device
        self._pipelines: dict[Variant, DaliPipeline] = {}
        self._max_images: Callable[[], int] = lambda: 1
        self._failed = False
        # In place of a batch that could not be read, why not.
        self._batches: deque[_Batch | CorruptImageError] = deque()
        self._reader = CropReader(dataset, num_threads=num_threads)

    def room(self, job: ReadJob) -> int:
        """See :class:`respipe.backends.base.Backend`; threads of DALI's own see to the rest."""
        return 2

    def prepare(self, max_images: Callable[[], int]) -> None:
        """Build pipelines for batches of up to this many images."""
        self._max_images = max_images

    def submit(self, job: ReadJob) -> None:
        """Start decoding a batch; see :class:`respipe.backends.base.Backend`."""
        try:
            images, cut = self._reader.read(job)
        except CorruptImageError as error:
            self._batches.append(error)
            return
        nested = bool((job.boxes != job.boxes[:, :1]).any())
        padded = self._device.type == "cuda" or _reach_outside(job)
        variant = Variant(len(job.sizes), padded=padded, nested=nested, cubic=job.interpolation == "bicubic")
        pipeline = None
        if len(job):
            pipeline = self._pipeline(variant, len(job))
            try:
                pipeline.submit(images, cut)
            except BaseException:
                self._failed = True  # fed in part: what it is fed next would meet inputs of this batch
                raise
        self._batches.append(_Batch(job=cut, images=images, variant=variant, pipeline=pipeline))

    def collect(self) -> tuple[torch.Tensor, ...]:
        """Wait for the oldest batch; see :class:`respipe.backends.base.Backend`."""
        batch = self._batches.popleft()
        if isinstance(batch, CorruptImageError):
            raise batch
        if batch.pipeline is None:
            shapes = [(0, size, size, 3) for size in batch.job.sizes]
            return tuple(torch.empty(shape, dtype=torch.uint8, device=self._device) for shape in shapes)
        try:
            return batch.pipeline.collect()
        except Exception as error:
            self._failed = True
            probe = isinstance(error, RuntimeError) and not blames_the_machine(error)
            corruption = self._find_corrupt(batch) if probe else None
            if corruption is None:
                raise
            raise corruption from error

    def reset(self) -> None:
        """Forget what was submitted, and the pipelines if one of them has failed."""
        while self._batches:
            batch = self._batches.popleft()
            if isinstance(batch, _Batch) and batch.pipeline is not None:
                try:
                    # Waits: DALI reads the images where they lie, so they must outlive the run.
                    batch.pipeline.collect()
                except RuntimeError:
                    self._failed = True  # nobody asks any more for these pixels, nor for what was wrong with them
        if self._failed:
            self._close_pipelines()
            self._failed = False

    def close(self) -> None:
        """End the threads and free DALI's memory."""
        self.reset()
        self._close_pipelines()
        self._reader.close()

    def _close_pipelines(self) -> None:
        for pipeline in self._pipelines.values():
            pipeline.close()
        self._pipelines.clear()

    def _pipeline(self, variant: Variant, num_images: int) -> DaliPipeline:
        pipeline = self._pipelines.get(variant)
        if pipeline is None or pipeline.max_batch_size < num_images:
            # Batches in flight keep the pipeline they are in alive until they are collected.
            pipeline = self._pipelines[variant] = self._build(variant, max(num_images, self._max_images()))
        return pipeline

    def _build(self, variant: Variant, max_batch_size: int) -> DaliPipeline:
        return DaliPipeline(variant, max_batch_size=max_batch_size, num_threads=self._num_threads, device=self._device)

    def _find_corrupt(self, batch: _Batch) -> CorruptImageError | None:
        """The first image of a failed batch that fails alone, too. DALI does not say which one it was."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # raises where the GPU itself has failed: that is no image's fault
        with closing(self._build(batch.variant, 1)) as probe:
            return self._first_that_fails(batch, probe)

    def _first_that_fails(self, batch: _Batch, probe: DaliPipeline) -> CorruptImageError | None:
        for row in range(len(batch.job)):
            try:
                probe.submit(batch.images[row : row + 1], batch.job.row(row))
                probe.collect()
                continue
            except RuntimeError as error:
                if blames_the_machine(error):
                    raise
                reason = "DALI does not take it, though Pillow does; convert it to JPEG, or choose backend='reference'"
            try:
                decode_upright(self._dataset, int(batch.job.indices[row]), int(batch.job.levels[row]))
            except CorruptImageError as error:
                return error
            return corrupt_row(self._dataset, batch.job, row, reason)
        return None


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Batch:
    """A submitted batch.

    Args:
        job: what is asked of DALI, with crops in pixels of ``images``.
        images: what it was given.
        variant: of the pipeline.
        pipeline: where it is being decoded; None for a batch without images.
    """

    job: ReadJob
    images: Sequence[Bytes]
    variant: Variant
    pipeline: DaliPipeline | None


def _reach_outside(job: ReadJob) -> bool:
    """Whether any crop reaches over the edge of its image."""
    start, stop = job.covers[:, :2], job.covers[:, :2] + job.covers[:, 2:]
    return bool((start < 0).any() or (stop[:, 0] > job.rows["height"]).any() or (stop[:, 1] > job.rows["width"]).any())
