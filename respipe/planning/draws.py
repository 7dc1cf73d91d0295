"""The crop box and the flip of every image of an epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from respipe.planning.crops import Crop, Draws, Sides
from respipe.rng import Stream, draws

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
    *,
    seed: int,
    epoch: int,
    crop: Crop,
    flip_probability: float,
    repeat: int = 0,
    repeats: int = 1,
) -> None:
    """Draw boxes and flips. An image's depend on the seed, the epoch, its sample's number and its copy's number alone.

    Args:
        request: the images wanted.
        boxes: (R, 4) float64, where the boxes are written, in the rows that ``request`` names.
        flips: (R,) bool, likewise.
        seed: 64-bit seed.
        epoch: number of the epoch, from 0.
        crop: chooses the boxes.
        flip_probability: share of the images that are mirrored.
        repeat: which of a sample's uses in the epoch this is, from 0; it makes copies of different uses differ.
        repeats: number of uses of each sample.
    """
    for copy in range(int(request.copies.max(initial=0))):
        duplicate = copy * repeats + repeat
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
                draws=_block_draws(seed, Stream.CROP, epoch=epoch, start=start, chosen=chosen, duplicate=duplicate),
            )
            if flip_probability > 0:
                draw = _block_draws(seed, Stream.FLIP, epoch=epoch, start=start, chosen=chosen, duplicate=duplicate)
                flips[rows] = draw(0)[:, 0] < flip_probability


def _block_draws(
    seed: int, stream: Stream, *, epoch: int, start: int, chosen: NDArray[np.int64], duplicate: int
) -> Draws:
    """Draws for some samples of the block that begins at ``start``."""
    count = int(chosen[-1]) + 1

    def block(word: int) -> NDArray[np.float64]:
        uniforms = draws(seed, stream, epoch=epoch, count=count, start=start, word=word, duplicate=duplicate)
        return uniforms if len(chosen) == count else uniforms[chosen]

    return block
