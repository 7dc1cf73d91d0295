"""The only source of randomness: a counter-based generator in which every draw has an address.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a key and a counter into four
64-bit words, with no state in between. The key is (seed, stream), the counter (row, word, epoch, duplicate), so a
sample's draws do not depend on which process asks for them, in which order, or after which other draws.
"""

from __future__ import annotations

import math
import operator
from enum import IntEnum
from functools import lru_cache
from typing import SupportsIndex, cast

import numpy as np
from numpy.typing import NDArray

# Doubles have 53 significant bits: keep the upper 53 of each word and scale them into [0, 1).
_DROPPED_BITS = np.uint64(11)
_UNIT = np.float64(2.0**-53)

# Multipliers and key increments of Philox 4x64 (Salmon et al., section 3.3 and Random123's philox.h).
_MULTIPLIERS = np.array([0xD2E7470EE14C6C93, 0xCA5A826395121157], np.uint64)
_INCREMENTS = np.array([0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B], np.uint64)
_HALF, _LOW = np.uint64(32), np.uint64(2**32 - 1)


class Stream(IntEnum):
    """What a draw is for. Draws of different streams are independent. Saved runs rely on these numbers."""

    ORDER = 0
    CROP = 1
    FLIP = 2
    SCHEDULE = 3
    TRANSFORM = 4
    AUGMENTATION = 5
    MIXING = 6
    TRAINING = 7


def check_seed(seed: SupportsIndex) -> int:
    """The seed as a Python integer.

    Raises:
        TypeError: it is not an integer.
        ValueError: it does not fit into 64 bits without a sign.
    """
    if isinstance(seed, bool) or not isinstance(cast(object, seed), (int, SupportsIndex)):
        raise TypeError(f"`seed` must be an integer; got {seed!r}. Pass a number such as 0.")
    value = operator.index(seed)
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
        TypeError, ValueError: ``seed`` is not a number of 64 bits.
    """
    key = np.array([check_seed(seed), stream], dtype=np.uint64)
    counter = np.array([start, word, epoch, duplicate], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(4 * count).reshape(count, 4)


def step_seeds(seed: int, stream: Stream, *, epoch: int, step: int, rank: int) -> tuple[int, int, int, int]:
    """Seeds of 64 bits for other generators, the same whenever a rank comes to this step of this epoch.

    Args:
        seed: from 0, below 2**64.
        stream: what the seeds are for.
        epoch, step: numbers of the epoch and of the step within it, both from 0.
        rank: number of the process.
    """
    first, second, third, fourth = raw_draws(seed, stream, epoch=epoch, count=1, start=step, duplicate=rank)[0].tolist()
    return first, second, third, fourth


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


def scattered_draws(
    seed: int,
    stream: Stream,
    *,
    epoch: int,
    rows: NDArray[np.int64],
    duplicates: NDArray[np.int64],
    word: int = 0,
    num_words: int = 1,
) -> NDArray[np.float64]:
    """The same numbers as :func:`draws`, for rows in any order, each with a copy of its own.

    Args:
        seed, stream, epoch: as for :func:`raw_draws`.
        rows: (N,) int64, number of each row.
        duplicates: (N,) int64, which copy of its sample each row is.
        word: first block of four of each row.
        num_words: number of blocks per row.

    Returns:
        (N, 4 * num_words) float64 in [0, 1), block by block.
    """
    keys = np.array([check_seed(seed), stream], np.uint64)
    shape = (num_words, len(rows))
    a = np.broadcast_to((rows + 1).astype(np.uint64), shape)  # NumPy counts before it draws
    b = np.broadcast_to(np.arange(word, word + num_words, dtype=np.uint64)[:, None], shape)
    c = np.full(shape, epoch, np.uint64)
    d = np.broadcast_to(duplicates.astype(np.uint64), shape)
    for _ in range(10):
        (high_a, low_a), (high_c, low_c) = _product(a, _MULTIPLIERS[0]), _product(c, _MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ keys[0], low_c, high_a ^ d ^ keys[1], low_a
        keys = keys + _INCREMENTS
    raw = np.stack([a, b, c, d], axis=-1).transpose(1, 0, 2).reshape(len(rows), 4 * num_words)
    return (raw >> _DROPPED_BITS) * _UNIT


def _product(values: NDArray[np.uint64], factor: np.uint64) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Upper and lower words of values times a factor."""
    high, low = values >> _HALF, values & _LOW
    factor_high, factor_low = factor >> _HALF, factor & _LOW
    middle = high * factor_low + (low * factor_low >> _HALF)
    cross = low * factor_high + (middle & _LOW)
    return high * factor_high + (middle >> _HALF) + (cross >> _HALF), values * factor


def beta(uniforms: NDArray[np.float64], a: float, b: float) -> NDArray[np.float64]:
    """Numbers of the beta distribution from uniform ones, one from each, by inverting the distribution function."""
    logits, cumulative = _beta_distribution(a, b)
    return 1 / (1 + np.exp(-np.interp(uniforms, cumulative, logits).clip(-700, 700)))


@lru_cache(maxsize=16)
def _beta_distribution(a: float, b: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits x, and the probability of a logit below x. As a function of it, even a density for a = 0.01 is smooth."""
    low, high = -40 / a - 20 / a**0.5, 40 / b + 20 / b**0.5
    logits = math.log(a / b) + low + (high - low) / 2**15 * np.arange(2**15 + 1)
    logs = -a * np.logaddexp(0, -logits) - b * np.logaddexp(0, logits)
    density = np.exp(logs - logs.max())
    cumulative = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return logits, cumulative / cumulative[-1]
