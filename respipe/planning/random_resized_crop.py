"""The usual ImageNet training crop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cache

import numpy as np
from numpy.typing import NDArray

from respipe.planning.crops import Draws, Sides

_ATTEMPTS = 10
# Taylor coefficients of exp, highest first. Up to |x| = 0.35 the remainder is below 2e-16.
_TAYLOR = tuple(1 / math.factorial(n) for n in range(12, -1, -1))
_TAYLOR_REACH = 0.35


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and shape at a random place (Szegedy et al., arXiv 1409.4842).

    Equal in distribution to ``torchvision.transforms.RandomResizedCrop``: the area is uniform, the aspect ratio uniform
    in its logarithm, and both sides are rounded to whole pixels. A box that does not fit into the image is drawn again,
    up to ten times in all; then the largest centred box of an allowed shape is taken. Only operations that IEEE 754
    defines to the last bit are used, so that every machine draws the same boxes.

    Args:
        scale: smallest and largest area as a share of the image's, within (0, 1].
        ratio: smallest and largest width over height, above 0.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(float(bound) for bound in self.scale))
        object.__setattr__(self, "ratio", tuple(float(bound) for bound in self.ratio))
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"`scale` must be two areas, smallest first, within (0, 1]; got {self.scale}. Pass shares of the image."
            )
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ValueError(
                f"`ratio` must be two positive ratios, smallest first; got {self.ratio}. Pass width over height."
            )

    def boxes(
        self, heights: Sides, widths: Sides, *, size: int | NDArray[np.int64], draws: Draws
    ) -> NDArray[np.float64]:
        """See :meth:`respipe.planning.crops.Crop.boxes`. Boxes lie within the image on whole pixels."""
        image_heights, image_widths = heights.astype(np.float64), widths.astype(np.float64)
        boxes = self._fallback(image_heights, image_widths)
        pending = np.arange(len(boxes))
        for attempt in range(_ATTEMPTS):
            if not pending.size:
                break
            uniforms = draws(attempt)
            area, aspect, top, left = (uniforms if pending.size == len(uniforms) else uniforms[pending]).T
            box_heights, box_widths = self._sides(image_heights * image_widths, area, aspect)
            free_rows, free_columns = image_heights - box_heights, image_widths - box_widths
            fits = (box_heights > 0) & (free_rows >= 0) & (box_widths > 0) & (free_columns >= 0)
            top, left = np.floor(top * (free_rows + 1)), np.floor(left * (free_columns + 1))
            boxes[pending[fits]] = np.stack([top, left, box_heights, box_widths], axis=1)[fits]
            missed = ~fits
            pending, image_heights, image_widths = pending[missed], image_heights[missed], image_widths[missed]
        return boxes

    def _sides(
        self, image_area: NDArray[np.float64], area: NDArray[np.float64], aspect: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Heights and widths of boxes from two uniform numbers each: whole numbers, which need not fit."""
        smallest, largest = self.scale
        middle, half = _log_interval(self.ratio)
        pixels = image_area * (smallest + (largest - smallest) * area)
        ratios = _exp(middle + half * (2 * aspect - 1), reach=abs(middle) + half)
        return np.rint(np.sqrt(pixels / ratios)), np.rint(np.sqrt(pixels * ratios))

    def _fallback(self, heights: NDArray[np.float64], widths: NDArray[np.float64]) -> NDArray[np.float64]:
        """The largest centred boxes whose shape is allowed: (N, 4) float64."""
        narrowest, widest = self.ratio
        ratios = widths / heights
        box_heights = np.where(ratios < narrowest, np.rint(widths / narrowest), heights)
        box_widths = np.where(ratios > widest, np.rint(heights * widest), widths)
        top, left = np.floor((heights - box_heights) / 2), np.floor((widths - box_widths) / 2)
        return np.stack([top, left, box_heights, box_widths], axis=1)


@cache
def _log_interval(ratio: tuple[float, float]) -> tuple[float, float]:
    """Middle and half length of the interval between the logarithms of two ratios."""
    # The decimal module rounds logarithms correctly everywhere; a platform's own may differ in the last bit.
    context = Context(prec=40)
    low, high = (Decimal(bound).ln(context) for bound in ratio)
    return float(context.add(low, high)) / 2, float(context.subtract(high, low)) / 2


def _exp(x: NDArray[np.float64], *, reach: float) -> NDArray[np.float64]:
    """The exponential of numbers of magnitude up to ``reach``: (N,) float64."""
    # Sums and products only: the last bits of NumPy's own exp depend on the processor.
    halvings = 0
    while reach > _TAYLOR_REACH:
        reach /= 2
        halvings += 1
    scaled = x * 0.5**halvings
    result = np.full_like(x, _TAYLOR[0])
    for coefficient in _TAYLOR[1:]:
        result *= scaled
        result += coefficient
    for _ in range(halvings):
        result *= result
    return result
