from __future__ import annotations

import math

import pytest
import torch

from respipe.model.frechet import Frechet, fit_frechet

PAPER = Frechet(mu=0.45, sigma=0.2)


def sample(frechet: Frechet, count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return frechet.quantile(torch.rand(count, generator=generator, dtype=torch.float64).clamp(min=1e-12))


@pytest.mark.parametrize(("x", "p"), [(0.45, 1 / math.e), (1.0, 0.87404), (2.0, 0.98194), (0.52748, 0.5)])
def test_values_of_the_distribution(x: float, p: float) -> None:
    assert PAPER.cdf(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(p, abs=1e-5)
    assert PAPER.quantile(torch.tensor(p, dtype=torch.float64)).item() == pytest.approx(x, abs=1e-4)


def test_nothing_lies_below_its_support() -> None:
    end = 0.45 - 0.2 / 0.3
    assert PAPER.cdf(torch.tensor([end - 1, end, end + 1e-3, 1e9])).tolist() == pytest.approx([0, 0, 0, 1])


def test_fit_finds_the_distribution_that_activations_were_drawn_from() -> None:
    found = fit_frechet(sample(PAPER, 50_000).reshape(100, 500))
    assert (found.mu, found.sigma, found.xi) == (pytest.approx(0.45, abs=0.004), pytest.approx(0.2, abs=0.004), 0.3)


def test_fit_to_the_quantiles_themselves_is_exact() -> None:
    p = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for frechet in (PAPER, Frechet(mu=-3, sigma=40), Frechet(mu=1e-3, sigma=1e-4)):
        found = fit_frechet(frechet.quantile(p))
        assert found.mu == pytest.approx(frechet.mu, rel=1e-5)
        assert found.sigma == pytest.approx(frechet.sigma, rel=1e-5)


def test_zeros_do_not_count() -> None:
    x = sample(PAPER, 5000)
    assert fit_frechet(torch.cat([x, torch.zeros(4000)])) == fit_frechet(x)


def test_more_activations_than_are_used_give_the_same_fit() -> None:
    found = fit_frechet(sample(PAPER, 400_000))
    assert (found.mu, found.sigma) == (pytest.approx(0.45, abs=0.002), pytest.approx(0.2, abs=0.002))


def test_fit_has_the_least_squares_on_the_cdf_of_data_of_another_kind() -> None:
    x = torch.randn(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).exp().sort().values
    target = (torch.arange(3000) + 0.5) / 3000

    def error(mu: float, sigma: float) -> float:
        return ((Frechet(mu=mu, sigma=sigma).cdf(x) - target) ** 2).sum().item()

    found = fit_frechet(x)
    best = error(found.mu, found.sigma)
    assert all(
        error(found.mu + shift, found.sigma * scale) > best
        for shift in (-0.01, 0, 0.01) for scale in (0.99, 1, 1.01) if (shift, scale) != (0, 1)
    )  # fmt: skip


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [1.0, 0.0, 1.0], [1.0, float("nan"), 2.0], [1.0, float("inf")]])
def test_activations_that_nothing_can_be_fitted_to_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="`activations` must hold at least two different finite numbers"):
        fit_frechet(torch.tensor(values))


@pytest.mark.parametrize("fields", [{"mu": 0.0, "sigma": 0.0}, {"mu": math.nan, "sigma": 1.0}])
def test_fields_are_checked(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="`mu` must be finite"):
        Frechet(**fields)
