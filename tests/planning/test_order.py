from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from respipe.planning.order import LargeOrder, class_balanced, shared_weights
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


# Orders that are computed place by place


def large_order(num_samples: int, *, seed: int = 0, epoch: int = 0, **policy: Any) -> NDArray[np.int64]:
    order = LargeOrder(SamplingPolicy(seed=seed, **policy), epoch=epoch, num_samples=num_samples)
    return order[np.arange(len(order))]


@pytest.mark.parametrize("num_samples", [1, 2, 3, 16, 17, 1003, 2**14 + 1])
@pytest.mark.parametrize("shuffle", ["full", "none", Blocks(size=10, window=4)], ids=str)
def test_a_large_order_holds_every_sample_once(num_samples: int, shuffle: Any) -> None:
    assert sorted(large_order(num_samples, shuffle=shuffle).tolist()) == list(range(num_samples))


@pytest.mark.parametrize("shuffle", ["full", Blocks(size=50, window=4)], ids=str)
def test_large_orders_differ_between_epochs_and_seeds(shuffle: Any) -> None:
    orders = [large_order(2000, seed=seed, epoch=epoch, shuffle=shuffle) for seed in (0, 1) for epoch in (0, 1)]
    for number, order in enumerate(orders):
        assert all((order == other).mean() < 0.05 for other in orders[:number])


def test_places_of_a_large_order_do_not_depend_on_what_else_is_asked_for() -> None:
    for shuffle in ("full", Blocks(size=10, window=4)):
        order = LargeOrder(SamplingPolicy(shuffle=shuffle), epoch=1, num_samples=1003)
        whole, places = order[np.arange(1003)], np.array([1002, 3, 3, 500])
        assert np.array_equal(order[places], whole[places])


def test_a_large_order_repeats_samples_of_a_subset_in_a_row() -> None:
    subset = np.arange(7, 4000, 3)
    order = large_order(5000, indices=subset, repeats=2)
    assert len(order) == len(subset)
    assert np.array_equal(order[:-1:2], order[1::2])
    assert len(set(order[::2].tolist())) == len(order[::2])
    assert set(order.tolist()) <= set(subset.tolist())


def test_a_large_order_of_blocks_takes_the_windows_of_a_small_one() -> None:
    blocks = Blocks(size=10, window=4)
    small, large = (
        epoch_order(1003, seed=1, epoch=2, shuffle=blocks),
        large_order(1003, seed=1, epoch=2, shuffle=blocks),
    )
    stop = 0
    for window in range(26):
        start, stop = stop, stop + (33 if 100 in small[stop : stop + 33] // 10 else 40)
        assert sorted(small[start:stop].tolist()) == sorted(large[start:stop].tolist()), window
    assert stop >= 1003
    assert not np.array_equal(small, large)


@pytest.mark.parametrize("num_samples", [5, 16, 30])
def test_every_sample_is_as_likely_at_every_place_and_beside_every_other(num_samples: int) -> None:
    num_epochs = 400 * num_samples
    orders = np.stack([large_order(num_samples, seed=3, epoch=epoch) for epoch in range(num_epochs)])
    square = num_samples**2
    at = np.bincount((orders * num_samples + np.arange(num_samples)).ravel(), minlength=square)
    beside = np.bincount((orders[:, :-1] * num_samples + orders[:, 1:]).ravel(), minlength=square)
    beside = np.delete(beside, np.arange(num_samples) * (num_samples + 1))
    for counts in (at, beside):
        chi_square = ((counts - counts.mean()) ** 2).sum() / counts.mean()
        # Its mean is about the number of counts, its deviation the root of twice that.
        assert abs(chi_square - len(counts)) < 4 * (2 * len(counts)) ** 0.5 + 2 * num_samples


def test_a_large_shuffle_is_as_random_in_the_large_as_a_small_one() -> None:
    places = np.arange(0, 2**24, 2**8)
    order = LargeOrder(SamplingPolicy(seed=1), epoch=0, num_samples=100_000_007)[places]
    for values in (order // 1_000_001, np.diff(order) % 101, order % 256, (order - order[0]) % 97):
        counts = np.bincount(values)
        chi_square = ((counts - counts.mean()) ** 2).sum() / counts.mean()
        assert abs(chi_square - len(counts)) < 4 * (2 * len(counts)) ** 0.5
