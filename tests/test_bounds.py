"""The bounds are reductions of one set of terms."""

import math

import pytest
import torch

from skvae._model.bounds import LogTerms, elbo, importance_weighted_bound, log_weights, warmed_beta


@pytest.fixture
def terms():
    g = torch.Generator().manual_seed(0)

    def normal(*size):
        return torch.randn(size, generator=g, dtype=torch.float64)

    return LogTerms(normal(5, 3), normal(5, 3), normal(5, 3), normal(3, 2).abs())


def test_the_elbo_is_reconstruction_minus_kl(terms):
    expected = terms.log_px_z.mean(0) - terms.kl.sum(1)
    torch.testing.assert_close(elbo(terms), expected)
    torch.testing.assert_close(
        elbo(terms, beta=0.25), terms.log_px_z.mean(0) - 0.25 * terms.kl.sum(1)
    )


def test_one_importance_sample_is_the_log_weight(terms):
    one = LogTerms(*(t[:1] for t in terms[:3]), terms.kl)
    torch.testing.assert_close(importance_weighted_bound(one), log_weights(one)[0])


def test_the_importance_weighted_bound_is_the_log_of_the_mean_weight(terms):
    expected = torch.log(torch.exp(log_weights(terms)).mean(0))
    torch.testing.assert_close(importance_weighted_bound(terms), expected)


def test_the_bound_is_at_least_the_mean_log_weight(terms):
    assert bool((importance_weighted_bound(terms) >= log_weights(terms).mean(0)).all())


def test_equal_weights_give_the_bound_exactly():
    zero = torch.zeros(7, 2, dtype=torch.float64)
    terms = LogTerms(zero - 3.0, zero, zero, torch.zeros(2, 1))
    torch.testing.assert_close(importance_weighted_bound(terms), zero[0] - 3.0)


def test_extreme_weights_do_not_overflow():
    log_px_z = torch.tensor([[-1e5], [-2e5]], dtype=torch.float64)
    zero = torch.zeros_like(log_px_z)
    terms = LogTerms(log_px_z, zero, zero, torch.zeros(1, 1))
    assert float(importance_weighted_bound(terms)) == pytest.approx(-1e5 - math.log(2))


def test_free_bits_charge_no_component_for_less_than_its_allowance():
    kl = torch.tensor([[0.1, 2.0], [0.3, 4.0]], requires_grad=True)
    terms = LogTerms(torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2), kl)
    bound = elbo(terms, free_bits=0.5).mean()
    assert float(bound) == pytest.approx(-(0.5 + 3.0))
    (gradient,) = torch.autograd.grad(bound, kl)
    assert gradient[:, 0].tolist() == [0.0, 0.0]  # below its allowance: no pull to the prior
    assert bool((gradient[:, 1] < 0.0).all())


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.0, 0.0), (0.1, 1.0), (0.2, 2.0), (0.5, 2.0), (1.0, 2.0)]
)
def test_the_kl_warms_up_over_a_fraction_of_the_steps(progress, expected):
    assert warmed_beta(progress, beta=2.0, kl_warmup=0.2) == pytest.approx(expected)


def test_without_warm_up_beta_counts_from_the_first_step():
    assert warmed_beta(0.0, beta=0.5, kl_warmup=0.0) == 0.5
