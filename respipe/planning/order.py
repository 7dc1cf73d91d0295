"""The order in which an epoch visits the samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from respipe.rng import Stream, raw_draws


def epoch_order(num_samples: int, *, seed: int, epoch: int, shuffle: bool) -> NDArray[np.int64]:
    """All sample numbers, each once.

    The permutation sorts random 64-bit keys instead of using ``numpy.random.Generator``, whose algorithms may change
    between releases.

    Args:
        num_samples: samples in the dataset.
        seed: 64-bit seed.
        epoch: number of the epoch, from 0.
        shuffle: whether to permute; else the samples come in their stored order.

    Returns:
        (N,) int64.
    """
    if not shuffle:
        return np.arange(num_samples, dtype=np.int64)
    keys = raw_draws(seed, Stream.ORDER, epoch=epoch, count=-(-num_samples // 4)).reshape(-1)[:num_samples]
    return np.argsort(keys, kind="stable").astype(np.int64, copy=False)
