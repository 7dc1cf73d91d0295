"""The DALI backend: NVIDIA's image decoders, on the CPU or on a GPU, fed with planned batches."""

from __future__ import annotations

from collections import deque
from contextlib import closing
from dataclasses import dataclass

import torch

from respipe.backends.dali.pipeline import DaliPipeline, Variant, blames_the_machine, import_dali
from respipe.backends.encoded import CropReader, EncodedCrops
from respipe.backends.reference import corrupt_image, decode_upright
from respipe.backends.routing import Route, route
from respipe.errors import CorruptImageError
from respipe.planning.batch import BatchPlan
from respipe.storage.dataset import Dataset


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
        level_margin: see :func:`respipe.backends.routing.route`.

    Raises:
        MissingBackendError: DALI is not installed.
        ValueError: some samples are stored as raw pixels.
    """

    name = "dali"

    def __init__(self, dataset: Dataset, *, num_threads: int, device: torch.device, level_margin: float = 1.0) -> None:
        if any(level.raw.any() for level in dataset.levels):
            raise ValueError(
                f"`backend` 'dali' must be given encoded images; got raw pixels in {dataset.path}. Choose "
                "backend='ffcv' or 'reference', or convert the images again as JPEG."
            )
        import_dali()
        self._dataset = dataset
        self._num_threads = num_threads
        self._device = device
        self._level_margin = level_margin
        self._pipelines: dict[Variant, DaliPipeline] = {}
        self._max_images = 1
        self._failed = False
        # In place of a batch that could not be read, why not.
        self._batches: deque[_Batch | CorruptImageError] = deque()
        self._reader = CropReader(dataset, num_threads=num_threads)

    def room(self, plan: BatchPlan) -> int:
        """See :class:`respipe.backends.base.Backend`; threads of DALI's own see to the rest."""
        return 2

    def prepare(self, max_images: int) -> None:
        """Build pipelines for batches of up to so many images; see :class:`respipe.backends.base.Backend`."""
        self._max_images = max(self._max_images, max_images)

    def submit(self, plan: BatchPlan) -> None:
        """Start decoding a batch; see :class:`respipe.backends.base.Backend`."""
        routed = route(self._dataset.levels, plan, margin=self._level_margin)
        try:
            encoded = self._reader.read(plan, routed)
        except CorruptImageError as error:
            self._batches.append(error)
            return
        nested = bool((routed.boxes != routed.boxes[:, :1]).any())
        variant = Variant(
            len(plan.step.sizes), padded=self._device.type == "cuda" or _reach_outside(routed), nested=nested
        )
        pipeline = None
        if len(plan):
            pipeline = self._pipeline(variant, len(plan))
            try:
                pipeline.submit(encoded, plan.flips, plan.step.sizes)
            except BaseException:
                self._failed = True  # fed in part: what it is fed next would meet inputs of this batch
                raise
        self._batches.append(_Batch(plan=plan, routed=routed, encoded=encoded, variant=variant, pipeline=pipeline))

    def collect(self) -> tuple[torch.Tensor, ...]:
        """Wait for the oldest batch; see :class:`respipe.backends.base.Backend`."""
        batch = self._batches.popleft()
        if isinstance(batch, CorruptImageError):
            raise batch
        if batch.pipeline is None:
            shapes = [(0, size, size, 3) for size in batch.plan.step.sizes]
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
            pipeline = self._pipelines[variant] = self._build(variant, max(num_images, self._max_images))
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
        for row in range(len(batch.plan)):
            index, level = int(batch.plan.indices[row]), int(batch.routed.levels[row])
            alone = batch.encoded.row(row)
            try:
                probe.submit(alone, batch.plan.flips[row : row + 1], batch.plan.step.sizes)
                probe.collect()
                continue
            except RuntimeError as error:
                if blames_the_machine(error):
                    raise
                reason = "DALI does not take it, though Pillow does; convert it to JPEG, or choose backend='reference'"
            try:
                decode_upright(self._dataset, index, level)
            except CorruptImageError as error:
                return error
            return corrupt_image(self._dataset, index, level, reason)
        return None


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Batch:
    """A submitted batch.

    Args:
        plan, routed: what was asked for.
        encoded: what DALI was given.
        variant: of the pipeline.
        pipeline: where it is being decoded; None for a batch without images.
    """

    plan: BatchPlan
    routed: Route
    encoded: EncodedCrops
    variant: Variant
    pipeline: DaliPipeline | None


def _reach_outside(routed: Route) -> bool:
    """Whether any crop reaches over the edge of its image."""
    covers = routed.covers
    return bool((covers[:, :2] < 0).any() or (covers[:, :2] + covers[:, 2:] > routed.shapes).any())
