"""The only source of randomness: a counter-based generator in which every draw has an address.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a key and a counter into four
64-bit words, with no state in between. The key is (seed, stream), the counter (row, word, epoch, duplicate), so a
sample's draws do not depend on which process asks for them, in which order, or after which other draws.
"""

from __future__ import annotations

import operator
from enum import IntEnum
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

# Doubles have 53 significant bits: keep the upper 53 of each word and scale them into [0, 1).
_DROPPED_BITS = np.uint64(11)
_UNIT = np.float64(2.0**-53)


class Stream(IntEnum):
    """What a draw is for. Draws of different streams are independent. Saved runs rely on these numbers."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    SCHEDULE = 3
    TRANSFORM = 4


def check_seed(seed: SupportsIndex) -> int:
    """The seed as a Python integer.

    Raises:
        TypeError: it is not an integer.
        ValueError: it does not fit into 64 bits without a sign.
    """
    try:
        value = operator.index(seed)
    except TypeError:
        raise TypeError(f"`seed` must be an integer; got {seed!r}. Pass a number such as 0.") from None
    if not 0 <= value < 2**64:
        raise ValueError(f"`seed` must be at least 0 and below 2**64; got {value}. Pass a number such as 0.")
    return value


def raw_draws(
    seed: int, stream: Stream, *, epoch: int, count: int, start: int = 0, word: int = 0, duplicate: int = 0
) -> NDArray[np.uint64]:
    """Random words of consecutive rows.

    Args:
        seed: from 0, below 2**64.
        stream: what the draws are for.
        epoch: number of the epoch, from 0.
        count: number of rows.
        start: number of the first row. Row i is the same whatever block it is drawn in.
        word: which block of four words per row, for purposes that need more than four.
        duplicate: which copy of a sample.

    Returns:
        (count, 4) uint64, uniform over all values.

    Raises:
        TypeError, ValueError: ``seed`` is no 64-bit number.
    """
    key = np.array([check_seed(seed), stream], dtype=np.uint64)
    counter = np.array([start, word, epoch, duplicate], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(4 * count).reshape(count, 4)


def draws(
    seed: int, stream: Stream, *, epoch: int, count: int, start: int = 0, word: int = 0, duplicate: int = 0
) -> NDArray[np.float64]:
    """Uniform random numbers of consecutive rows; arguments as for :func:`raw_draws`.

    Returns:
        (count, 4) float64 in [0, 1).
    """
    raw = raw_draws(seed, stream, epoch=epoch, count=count, start=start, word=word, duplicate=duplicate)
    raw >>= _DROPPED_BITS
    return np.multiply(raw, _UNIT, dtype=np.float64)
