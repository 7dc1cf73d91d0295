from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from respipe.schedules.regimes import REGIMES, check_regime, regime_probabilities

# The sizes and probabilities of the paper and, for S28-code and S224, of the code released with it.
TABLE = {
    "S28": {40: 0.2, 32: 0.3, 24: 0.3, 16: 0.2},
    "S28-code": {48: 0.2, 32: 0.3, 24: 0.3, 16: 0.2},
    "S144": {256: 0.1, 224: 0.1, 128: 0.6, 96: 0.2},
    "S208": {320: 0.1, 288: 0.1, 256: 0.1, 224: 0.2, 192: 0.2, 160: 0.1, 128: 0.1, 96: 0.1},
    "S224": {320: 0.8 / 6, 288: 0.8 / 6, 256: 0.8 / 6, 224: 0.2, 192: 0.8 / 6, 160: 0.8 / 6, 128: 0.8 / 6},
}
# Mean side in pixels, and mean area as a share of the base size's.
MEANS = {
    "S28": (28.0, 0.83125),
    "S28-code": (29.6, 0.96875),
    "S144": (144.0, 0.463265),
    "S208": (208.0, 0.94898),
    "S224": (224.0, 1.07619),
}


@pytest.mark.parametrize("name", TABLE)
def test_named_regimes_are_the_published_ones_largest_size_first(name: str) -> None:
    regime = REGIMES[name]
    probabilities = regime.probabilities(regime.base_size)
    assert list(probabilities) == sorted(TABLE[name], reverse=True)
    assert probabilities == pytest.approx(TABLE[name])
    assert sum(probabilities.values()) == 1
    mean_side, mean_area = MEANS[name]
    assert sum(size * share for size, share in probabilities.items()) == pytest.approx(mean_side)
    area = sum(size**2 * share for size, share in probabilities.items()) / regime.base_size**2
    assert area == pytest.approx(mean_area, abs=5e-6)


def test_every_regime_is_in_the_table() -> None:
    assert set(REGIMES) == set(TABLE)


def test_named_regimes_scale_with_the_base_size() -> None:
    assert list(REGIMES["S144"].probabilities(112)) == [128, 112, 64, 48]
    assert list(REGIMES["S28"].probabilities(64)) == [80, 64, 48, 32]
    # The distance between sizes is rounded down to whole pixels.
    assert list(REGIMES["S144"].probabilities(100)) == [114, 100, 58, 44]
    with pytest.raises(ValueError, match="`base_size` must be at least 7 for this regime; got 6"):
        REGIMES["S144"].probabilities(6)


def test_probabilities_given_as_floats_become_the_fractions_they_stand_for() -> None:
    regime = check_regime({24: 0.29, 32: 0.71})
    assert regime_probabilities(regime, 32) == {32: Fraction(71, 100), 24: Fraction(29, 100)}
    thirds = check_regime(dict.fromkeys((16, 24, 32), 1 / 3))
    assert set(regime_probabilities(thirds, 32).values()) == {Fraction(1, 3)}


def test_sizes_of_probability_zero_are_left_out() -> None:
    assert regime_probabilities(check_regime({32: 1.0, 16: 0.0}), 32) == {32: 1}


def test_pairs_in_any_order_are_the_same_regime_as_a_mapping() -> None:
    assert check_regime([[16, 0.25], (32, 0.75)]) == check_regime({32: 0.75, 16: 0.25}) == ((32, 0.75), (16, 0.25))


@pytest.mark.parametrize(
    ("regime", "error", "message"),
    [
        ("S145", ValueError, "`regime` must be one of S144, .* or a mapping from size to probability; got 'S145'"),
        (224, TypeError, "`regime` must be a name or a mapping"),
        ({}, TypeError, "`regime` must be a name or a mapping"),
        ([224, 128], TypeError, "`regime` must be a name or a mapping"),
        ({224: 0.4, 128: 0.5}, ValueError, r"add up to 1; got .*, which add up to 0\.9"),
        ([(224, 0.5), (224, 0.5)], ValueError, "`regime` must map different sizes"),
        ({224: 1.5, 128: -0.5}, ValueError, "`regime` must lie between 0 and 1; got "),
        ({0: 1.0}, ValueError, "`regime` must be at least 1; got 0"),
        ({"224": 1.0}, TypeError, "`regime` must be an integer; got '224'"),
    ],
)
def test_what_is_no_regime_is_refused(regime: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check_regime(regime)
