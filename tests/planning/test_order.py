from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from respipe.planning.order import class_balanced, shared_weights
from respipe.planning.order import epoch_order as order_of
from respipe.planning.policy import Blocks, SamplingPolicy


def epoch_order(num_samples: int, *, seed: int, epoch: int, **policy: Any) -> NDArray[np.int64]:
    return order_of(SamplingPolicy(seed=seed, **policy), epoch=epoch, num_samples=num_samples)


@pytest.mark.parametrize("num_samples", [0, 1, 3, 4, 1001])
def test_every_sample_comes_once(num_samples: int) -> None:
    order = epoch_order(num_samples, seed=1, epoch=2)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_samples))


def test_without_shuffling_the_stored_order_is_kept() -> None:
    order = epoch_order(5, seed=1, epoch=2, shuffle="none")
    assert order.dtype == np.int64
    assert order.tolist() == [0, 1, 2, 3, 4]


def test_order_sorts_the_words_of_the_generator() -> None:
    words = np.random.Philox(key=[9, 0], counter=[0, 0, 4, 0]).random_raw(50).tolist()
    assert epoch_order(50, seed=9, epoch=4).tolist() == sorted(range(50), key=words.__getitem__)


def test_order_differs_between_epochs_and_seeds() -> None:
    orders = {epoch_order(20, seed=seed, epoch=epoch).tobytes() for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


def test_every_sample_is_equally_likely_to_come_first() -> None:
    first = [int(epoch_order(4, seed=0, epoch=epoch)[0]) for epoch in range(800)]
    # Expected 200 each, standard deviation 12.
    assert np.bincount(first, minlength=4).tolist() == pytest.approx([200] * 4, abs=50)


LABELS = np.array([0] * 700 + [1] * 200 + [2] * 100)


def test_weights_draw_with_replacement_in_their_shares() -> None:
    weights = np.array([0.0, 1.0, 2.0, 0.0, 5.0, 0.0] * 500)
    order = epoch_order(3000, seed=3, epoch=1, weights=weights)
    assert len(order) == 3000
    counts = np.bincount(order % 6, minlength=6)
    assert (counts[[0, 3, 5]] == 0).all()
    for place, share in ((1, 1 / 8), (2, 2 / 8), (4, 5 / 8)):
        assert abs(counts[place] - 3000 * share) < 5 * (3000 * share * (1 - share)) ** 0.5
    assert len(np.unique(order)) < 1500
    assert not np.array_equal(order, epoch_order(3000, seed=3, epoch=2, weights=weights))


def test_balanced_classes_come_equally_often() -> None:
    order = epoch_order(len(LABELS), seed=0, epoch=0, weights=class_balanced(LABELS))
    counts = np.bincount(LABELS[order], minlength=3)
    assert counts.sum() == 1000
    assert np.abs(counts - 1000 / 3).max() < 5 * (1000 * 2 / 9) ** 0.5


def test_a_single_weight_takes_all() -> None:
    assert epoch_order(4, seed=0, epoch=0, weights=[0, 0, 0.1, 0]).tolist() == [2] * 4


def test_a_subset_is_permuted_in_training_and_kept_in_evaluation() -> None:
    subset = [9, 2, 5, 30]
    orders = [epoch_order(40, seed=0, epoch=epoch, indices=subset).tolist() for epoch in range(20)]
    assert all(sorted(order) == sorted(subset) for order in orders)
    assert len(set(map(tuple, orders))) > 5
    assert epoch_order(40, seed=0, epoch=0, indices=subset, training=False).tolist() == subset


def test_weights_of_a_subset_are_those_of_its_samples() -> None:
    order = epoch_order(4, seed=0, epoch=0, indices=[1, 3], weights=[9, 0, 9, 1])
    assert order.tolist() == [3, 3]


@pytest.mark.parametrize("labels", [[0.5, 1.5], [[0, 1], [1, 0]], None])
def test_only_classes_are_balanced(labels: Any) -> None:
    with pytest.raises(TypeError, match="`labels` must be one whole number for each sample"):
        class_balanced(labels)


@pytest.mark.parametrize("num_samples", [1, 7, 100, 1003])
def test_blocks_use_every_sample_once_and_a_window_holds_whole_blocks(num_samples: int) -> None:
    order = epoch_order(num_samples, seed=1, epoch=2, shuffle=Blocks(size=10, window=4))
    assert sorted(order.tolist()) == list(range(num_samples))
    blocks = order // 10
    counts = np.bincount(blocks)
    windows: list[set[int]] = []
    start = 0
    while start < num_samples:
        # The first blocks whose samples together fill up the order so far.
        window = set[int]()
        stop = start
        while len(window) < 4 and stop < num_samples:
            window |= {int(blocks[stop])}
            stop += 1
        stop = start + int(counts[list(window)].sum())
        assert set(blocks[start:stop].tolist()) == window
        windows.append(window)
        start = stop
    assert len(windows) == -(-len(counts) // 4)


def test_blocks_differ_between_epochs_and_seeds_and_shuffle_within_the_window() -> None:
    blocks = Blocks(size=10, window=4)
    orders = {epoch_order(200, seed=seed, epoch=epoch, shuffle=blocks).tobytes() for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    order = epoch_order(200, seed=0, epoch=0, shuffle=blocks)
    assert len(set((order[:10] // 10).tolist())) > 2
    assert np.array_equal(
        epoch_order(2000, seed=0, epoch=0, shuffle="blocks"), epoch_order(2000, seed=0, epoch=0, shuffle=Blocks())
    )


def test_blocks_of_a_subset_follow_the_stored_order() -> None:
    chosen = np.random.default_rng(0).permutation(1000)[:300]
    order = epoch_order(1000, seed=0, epoch=0, shuffle=Blocks(size=50, window=1), indices=chosen)
    assert sorted(order.tolist()) == sorted(chosen.tolist())
    spans = [np.ptp(order[start : start + 50]) for start in range(0, 300, 50)]
    assert max(spans) < 300


def test_blocks_load_pages_fifty_times_less_often_than_a_full_shuffle() -> None:
    pages = np.arange(100_000) // 106  # images of ImageNet on a page

    def loads(order: NDArray[np.int64]) -> int:
        cache: dict[int, None] = {}
        count = 0
        for page in pages[order].tolist():
            if page not in cache:
                count += 1
                if len(cache) == 16:
                    del cache[next(iter(cache))]
            else:
                del cache[page]
            cache[page] = None  # the one used last is the last
        return count

    full = loads(epoch_order(100_000, seed=0, epoch=0))
    assert loads(epoch_order(100_000, seed=0, epoch=0, shuffle="blocks")) * 50 < full


@pytest.mark.parametrize("options", [{"size": 0}, {"window": 0}])
def test_empty_blocks_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Blocks(**options)


LENGTHS = (60, 200, 40)


@pytest.mark.parametrize("options", [{}, {"indices": np.arange(299, -1, -3)}, {"repeats": 3}])
@pytest.mark.parametrize("num_used", [96, 99])
def test_datasets_of_a_mixture_come_in_exact_shares(options: dict[str, Any], num_used: int) -> None:
    shares, stops = np.array([0.5, 0.3, 0.2]), np.cumsum(LENGTHS)
    weights = shared_weights(LENGTHS, shares.tolist(), SamplingPolicy(**options))
    policy = SamplingPolicy(weights=weights, strata=LENGTHS, seed=5, **options)
    repeats, totals = policy.repeats, np.zeros(300)
    for epoch in range(40):
        order = order_of(policy, epoch=epoch, num_samples=300, num_used=num_used)
        assert len(order) == num_used
        drawn = order[::repeats]
        counts = np.bincount(np.searchsorted(stops, drawn, side="right"), minlength=3)
        assert np.all(np.abs(counts - len(drawn) * shares) < 1)
        by_sample = np.bincount(drawn, minlength=300)
        expected = weights / weights.sum() * len(drawn)
        assert np.all(np.abs(by_sample - expected) < 1)
        totals += by_sample
    # Over the epochs every sample comes as often as others of its dataset, by chance of its own.
    assert np.all(np.abs(totals - 40 * expected) <= 5 * np.sqrt(40 * 0.25))
    assert len({order_of(policy, epoch=epoch, num_samples=300).tobytes() for epoch in range(9)}) == 9
