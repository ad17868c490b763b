"""One table of likelihoods drives these tests: a new likelihood is one row."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy import stats

from skvae.likelihoods import LIKELIHOODS, Bernoulli, Gaussian, Likelihood


class Case(NamedTuple):
    likelihood: Likelihood
    reference: Any  # raw (ndarray) -> frozen scipy distribution
    values: np.ndarray  # of the support, for the density
    discrete: bool


def gaussian(noise, scales):
    likelihood = Gaussian(noise, n_columns=3)
    with torch.no_grad():
        likelihood.log_scale.copy_(torch.log(torch.tensor(scales)))
    return likelihood.double()


CASES = {
    "gaussian": Case(
        gaussian("per_column", [0.5, 1.0, 2.0]),
        lambda raw: stats.norm(raw, [0.5, 1.0, 2.0]),
        np.linspace(-60.0, 60.0, 40_001),
        False,
    ),
    "gaussian, shared noise": Case(
        gaussian("shared", [0.7]),
        lambda raw: stats.norm(raw, 0.7),
        np.linspace(-30.0, 30.0, 40_001),
        False,
    ),
    "bernoulli": Case(
        Bernoulli(),
        lambda raw: stats.bernoulli(1.0 / (1.0 + np.exp(-raw))),
        np.array([0.0, 1.0]),
        True,
    ),
}
RAW = torch.tensor([[-1.3, 0.2, 2.5], [0.0, -4.0, 0.7]], dtype=torch.float64)  # (N, D)

each_likelihood = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def test_every_likelihood_has_a_row_in_the_table():
    assert {type(case.likelihood) for case in CASES.values()} == set(LIKELIHOODS.values())


@each_likelihood
def test_the_log_probability_is_scipys(case):
    distribution = case.reference(RAW.numpy())
    log_density = distribution.logpmf if case.discrete else distribution.logpdf
    for value in (case.values[0], case.values[-1], 1.0):
        x = torch.full_like(RAW, value)
        ours = case.likelihood.log_prob(x, RAW).detach()
        np.testing.assert_allclose(ours, log_density(np.full(RAW.shape, value)), rtol=1e-6)


@each_likelihood
def test_the_density_integrates_to_one(case):
    x = torch.from_numpy(case.values)[:, None, None].expand(-1, *RAW.shape)
    density = torch.exp(case.likelihood.log_prob(x, RAW)).detach().numpy()
    total = density.sum(0) if case.discrete else np.trapezoid(density, case.values, axis=0)
    np.testing.assert_allclose(total, 1.0, rtol=1e-9)


@each_likelihood
def test_the_mean_is_scipys(case):
    np.testing.assert_allclose(
        case.likelihood.mean(RAW).detach(), case.reference(RAW.numpy()).mean(), rtol=1e-9
    )


@each_likelihood
def test_no_value_is_more_probable_than_the_mode(case):
    mode = case.likelihood.mode(RAW)
    at_mode = case.likelihood.log_prob(mode, RAW)
    for value in case.values[:: max(len(case.values) // 50, 1)]:
        assert bool((case.likelihood.log_prob(torch.full_like(RAW, value), RAW) <= at_mode).all())


@each_likelihood
def test_draws_have_the_mean_and_variance_of_the_distribution(case):
    n = 40_000
    raw = RAW.expand(n, *RAW.shape)
    draws = case.likelihood.sample(raw, torch.Generator().manual_seed(0)).detach().numpy()
    reference = case.reference(RAW.numpy())
    error = np.abs(draws.mean(0) - reference.mean())
    assert (error < 4.5 * reference.std() / np.sqrt(n) + 1e-12).all()
    np.testing.assert_allclose(draws.var(0), reference.var(), rtol=0.1, atol=1e-3)


@each_likelihood
def test_draws_come_from_the_generator_that_is_passed_in(case):
    def draw():
        return case.likelihood.sample(RAW, torch.Generator().manual_seed(3))

    state = torch.get_rng_state()
    assert torch.equal(draw(), draw())
    assert torch.equal(state, torch.get_rng_state())


@each_likelihood
def test_the_information_is_minus_the_expected_second_derivative(case):
    raw = RAW.clone().requires_grad_()
    # Both likelihoods are exponential families in raw: the second derivative does not depend on x.
    value = case.likelihood.log_prob(torch.ones_like(raw), raw).sum()
    (first,) = torch.autograd.grad(value, raw, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), raw)
    torch.testing.assert_close(case.likelihood.information(RAW).detach(), -second)


@each_likelihood
def test_the_support_holds_every_value(case):
    support = case.likelihood.support
    assert support.lower <= case.values.min() and case.values.max() <= support.upper


def test_the_noise_cannot_fall_below_its_floor():
    likelihood = gaussian("per_column", [1e-9, 0.5, 1e-4])
    likelihood.project()
    scales = torch.exp(likelihood.log_scale).tolist()
    assert scales == pytest.approx([1e-3, 0.5, 1e-3])


def test_bernoulli_takes_probabilities_as_grey_values():
    raw = torch.tensor(0.4)
    grey = Bernoulli().log_prob(torch.tensor(0.25), raw)
    mixed = 0.25 * Bernoulli().log_prob(torch.tensor(1.0), raw)
    mixed += 0.75 * Bernoulli().log_prob(torch.tensor(0.0), raw)
    torch.testing.assert_close(grey, mixed)
