"""The plan of a whole epoch, from which each rank takes its part of every batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from respipe.checks import check_int
from respipe.planning.batch import BatchPlan
from respipe.planning.crops import Sides, sees_context
from respipe.planning.draws import ImageRequest, draw_drawn_again, draw_images, with_boxes, with_views
from respipe.planning.order import LARGE, LargeOrder, epoch_order
from respipe.planning.policy import SamplingPolicy
from respipe.schedules.sequence import Steps, tally
from respipe.schedules.step import Schedule, Step


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class EpochPlan:
    """Every batch of an epoch as plain data, for all ranks. ``plan[k]`` is the k-th batch.

    Args:
        epoch: number of the epoch, from 0.
        steps: the epoch's steps, T of them.
        samples: (M,) int64, sample numbers, step by step, each once; several times in a row
            where the plan repeats, any number of times where samples are drawn by weight. Of more than 2**24
            samples, a :class:`LargeOrder` of at least M, which computes them.
        boxes: (R, 4) float64, one row per image, in the order of ``samples``, copies of a sample adjacent.
        flips: (R,) bool, one per image.
        first_sample: (T + 1,) int64, where each step begins in ``samples``; the last entry is M.
        first_image: (T + 1,) int64, where each step begins in ``boxes`` and ``flips``; the last entry is R.
        equal_shares: whether all ranks must get the same number of samples of a step.
        size_boxes: by size, (R, 4) float64 each, the boxes of steps that crop every one of their sizes in its own way;
            empty where ``boxes`` serves all sizes.
        repeats: uses of each sample in a row; of several, ranks take samples in turn instead of one run of them each.
        copies: (R,) int64, number of each image among all uses of its sample in the epoch.
        draw_views: draws the crops of a batch whose step has views, which have no row in ``boxes``: an epoch of them
            would take gigabytes.
        draw_images: draws boxes and flips of any other batch where those of an epoch would take gigabytes too:
            ``boxes``, ``flips`` and ``copies`` are then empty.
        context: whether the resize sees beyond the boxes.
        padded: whether a batch with fewer samples than its step says is filled up with repeats of them.
    """

    epoch: int
    steps: Sequence[Step]
    samples: NDArray[np.int64] | LargeOrder
    boxes: NDArray[np.float64]
    flips: NDArray[np.bool_]
    copies: NDArray[np.int64]
    first_sample: NDArray[np.int64]
    first_image: NDArray[np.int64]
    equal_shares: bool
    draw_views: Callable[[BatchPlan], BatchPlan]
    draw_images: Callable[[BatchPlan], BatchPlan] | None = None
    size_boxes: Mapping[int, NDArray[np.float64]] = field(default_factory=dict[int, NDArray[np.float64]])
    repeats: int = 1
    context: bool = False
    padded: bool = False

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, number: int) -> BatchPlan:
        """A whole batch.

        Raises:
            IndexError: ``number`` is negative or not below ``len``.
        """
        return self.local(number, rank=0, world_size=1)

    def local(self, number: int, *, rank: int, world_size: int) -> BatchPlan:
        """One rank's part of a batch: a contiguous run of samples, or every ``world_size``-th, with all their copies.

        The part's ``step`` is that of the whole batch.

        Args:
            number: number of the step, from 0.
            rank: from 0, below ``world_size``.
            world_size: number of ranks. In training it divides the batch size; in evaluation parts differ by at most
                one sample and may be empty.

        Raises:
            IndexError: ``number`` is negative or not below ``len``.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"`number` must be a step from 0 to {len(self) - 1}; got {number}.")
        assert 0 <= rank < world_size, "rank lies within the world"
        step = self.steps[number]
        assert not self.equal_shares or step.batch_size % world_size == 0, "world size divides the batch"
        if self.repeats > 1:
            part = np.arange(rank, step.batch_size, world_size)
        else:
            part = np.arange(step.batch_size * rank // world_size, step.batch_size * (rank + 1) // world_size)
        real = None
        if self.padded:
            count = self.first_sample[number + 1] - self.first_sample[number]
            real, part = part < count, part % count
        places = self.first_sample[number] + part
        images = self.first_image[number] + np.add.outer(part * step.duplicates, np.arange(step.duplicates)).ravel()
        drawn = self.draw_images is None
        plan = BatchPlan(
            step=step,
            epoch=self.epoch,
            number=number,
            indices=np.repeat(self.samples[places], step.duplicates),
            boxes=self.boxes[images] if drawn else np.zeros((len(images), 4)),
            flips=self.flips[images] if drawn else np.zeros(len(images), np.bool_),
            size_boxes=self._size_boxes(step, images),
            copies=self.copies[images] if drawn else self._copies(places, step.duplicates),
            context=self.context,
            real=real,
        )
        draw = self.draw_views if step.views else self.draw_images
        return plan if draw is None else draw(plan)

    def _copies(self, places: NDArray[np.int64], duplicates: int) -> NDArray[np.int64]:
        return np.add.outer(places % self.repeats, np.arange(duplicates) * self.repeats).ravel()

    def _size_boxes(self, step: Step, images: NDArray[np.int64]) -> NDArray[np.float64] | None:
        if len(step.sizes) == 1 or not self.size_boxes:
            return None
        return np.stack([self.size_boxes[size][images] for size in step.sizes], axis=1)


def plan_epoch(
    schedule: Schedule, policy: SamplingPolicy, *, epoch: int, heights: Sides, widths: Sides, batch_size: int
) -> EpochPlan:
    """Plan an epoch of training or of evaluation.

    In training, samples that do not fill the schedule's last step are left out. A sample's box and flip depend on the
    seed, the epoch, the sample's number and which copy of it this is, and on nothing else: neither its place in the
    epoch, nor the other samples, nor the number of ranks.

    With ``policy.repeats`` this is repeated augmentation (arXiv 1902.05509): every sample that is used is used that
    many times in a row, each time cropped and flipped anew. An epoch has as many steps and images as without, of
    N / ``repeats`` samples, and ranks take the images of a batch in turn, so that they rarely get the same sample.
    FixRes' code (arXiv 1906.06423) makes the same stream of samples; there an epoch is twice as long, its end is filled
    up from its beginning, and the order is that of NumPy's global state on each rank, whatever the epoch.

    Of more than 2**24 samples without weights nothing is drawn ahead: a batch is drawn when it is asked for, in the
    order of a cipher, and a plan takes 16 bytes per step.

    In evaluation every sample comes exactly once, in order, unflipped; the last step may be smaller. A step of several
    sizes crops each of them as a step of that size alone would.

    Args:
        schedule: decides the steps. In evaluation all of them must have ``batch_size`` samples without duplicates.
        policy: which samples, in which order, and how they are cropped.
        epoch: number of the epoch, from 0.
        heights, widths: (N,) integers, sizes in pixels of each sample's largest level.
        batch_size: global batch size at the schedule's base size.

    Raises:
        ValueError: an argument is out of range, the dataset holds less than one batch, or the schedule does not fit.
    """
    policy.check_fits(len(heights))
    num_samples = policy.num_samples(len(heights))
    if policy.training:
        steps = schedule.steps(epoch, num_samples=num_samples, batch_size=batch_size)
        if plans_lazily(policy, len(heights)):
            order = LargeOrder(policy, epoch=epoch, num_samples=len(heights))
            return _plan(steps, order, policy, epoch=epoch, heights=heights, widths=widths)
        num_used = sum(step.batch_size * count for step, count in tally(steps).items())
        order = epoch_order(policy, epoch=epoch, num_samples=len(heights), num_used=num_used)
        return _plan(steps, order, policy, epoch=epoch, heights=heights, widths=widths)
    steps = _evaluation_steps(schedule, epoch=epoch, num_samples=num_samples, batch_size=batch_size)
    order = epoch_order(policy, epoch=epoch, num_samples=len(heights))
    several = {size for step in steps if len(step.sizes) > 1 for size in step.sizes}

    def plan(steps: Sequence[Step]) -> EpochPlan:
        return _plan(steps, order, policy, epoch=epoch, heights=heights, widths=widths)

    alone = {size: plan([replace(step, sizes=(size,)) for step in steps]).boxes for size in several}
    whole = replace(plan(steps), size_boxes=alone)
    if not policy.pad_shares:
        return whole
    return replace(
        whole, steps=[replace(step, batch_size=batch_size) for step in steps], equal_shares=True, padded=True
    )


def plans_lazily(policy: SamplingPolicy, num_samples: int) -> bool:
    """Whether the batches of a dataset are drawn one by one, in the order of :class:`LargeOrder`."""
    return policy.training and policy.weights is None and num_samples > LARGE


def _evaluation_steps(schedule: Schedule, *, epoch: int, num_samples: int, batch_size: int) -> list[Step]:
    batch_size = check_int("batch_size", batch_size, least=1)
    num_steps = -(-num_samples // batch_size)
    steps = list(schedule.steps(epoch, num_samples=num_steps * batch_size, batch_size=batch_size))
    if len(steps) != num_steps or any((step.batch_size, step.duplicates) != (batch_size, 1) for step in steps):
        raise ValueError(
            f"`schedule` must have {num_steps} steps of {batch_size} samples without duplicates to evaluate on; "
            f"got {schedule!r}. Evaluate with one of constant batch size, such as Constant({schedule.base_size})."
        )
    if any((view.scale, view.crop, view.augment) != (None, None, None) for step in steps for view in step.views):
        raise ValueError(
            f"`schedule` must leave crops and augmentation alone in evaluation, which shows images as they are; got "
            f"{schedule!r}. Evaluate with Constant({schedule.base_size})."
        )
    steps = [replace(step, views=()) if step.views else step for step in steps]
    steps[-1] = replace(steps[-1], batch_size=num_samples - (num_steps - 1) * batch_size)
    return steps


def _plan(
    steps: Sequence[Step],
    order: NDArray[np.int64] | LargeOrder,
    policy: SamplingPolicy,
    *,
    epoch: int,
    heights: Sides,
    widths: Sides,
) -> EpochPlan:
    """Plan steps for samples in the given order."""
    kinds, codes = (steps.kinds, steps.codes) if isinstance(steps, Steps) else (steps, slice(None))
    shapes = [(step.batch_size, step.duplicates, max(step.sizes), not step.views) for step in kinds]
    batch_sizes, duplicates, sizes, drawn = np.array(shapes, dtype=np.int64)[codes].T
    first_sample = np.concatenate([[0], np.cumsum(batch_sizes)])
    first_image = np.concatenate([[0], np.cumsum(batch_sizes * duplicates)])
    if first_sample[-1] > len(order):
        raise ValueError(
            f"`schedule` must use each sample at most once in an epoch; epoch {epoch} has steps for {first_sample[-1]} "
            f"samples of {len(order)}. Return fewer steps."
        )
    plan = EpochPlan(
        epoch=epoch,
        steps=steps,
        samples=order,
        boxes=np.empty((0, 4)),
        flips=np.empty(0, np.bool_),
        copies=np.empty(0, np.int64),
        first_sample=first_sample,
        first_image=first_image,
        equal_shares=policy.training,
        draw_views=partial(with_views, policy=policy, heights=heights, widths=widths),
        draw_images=partial(with_boxes, policy=policy, heights=heights, widths=widths),
        repeats=policy.repeats,
        context=sees_context(policy.crop),
    )
    if isinstance(order, LargeOrder):
        return plan
    samples = order[: first_sample[-1]]
    copies, sizes, drawn = (np.repeat(one, batch_sizes) for one in (duplicates, sizes, drawn))
    boxes, flips = np.empty((first_image[-1], 4)), np.zeros(first_image[-1], dtype=np.bool_)
    if policy.weights is not None:
        images = np.repeat(samples, copies)
        numbers = _numbers_among_equal(images)
        rows = np.flatnonzero(np.repeat(drawn, copies))
        boxes[rows], flips[rows] = draw_drawn_again(
            images[rows], numbers[rows], heights[images[rows]], widths[images[rows]], np.repeat(sizes, copies)[rows],
            policy, epoch=epoch,
        )  # fmt: skip
    else:
        rows = np.cumsum(copies) - copies
        numbers = (np.arange(int(first_image[-1])) - np.repeat(rows, copies)) * policy.repeats
        numbers += np.repeat(np.arange(len(samples)) % policy.repeats, copies)
        for repeat in range(policy.repeats):
            uses = slice(repeat, None, policy.repeats)  # which name no sample twice
            request = ImageRequest(
                heights=heights,
                widths=widths,
                copies=_by_sample(len(heights), samples[uses], (copies * drawn)[uses]),
                sizes=_by_sample(len(heights), samples[uses], sizes[uses]),
                rows=_by_sample(len(heights), samples[uses], rows[uses]),
            )
            draw_images(request, boxes, flips, policy, epoch=epoch, repeat=repeat)
    return replace(plan, samples=samples, boxes=boxes, flips=flips, copies=numbers, draw_images=None)


def _by_sample(num_samples: int, samples: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Values given in the order of ``samples`` as an array indexed by sample number, 0 for samples not named."""
    result = np.zeros(num_samples, dtype=np.int64)
    result[samples] = values
    return result


def _numbers_among_equal(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many equal values come before each: 0 for the first of them, then 1, and so on."""
    order = np.argsort(values, kind="stable")
    arranged = values[order]
    starts = np.flatnonzero(np.concatenate([[True], arranged[1:] != arranged[:-1]]))
    numbers = np.empty(len(values), np.int64)
    numbers[order] = np.arange(len(values)) - np.repeat(starts, np.diff(np.append(starts, len(values))))
    return numbers
