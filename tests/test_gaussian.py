"""The formulas of diagonal Gaussians against scipy and against each other."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from skvae._gaussian import kl_to_standard_normal, normal_log_prob, standard_normal_log_prob

CASES = [(0.0, 0.0), (1.5, -0.7), (-3.0, 1.2), (0.1, -6.0)]


@pytest.mark.parametrize(("loc", "log_scale"), CASES)
def test_the_log_density_is_scipys(loc, log_scale):
    x = torch.linspace(-4.0, 4.0, 9, dtype=torch.float64)
    ours = normal_log_prob(x, torch.tensor(loc), torch.tensor(log_scale, dtype=torch.float64))
    np.testing.assert_allclose(ours, norm.logpdf(x, loc, np.exp(log_scale)), rtol=1e-6)
    np.testing.assert_allclose(standard_normal_log_prob(x), norm.logpdf(x), rtol=1e-12)


@pytest.mark.parametrize(("loc", "log_scale"), CASES)
def test_the_closed_form_kl_is_the_integral(loc, log_scale):
    scale = np.exp(log_scale)
    x = np.linspace(loc - 12 * scale, loc + 12 * scale, 200_001)
    integrand = norm.pdf(x, loc, scale) * (norm.logpdf(x, loc, scale) - norm.logpdf(x))
    ours = kl_to_standard_normal(
        torch.tensor(loc, dtype=torch.float64), torch.tensor(log_scale, dtype=torch.float64)
    )
    assert float(ours) == pytest.approx(np.trapezoid(integrand, x), rel=1e-8, abs=1e-10)


def test_the_closed_form_kl_is_its_monte_carlo_estimate():
    generator = torch.Generator().manual_seed(0)
    loc, log_scale = torch.tensor([0.8, -1.0]), torch.tensor([-0.5, 0.3])
    eps = torch.randn((400_000, 2), generator=generator)
    z = loc + torch.exp(log_scale) * eps
    differences = normal_log_prob(z, loc, log_scale) - standard_normal_log_prob(z)
    standard_error = differences.std(0) / len(eps) ** 0.5
    error = (differences.mean(0) - kl_to_standard_normal(loc, log_scale)).abs()
    assert bool((error < 4.0 * standard_error).all())


def test_the_kl_is_zero_and_flat_at_the_prior():
    loc = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    log_scale = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    kl = kl_to_standard_normal(loc, log_scale).sum()
    gradients = torch.autograd.grad(kl, [loc, log_scale])
    assert kl.item() == 0.0
    assert all(bool((g == 0.0).all()) for g in gradients)


def test_the_kl_keeps_its_digits_next_to_the_prior():
    # 1 + 2s - e^(2s) loses all digits of s = 1e-9 in float64 unless expm1 is used.
    log_scale = torch.tensor(1e-9, dtype=torch.float64)
    assert float(kl_to_standard_normal(torch.zeros(()), log_scale)) >= 0.0
