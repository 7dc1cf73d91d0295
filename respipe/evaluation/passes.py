"""Which sizes share one pass over the data, so that each image is decoded once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from respipe.backends.routing import route
from respipe.planning.crops import Crop
from respipe.planning.epoch import plan_epoch
from respipe.planning.policy import SamplingPolicy
from respipe.schedules.constant import Constant
from respipe.storage.dataset import Dataset

# Batches of several sizes may have so many pixels without being made smaller: 200 MB as float32.
_FREE_PIXELS = 2**24


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass over the data.

    Args:
        sizes: sides in pixels, largest first.
        batch_size: samples of a batch, on all ranks together.
    """

    sizes: tuple[int, ...]
    batch_size: int


def plan_passes(dataset: Dataset, sizes: Sequence[int], *, crop: Crop, batch_size: int) -> list[Pass]:
    """Passes over the data that show every sample at every size, with the pixels of a pass of each size alone.

    Sizes share a pass where all samples are read from the same stored images for them. Then each image is decoded once
    instead of once per size, from the same bytes. Sizes that a smaller stored copy serves do not pay for a larger one.
    A class folder stores one size of each image, so that one pass does for all.

    Batches of several sizes hold fewer samples, so that they have no more pixels than one of the largest size alone.

    Args:
        dataset: where the images are.
        sizes: sides in pixels.
        crop: of the evaluation images.
        batch_size: samples of a batch of one size.
    """
    sharing: dict[bytes, list[int]] = {}
    for size in sorted(set(sizes), reverse=True):
        sharing.setdefault(_levels_read(dataset, size, crop=crop), []).append(size)
    passes = list[Pass]()
    for shared in sharing.values():
        budget = max(batch_size * shared[0] ** 2, _FREE_PIXELS)
        fitting = max(1, budget // sum(size**2 for size in shared))
        passes.append(Pass(sizes=tuple(shared), batch_size=min(batch_size, fitting)))
    return passes


def _levels_read(dataset: Dataset, size: int, *, crop: Crop) -> bytes:
    """Numbers of the stored images that samples are read from at a size, as something to compare."""
    count, largest = len(dataset), dataset.levels[0]
    policy = SamplingPolicy(training=False, crop=crop)
    planned = plan_epoch(
        Constant(size), policy, epoch=0, heights=largest.heights, widths=largest.widths, batch_size=count
    )
    return route(dataset, planned[0]).levels.tobytes()
