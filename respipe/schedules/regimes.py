"""Mixes of image sizes: the named ones of MixSize, and any mapping from size to probability."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

from respipe.checks import check_int, check_probability

Regime = str | Mapping[int, float] | Sequence[tuple[int, float]]

# Probabilities are meant as short decimals or simple fractions. Rounding to one of these denominators undoes the error
# of a float, so that 0.29 of 100 samples are 29 and not 28.
_LARGEST_DENOMINATOR = 10**6


@dataclass(frozen=True, kw_only=True)
class NamedRegime:
    """A mix whose sizes lie on a grid around its base size, so that it scales with it.

    Args:
        base_size: side in pixels that it is used with in the paper.
        divisions: the grid's spacing is ``base_size // divisions`` pixels.
        shares: probability of each size, by its distance from the base size in grid spacings.
    """

    base_size: int
    divisions: int
    shares: Mapping[int, Fraction]

    def probabilities(self, base_size: int) -> dict[int, Fraction]:
        """Sides in pixels and their probabilities around any base size, largest first.

        Raises:
            ValueError: ``base_size`` is too small for the grid.
        """
        if base_size < self.divisions:
            raise ValueError(
                f"`base_size` must be at least {self.divisions} for this regime; got {base_size}. Pass a larger one."
            )
        spacing = base_size // self.divisions
        return {base_size + offset * spacing: self.shares[offset] for offset in sorted(self.shares, reverse=True)}


def _tenths(shares: Mapping[int, int]) -> dict[int, Fraction]:
    return {offset: Fraction(share, 10) for offset, share in shares.items()}


_AROUND_224: Mapping[str, Mapping[int, Fraction]] = {
    "S144": _tenths({1: 1, 0: 1, -3: 6, -4: 2}),
    "S208": _tenths({3: 1, 2: 1, 1: 1, 0: 2, -1: 2, -2: 1, -3: 1, -4: 1}),
    "S224": {0: Fraction(1, 5), **dict.fromkeys((3, 2, 1, -1, -2, -3), Fraction(2, 15))},
}
_AROUND_32: Mapping[str, Mapping[int, Fraction]] = {
    "S28": _tenths({1: 2, 0: 3, -1: 3, -2: 2}),
    "S28-code": _tenths({2: 2, 0: 3, -1: 3, -2: 2}),
}

REGIMES: Mapping[str, NamedRegime] = {
    **{name: NamedRegime(base_size=224, divisions=7, shares=shares) for name, shares in _AROUND_224.items()},
    **{name: NamedRegime(base_size=32, divisions=4, shares=shares) for name, shares in _AROUND_32.items()},
}
"""The regimes of the paper by their mean side in pixels, for images of 224 px and (S28) of 32 px.

S28, S144 and S208 are the paper's, S224 is the released code's. S28-code has 48 px where the paper has 40 px, as the
code does; its mean side is 29.6 px.
"""


def check_regime(regime: object) -> str | tuple[tuple[int, float], ...]:
    """A regime in a form that can be compared and hashed: its name, or pairs of size and probability, largest first.

    Raises:
        TypeError: it is neither a name, nor a mapping, nor a sequence of pairs.
        ValueError: the name is unknown, a size occurs twice, or the probabilities do not add up to 1.
    """
    if isinstance(regime, str):
        if regime not in REGIMES:
            raise ValueError(
                f"`regime` must be one of {', '.join(REGIMES)} or a mapping from size to probability; got {regime!r}."
            )
        return regime
    pairs = sorted(_pairs(regime), reverse=True)
    sizes = [size for size, _ in pairs]
    total = sum(probability for _, probability in pairs)
    if len(set(sizes)) < len(sizes) or abs(total - 1) > 1e-6:
        raise ValueError(
            f"`regime` must map different sizes to probabilities that add up to 1; got {regime!r}, which add up to "
            f"{total:.6g}. Pass for example {{224: 0.4, 128: 0.6}}."
        )
    return tuple(pairs)


def _pairs(regime: object) -> list[tuple[int, float]]:
    items = cast("Mapping[Any, Any]", regime).items() if isinstance(regime, Mapping) else regime
    try:
        pairs = [(size, probability) for size, probability in cast("Iterable[Any]", items)]
    except (TypeError, ValueError):
        pairs = []
    if not pairs:
        raise TypeError(
            f"`regime` must be a name or a mapping from size to probability; got {regime!r}. "
            "Pass for example 'S144' or {224: 0.4, 128: 0.6}."
        )
    return [
        (check_int("regime", size, least=1), check_probability("regime", probability)) for size, probability in pairs
    ]


def regime_probabilities(regime: str | Sequence[tuple[int, float]], base_size: int) -> dict[int, Fraction]:
    """Sides in pixels and their probabilities, largest first. They add up to 1; sizes of probability 0 are left out.

    Args:
        regime: as :func:`check_regime` returns it.
        base_size: side in pixels that a named regime is scaled to.
    """
    if isinstance(regime, str):
        return REGIMES[regime].probabilities(base_size)
    shares = {size: Fraction(share).limit_denominator(_LARGEST_DENOMINATOR) for size, share in regime if share > 0}
    total = sum(shares.values())
    return {size: share / total for size, share in shares.items()}
