"""The crop box and the flip of every image of an epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from respipe.rng import Stream, draws
from respipe.sampling.crops import Crop, Draws, Sides

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
    request: ImageRequest, *, seed: int, epoch: int, crop: Crop, flip_probability: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Draw boxes and flips. An image's depend on the seed, the epoch, its sample's number and its copy's number alone.

    Args:
        request: the images wanted.
        seed: 64-bit seed.
        epoch: number of the epoch, from 0.
        crop: chooses the boxes.
        flip_probability: share of the images that are mirrored.

    Returns:
        (R, 4) float64 boxes and (R,) bool flips, R the sum of ``request.copies``.
    """
    num_images = int(request.copies.sum())
    boxes = np.empty((num_images, 4))
    flips = np.zeros(num_images, dtype=np.bool_)
    for copy in range(int(request.copies.max(initial=0))):
        for start in range(0, len(request.copies), _BLOCK):
            chosen = np.flatnonzero(request.copies[start : start + _BLOCK] > copy)
            if not chosen.size:
                continue
            samples = start + chosen
            rows = request.rows[samples] + copy
            boxes[rows] = crop.boxes(
                request.heights[samples],
                request.widths[samples],
                size=request.sizes[samples],
                draws=_block_draws(seed, Stream.CROP, epoch=epoch, start=start, chosen=chosen, duplicate=copy),
            )
            if flip_probability > 0:
                draw = _block_draws(seed, Stream.FLIP, epoch=epoch, start=start, chosen=chosen, duplicate=copy)
                flips[rows] = draw(0)[:, 0] < flip_probability
    return boxes, flips


def _block_draws(
    seed: int, stream: Stream, *, epoch: int, start: int, chosen: NDArray[np.int64], duplicate: int
) -> Draws:
    """Draws for some samples of the block that begins at ``start``."""
    count = int(chosen[-1]) + 1

    def block(word: int) -> NDArray[np.float64]:
        uniforms = draws(seed, stream, epoch=epoch, count=count, start=start, word=word, duplicate=duplicate)
        return uniforms if len(chosen) == count else uniforms[chosen]

    return block
