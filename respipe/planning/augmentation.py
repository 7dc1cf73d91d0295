"""What is done to the pixels of each image, drawn ahead of time: rows of operations with their parameters.

A policy turns uniform numbers into operations. The numbers come from (seed, epoch, sample, copy) alone, so an image is
augmented alike on any rank, thread and backend, whatever else is in its batch. Lengths are shares of the image's side:
where a step shows the same crops at several sizes, all of them are augmented alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from respipe.rng import Stream, scattered_draws


class Op(IntEnum):
    """An operation, with its parameters in the order of the columns of :attr:`Augmentation.values`."""

    IDENTITY = 0
    SHEAR_X = 1  # tangent of the angle, interpolation (0 nearest, 1 bilinear), fill
    SHEAR_Y = 2
    TRANSLATE_X = 3  # share of the side, interpolation, fill
    TRANSLATE_Y = 4
    ROTATE = 5  # degrees counter-clockwise, interpolation, fill
    BRIGHTNESS = 6  # factor
    SATURATION = 7
    CONTRAST = 8
    SHARPNESS = 9
    HUE = 10  # shift in turns, from -0.5 to 0.5
    POSTERIZE = 11  # bits kept
    SOLARIZE = 12  # grey value from which on pixels are inverted
    AUTOCONTRAST = 13
    EQUALIZE = 14
    INVERT = 15
    GRAYSCALE = 16
    BLUR = 17  # standard deviation as a share of the side
    ERASE = 18  # height and width as shares of the side, place of its top and left among those possible, fill
    CUT = 19  # row and column of the centre as shares of the side, side of the hole likewise, fill
    MIX_BEGIN = 20  # weight: the image is kept, and a sum begun with it
    MIX_ADD = 21  # weight: the result so far is added to the sum; what follows starts from the image that was kept
    MIX_END = 22  # the sum becomes the result


NUM_VALUES = 5
FILL_NONE, FILL_MEAN = -1.0, -2.0
"""How a fill is written in a column: zeros as with torchvision's ``fill=None``; the mean colour; else 0xRRGGBB."""


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Augmentation:
    """Operations for each of B images, L in a row, ``IDENTITY`` where an image has fewer.

    Args:
        operations: (B, L) uint8, see :class:`Op`.
        values: (B, L, 5) float64, parameters.
    """

    operations: NDArray[np.uint8]
    values: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.operations)

    def take(self, rows: NDArray[np.int64] | slice) -> Augmentation:
        """The operations of these rows, which may repeat."""
        return Augmentation(operations=self.operations[rows], values=self.values[rows])

    def describe(self, row: int) -> str:
        """The operations of an image in words, such as ``rotate(12.5) equalize``."""
        names: list[str] = []
        for code, values in zip(self.operations[row].tolist(), self.values[row].tolist(), strict=True):
            if code != Op.IDENTITY:
                shown = values[: 4 if code == Op.ERASE else 3 if code == Op.CUT else 1]
                text = ", ".join(f"{value:.3g}" for value in shown)
                names.append(Op(code).name.lower() + (f"({text})" if any(shown) else ""))
        return " ".join(names)


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Canvas:
    """The images that are to be augmented.

    Args:
        sizes: (N,) int64, side of each in pixels; the largest, where it is shown at several.
        base_size: side that lengths given in pixels refer to.
    """

    sizes: NDArray[np.int64]
    base_size: int

    def shares(self, pixels: Any, *, scale_with_size: bool) -> Any:
        """Lengths in pixels, a number or (N,), as shares of the images' sides."""
        return pixels / (self.base_size if scale_with_size else self.sizes)


Draws = Callable[[int], NDArray[np.float64]]
"""Number of columns -> the next so many uniform numbers of each image, (N, columns) float64 in [0, 1)."""


@runtime_checkable
class Policy(Protocol):
    """Chooses operations. A value: its ``repr`` names every field.

    An image's operations depend on its own numbers only, and how many are asked for does not depend on the images.
    """

    def draw(self, draws: Draws, canvas: Canvas) -> Augmentation:
        """Operations for the images of ``canvas``."""
        ...


def plan_augmentation(
    policies: Sequence[Policy],
    canvas: Canvas,
    *,
    seed: int,
    epoch: int,
    indices: NDArray[np.int64],
    copies: NDArray[np.int64],
) -> Augmentation:
    """Operations for a batch of B images, those of each policy after those of the one before.

    Args:
        policies: what is applied; at least one.
        canvas: of the batch's images.
        seed: 64-bit seed.
        epoch: number of the epoch, from 0.
        indices: (B,) int64, sample numbers.
        copies: (B,) int64, which use of its sample in the epoch each image is.
    """
    left, word = np.empty((len(indices), 0)), 0

    def draws(columns: int) -> NDArray[np.float64]:
        nonlocal left, word
        if (missing := columns - left.shape[1]) > 0:
            words = max(-(-missing // 4), 4)
            more = scattered_draws(
                seed, Stream.AUGMENTATION, epoch=epoch, rows=indices, duplicates=copies, word=word, num_words=words
            )
            left, word = np.concatenate([left, more], axis=1), word + words
        drawn, left = left[:, :columns], left[:, columns:]
        return drawn

    return joined([policy.draw(draws, canvas) for policy in policies])


def joined(parts: Sequence[Augmentation]) -> Augmentation:
    """Operations in a row."""
    return Augmentation(
        operations=np.concatenate([part.operations for part in parts], axis=1),
        values=np.concatenate([part.values for part in parts], axis=1),
    )


def check_policies(name: str, value: object) -> tuple[Policy, ...]:
    """``value`` as policies; a single one may be given as it is.

    Raises:
        TypeError: it is neither a policy nor a sequence of policies.
    """
    policies = cast("Sequence[Any]", (value,) if isinstance(value, Policy) else value)
    if not isinstance(policies, Sequence) or any(
        isinstance(one, type) or not isinstance(one, Policy) for one in policies
    ):
        raise TypeError(
            f"`{name}` must be policies of respipe.augment; got {value!r}. Pass for example (RandAugment(),); a "
            "function of whole batches is a `batch_transform`."
        )
    return tuple(policies)
