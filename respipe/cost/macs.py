"""How much arithmetic a schedule takes, and the test size that its training augmentation suggests.

Two models of what one image costs: by area, as the papers' tables are computed, and counted on the model itself. They
differ where a side is no multiple of the model's stride: a ResNet-50 needs 19 % more at 84 pixels than its area says.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch.utils.flop_counter import FlopCounterMode

from respipe.cost.usage import usage
from respipe.schedules.sequence import tally_epochs
from respipe.schedules.step import Schedule, Step

Macs = Callable[[int], float]
"""Side in pixels -> multiply-accumulate operations of one image's forward pass."""


class ExpectedShares(Protocol):
    """A schedule that knows how often it uses each size on average."""

    @property
    def base_size(self) -> int: ...

    def expected_shares(self) -> dict[int, float]: ...


@dataclass(frozen=True, kw_only=True)
class MeanMacs:
    """What a schedule costs on average.

    Args:
        per_image: multiply-accumulate operations of one image's forward pass. A step that shows the same images at
            several sizes counts all of them.
        relative: the same as a share of what an image costs at the schedule's base size.
    """

    per_image: float
    relative: float


def by_area(full_macs: float, full_size: int) -> Macs:
    """The papers' rule: cost grows with the number of pixels.

    Args:
        full_macs: operations at ``full_size``, in any unit; results have the same unit.
        full_size: side in pixels.
    """
    return lambda size: full_macs * (size / full_size) ** 2


def counted(model: torch.nn.Module) -> Macs:
    """Operations counted by running a copy of the model on torch's ``meta`` device, where tensors have no values.

    The copy is in evaluation mode. Elementwise operations and pooling are not counted. Each size is counted once; later
    changes of the model are not seen.

    Args:
        model: takes (B, 3, S, S). It is left as it is.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    dtype = next((p.dtype for p in shadow.parameters() if p.is_floating_point()), torch.float32)

    @cache
    def macs(size: int) -> float:
        images = torch.empty(1, 3, size, size, device="meta", dtype=dtype)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            shadow(images)
        return counter.get_total_flops() / 2

    return macs


def mean_macs(schedule: Schedule, macs: Macs, *, num_epochs: int, num_samples: int, batch_size: int) -> MeanMacs:
    """Mean cost of an image over the steps that the schedule really plans, guards and chance included.

    Args:
        schedule: any schedule.
        macs: cost of one image at a size.
        num_epochs: length of the run, at least 1.
        num_samples: samples in the dataset.
        batch_size: global batch size at the schedule's base size.

    Raises:
        ValueError: there is no epoch, or the dataset holds less than one batch.
    """
    counts: Counter[Step] = Counter()
    for steps in tally_epochs(schedule, num_epochs=num_epochs, num_samples=num_samples, batch_size=batch_size):
        counts.update(steps)
    num_images = sum(count * step.num_images for step, count in counts.items())
    mean = sum(
        count * step.num_images / num_images * macs(size) for step, count in counts.items() for size in step.sizes
    )
    return _relate(mean, macs(schedule.base_size))


def relative_epoch_macs(schedule: Schedule, macs: Macs, *, num_epochs: int, num_samples: int, batch_size: int) -> float:
    """Mean cost of an epoch as a share of one that shows each sample once, in whole batches, at the base size.

    It differs from :attr:`MeanMacs.relative` where the schedule shows several copies of a sample, or several sizes.
    Arguments and errors as for :func:`mean_macs`.
    """
    run = {"num_epochs": num_epochs, "num_samples": num_samples, "batch_size": batch_size}
    used = usage(schedule, **run)
    cost = sum(images * macs(size) for size, images in zip(used.sizes, used.images.sum(axis=0).tolist(), strict=True))
    return cost / (num_epochs * (num_samples // batch_size) * batch_size * macs(schedule.base_size))


def expected_macs(schedule: ExpectedShares, macs: Macs) -> MeanMacs:
    """Mean cost of an image by the schedule's probabilities, guards ignored: what the papers' tables state."""
    mean = sum(share * macs(size) for size, share in schedule.expected_shares().items())
    return _relate(mean, macs(schedule.base_size))


def _relate(mean: float, base: float) -> MeanMacs:
    return MeanMacs(per_image=mean, relative=mean / base)
