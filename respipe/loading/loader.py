"""The loader: iterates a schedule over a dataset, places batches on the device, and resumes at any step."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, NoReturn, Self, cast, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike

from respipe.augment.mixing import mix_images, mix_labels
from respipe.backends.base import Interpolation
from respipe.backends.registry import make_backend
from respipe.backends.routing import route
from respipe.checks import check_choice, check_int, check_number
from respipe.loading.corruption import CorruptionGuard, OnCorrupt
from respipe.loading.current_backend import BackendInUse, CurrentBackend
from respipe.loading.decoding import decode_in_order
from respipe.loading.fields import BatchFields, check_fields, check_masks
from respipe.loading.placement import HandOver, Placement, check_device
from respipe.loading.position import MAX_EPOCH, LoaderState, SamplerView
from respipe.loading.prefetch import WorkAhead, prefetch
from respipe.loading.shapes import batch_shapes, warn_past_recompile_limit
from respipe.loading.transform import BatchTransform, Decoded, Images, augment_in_order, transformed
from respipe.normalization import Normalize, mean_and_std
from respipe.planning.augmentation import Policy as AugmentPolicy
from respipe.planning.batch import BatchPlan
from respipe.planning.crops import Crop
from respipe.planning.mixing import Mixing
from respipe.planning.order import shared_weights
from respipe.planning.policy import Blocks, SamplingPolicy, Shuffle
from respipe.planning.run import RunPlan
from respipe.processes import num_cores, rank_and_world_size
from respipe.rng import Stream, step_seeds
from respipe.schedules.step import Schedule, check_schedule
from respipe.storage.dataset import Dataset
from respipe.storage.open import Data, Mixture, open_mixture
from respipe.storage.remote import Cache

# (images, labels), or (images, labels, plan): a union of the two would stop type checkers at every unpacking.
Batch = tuple[Any, ...]
# A batch on its device: images, fields by name, and the event after which it is there.
_Placed = tuple[BatchPlan, tuple[torch.Tensor, ...], dict[str, Any], torch.Event | None]


class Loader:
    """Batches of images whose size follows a schedule.

    Iterating yields ``(images, labels)``: ``images`` (B, 3, S, S) in channels_last memory format, or a tuple of such
    tensors where the schedule asks for several sizes or several crops of each sample; ``labels`` (B,) int64, float32
    (B,) or (B, K) where they are numbers or vectors, None where the data has none, or with ``fields`` a dict of these
    and others by name. B is this rank's share of the step's global batch, times the copies of each sample that the
    schedule asks for: independent crops of it, which are adjacent. With ``pad_shares=True`` a third item is a mask, and
    with ``with_spec=True`` the last one the :class:`BatchPlan` of the local batch, which names its step, samples, boxes
    and flips.

    In training every epoch is a new permutation and incomplete batches are left out. In evaluation (``training=False``)
    each sample comes exactly once, in order; the last batch may be short, and on some ranks even empty.

    What a batch holds depends on (schedule, data, seed, epoch, step) alone, not on threads, prefetching or the number
    of ranks. The last batch of an epoch ends it: from then on ``epoch``, ``step``, ``len`` and ``state_dict`` are those
    of the next, also in the last body of a loop, where ``last`` still names the batch. ``set_epoch`` chooses an epoch.
    One iteration is under way at a time: a new one, ``set_epoch`` or ``load_state_dict`` makes an older one raise.
    A loader belongs to the process that built it; it cannot be pickled.

    Args:
        data: a ``.beton`` file; a list of such files, or a folder of them with an index; a folder with one subfolder
            per class; or an open dataset. Files may be at URLs that fsspec knows, such as ``s3://bucket/train/``. Or a
            mixture, pairs of such files or folders and their shares, ``[(a, 0.7), (b, 0.3)]``: an epoch of
            training has as many samples as there are, of each dataset its share, and within it of each sample by its
            ``weights``: in whole numbers, rounded up or down at random.
        schedule: decision about the size of each step.
        batch_size: global batch at the schedule's base size; must be a multiple of ``world_size`` in training.
        training: whether crops, flips and order are random; else the evaluation geometry.
        backend: "auto", "tiles", "ffcv", "dali" or "reference"; see ``respipe doctor``.
        device: where batches end up. A plain "cuda" is the GPU that is current where the loader is built.
        dtype: of the images, ``torch.uint8`` for raw pixels.
        normalize: "imagenet", "cifar10", "cifar100", ``(mean, std)`` for values in 0..1, or None.
        seed: 64-bit seed of order, crops, flips and batch transforms, at least 0.
        crop: how samples are cropped. Default: ``RandomResizedCrop()`` in training; in evaluation ``CenterCrop()``,
            which equals resizing the shorter side to floor(8 S / 7) and cutting the central S x S.
        flip_probability: of mirroring a training crop.
        repeats: uses of each sample in a row, each cropped and flipped anew: repeated augmentation in training, as
            :func:`respipe.sampling.plan_epoch` describes. Batches and epochs have as many images as without, of
            fewer samples.
        pad_shares: whether every batch of an evaluation has its full size, as ``gather`` wants it on several ranks: the
            last one is filled up with repeats, which the mask, (B,) bool on the device, shows as false. The real
            samples of all ranks come first, in order.
        indices: (M,) numbers of the samples to use, a subset; default: all. Evaluation takes them in this order.
        weights: (N,) numbers of at least 0, one for each sample of ``data``: training draws as many samples as there
            are, with replacement, each with its share of the weights (:func:`respipe.sampling.class_balanced`).
        shuffle: "full", a new permutation of the samples in every epoch of training; "blocks", or
            :class:`respipe.sampling.Blocks`, an order that reads files in large pieces; "none" keeps the stored order.
        augment: policies of :mod:`respipe.augment` for each training image, in this order, before normalisation.
        mixup, cutmix: parameters of the beta distributions of mixup's and CutMix's weights, 0 for none; or, as
            ``mixup``, a :class:`respipe.augment.Mixing` with everything. Labels become (B, classes) float32.
        fields: names of the fields to yield, as a dict, in the place of labels: numbers as tensors like labels, text
            and bytes as lists of B str or bytes, masks as (B, S, S) uint8, cropped and mirrored as the images, a tuple
            of them where images are one. Mixing and ``batch_transform`` change the field ``label`` alone.
        batch_transform: function of the placed ``(images, labels)`` of every batch, for example torchvision's
            ``v2.MixUp``, which takes one size per step. The global random states of torch, NumPy and ``random`` are
            seeded for it at each step and restored afterwards.
        on_corrupt: policy for damage: "raise", or "quarantine" to go on without damaged samples (see
            :class:`CorruptionGuard`).
        corrupt_budget: number of samples that may be quarantined before the error is raised after all.
        num_threads: number of decoding threads; default: this process's share of the cores
            (:func:`respipe.processes.num_cores`).
        num_prefetch, prefetch_bytes: batches, or bytes instead, that may wait for the training step; see
            :class:`respipe.loading.prefetch.WorkAhead`.
        level_margin: ratio of a crop on a smaller stored level to the output from which on that level is used.
        interpolation: filter that crops are resized with, "bilinear" or "bicubic".
        stall_timeout: seconds without a batch before :class:`WorkerLostError`.
        cache_dir, cache_bytes: folder for copies of remote files, and what they may take together; see
            :class:`respipe.storage.remote.Cache`.
        rank, world_size: this process's share. Default: that of ``torch.distributed`` where it is initialised, else of
            RANK and WORLD_SIZE, looked up whenever an iteration begins.
        with_spec: whether each batch's plan is yielded too.

    Raises:
        ValueError, TypeError: an argument is out of range.
        StorageError: the data cannot be opened.
        MissingBackendError: the backend asked for is not installed.
    """

    def __init__(
        self,
        data: Data | Sequence[tuple[Data, float]],
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
        pad_shares: bool = False,
        indices: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        shuffle: Shuffle | Blocks = "full",
        augment: AugmentPolicy | Sequence[AugmentPolicy] = (),
        mixup: float | Mixing = 0.0,
        cutmix: float = 0.0,
        fields: Sequence[str] | None = None,
        batch_transform: BatchTransform | None = None,
        on_corrupt: OnCorrupt = "raise",
        corrupt_budget: int = 100,
        num_threads: int | None = None,
        num_prefetch: int = 3,
        prefetch_bytes: int | None = None,
        level_margin: float = 1.0,
        interpolation: Interpolation = "bilinear",
        stall_timeout: float = 300.0,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: float | None = None,
        rank: int | None = None,
        world_size: int | None = None,
        with_spec: bool = False,
    ) -> None:
        check_schedule(schedule)
        if batch_transform is not None and not callable(batch_transform):
            raise TypeError(
                f"`batch_transform` must be callable with (images, labels); got {batch_transform!r}. Pass a function."
            )
        if isinstance(mixup, Mixing) and cutmix:
            raise ValueError(f"`cutmix` must be left out where `mixup` is a Mixing; got {cutmix}. Name it in there.")
        policy = SamplingPolicy(
            training=training,
            seed=seed,
            crop=cast(Crop, crop),
            flip_probability=flip_probability,
            repeats=repeats,
            pad_shares=pad_shares,
            indices=cast(Any, indices),
            weights=cast(Any, weights),
            shuffle=shuffle,
            augment=cast(Any, augment),
            mix=mixup if isinstance(mixup, Mixing) else Mixing(mixup, cutmix) if mixup or cutmix else None,
        )
        batch_size = check_int("batch_size", batch_size, least=1)
        num_threads = num_cores() if num_threads is None else check_int("num_threads", num_threads, least=1, most=1024)
        self._placement = Placement(device=check_device(device), dtype=dtype, normalize=normalize)
        self._hand_over = HandOver()
        self._ahead = WorkAhead(num_batches=num_prefetch, num_bytes=prefetch_bytes)
        self._stall_timeout = check_number("stall_timeout", stall_timeout, least=0)
        self._share = rank, world_size
        self._batch_transform, self._with_spec = batch_transform, with_spec
        check_choice("interpolation", interpolation, get_args(Interpolation))
        level_margin = check_number("level_margin", level_margin, least=0)
        self._routed = partial(route, margin=level_margin, interpolation=interpolation)
        opened = open_mixture(
            data,
            keep_unreadable=on_corrupt == "quarantine",
            cache=Cache(folder=cache_dir, num_bytes=cache_bytes),
            on_demand=True,
        )
        self._dataset = opened.dataset if isinstance(opened, Mixture) else opened
        self._owns_dataset = self._dataset is not data
        if isinstance(opened, Mixture):
            if not training:
                raise ValueError("`data` must be one dataset in evaluation; got a mixture. Evaluate each by itself.")
            weights = shared_weights(opened.lengths, opened.shares, policy)
            policy = replace(policy, weights=cast(Any, weights), strata=opened.lengths)
        self._fields = None if fields is None else check_fields(fields, self._dataset)
        self._guard = CorruptionGuard(
            self._dataset,
            on_corrupt=on_corrupt,
            budget=corrupt_budget,
            keep_length=training or pad_shares,
        )
        self._num_threads, self._num_classes = num_threads, _number_of_classes(policy.mix, self._dataset)
        self._plan = RunPlan(schedule, self._dataset, policy, batch_size=batch_size, world_size=self.world_size)
        check_masks(self._fields or (), self._dataset, self._plan)
        self._backend = CurrentBackend(
            partial(
                make_backend,
                backend,
                self._dataset,
                device=self._placement.device,
                num_threads=num_threads,
                interpolation=interpolation,
            ),
            self._dataset.buffers,
        )
        # The next batch to receive, where the next iteration begins in the epoch, and the batch received last.
        self._epoch = self._step = self._start = 0
        self._last: tuple[int, int] | None = None
        self._wait_share = 0.0
        # Weakly, so that an iteration ends as soon as its user drops it, and the loader with it.
        self._running: weakref.ref[_Iteration] | None = None

    # What trainers read

    @property
    def dataset(self) -> Dataset:
        """The open dataset."""
        return self._dataset

    @property
    def crop(self) -> Crop:
        """How samples are cropped, unless a view has a crop of its own."""
        return self._plan.policy.crop

    @property
    def schedule(self) -> Schedule:
        """The schedule that decides each step's size."""
        return self._plan.schedule

    @property
    def batch_size(self) -> int:
        """Global batch size at the schedule's base size."""
        return self._plan.batch_size

    @property
    def world_size(self) -> int:
        """Number of ranks that share every batch, as it is known now."""
        return rank_and_world_size(*self._share)[1]

    @property
    def num_samples(self) -> int:
        """Samples that an epoch has to fill its batches with: all of the dataset, or those of ``indices``."""
        return self._plan.num_samples

    @property
    def drop_last(self) -> bool:
        """Whether samples that fill no batch are left out, which is so in training."""
        return self._plan.policy.training

    @property
    def epoch(self) -> int:
        """The epoch of the next batch."""
        return self._epoch

    @property
    def step(self) -> int:
        """Number of the next batch within its epoch: that of the batches of it already received."""
        return self._step

    @property
    def last(self) -> tuple[int, int] | None:
        """Epoch and step of the batch received last, both from 0; None before the first, and after a resume."""
        return self._last

    @property
    def wait_share(self) -> float:
        """Share of the time of the current or last iteration in 0..1 that was spent waiting for batches.

        Counted from the first batch on. Near 0, training never waits for data; near 1, it does little else.
        """
        return self._wait_share

    @property
    def backend(self) -> str:
        """Name of the backend in use."""
        return self._backend.name

    @property
    def quarantined(self) -> dict[int, str]:
        """Damaged samples left out so far, with what is wrong with each."""
        return self._guard.damaged

    @property
    def sampler(self) -> SamplerView:
        """For trainers that call ``loader.sampler.set_epoch``; its length counts this rank's samples."""
        return SamplerView(self, of_batches=False)

    @property
    def batch_sampler(self) -> SamplerView:
        """For trainers that call ``loader.batch_sampler.set_epoch``; its length counts batches."""
        return SamplerView(self, of_batches=True)

    def num_steps(self, epoch: int) -> int:
        """Number of batches in an epoch, the same on every rank."""
        return self._plan.num_steps(epoch)

    def total_steps(self, num_epochs: int) -> int:
        """Number of batches in the epochs from 0 to ``num_epochs - 1`` together, for learning rates set by step."""
        return sum(self.num_steps(epoch) for epoch in range(num_epochs))

    def __len__(self) -> int:
        """Number of batches in the current epoch, counted from its start also after resuming mid-epoch."""
        return self.num_steps(self._epoch)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Samples in the global batch of each step of the current epoch; copies of a sample count once."""
        return tuple(step.batch_size for step in self._plan.steps(self._epoch))

    @property
    def average_batch_size(self) -> float:
        """Mean of ``batch_sizes``.

        For the epochs of a whole run, and for the mean over samples, see :func:`respipe.schedules.mean_batch_size`.
        """
        return self._plan.mean_batch_size(self._epoch)

    @property
    def mean_batch_size(self) -> float:
        """``average_batch_size``, by the name of :func:`respipe.schedules.mean_batch_size`."""
        return self.average_batch_size

    def __repr__(self) -> str:
        policy = self._plan.policy
        rank, world_size = rank_and_world_size(*self._share)
        share = f", rank {rank} of {world_size}" if world_size > 1 else ""
        samples = f"{self.num_samples}{f' of {len(self._dataset)}' if policy.indices is not None else ''}"
        return (
            f"<respipe.Loader of {self._dataset.path}: {samples} samples, {self.schedule!r}, "
            f"batch_size={self.batch_size}, {'training' if policy.training else 'evaluation'}"
            f"{f', augment={policy.augment}' if policy.augment else ''}{f', {policy.mix}' if policy.mix else ''}, "
            f"on {self._placement.device}{share}; at step {self._step} of {len(self)} of epoch {self._epoch}>"
        )

    def warmup_shapes(self, max_epochs: int = 1000) -> Iterator[Images]:
        """Black batches to warm a model up with: each shape that this rank's batches may have once, the largest first.

        A forward and a backward pass on each lets cuDNN choose its kernels, ``torch.compile`` compile and the memory
        allocator make room before training starts. In training mode such passes change BatchNorm's statistics: save
        and restore them.

        Args:
            max_epochs: number of epochs, from the current one on, in which shapes are looked for until every size of
                the schedule has occurred.

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
        epoch = check_int("epoch", epoch, least=0, most=MAX_EPOCH)
        if epoch != self._epoch:
            self._stop("set_epoch() has chosen another epoch")
            self._epoch, self._step, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch received, below 1 KiB and equal on all ranks."""
        state = LoaderState(
            seed=self._plan.policy.seed, epoch=self._epoch, step=self._step, fingerprint=self._plan.fingerprint
        )
        return state.to_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on after the batch at which a state was taken; any number of ranks that divides the batch will do.

        Raises:
            StateMismatchError: the state belongs to another dataset, schedule, batch size, crop or seed, or its epoch
                does not have that many steps. The loader stays as it was.
        """
        state = LoaderState.from_dict(state_dict, seed=self._plan.policy.seed, fingerprint=self._plan.fingerprint)
        num_steps = self.num_steps(state.epoch)
        state.check_step(num_steps)
        self._stop("load_state_dict() has chosen another position")
        self._epoch, self._step = (state.epoch, state.step) if state.step < num_steps else (state.epoch + 1, 0)
        self._start, self._last = self._step, None

    # Iterating

    def __iter__(self) -> Iterator[Batch]:
        self._stop("another iteration of the same loader has begun")
        self._step = self._start
        share = rank_and_world_size(*self._share)
        source = prefetch(
            partial(self._placed, self._backend.take(), self._epoch, self._step, share),
            capacity=self._prefetch_capacity(share),
            size_of=lambda item: sum(tensor.nbytes for tensor in item[1]),
            stall_timeout=self._stall_timeout,
        )
        num_steps = len(self)
        deliver = partial(self._delivered, share=share, num_steps=num_steps)
        iteration = _Iteration(source, deliver, num_batches=num_steps - self._step)
        self._running = weakref.ref(iteration)
        return iteration

    def _prefetch_capacity(self, share: tuple[int, int]) -> int:
        """Bytes of images that may wait for the consumer."""
        shapes = batch_shapes(self._plan.kinds(self._epoch), rank=share[0], world_size=share[1])
        return self._ahead.capacity(shapes[0].num_bytes(self._placement.dtype) if shapes else 0)

    def _placed(self, used: BackendInUse, epoch: int, start: int, share: tuple[int, int]) -> Iterator[_Placed]:
        """Decoded batches on the device; runs in the prefetch thread, on CUDA with a stream of its own."""
        stream = self._placement.stream
        plans = self._plan.local_batches(epoch, start, rank=share[0], world_size=share[1])
        fields = BatchFields(self._dataset, ("label", *(self._fields or ())), self._placement, self._num_threads)
        with used.lock, torch.cuda.stream(stream), fields:
            used.backend.prepare(partial(_largest_batch, self._plan, share))
            decoded = decode_in_order(
                used.backend, self._dataset, self._guard, plans, kernel=used.kernel, routed=self._routed
            )
            for plan, pixels in self._finished(decoded) if self._plan.augments(epoch) else decoded:
                images = tuple(self._placement.images(tensor, plan.step.decimation) for tensor in pixels)
                if plan.views:
                    several = (view.view(-1, len(plan), *view.shape[1:]).unbind() for view in images)
                    images = tuple(crop for crops in several for crop in crops)
                images, values = self._mixed(plan, images, fields.of(plan))
                yield plan, images, values, stream.record_event() if stream is not None else None

    def _finished(self, decoded: Generator[Decoded, None, None]) -> Iterator[Decoded]:
        return augment_in_order(
            decoded,
            mean=mean_and_std(self._placement.normalize)[0],
            to_device=self._placement.to_device,
            num_threads=self._num_threads,
        )

    def _mixed(
        self, plan: BatchPlan, images: tuple[torch.Tensor, ...], values: dict[str, Any]
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
        if (mixing := self._plan.policy.mix) is None:
            return images, values
        made = mixing.plan(
            plan.indices, plan.copies, seed=self._plan.policy.seed, epoch=plan.epoch, step=plan.number,
            duplicates=plan.step.duplicates, repeats=self._plan.policy.repeats,
        )  # fmt: skip
        soft = mix_labels(
            values["label"],
            made,
            max(plan.step.sizes),
            num_classes=self._num_classes,
            label_smoothing=mixing.label_smoothing,
        )
        return tuple(mix_images(one, made) for one in images), {**values, "label": soft}

    def _delivered(self, placed: _Placed, wait_share: float, *, share: tuple[int, int], num_steps: int) -> Batch:
        """A placed batch as the user receives it; moves the loader's position behind it."""
        if (now := rank_and_world_size(*self._share)) != share:
            raise RuntimeError(
                f"The ranks must stay the same during an iteration; it began as rank {share[0]} of {share[1]}, and "
                f"this is rank {now[0]} of {now[1]} now. Begin iterating after torch.distributed.init_process_group()."
            )
        plan, tensors, values, ready = placed
        if ready is not None:
            several = (cast("tuple[Any, ...]", one) if isinstance(one, tuple) else (one,) for one in values.values())
            more = chain.from_iterable(several)
            self._hand_over((*tensors, *(one for one in more if isinstance(one, torch.Tensor))), ready)
        labels = values.get("label")
        images: Images = tensors[0] if len(tensors) == 1 else tensors
        if self._batch_transform is not None:
            seeds = step_seeds(
                self._plan.policy.seed, Stream.TRANSFORM, epoch=plan.epoch, step=plan.number, rank=share[0]
            )
            images, labels = transformed(
                self._batch_transform, images, labels, seeds=seeds, device=self._placement.device
            )
        self._last, self._wait_share = (plan.epoch, plan.number), wait_share
        self._start = 0  # where an iteration that is left early begins anew
        is_end = plan.number + 1 == num_steps
        self._epoch, self._step = (plan.epoch + 1, 0) if is_end else (plan.epoch, plan.number + 1)
        if self._fields is not None:
            labels = {name: labels if name == "label" else values[name] for name in self._fields}
        mask = () if plan.real is None else (self._placement.to_device(torch.from_numpy(plan.real)),)
        return (images, labels, *mask, plan) if self._with_spec else (images, labels, *mask)

    # Ending

    def close(self) -> None:
        """Stop decoding and release threads and engine, and the dataset if it was opened here. Safe to call twice."""
        self._stop("the loader was closed")
        if self._backend.close() and self._owns_dataset:
            self._dataset.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> NoReturn:
        raise TypeError(
            "A Loader cannot be pickled or copied: its threads, its memory map and its place in the epoch are this "
            "process's. Build it in the process that uses it, from the path of the data."
        )

    def _stop(self, why: str) -> None:
        """End an iteration that was left mid-epoch."""
        running, self._running = self._running and self._running(), None
        if running is not None:
            running.supersede(why)


class _Iteration(Iterator[Batch]):
    """The rest of an epoch, for as long as nothing else moves the loader.

    Args:
        source: batches on their device.
        deliver: function of such a batch and of the share of the time spent waiting so far, for what the user gets.
        num_batches: number of batches that are left.
    """

    def __init__(
        self, source: Generator[_Placed], deliver: Callable[[_Placed, float], Batch], *, num_batches: int
    ) -> None:
        self._source, self._deliver, self._num_left = source, deliver, num_batches
        self._superseded: str | None = None
        self._first = self._waited = 0.0

    def __next__(self) -> Batch:
        if self._superseded is not None:
            raise RuntimeError(
                f"This iteration must not go on: {self._superseded}, and a loader has one place in its epoch. Build a "
                "second loader to go through the data twice at a time."
            )
        asked = time.perf_counter()
        placed = next(self._source)
        arrived = time.perf_counter()
        if self._first:
            self._waited += arrived - asked
        self._first = self._first or arrived
        elapsed = arrived - self._first
        try:
            batch = self._deliver(placed, self._waited / elapsed if elapsed else 0.0)
        except BaseException:
            self._source.close()  # going on would leave this batch out
            raise
        self._num_left -= 1
        return batch

    def close(self) -> None:
        """End the iteration here, as a generator's ``close`` does: its threads stop, and no batch follows."""
        self._source.close()

    def supersede(self, why: str) -> None:
        """End the iteration; unless its last batch was delivered, whoever goes on with it is told why not."""
        self._source.close()
        if self._num_left:
            self._superseded = why


def _number_of_classes(mix: Mixing | None, dataset: Dataset) -> int:
    """Length of mixed labels: as given, else the number of the dataset's classes; 0 where nothing is mixed."""
    if mix is None:
        return 0
    labels = np.asarray(dataset.labels)
    if labels.ndim == 0 or (labels.ndim == 1 and labels.dtype.kind not in "iu"):
        found = "has none" if labels.ndim == 0 else "has others"
        raise ValueError(
            f"`mixup` and `cutmix` must have labels to mix, classes or vectors; the dataset {found}. Leave them out."
        )
    if labels.ndim > 1:
        return labels.shape[1]
    low, high = int(labels.min()), int(labels.max())
    count = mix.num_classes or len(dataset.classes or ()) or high + 1
    if low < 0 or high >= count:
        raise ValueError(f"`num_classes` must be above every label, 0 the least; got {count} for {low} to {high}.")
    return count


def _largest_batch(plan: RunPlan, share: tuple[int, int]) -> int:
    """Images of the largest batch that a rank has in any epoch, or of the largest view of one."""
    return max(
        (
            shape.num_images * max((view.count for view in kind.views), default=1)
            for kind in plan.kinds_from(0, max_epochs=1000)
            for shape in batch_shapes([kind], rank=share[0], world_size=share[1])
        ),
        default=1,
    )
