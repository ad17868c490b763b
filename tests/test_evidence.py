"""How many components: by what linear models give rows that they have not seen."""

import numpy as np
import pytest
from scipy import stats
from sklearn.decomposition import FactorAnalysis
from sklearn.model_selection import GridSearchCV

from skvae import VAETransformer
from skvae._start.evidence import evidence_of, log_densities
from skvae._start.linear_gaussian import (
    Groups,
    LinearGaussian,
    column_moments,
    factor_analysis,
)


def rows_of_factors(n_factors, n_rows=1000, n_columns=12, seed=0):
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(n_factors, n_columns))
    return rng.normal(size=(n_rows, n_factors)) @ loadings + rng.normal(size=(n_rows, n_columns))


def fit_factors(moments, n_components):
    own = Groups.of(False, np.zeros(len(moments.mean), dtype=bool))
    return factor_analysis(moments, n_components, 1e-3, own)


def test_the_log_density_is_scipys():
    rng = np.random.default_rng(0)
    linear = LinearGaussian(
        rng.normal(size=5), np.ones(5), rng.normal(size=(5, 2)), rng.uniform(0.5, 2.0, 5)
    )
    rows = rng.normal(size=(20, 5))
    covariance = linear.loadings @ linear.loadings.T + np.diag(linear.noise**2)
    expected = stats.multivariate_normal(linear.mean, covariance).logpdf(rows)
    np.testing.assert_allclose(log_densities(linear, rows), expected, rtol=1e-10)


def test_the_log_density_of_what_is_seen_is_that_of_the_marginal():
    rng = np.random.default_rng(0)
    linear = LinearGaussian(
        rng.normal(size=5), np.ones(5), rng.normal(size=(5, 2)), rng.uniform(0.5, 2.0, 5)
    )
    rows, seen = rng.normal(size=(20, 5)), rng.random((20, 5)) < 0.6
    covariance = linear.loadings @ linear.loadings.T + np.diag(linear.noise**2)
    expected = [
        stats.multivariate_normal(linear.mean[o], covariance[np.ix_(o, o)]).logpdf(x[o])
        if o.any()
        else 0.0
        for x, o in zip(rows, seen, strict=True)
    ]
    found = log_densities(linear, np.where(seen, rows, np.nan), seen)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


def test_it_is_what_factor_analysis_gives_the_rows_that_are_left_out():
    X = rows_of_factors(3)
    held_out = np.arange(len(X)) % 5 == 4
    moments = column_moments([(X[~held_out], np.ones(800))], 12)
    evidence, means = evidence_of(X, np.ones(len(X)), fit_factors), []
    for n_components in (1, 2, 3):
        theirs = FactorAnalysis(n_components, tol=1e-8, max_iter=5000).fit(X[~held_out])
        of_rows = theirs.score_samples(X[held_out])
        ours = log_densities(fit_factors(moments, n_components), X[held_out])
        np.testing.assert_allclose(ours, of_rows, atol=0.02)
        means.append(np.sort(of_rows)[2:].mean())  # without the wildest percent
    gains = np.diff(evidence.log_density[:3])
    np.testing.assert_allclose(gains, np.diff(means), atol=0.1)


@pytest.mark.parametrize("n_factors", [1, 3, 5])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_it_finds_the_number_of_factors(n_factors, missing):
    X = rows_of_factors(n_factors)
    X[np.random.default_rng(1).random(X.shape) < missing] = np.nan
    vae = VAETransformer("evidence", noise="per_column", max_iter=0)
    assert vae.fit(X).n_components_ == n_factors
    number, value, error = vae.evidence_.T
    enough = value >= value.max() - error
    assert vae.n_components_ == number[enough].min()
    assert (np.diff(number) > 0).all() and error[value.argmax()] == 0.0


def test_it_is_the_smallest_within_a_standard_error_of_the_best():
    moments = column_moments([(rows_of_factors(2), np.ones(1000))], 12)
    evidence = evidence_of(rows_of_factors(2), np.ones(1000), fit_factors)
    assert evidence.chosen <= evidence.n_components[evidence.log_density.argmax()]
    assert fit_factors(moments, evidence.chosen).loadings.shape == (12, evidence.chosen)


@pytest.mark.parametrize("shape", [(1, 3), (6, 4), (30, 1), (20, 50)])
def test_few_rows_and_few_columns_have_a_number_of_components_too(shape):
    X = np.random.default_rng(0).normal(size=shape)
    vae = VAETransformer("evidence", max_iter=0).fit(X)
    assert 1 <= vae.n_components_ <= shape[1]


def test_rows_with_holes_levels_and_shapes_have_it_too():
    rng = np.random.default_rng(0)
    X = rows_of_factors(2, n_columns=8)
    X[:, 0] = X[:, 0] > 0.5
    X[:, 1] = np.exp(0.3 * X[:, 1])
    X[rng.random(X.shape) < 0.1] = np.nan
    for likelihood in ("auto", "normal_scores"):
        vae = VAETransformer("evidence", noise="per_column", likelihood=likelihood, max_iter=0)
        assert vae.fit(X).n_components_ in (2, 3)


def test_repeating_rows_by_weight_changes_nothing():
    X = rows_of_factors(3, n_rows=300)
    X = X[np.random.default_rng(0).permutation(300)]
    vae = VAETransformer("evidence", noise="per_column", max_iter=0)
    plain, doubled = vae.fit(X).evidence_, vae.fit(X, sample_weight=np.full(300, 2.0)).evidence_
    np.testing.assert_allclose(plain[:, :2], doubled[:, :2], rtol=1e-6)


def test_other_numbers_of_components_are_not_compared():
    X = rows_of_factors(2, n_rows=100)
    assert VAETransformer(2, max_iter=0).fit(X).evidence_ is None
    assert VAETransformer(max_iter=0).fit(X).evidence_ is None


def test_a_grid_search_agrees_with_it():
    X = rows_of_factors(3)
    vae = VAETransformer(noise="per_column", max_iter=0)
    best = GridSearchCV(vae, {"n_components": [1, 2, 3, 4, 5]}, cv=3).fit(X)
    assert best.best_params_["n_components"] in (3, 4)
    assert vae.set_params(n_components="evidence").fit(X).n_components_ == 3
