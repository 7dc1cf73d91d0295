"""The Frechet distribution, by which FixRes describes the activations after global average pooling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch

SHAPE = 0.3
"""The exponent xi that the paper keeps fixed."""

_MAX_POINTS = 100_000
_MAX_ITERATIONS = 100


@dataclass(frozen=True, kw_only=True)
class Frechet:
    """P(X <= x) = exp(-(1 + xi (x - mu) / sigma)^(-1 / xi)) above mu - sigma / xi, else 0 (arXiv 1906.06423).

    Args:
        mu: location: P(mu) = 1 / e.
        sigma: scale, above 0.
        xi: exponent, above 0.
    """

    mu: float
    sigma: float
    xi: float = SHAPE

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mu) and 0 < self.sigma < math.inf and 0 < self.xi < math.inf):
            raise ValueError(
                f"`mu` must be finite, `sigma` and `xi` above 0; got {self}. Fit it to finite activations."
            )

    def cdf(self, x: torch.Tensor) -> torch.Tensor:
        """P(X <= x), of the shape of ``x``."""
        base = (1 + self.xi * (x - self.mu) / self.sigma).clamp(min=0)
        return torch.exp(-(base ** (-1 / self.xi)))

    def quantile(self, p: torch.Tensor) -> torch.Tensor:
        """The x with P(X <= x) = p, for p in (0, 1), of the shape of ``p``."""
        return self.mu + self.sigma * _standard_quantile(p, self.xi)


def fit_frechet(activations: torch.Tensor, *, xi: float = SHAPE) -> Frechet:
    """Fit location and scale to the activations that are not zero, by least squares on their empirical CDF.

    Args:
        activations: of any shape, after global average pooling. Of more than 100,000 that are not zero, as many are
            taken, evenly spaced in their order.
        xi: exponent of the distribution, fixed.

    Raises:
        ValueError: fewer than two different activations are not zero, or one is not finite.
    """
    x = activations.detach().flatten().double()
    x = x[x != 0].sort().values
    if not len(x) or not bool(x.isfinite().all()) or bool(x[0] == x[-1]):
        raise ValueError(
            f"`activations` must hold at least two different finite numbers besides 0; got {len(x)} besides 0. Take "
            "more images."
        )
    places = (
        torch.linspace(0, len(x) - 1, min(len(x), _MAX_POINTS), device=x.device, dtype=torch.float64).round().long()
    )
    target, x = (places + 0.5) / len(x), x[places]
    low, high = (float(z) for z in _standard_quantile(torch.tensor([0.25, 0.75], dtype=torch.float64), xi))
    first, third = float(x[len(x) // 4]), float(x[3 * len(x) // 4])
    sigma = max((third - first) / (high - low), 1e-6 * float(x[-1] - x[0]))
    return _least_squares(x, target, Frechet(mu=first - sigma * low, sigma=sigma, xi=xi))


def _least_squares(x: torch.Tensor, target: torch.Tensor, start: Frechet) -> Frechet:
    """Gauss-Newton steps in location and logarithm of the scale, halved until the error falls."""
    best, error = start, _error(x, target, start)
    for _ in range(_MAX_ITERATIONS):
        z = (x - best.mu) / best.sigma
        base = (1 + best.xi * z).clamp(min=1e-12)
        slope = best.cdf(x) * base ** (-1 / best.xi - 1)  # of the CDF by z
        jacobian = torch.stack([-slope / best.sigma, -slope * z], dim=1)
        towards = cast(Any, torch.linalg).pinv(jacobian) @ (target - best.cdf(x))
        shift, growth = cast(list[float], towards.tolist())
        share = 1.0
        while share > 1e-6:
            mu, sigma = best.mu + share * shift, best.sigma * math.exp(max(min(share * growth, 5), -5))
            tried = Frechet(mu=mu, sigma=sigma, xi=best.xi)
            new_error = _error(x, target, tried)
            if new_error < error:
                break
            share /= 2
        else:
            return best
        converged = error - new_error <= 1e-14 * error
        best, error = tried, new_error
        if converged:
            return best
    return best


def _error(x: torch.Tensor, target: torch.Tensor, frechet: Frechet) -> float:
    return float(((frechet.cdf(x) - target) ** 2).sum())


def _standard_quantile(p: torch.Tensor, xi: float) -> torch.Tensor:
    return ((-torch.log(p)) ** (-xi) - 1) / xi
