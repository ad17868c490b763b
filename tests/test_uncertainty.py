"""Draws of imputations carry the uncertainty of the parameters: Rubin's intervals cover."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from skvae import VAEImputer, VAETransformer
from skvae._inference.scores import noise_bank
from skvae._inference.uncertainty import moved, scores_of_rows


def _rows(n_rows=400, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n_rows, 1))
    X = z @ np.array([[1.0, -0.8, 0.6, 0.5]]) + 0.6 * rng.normal(size=(n_rows, 4)) + 2.0
    X[rng.random(X.shape) < 0.2] = np.nan
    return X


def _linear(**parameters):
    return VAETransformer(1, noise="per_column", max_iter=0, random_state=0, **parameters)


def _log_p(vae, x, seen):
    """The marginal log-density of each row: a Gaussian of what is seen."""
    weight, bias = vae.decoder.linear.weight, vae.decoder.linear.bias
    scale = vae.likelihood.parts[0].log_scale
    covariance = weight @ weight.T + torch.diag(torch.exp(2.0 * scale))
    values = []
    for row, o in zip(x, seen, strict=True):
        normal = torch.distributions.MultivariateNormal(bias[o], covariance[o][:, o])
        values.append(normal.log_prob(row[o]))
    return torch.stack(values)


def test_a_rows_score_is_the_gradient_of_its_log_density():
    X = _rows(30)
    X = X[~np.isnan(X).all(axis=1)]
    fitted = _linear().fit(X).model_
    vae = fitted.fresh_module(torch.device("cpu"))
    cells, observed = fitted.columns.encode(fitted.read(X))
    x, seen = torch.from_numpy(cells), torch.from_numpy(observed)
    with torch.no_grad():
        bank = noise_bank(4096, 1)
        (found,) = scores_of_rows(vae, x, seen, bank=bank, codebook=fitted.codebook(vae))
    parameters = [
        vae.decoder.linear.weight,
        vae.decoder.linear.bias,
        vae.likelihood.parts[0].log_scale,
    ]
    for number, log_p in enumerate(_log_p(vae, x, seen)):
        by = torch.autograd.grad(log_p, parameters, retain_graph=True)
        expected = torch.cat([by[0], by[1][:, None], by[2][:, None]], 1)
        assert_allclose(found[number], expected, atol=0.02 * float(expected.abs().max()))


def test_draws_of_parameters_have_the_inverse_of_the_information_as_covariance():
    rng = np.random.default_rng(0)
    mixed = 2.0 * np.eye(3) + rng.normal(size=(3, 3))
    scores = torch.from_numpy(rng.normal(size=(500, 2, 3)) @ mixed)
    scores[:, 1, 2] = 0.0  # which no row tells of: nothing moves there
    counted = torch.from_numpy(rng.uniform(0.5, 2.0, 500))
    drawn = moved(scores, counted, 20_000, torch.Generator().manual_seed(0))
    each = torch.cat([drawn.weight, drawn.bias[..., None], drawn.log_scale[..., None]], -1)
    flat, rows = each.flatten(1), scores.flatten(1)
    assert float(flat[:, 5].abs().max()) < 1e-9
    flat, rows = flat[:, :5], rows[:, :5]
    expected = torch.linalg.inv((rows * counted[:, None]).T @ rows)
    spread = torch.sqrt(torch.diag(expected))
    found = torch.cov(flat.T, correction=0) / (spread[:, None] * spread)
    assert_allclose(found, expected / (spread[:, None] * spread), atol=0.04)


def test_many_parameters_are_drawn_column_by_column():
    scores = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 400, 10)))
    drawn = moved(scores, torch.ones(50), 3, torch.Generator().manual_seed(0))
    assert drawn.weight.shape == (3, 400, 8) and drawn.bias.shape == (3, 400)


def test_tables_differ_in_their_parameters_and_the_expectation_does_not_move():
    X = _rows()
    imputer = VAEImputer(_linear(), random_state=0).fit(X)
    row = np.full((3000, 4), np.nan)
    row[:, 0] = 3.0
    tables = imputer.sample_imputations(row, 8, random_state=0)
    means = np.array([table[:, 1].mean() for table in tables])
    chance = tables[0][:, 1].std() / np.sqrt(len(row))
    assert means.std() > 2.0 * chance
    again = VAEImputer(_linear(), random_state=0).fit(X)
    assert_allclose(imputer.transform(X), again.transform(X))


@pytest.mark.parametrize("one_at_a_time", [True, False])
def test_tables_that_are_drawn_one_by_one_have_parameters_of_their_own(one_at_a_time):
    imputer = VAEImputer(_linear(), sample_posterior=True, random_state=0).fit(_rows())
    row = np.full((3000, 4), np.nan)
    row[:, 0] = 3.0
    if one_at_a_time:
        tables = [imputer.sample_imputations(row, 1, random_state=seed)[0] for seed in range(8)]
    else:
        tables = [imputer.set_params(random_state=seed).transform(row) for seed in range(8)]
    means = np.array([table[:, 1].mean() for table in tables])
    assert means.std() > 2.0 * tables[0][:, 1].std() / np.sqrt(len(row))


@pytest.mark.parametrize(
    "likelihood", ["gaussian", "student_t", "log_normal", "poisson", "bernoulli", "normal_scores"]
)
def test_every_likelihood_is_drawn_properly(likelihood):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(150, 1))
    rate = np.exp(0.5 * z @ np.ones((1, 3)))
    X = {"poisson": rng.poisson(rate), "bernoulli": rng.random(rate.shape) < rate / (1 + rate)}
    X = np.asarray(X.get(likelihood, rate * np.exp(0.3 * rng.normal(size=rate.shape))), float)
    X[rng.random(X.shape) < 0.2] = np.nan
    imputer = VAEImputer(_linear(likelihood=likelihood), random_state=0).fit(X)
    one, other = imputer.sample_imputations(X, 2, random_state=0)
    missing = np.isnan(X)
    assert np.isfinite(one).all() and np.isfinite(other).all()
    assert (one[missing] != other[missing]).any() and (one[~missing] == X[~missing]).all()
