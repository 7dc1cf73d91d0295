"""Which samples an epoch uses, and in which order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from respipe.planning.policy import Blocks, SamplingPolicy
from respipe.rng import Stream, draws, raw_draws

# Datasets of more samples have the order of a cipher instead of sorted keys, which take 100 bytes per sample.
LARGE = 2**24

_ROUNDS = 10


def epoch_order(
    policy: SamplingPolicy, *, epoch: int, num_samples: int, num_used: int | None = None
) -> NDArray[np.int64]:
    """Sample numbers in the order in which an epoch uses them.

    A permutation sorts random 64-bit keys, and weighted samples are found in a running sum, instead of asking
    ``numpy.random.Generator``, whose algorithms may change between releases.

    Args:
        policy: training, seed, repeats, indices, weights and shuffle of the run.
        epoch: number of the epoch, from 0.
        num_samples: samples in the dataset.
        num_used: samples that the epoch's steps take together; only draws in exact shares depend on it.

    Returns:
        (M,) int64, M the number of samples or of ``policy.indices``; of those used where shares are exact. In training
        with weights a sample may come any number of times, with repeats each comes several times in a row; otherwise
        each comes once.
    """
    indices = np.arange(num_samples, dtype=np.int64) if policy.indices is None else policy.indices
    if not policy.training:
        return indices
    count = len(indices) if num_used is None or not policy.strata else min(num_used, len(indices))
    order = _chosen(indices, policy, epoch, num_distinct := -(-count // policy.repeats))
    return np.repeat(order[:num_distinct], policy.repeats)[:count]


def _chosen(indices: NDArray[np.int64], policy: SamplingPolicy, epoch: int, num_distinct: int) -> NDArray[np.int64]:
    count = len(indices)
    if policy.strata:
        stratum = np.searchsorted(np.cumsum(policy.strata), indices, side="right")
        shuffled = indices[np.lexsort((_keys(policy, epoch, count), stratum))]
        drawn = _drawn(shuffled, policy, epoch, num_distinct)
        return drawn[np.argsort(_keys(policy, epoch, num_distinct, duplicate=2), kind="stable")]
    if policy.weights is not None:
        return _drawn(indices, policy, epoch, count)
    if policy.shuffle == "none":
        return indices
    keys = _keys(policy, epoch, count)
    if not isinstance(policy.shuffle, Blocks):
        return indices[np.argsort(keys, kind="stable")]
    # Sorted by the places of their blocks first, which have keys of their own.
    blocks = np.argsort(np.argsort(_keys(policy, epoch, -(-count // policy.shuffle.size), duplicate=2), kind="stable"))
    windows = np.repeat(blocks // policy.shuffle.window, policy.shuffle.size)[:count]
    return np.sort(indices)[np.lexsort((keys, windows))]


def _drawn(indices: NDArray[np.int64], policy: SamplingPolicy, epoch: int, count: int) -> NDArray[np.int64]:
    """Samples drawn by weight: independently, or systematically, at equal distances along the sum of weights.

    Systematic draws take any samples in a row as often as their share says, rounded up or down.
    """
    reached: NDArray[np.float64] = np.cumsum(cast(Any, policy.weights)[indices])
    uniforms = draws(policy.seed, Stream.ORDER, epoch=epoch, count=-(-count // 4), duplicate=1).reshape(-1)[:count]
    if policy.strata:
        uniforms = (np.arange(count) + uniforms[0]) / count
    total = float(reached[-1])
    places: Any = np.searchsorted(reached, uniforms * total, side="right")
    # Rounding may bring the product up to the sum itself, which lies beyond the last sample that has a weight.
    last: Any = np.searchsorted(reached, total, side="left")
    return indices[np.minimum(places, last)]


def _keys(policy: SamplingPolicy, epoch: int, count: int, duplicate: int = 0) -> NDArray[np.uint64]:
    """(count,) random numbers to sort by."""
    words = raw_draws(policy.seed, Stream.ORDER, epoch=epoch, count=-(-count // 4), duplicate=duplicate)
    return words.reshape(-1)[:count]


class LargeOrder:
    """What :func:`epoch_order` is for, without weights, where an array of it would take gigabytes.

    ``order[places]`` computes the samples at some places of the epoch: (B,) int64 for (B,) int64. A full shuffle is a
    :class:`_Cipher` of all places; of blocks, the blocks are sorted by keys, and each window has a cipher of its own.

    Args:
        policy: seed, repeats, indices and shuffle of the run, which trains without weights.
        epoch: number of the epoch, from 0.
        num_samples: samples in the dataset.
    """

    def __init__(self, policy: SamplingPolicy, *, epoch: int, num_samples: int) -> None:
        assert policy.training and policy.weights is None, "each sample comes once"
        self._policy, self._epoch, self._indices = policy, epoch, policy.indices
        self._count = policy.num_samples(num_samples)
        if isinstance(policy.shuffle, Blocks):
            size, window = policy.shuffle.size, policy.shuffle.window
            blocks = np.argsort(_keys(policy, epoch, -(-self._count // size), duplicate=2), kind="stable")
            # In the order of the data within a window, so that a short block, the last one, is its window's end.
            self._windows = [np.sort(blocks[at : at + window]) for at in range(0, len(blocks), window)]
            lengths = [int(np.minimum(size, self._count - window * size).sum()) for window in self._windows]
            self._stops = np.cumsum(lengths)
            self._indices = None if policy.indices is None else np.sort(policy.indices)
        elif policy.shuffle == "full":
            self._cipher = _Cipher(self._count, policy.seed, epoch)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        chosen = self._shuffled(places // self._policy.repeats)
        return chosen if self._indices is None else self._indices[chosen]

    def _shuffled(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        shuffle = self._policy.shuffle
        if shuffle == "none":
            return places
        if not isinstance(shuffle, Blocks):
            return self._cipher(places)
        chosen, windows = np.empty_like(places), np.searchsorted(self._stops, places, side="right")
        for window in np.unique(windows).tolist():
            start, stop = int(self._stops[window - 1]) if window else 0, int(self._stops[window])
            rows = np.flatnonzero(windows == window)
            within = _Cipher(stop - start, self._policy.seed, self._epoch, number=window)(places[rows] - start)
            chosen[rows] = self._windows[window][within // shuffle.size] * shuffle.size + within % shuffle.size
        return chosen


class _Cipher:
    """A random permutation of 0 to ``count`` - 1 in the memory of a square root of it, computed place by place.

    A Feistel network with tables of random numbers encrypts pairs of digits to the base ceil(sqrt(count)); what lies
    beyond ``count`` is encrypted again until it does not (Black and Rogaway, "Ciphers with Arbitrary Finite Domains",
    CT-RSA 2002).
    """

    def __init__(self, count: int, seed: int, epoch: int, number: int = 0) -> None:
        self._count, self._base = count, math.isqrt(count - 1) + 1
        num_words = _ROUNDS * self._base
        words = raw_draws(seed, Stream.ORDER, epoch=epoch, count=-(-num_words // 4), word=number, duplicate=3)
        self._tables = (words.reshape(-1)[:num_words] % np.uint64(self._base)).astype(np.int64).reshape(_ROUNDS, -1)

    def __call__(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        result = places.copy()
        rows = np.arange(len(places))
        while rows.size:
            left, right = np.divmod(result[rows], self._base)
            for table in self._tables:
                left, right = right, (left + table[right]) % self._base
            result[rows] = left * self._base + right
            rows = rows[result[rows] >= self._count]
        return result


def class_balanced(labels: ArrayLike) -> NDArray[np.float64]:
    """Weights with which every class comes equally often, for ``Loader(weights=...)``.

    Args:
        labels: (N,) integers, such as ``loader.dataset.labels``.

    Returns:
        (N,) float64, one over the number of samples that have the same label.

    Raises:
        TypeError: the labels are not one integer for each sample.
    """
    array: NDArray[Any] = np.asarray(labels)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise TypeError(
            f"`labels` must be one whole number for each sample; got {array.dtype} of shape {array.shape}. Balance "
            "numbers and vectors by weights of your own."
        )
    _, places, counts = np.unique(array, return_inverse=True, return_counts=True)
    return 1.0 / counts[places]


def shared_weights(lengths: Sequence[int], shares: Sequence[float], policy: SamplingPolicy) -> NDArray[np.float64]:
    """Weights with which datasets that are joined to one have given shares of the samples drawn.

    Args:
        lengths: samples of each.
        shares: share of each in the samples that are drawn, in any unit.
        policy: whose weights count within each of them, and whose indices say which samples are drawn at all.

    Returns:
        (N,) float64.

    Raises:
        ValueError: a dataset with a share has no sample that can be drawn, or ``policy`` does not fit.
    """
    policy.check_fits(sum(lengths))
    weights = np.ones(sum(lengths)) if policy.weights is None else policy.weights.copy()
    if policy.indices is not None:
        weights[np.setdiff1d(np.arange(len(weights)), policy.indices)] = 0
    stops = np.cumsum(lengths).tolist()
    for number, (stop, length, share) in enumerate(zip(stops, lengths, shares, strict=True)):
        part = weights[stop - length : stop]
        if share and not part.any():
            raise ValueError(
                f"`data` must have samples to draw in every dataset with a share; number {number} has none that "
                "`indices` and `weights` leave. Give it a share of 0."
            )
        part *= share / (part.sum() or 1.0)
    return weights
