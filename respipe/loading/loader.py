"""The loader: iterates a schedule over a dataset, places batches on the device, and resumes at any step."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any, Self

import numpy as np
import torch

from respipe.backends.registry import make_backend
from respipe.checks import check_int
from respipe.loading.corruption import CorruptionGuard, OnCorrupt
from respipe.loading.current_backend import BackendInUse, CurrentBackend
from respipe.loading.decoding import decode_in_order
from respipe.loading.epoch_setter import EpochSetter
from respipe.loading.placement import HandOver, Placement, check_device
from respipe.loading.position import LoaderState
from respipe.loading.prefetch import prefetch
from respipe.loading.shapes import batch_shapes, warn_past_recompile_limit
from respipe.normalization import Normalize
from respipe.planning.batch import BatchPlan
from respipe.planning.crops import CenterCrop, Crop
from respipe.planning.random_resized_crop import RandomResizedCrop
from respipe.planning.run import RunPlan
from respipe.processes import num_cores, rank_and_world_size
from respipe.schedules.step import Schedule
from respipe.storage.dataset import Dataset
from respipe.storage.open import open_dataset

Images = torch.Tensor | tuple[torch.Tensor, ...]
# (images, labels), or (images, labels, plan): a union of the two would stop type checkers at every unpacking.
Batch = tuple[Any, ...]
BatchTransform = Callable[[Any, torch.Tensor], tuple[Any, torch.Tensor]]


class Loader:
    """Batches of images whose size follows a schedule.

    Iterating yields ``(images, labels)``: ``images`` (B, 3, S, S) in channels_last memory format, or a tuple of such
    tensors where the schedule asks for several sizes of each crop; ``labels`` (B,) int64. B is this rank's share of
    the step's global batch, times the copies of each sample that the schedule asks for: independent crops of it, which
    are adjacent. With ``with_spec=True`` a third item is the :class:`BatchPlan` of the local batch, which names its
    step, samples, boxes and flips.

    In training every epoch is a new permutation and incomplete batches are left out. In evaluation (``training=False``)
    each sample comes exactly once, in order; the last batch may be short, and on some ranks even empty.

    What a batch holds depends on (schedule, data, seed, epoch, step) alone, not on threads, prefetching or the number
    of ranks. Iterating again goes on with the next epoch; ``set_epoch`` chooses one.

    Args:
        data: a ``.beton`` file, a folder with one subfolder per class, or an open dataset.
        schedule: decides the size of each step.
        batch_size: global batch at the schedule's base size; must be a multiple of ``world_size`` in training.
        training: random crops, flips and order; or the evaluation geometry.
        backend: "auto", "tiles", "ffcv", "dali" or "reference"; see ``respipe doctor``.
        device: where batches end up. A plain "cuda" is the GPU that is current where the loader is built.
        dtype: of the images, ``torch.uint8`` for raw pixels.
        normalize: "imagenet", "cifar10", "cifar100", ``(mean, std)`` for values in 0..1, or None.
        seed: of order, crops and flips, at least 0.
        crop: how samples are cropped. Default: ``RandomResizedCrop()`` in training; in evaluation ``CenterCrop()``,
            which equals resizing the shorter side to floor(8 S / 7) and cutting the central S x S.
        flip_probability: of mirroring a training crop.
        repeats: uses of each sample in a row, each cropped and flipped anew: repeated augmentation in training, as
            :func:`respipe.sampling.plan_epoch` describes. Batches and epochs have as many images as without, of
            fewer samples.
        batch_transform: called with the placed ``(images, labels)`` of every batch, for example torchvision's
            ``v2.MixUp``, which takes one size per step. Torch's global random state is seeded per step for it and
            restored afterwards.
        on_corrupt: "raise", or "quarantine" to go on without damaged samples (see :class:`CorruptionGuard`).
        corrupt_budget: samples that may be quarantined before the error is raised after all.
        num_threads: decoding threads; default: the cores this process may use.
        num_prefetch: batches decoded ahead: so many of the epoch's largest, or as many smaller ones as take the same
            memory.
        prefetch_bytes: memory of the finished batches that wait, instead of ``num_prefetch``. One may wait whatever its
            size; beside them, one more is being finished, and two, or more small ones up to 12 MiB, are being decoded
            (as uint8).
        level_margin: how much larger than the output a crop on a smaller stored level must be to be used.
        stall_timeout: seconds without a batch before :class:`WorkerLostError`.
        rank, world_size: this process's share; default: from ``torch.distributed`` where it is initialised.
        with_spec: yield each batch's plan too.

    Raises:
        ValueError, TypeError: an argument is out of range.
        StorageError: the data cannot be opened.
        MissingBackendError: the backend asked for is not installed.
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | Dataset,
        schedule: Schedule,
        *,
        batch_size: int,
        training: bool = True,
        backend: str = "auto",
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        normalize: Normalize = "imagenet",
        seed: int = 0,
        crop: Crop | None = None,
        flip_probability: float = 0.5,
        repeats: int = 1,
        batch_transform: BatchTransform | None = None,
        on_corrupt: OnCorrupt = "raise",
        corrupt_budget: int = 100,
        num_threads: int | None = None,
        num_prefetch: int = 3,
        prefetch_bytes: int | None = None,
        level_margin: float = 1.0,
        stall_timeout: float = 300.0,
        rank: int | None = None,
        world_size: int | None = None,
        with_spec: bool = False,
    ) -> None:
        _check_arguments(schedule, batch_size, seed, flip_probability, crop, batch_transform)
        _check_prefetching(num_prefetch, prefetch_bytes)
        self._share = rank, world_size
        self._placement = Placement(device=check_device(device), dtype=dtype, normalize=normalize)
        self._hand_over = HandOver()
        self._batch_transform = batch_transform
        self._num_prefetch, self._prefetch_bytes = num_prefetch, prefetch_bytes
        self._stall_timeout, self._with_spec = stall_timeout, with_spec
        self._dataset = open_dataset(data)
        self._guard = CorruptionGuard(
            self._dataset,
            on_corrupt=on_corrupt,
            budget=corrupt_budget,
            training=training,
            level_margin=level_margin,
        )
        self._plan = RunPlan(
            schedule,
            self._dataset,
            batch_size=batch_size,
            training=training,
            seed=seed,
            crop=crop if crop is not None else RandomResizedCrop() if training else CenterCrop(),
            flip_probability=flip_probability,
            repeats=repeats,
            world_size=rank_and_world_size(rank, world_size)[1],
        )
        self._backend = CurrentBackend(
            partial(
                make_backend,
                backend,
                self._dataset,
                device=self._placement.device,
                num_threads=num_threads or num_cores(),
                level_margin=level_margin,
            )
        )
        self._epoch = self._step = self._resume_step = 0
        # Weakly, so that an iteration ends as soon as its user drops it, and the loader with it.
        self._running: weakref.ref[Generator[Batch, None, None]] | None = None

    # What trainers read

    @property
    def dataset(self) -> Dataset:
        """The open dataset."""
        return self._dataset

    @property
    def schedule(self) -> Schedule:
        """The schedule that decides each step's size."""
        return self._plan.schedule

    @property
    def batch_size(self) -> int:
        """Global batch size at the schedule's base size."""
        return self._plan.batch_size

    @property
    def epoch(self) -> int:
        """The epoch being iterated, or the next one where none is."""
        return self._epoch

    @property
    def step(self) -> int:
        """Batches of ``epoch`` already received."""
        return self._step

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return self._backend.name

    @property
    def quarantined(self) -> dict[int, str]:
        """Damaged samples left out so far, with what is wrong with each."""
        return self._guard.damaged

    @property
    def sampler(self) -> EpochSetter:
        """For trainers that call ``loader.sampler.set_epoch``."""
        return EpochSetter(self)

    @property
    def batch_sampler(self) -> EpochSetter:
        """For trainers that call ``loader.batch_sampler.set_epoch``."""
        return EpochSetter(self)

    def num_steps(self, epoch: int) -> int:
        """Number of batches in an epoch, the same on every rank."""
        return self._plan.num_steps(epoch)

    def total_steps(self, num_epochs: int) -> int:
        """Number of batches in the epochs from 0 to ``num_epochs - 1`` together, for learning rates set by step."""
        return sum(self.num_steps(epoch) for epoch in range(num_epochs))

    def __len__(self) -> int:
        """Number of batches in the current epoch, counted from its start also after resuming in its midst."""
        return self.num_steps(self._epoch)

    @property
    def mean_batch_size(self) -> float:
        """Mean number of samples in a global batch of the current epoch; copies of a sample count once.

        For the epochs of a whole run, and for the mean over samples, see :func:`respipe.schedules.mean_batch_size`.
        """
        return self._plan.mean_batch_size(self._epoch)

    def warmup_shapes(self, max_epochs: int = 1000) -> Iterator[Images]:
        """Black batches to warm a model up with: each shape that this rank's batches may have once, the largest first.

        A forward and a backward pass on each lets cuDNN choose its kernels, ``torch.compile`` compile and the memory
        allocator make room before training starts. In training mode such passes change BatchNorm's statistics: save
        and restore them.

        Args:
            max_epochs: shapes are looked for from the current epoch on until every size of the schedule has occurred,
                in so many epochs at most.

        Yields:
            images as the loader's, zero everywhere.

        Warns:
            UserWarning: there are more shapes than TorchDynamo recompiles a function for.
        """
        rank, world_size = rank_and_world_size(*self._share)
        kinds = self._plan.kinds_from(self._epoch, max_epochs=max_epochs)
        shapes = batch_shapes(kinds, rank=rank, world_size=world_size)
        warn_past_recompile_limit(len(shapes))
        return (shape.zeros(self._placement.dtype, self._placement.device) for shape in shapes)

    # Where the loader stands

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration. Naming the current one changes nothing, also after a resume."""
        if epoch < 0:
            raise ValueError(f"`epoch` must be at least 0; got {epoch}.")
        if epoch != self._epoch:
            self._epoch, self._step, self._resume_step = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch received, below 1 KiB and equal on all ranks."""
        state = LoaderState(
            seed=self._plan.seed, epoch=self._epoch, step=self._step, fingerprint=self._plan.fingerprint
        )
        return state.to_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on after the batch at which a state was taken; any number of ranks that divides the batch will do.

        Raises:
            StateMismatchError: the state belongs to another dataset, schedule, batch size, crop or seed, or its epoch
                does not have so many steps. The loader stays as it was.
        """
        state = LoaderState.from_dict(state_dict, seed=self._plan.seed, fingerprint=self._plan.fingerprint)
        num_steps = self.num_steps(state.epoch)
        state.check_step(num_steps)
        self._stop()
        self._epoch, self._step = (state.epoch, state.step) if state.step < num_steps else (state.epoch + 1, 0)
        self._resume_step = self._step

    # Iterating

    def __iter__(self) -> Iterator[Batch]:
        self._stop()
        backend = self._backend.take()
        epoch, start = self._epoch, self._resume_step
        self._step, self._resume_step = start, 0
        batches = self._iterate(backend, epoch, start)
        self._running = weakref.ref(batches)
        return batches

    def _iterate(self, backend: BackendInUse, epoch: int, start: int) -> Generator[Batch, None, None]:
        source = prefetch(
            lambda: self._placed(backend, epoch, start),
            capacity=self._prefetch_capacity(epoch),
            size_of=lambda item: sum(tensor.nbytes for tensor in item[1]),
            stall_timeout=self._stall_timeout,
        )
        try:
            for plan, images, labels, ready in source:
                if ready is not None:
                    self._hand_over((*images, labels), ready)
                batch: Batch = (images[0] if len(images) == 1 else images, labels)
                if self._batch_transform is not None:
                    batch = self._transformed(plan, *batch)
                self._step = plan.number + 1
                yield (*batch, plan) if self._with_spec else batch
        finally:
            source.close()
        if self._epoch == epoch:  # the user may have called set_epoch meanwhile
            self._epoch, self._step = epoch + 1, 0

    def _prefetch_capacity(self, epoch: int) -> int:
        """Bytes of images that may wait for the consumer."""
        if self._prefetch_bytes is not None:
            return self._prefetch_bytes
        rank, world_size = rank_and_world_size(*self._share)
        shapes = batch_shapes(self._plan.kinds(epoch), rank=rank, world_size=world_size)
        # A rank may have no image in any batch of a small evaluation.
        largest = shapes[0].num_bytes(self._placement.dtype) if shapes else 1
        return self._num_prefetch * largest

    def _placed(
        self, used: BackendInUse, epoch: int, start: int
    ) -> Iterator[tuple[BatchPlan, tuple[torch.Tensor, ...], torch.Tensor, torch.Event | None]]:
        """Decoded batches on the device; runs in the prefetch thread, on CUDA with a stream of its own."""
        stream = self._placement.stream
        rank, world_size = rank_and_world_size(*self._share)
        with used.lock, torch.cuda.stream(stream):
            for plan, pixels in decode_in_order(
                used.backend, self._guard, self._plan.local_batches(epoch, start, rank=rank, world_size=world_size)
            ):
                images = tuple(self._placement.images(tensor, plan.step.decimation) for tensor in pixels)
                values = self._dataset.fields["label"].take(plan.indices)
                labels = self._placement.labels(torch.from_numpy(np.asarray(values)))
                yield plan, images, labels, stream.record_event() if stream is not None else None

    def _transformed(self, plan: BatchPlan, images: Images, labels: torch.Tensor) -> tuple[Images, torch.Tensor]:
        assert self._batch_transform is not None
        seed = np.random.SeedSequence(
            [self._plan.seed, plan.epoch, plan.number, rank_and_world_size(*self._share)[0]]
        ).generate_state(1, np.uint64)
        device = self._placement.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(seed[0]) >> 1)
            transformed = self._batch_transform(images, labels)
        _check_transformed((images, labels), transformed)
        return transformed

    # Ending

    def close(self) -> None:
        """Stop decoding and release threads, engine and memory map. Safe to call twice."""
        self._stop()
        if self._backend.close():
            self._dataset.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stop(self) -> None:
        """End an iteration that was left in its midst."""
        running, self._running = self._running and self._running(), None
        if running is not None:
            running.close()


def _check_arguments(
    schedule: Schedule,
    batch_size: int,
    seed: int,
    flip_probability: float,
    crop: Crop | None,
    batch_transform: BatchTransform | None,
) -> None:
    if not isinstance(schedule, Schedule):
        raise TypeError(f"`schedule` must be a schedule such as respipe.schedules.Constant(224); got {schedule!r}.")
    check_int("batch_size", batch_size, least=1)
    if not 0 <= seed < 2**64:
        raise ValueError(f"`seed` must be in 0..2**64 - 1; got {seed}.")
    if not 0.0 <= flip_probability <= 1.0:
        raise ValueError(f"`flip_probability` must be in 0..1; got {flip_probability}.")
    if crop is not None and not isinstance(crop, Crop):
        raise TypeError(f"`crop` must be a crop such as respipe.sampling.RandomResizedCrop(); got {crop!r}.")
    if batch_transform is not None and not callable(batch_transform):
        raise TypeError(f"`batch_transform` must be callable with (images, labels); got {batch_transform!r}.")


def _check_transformed(before: tuple[Images, torch.Tensor], after: tuple[Any, torch.Tensor]) -> None:
    """Refuse labels that were mixed where the images of some sizes were not, as by torchvision's v2.MixUp."""
    if not isinstance(before[0], tuple) or after[1] is before[1]:
        return
    left = [str(new.shape[-1]) for new, old in zip(after[0], before[0], strict=True) if new is old]
    if left:
        raise ValueError(
            f"`batch_transform` must change the images of every size alike where it changes labels; it left those of "
            f"{', '.join(left)} px as they were. torchvision's MixUp and CutMix take images of one size."
        )


def _check_prefetching(num_prefetch: int, prefetch_bytes: int | None) -> None:
    check_int("num_prefetch", num_prefetch, least=1)
    if prefetch_bytes is not None:
        check_int("prefetch_bytes", prefetch_bytes, least=1)
