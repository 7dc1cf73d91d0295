"""Which part of an image becomes the training or evaluation image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from respipe.checks import check_choice, check_int, check_number

Sides = NDArray[np.integer[Any]]

Draws = Callable[[int], NDArray[np.float64]]
"""Number of a block of draws, from 0 -> (N, 4) float64 in [0, 1), one row per image. Blocks not asked for are free."""


@runtime_checkable
class Crop(Protocol):
    """Chooses crop boxes. A value: its ``repr`` names every field. An image's box depends on its own row only.

    A crop with an attribute ``context`` that is true is resized as a part of its image: the filter sees beyond it, and
    is given the largest stored copy.
    """

    def boxes(
        self, heights: Sides, widths: Sides, *, size: int | NDArray[np.int64], draws: Draws
    ) -> NDArray[np.float64]:
        """One box per image.

        Args:
            heights, widths: (N,) integers, sizes of the images in pixels.
            size: side in pixels that the crop will be resized to; an int, or (N,) int64.
            draws: source of randomness.

        Returns:
            (N, 4) float64 rows ``top, left, height, width`` in pixels of the image. A box may reach over the edge.
        """
        ...


def sees_context(crop: Crop) -> bool:
    """Whether the resize of a crop sees beyond it."""
    return bool(getattr(crop, "context", False))


@dataclass(frozen=True)
class WholeImage:
    """The entire image, whatever its shape."""

    def boxes(
        self, heights: Sides, widths: Sides, *, size: int | NDArray[np.int64], draws: Draws
    ) -> NDArray[np.float64]:
        boxes = np.zeros((len(heights), 4))
        boxes[:, 2] = heights
        boxes[:, 3] = widths
        return boxes


@dataclass(frozen=True)
class CenterCrop:
    """The usual evaluation crop: resize the shorter side to floor(size / ratio), then cut out the centre.

    Args:
        ratio: side of the crop over the resized shorter side, above 0 and up to 1. The default 7/8 gives 256 for 224.
    """

    ratio: float = 7 / 8

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"`ratio` must be above 0 and at most 1; got {self.ratio}. Pass 1 for the largest square.")

    def resized_side(self, size: NDArray[np.int64]) -> NDArray[np.int64]:
        """floor(size / ratio), the shorter side in pixels after the resize: (N,) int64."""
        # As a fraction of integers: 90 / 0.9 must not come out as 99.
        ratio = Fraction(self.ratio).limit_denominator(10_000)
        return size * ratio.denominator // ratio.numerator

    def boxes(
        self, heights: Sides, widths: Sides, *, size: int | NDArray[np.int64], draws: Draws
    ) -> NDArray[np.float64]:
        """See :meth:`Crop.boxes`. Centred to a fraction of a pixel."""
        size = np.asarray(size, dtype=np.int64)
        side = np.minimum(heights, widths) * (size / self.resized_side(size))
        return np.stack([(heights - side) / 2, (widths - side) / 2, side, side], axis=1)


@dataclass(frozen=True)
class ResizedCenterCrop:
    """The centre of an image that is resized first, to the very pixel of torchvision's and timm's evaluation.

    The image is resized to whole pixels, of which the central S x S are kept, beginning at a whole pixel; the resize
    sees the image beyond them. :class:`CenterCrop` is centred to a fraction of a pixel instead, and its crop sees no
    more than itself.

    Args:
        ratio: side of the crop over that of the resized image, R = floor(S / ratio): timm's ``crop_pct``.
        mode: what becomes R pixels long: with "center" the shorter side, with "squash" both sides.
    """

    ratio: float = 7 / 8
    mode: Literal["center", "squash"] = "center"

    context: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", check_number("ratio", self.ratio, least=0))
        if not 0 < self.ratio <= 1:
            raise ValueError(f"`ratio` must be above 0 and at most 1; got {self.ratio}. Pass timm's crop_pct.")
        check_choice("mode", self.mode, ("center", "squash"))

    def boxes(
        self, heights: Sides, widths: Sides, *, size: int | NDArray[np.int64], draws: Draws
    ) -> NDArray[np.float64]:
        sides = np.stack([heights, widths], axis=1).astype(np.int64)
        size = np.broadcast_to(np.asarray(size, np.int64), heights.shape)[:, None]
        shorter = np.floor(size / self.ratio)
        # int(R * long / short), as torchvision has it.
        longer = np.floor(shorter * sides / sides.min(axis=1, keepdims=True))
        resized = longer if self.mode == "center" else np.broadcast_to(shorter, sides.shape)
        scales = sides / resized
        return np.concatenate([np.rint((resized - size) / 2) * scales, size * scales], axis=1)


@dataclass(frozen=True)
class ShiftedCenterCrop(CenterCrop):
    """The evaluation crop moved sideways at random: with flips and slight colour jitter, "test DA2" of FixRes.

    The image is resized as by :class:`CenterCrop`, to W pixels of width for a crop of S. With j = (W - S) / 2, rounded
    to even, the crop begins j - u or j + u pixels from the left, either as likely, where u is one of 0, 1, ... j; it
    stays within the image. It is centred vertically (arXiv 1906.06423 and its code).

    Args:
        ratio: as for :class:`CenterCrop`.
    """

    def boxes(
        self, heights: Sides, widths: Sides, *, size: int | NDArray[np.int64], draws: Draws
    ) -> NDArray[np.float64]:
        boxes = super().boxes(heights, widths, size=size, draws=draws)
        size = np.asarray(size, dtype=np.int64)
        resized_widths = self.resized_side(size) * widths // np.minimum(heights, widths)
        free = resized_widths - size
        middle = np.rint(free / 2)
        uniforms = draws(0)
        side, shift = np.where(uniforms[:, 0] < 0.5, -1, 1), np.floor(uniforms[:, 1] * (middle + 1))
        left = np.clip(middle + side * shift, 0, free) * (widths / resized_widths)
        boxes[:, 1] = np.minimum(left, widths - boxes[:, 3])
        return boxes


@dataclass(frozen=True)
class RandomCrop:
    """A square of fixed side at a random place of the image with a black border: the usual crop for CIFAR.

    Args:
        size: side of the square in pixels of the image.
        padding: width of the border in pixels.
    """

    size: int
    padding: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", check_int("size", self.size, least=1))
        object.__setattr__(self, "padding", check_int("padding", self.padding, least=0))

    def boxes(
        self, heights: Sides, widths: Sides, *, size: int | NDArray[np.int64], draws: Draws
    ) -> NDArray[np.float64]:
        """See :meth:`Crop.boxes`.

        Raises:
            ValueError: an image with its border is smaller than the square.
        """
        sides = np.stack([heights, widths], axis=1).astype(np.int64)
        offsets = sides - self.size + 2 * self.padding + 1
        if offsets.size and offsets.min() < 1:
            raise ValueError(
                f"`size` must be at most {sides.min() + 2 * self.padding}, the smallest image side with its border; "
                f"got {self.size}. Crop a smaller square or pad more."
            )
        boxes = np.full((len(heights), 4), self.size, dtype=np.float64)
        boxes[:, :2] = np.floor(draws(0)[:, :2] * offsets) - self.padding
        return boxes
