from __future__ import annotations

import numpy as np
import pytest

from respipe.planning.order import epoch_order


@pytest.mark.parametrize("num_samples", [0, 1, 3, 4, 1001])
def test_every_sample_comes_once(num_samples: int) -> None:
    order = epoch_order(num_samples, seed=1, epoch=2, shuffle=True)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_samples))


def test_without_shuffling_the_stored_order_is_kept() -> None:
    order = epoch_order(5, seed=1, epoch=2, shuffle=False)
    assert order.dtype == np.int64
    assert order.tolist() == [0, 1, 2, 3, 4]


def test_order_sorts_the_words_of_the_generator() -> None:
    words = np.random.Philox(key=[9, 0], counter=[0, 0, 4, 0]).random_raw(50).tolist()
    assert epoch_order(50, seed=9, epoch=4, shuffle=True).tolist() == sorted(range(50), key=words.__getitem__)


def test_order_differs_between_epochs_and_seeds() -> None:
    orders = {epoch_order(20, seed=seed, epoch=epoch, shuffle=True).tobytes() for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_every_sample_is_equally_likely_to_come_first() -> None:
    first = [int(epoch_order(4, seed=0, epoch=epoch, shuffle=True)[0]) for epoch in range(800)]
    # Expected 200 each, standard deviation 12.
    assert np.bincount(first, minlength=4).tolist() == pytest.approx([200] * 4, abs=50)
