"""The crop box and the flip of every image of an epoch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from respipe.planning.batch import BatchPlan, tiled
from respipe.planning.crops import Crop, Draws, Sides, sees_context
from respipe.planning.policy import SamplingPolicy
from respipe.planning.random_resized_crop import RandomResizedCrop
from respipe.rng import Stream, draws, scattered_draws
from respipe.schedules.step import View

# Samples planned at a time: few enough that the arrays of a block stay in the processor's cache.
_BLOCK = 16384


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class ImageRequest:
    """Which images an epoch needs of each sample, and where they go. Arrays have one entry per sample, by number.

    Args:
        heights, widths: (N,) integers, sizes in pixels of each sample's largest level.
        copies: (N,) int64, images wanted of each sample; 0 for a sample that the epoch leaves out.
        sizes: (N,) int64, side in pixels that the sample's images will be resized to.
        rows: (N,) int64, row of the sample's first copy among all images; the others follow it.
    """

    heights: Sides
    widths: Sides
    copies: NDArray[np.int64]
    sizes: NDArray[np.int64]
    rows: NDArray[np.int64]


def draw_images(
    request: ImageRequest,
    boxes: NDArray[np.float64],
    flips: NDArray[np.bool_],
    policy: SamplingPolicy,
    *,
    epoch: int,
    repeat: int = 0,
) -> None:
    """Draw boxes and flips. An image's depend on the seed, the epoch, its sample's number and its copy's number alone.

    Args:
        request: the images wanted.
        boxes: (R, 4) float64, where the boxes are written, in the rows that ``request`` names.
        flips: (R,) bool, likewise.
        policy: seed, crop, share of flips, and number of uses of each sample.
        epoch: number of the epoch, from 0.
        repeat: number of the sample's use in the epoch, from 0; it makes copies of different uses differ.
    """
    for copy in range(int(request.copies.max(initial=0))):
        duplicate = copy * policy.repeats + repeat
        draw = partial(_block_draws, policy.seed, epoch=epoch, duplicate=duplicate)
        for start in range(0, len(request.copies), _BLOCK):
            chosen = np.flatnonzero(request.copies[start : start + _BLOCK] > copy)
            if not chosen.size:
                continue
            samples = start + chosen
            rows = request.rows[samples] + copy
            boxes[rows] = policy.crop.boxes(
                request.heights[samples],
                request.widths[samples],
                size=request.sizes[samples],
                draws=draw(Stream.CROP, start=start, chosen=chosen),
            )
            if policy.training and policy.flip_probability > 0:
                flips[rows] = draw(Stream.FLIP, start=start, chosen=chosen)(0)[:, 0] < policy.flip_probability


def draw_drawn_again(
    samples: NDArray[np.int64],
    copies: NDArray[np.int64],
    heights: Sides,
    widths: Sides,
    sizes: NDArray[np.int64],
    policy: SamplingPolicy,
    *,
    epoch: int,
    crop: Crop | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Draw boxes and flips of R images of samples that an epoch may use any number of times.

    Args:
        samples: (R,) int64, the sample of each image.
        copies: (R,) int64, number of each image among all of its sample in the epoch: what makes them differ.
        heights, widths: (R,) integers, sizes in pixels of the samples' largest level.
        sizes: (R,) int64, side in pixels that each image will be resized to.
        policy: seed, crop and share of flips.
        epoch: number of the epoch, from 0.
        crop: in the place of the policy's.

    Returns:
        (R, 4) float64 and (R,) bool.
    """
    crop = crop or policy.crop
    boxes, flips = np.empty((len(samples), 4)), np.zeros(len(samples), np.bool_)
    for start in range(0, len(samples), _BLOCK):
        part = slice(start, start + _BLOCK)

        def uniforms(word: int, stream: Stream = Stream.CROP, part: slice = part) -> NDArray[np.float64]:
            return scattered_draws(
                policy.seed, stream, epoch=epoch, rows=samples[part], duplicates=copies[part], word=word
            )

        boxes[part] = crop.boxes(heights[part], widths[part], size=sizes[part], draws=uniforms)
        flips[part] = uniforms(0, Stream.FLIP)[:, 0] < policy.flip_probability
    return boxes, flips


def with_boxes(plan: BatchPlan, policy: SamplingPolicy, heights: Sides, widths: Sides) -> BatchPlan:
    """Draw the boxes and flips of a batch, those that :func:`draw_images` draws for a whole epoch.

    Args:
        plan: the batch, with boxes and flips yet to be drawn.
        policy: seed, crop and share of flips.
        heights, widths: (N,) integers, sizes in pixels of each sample's largest level.
    """
    samples, sizes = plan.indices, np.full(len(plan), max(plan.step.sizes))
    boxes, flips = draw_drawn_again(
        samples, plan.copies, heights[samples], widths[samples], sizes, policy, epoch=plan.epoch
    )
    return plan.replace(boxes=boxes, flips=flips)


def with_views(plan: BatchPlan, policy: SamplingPolicy, heights: Sides, widths: Sides) -> BatchPlan:
    """Draw the crops of a batch whose step has views.

    The v-th of K crops of copy c of a sample is drawn as its copy K c + v, so that a single view has the crops that a
    step without views has.

    Args:
        plan: the batch, with boxes and flips yet to be drawn.
        policy: seed, crop of views without one, and share of flips.
        heights, widths: (N,) integers, sizes in pixels of each sample's largest level.
    """
    num_crops, first, views, by_crop = len(plan.step.sizes), 0, list[BatchPlan](), list[NDArray[np.float64]]()
    for view in plan.step.views:
        every = plan.take(tiled(np.arange(len(plan)), view.count, 0))
        copies = every.copies * num_crops + np.repeat(np.arange(first, first + view.count), len(plan))
        samples, sizes, crop = every.indices, np.full(len(every), view.size), crop_of(view) or policy.crop
        boxes, flips = draw_drawn_again(
            samples, copies, heights[samples], widths[samples], sizes, policy, epoch=plan.epoch, crop=crop
        )
        step = replace(plan.step, sizes=(view.size,), views=())
        views.append(every.replace(step=step, copies=copies, boxes=boxes, flips=flips, context=sees_context(crop)))
        by_crop.extend(boxes.reshape(view.count, len(plan), 4))
        first += view.count
    return plan.replace(
        boxes=by_crop[0], size_boxes=np.stack(by_crop, axis=1), flips=views[0].flips[: len(plan)], views=tuple(views)
    )


def crop_of(view: View) -> Crop | None:
    """How the crops of a view are chosen; None for as the loader's."""
    return view.crop if view.scale is None else RandomResizedCrop(view.scale)


def _block_draws(
    seed: int, stream: Stream, *, epoch: int, start: int, chosen: NDArray[np.int64], duplicate: int
) -> Draws:
    """Draws for some samples of the block that begins at ``start``."""
    count = int(chosen[-1]) + 1

    def block(word: int) -> NDArray[np.float64]:
        uniforms = draws(seed, stream, epoch=epoch, count=count, start=start, word=word, duplicate=duplicate)
        return uniforms if len(chosen) == count else uniforms[chosen]

    return block
