"""Everything a loader will do in any epoch, on any rank, decided ahead of time."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Protocol, cast

import numpy as np

from respipe.planning.augmentation import Canvas, Policy, check_policies, plan_augmentation
from respipe.planning.batch import BatchPlan
from respipe.planning.crops import Crop, Sides
from respipe.planning.draws import crop_of
from respipe.planning.epoch import EpochPlan, plan_epoch, plans_lazily
from respipe.planning.policy import SamplingPolicy
from respipe.schedules.sequence import kinds_of, mean_batch_size, tally
from respipe.schedules.step import Schedule, Step

logger = logging.getLogger(__name__)

# Less than this share of the samples may be left out of an epoch without a word, and less than one base batch.
_NOTABLE_SHARE = 0.05


class Images(Protocol):
    """Sizes in pixels of each sample's image, (N,) integers."""

    @property
    def heights(self) -> Sides: ...
    @property
    def widths(self) -> Sides: ...


class Data(Protocol):
    """What is planned for: a :class:`respipe.storage.dataset.Dataset`, of which this is all that a plan reads."""

    @property
    def levels(self) -> Sequence[Images]: ...
    @property
    def fingerprint(self) -> str: ...

    def __len__(self) -> int: ...


class RunPlan:
    """The steps and batches of every epoch, and each rank's share of them.

    Args:
        schedule: decides the steps.
        dataset: where the samples are.
        policy: which samples, in which order, and how they are cropped.
        batch_size: global batch size at the schedule's base size.
        world_size: ranks that are to share the batches, for what can be checked at once.

    Raises:
        TypeError, ValueError: an argument is out of range, or the schedule does not fit the data or the ranks.
    """

    def __init__(
        self, schedule: Schedule, dataset: Data, policy: SamplingPolicy, *, batch_size: int, world_size: int = 1
    ) -> None:
        self.schedule, self.dataset, self.policy, self.batch_size = schedule, dataset, policy, batch_size
        self.num_samples = policy.num_samples(len(dataset))
        images = dataset.levels[0]

        # Not a method: a cache of those would keep the whole loader alive until the garbage collector comes.
        @lru_cache(maxsize=2)
        def epoch_plan(epoch: int) -> EpochPlan:
            return plan_epoch(
                schedule, policy, epoch=epoch, heights=images.heights, widths=images.widths, batch_size=batch_size
            )

        self._epoch_plan = epoch_plan
        if policy.training or policy.pad_shares:
            check_base_batch(batch_size, world_size)
        first = self._epoch_plan(0)  # what does not fit fails here, not in the first epoch
        if policy.training:
            check_steps(kinds_of(first.steps), world_size, mixed=policy.mix is not None)
            for view in {view for kind in kinds_of(first.steps) for view in kind.views}:
                check_policies("augment", view.augment or ())
                SamplingPolicy(crop=cast("Crop", crop_of(view)))
        left_out = self.num_samples - int(first.first_sample[-1])
        if left_out > max(batch_size, _NOTABLE_SHARE * self.num_samples):
            logger.warning(
                "Epoch 0 leaves out %d of %d samples, which fill no batch under %r. Make the batches smaller if that "
                "is too many.",
                left_out,
                self.num_samples,
                schedule,
            )

    @property
    def fingerprint(self) -> str:
        """All that decides the batches, besides the seed, as one text. Not the number of ranks."""
        parts = (
            repr(self.schedule), f"batch_size={self.batch_size}", *self.policy.describe(), self.dataset.fingerprint,
            *(["order=cipher"] if plans_lazily(self.policy, len(self.dataset)) else []),
        )  # fmt: skip
        text = "; ".join(parts)
        # States stay small whatever the schedule's length; the beginning is still readable in an error.
        return text if len(text) <= 600 else f"{text[:500]}... sha256 {hashlib.sha256(text.encode()).hexdigest()}"

    def steps(self, epoch: int) -> Sequence[Step]:
        """The steps of an epoch, the same on every rank."""
        if not self.policy.training:
            return self._epoch_plan(epoch).steps
        return self.schedule.steps(epoch, num_samples=self.num_samples, batch_size=self.batch_size)

    def num_steps(self, epoch: int) -> int:
        """Number of steps in an epoch."""
        return len(self.steps(epoch)) if self.policy.training else -(-self.num_samples // self.batch_size)

    def mean_batch_size(self, epoch: int) -> float:
        """Mean number of samples in an epoch's global batches; copies of a sample count once."""
        if not self.policy.training:
            return self.num_samples / self.num_steps(epoch)
        return mean_batch_size(self.schedule, epochs=(epoch,), num_samples=self.num_samples, batch_size=self.batch_size)

    def local_batches(self, epoch: int, start: int, *, rank: int, world_size: int) -> Iterator[BatchPlan]:
        """A rank's part of every batch of an epoch from step ``start`` on.

        Raises:
            ValueError: the ranks cannot share the batches equally.
        """
        epoch_plan = self._epoch_plan(epoch)
        if self.policy.training or self.policy.pad_shares:
            check_base_batch(self.batch_size, world_size)
        if self.policy.training:
            check_steps(kinds_of(epoch_plan.steps), world_size, mixed=self.policy.mix is not None)
        for number in range(start, len(epoch_plan)):
            yield self._augmented(epoch_plan.local(number, rank=rank, world_size=world_size))

    def augments(self, epoch: int) -> bool:
        """Whether images of an epoch are augmented."""
        return bool(self.policy.augment or any(view.augment for kind in self.kinds(epoch) for view in kind.views))

    def _augmented(self, plan: BatchPlan) -> BatchPlan:
        if not plan.views:
            return self._augmented_by(self.policy.augment, plan)
        own = (self.policy.augment if kind.augment is None else kind.augment for kind in plan.step.views)
        return plan.replace(views=tuple(map(self._augmented_by, own, plan.views)))

    def _augmented_by(self, policies: Sequence[Policy], plan: BatchPlan) -> BatchPlan:
        if not policies:
            return plan
        canvas = Canvas(sizes=np.full(len(plan), max(plan.step.sizes)), base_size=self.schedule.base_size)
        augmentation = plan_augmentation(
            policies, canvas, seed=self.policy.seed, epoch=plan.epoch, indices=plan.indices, copies=plan.copies
        )
        return plan.replace(augmentation=augmentation)

    def kinds(self, epoch: int) -> set[Step]:
        """The distinct steps of an epoch."""
        return set(tally(self.steps(epoch)))

    def kinds_from(self, epoch: int, *, max_epochs: int) -> set[Step]:
        """The distinct steps of an epoch and those after it.

        Args:
            epoch: number of the epoch, from 0.
            max_epochs: number of epochs looked at unless every size of the schedule has occurred before.
        """
        kinds = set[Step]()
        for number in range(epoch, epoch + max_epochs):
            kinds |= kinds_of(self.steps(number))
            if {size for step in kinds for size in step.sizes} >= set(self.schedule.sizes):
                break
        return kinds


def check_base_batch(batch_size: int, world_size: int) -> None:
    """Raise ``ValueError`` unless the ranks can share the base batch equally."""
    if batch_size % world_size:
        lower = batch_size // world_size * world_size
        raise ValueError(
            f"`batch_size` must be a multiple of the number of ranks ({world_size}); got {batch_size}. "
            f"Try {lower or world_size} or {lower + world_size}."
        )


def check_steps(steps: Iterable[Step], world_size: int, *, mixed: bool = False) -> None:
    """Raise ``ValueError`` unless the ranks can share the batch of every step equally, in pairs where it is mixed."""
    multiple = 2 * world_size if mixed else world_size
    for step in steps:
        if step.batch_size % multiple:
            ranks = f"that {world_size} ranks can share equally" if world_size > 1 else ""
            pairs = f"of pairs, which mixup and CutMix mix{',' * (world_size > 1)}" if mixed else ""
            raise ValueError(
                f"`batch_size` and `schedule` must give batches {' '.join(filter(None, (pairs, ranks)))}; got "
                f"{step.batch_size} samples at {' and '.join(map(str, step.sizes))} px. Plan multiples of {multiple} "
                f"samples; MixSize does with batch_multiple={multiple}."
            )
