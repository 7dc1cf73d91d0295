from __future__ import annotations

import itertools
from functools import partial

import numpy as np
import pytest

from respipe.rng import Stream, beta, check_seed, draws, raw_draws, scattered_draws


def test_row_is_the_generator_at_the_rows_own_counter() -> None:
    block = raw_draws(5, Stream.CROP, epoch=3, count=40, word=2, duplicate=1)
    for row in (0, 1, 17, 39):
        fresh = np.random.Philox(key=[5, Stream.CROP], counter=[row, 2, 3, 1]).random_raw(4)
        assert np.array_equal(block[row], fresh)


def test_row_is_the_same_in_any_block() -> None:
    block = draws(5, Stream.CROP, epoch=3, count=40)
    assert np.array_equal(draws(5, Stream.CROP, epoch=3, start=13, count=9), block[13:22])


def test_uniforms_are_the_upper_bits_of_the_words() -> None:
    raw = raw_draws(2**64 - 1, Stream.FLIP, epoch=0, count=100)
    uniforms = draws(2**64 - 1, Stream.FLIP, epoch=0, count=100)
    assert uniforms.dtype == np.float64
    assert uniforms.tolist() == [[(word >> 11) / 2**53 for word in row] for row in raw.tolist()]
    assert uniforms.min() >= 0
    assert uniforms.max() < 1


def test_draws_stay_as_they_were_when_runs_were_saved() -> None:
    assert raw_draws(0, Stream.ORDER, epoch=0, count=1).tolist() == [
        [213000021201967259, 4455796210202625458, 2055444239878205049, 10411612076246414556]
    ]
    elsewhere = raw_draws(7, Stream.TRANSFORM, epoch=2, start=11, count=1, word=1, duplicate=3)
    assert elsewhere.tolist() == [[13153369281511563746, 3985970357442998361, 6222382969602106343, 617262499478072369]]


def test_every_part_of_the_address_matters() -> None:
    base = {"seed": 1, "stream": Stream.CROP, "epoch": 1, "word": 1, "duplicate": 1, "start": 1}
    changes = [{}, {"seed": 2}, {"stream": Stream.FLIP}, {"epoch": 2}, {"word": 2}, {"duplicate": 2}, {"start": 2}]
    values = [raw_draws(**(base | change), count=1).tobytes() for change in changes]
    assert all(a != b for a, b in itertools.combinations(values, 2))


def test_neighbouring_seeds_and_epochs_do_not_repeat_each_other() -> None:
    # A generator seeded with seed + epoch would.
    assert not np.array_equal(draws(1, Stream.CROP, epoch=2, count=8), draws(2, Stream.CROP, epoch=1, count=8))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_must_fit_into_64_bits(seed: int) -> None:
    with pytest.raises(ValueError, match="`seed` must be at least 0 and below"):
        draws(seed, Stream.CROP, epoch=0, count=1)


def test_seed_must_be_an_integer() -> None:
    with pytest.raises(TypeError, match=r"`seed` must be an integer; got 1\.5"):
        check_seed(1.5)


def test_scattered_draws_are_those_of_consecutive_rows() -> None:
    rows, duplicates = np.array([9, 0, 9, 2**31]), np.array([0, 3, 1, 0])
    found = scattered_draws(
        2**64 - 5, Stream.AUGMENTATION, epoch=7, rows=rows, duplicates=duplicates, word=2, num_words=3
    )
    for i, (row, duplicate) in enumerate(zip(rows.tolist(), duplicates.tolist(), strict=True)):
        one = partial(draws, 2**64 - 5, Stream.AUGMENTATION, epoch=7, count=1, start=row, duplicate=duplicate)
        assert np.array_equal(found[i], np.concatenate([one(word=word)[0] for word in (2, 3, 4)]))


@pytest.mark.parametrize(("a", "b"), [(0.05, 0.05), (0.2, 0.2), (1, 1), (1, 2), (4, 1.5), (100, 100)])
def test_numbers_of_the_beta_distribution(a: float, b: float) -> None:
    values = beta((np.arange(100_000) + 0.5) / 100_000, a, b)
    assert (np.diff(values) >= 0).all() and 0 <= values[0] <= values[-1] <= 1
    assert values.mean() == pytest.approx(a / (a + b), rel=1e-3)
    assert values.var() == pytest.approx(a * b / ((a + b) ** 2 * (a + b + 1)), rel=2e-3)
