"""A missing value is marginalised: what is known of a row counts, and nothing else does."""

import copy
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csr_array
from scipy.stats import multivariate_normal

from skvae import VAETransformer

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:(.|\n)*(inactive|its floor|importance weight):UserWarning"),
    pytest.mark.filterwarnings("error::RuntimeWarning"),
]

METHODS = ["log_likelihood", "elbo", "reconstruction", "kl"]
SCALE = np.array([1.0, 20.0, 0.3, 5.0, 1e4, 2.0])
LOADINGS = np.random.default_rng(5).normal(size=(6, 2)) * SCALE[:, None]
NOISE = np.array([0.5, 0.7, 0.4, 0.9, 0.6, 0.5]) * SCALE
MEAN = 3.0 * SCALE
TRUE_COVARIANCE = LOADINGS @ LOADINGS.T + np.diag(NOISE**2)


def _rows(n_rows=300, seed=0):
    """Linear-Gaussian rows of two factors, in six units."""
    rng = np.random.default_rng(seed)
    return MEAN + rng.normal(size=(n_rows, 2)) @ LOADINGS.T + NOISE * rng.normal(size=(n_rows, 6))


def _with_holes(X, share=0.3, seed=1):
    holes = np.random.default_rng(seed).uniform(size=X.shape) < share
    return np.where(holes, np.nan, X)


def _linear(**params):
    """One that stays at its linear start, so that everything has a closed form."""
    start = {"hidden_layer_sizes": (8,), "noise": "per_column", "max_iter": 0, "random_state": 0}
    return VAETransformer(**{"n_components": 2} | start | params)


def _trained(**params):
    small = {"hidden_layer_sizes": (16,), "max_iter": 8, "early_stopping": False}
    return VAETransformer(
        **{"n_components": 2, "learning_rate_init": 0.02, "random_state": 0} | small | params
    )


def _gaussian(vae):
    """Mean, loadings and noise variance of the fitted linear model, in original units."""
    weights, columns = vae.weights_, vae.model_.columns
    mean = columns.decode(weights["decoder.linear.bias"])
    loadings = weights["decoder.linear.weight"] * columns.scale[:, None]
    return mean, loadings, vae.noise_variance_


def _exact(vae, row):
    """Log-density of the observed part of a row, posterior mean, and E[x | x_obs]."""
    mean, loadings, variance = _gaussian(vae)
    seen = ~np.isnan(row)
    prior = np.zeros(loadings.shape[1])
    if not seen.any():
        return 0.0, prior, mean
    unit = np.sqrt(np.square(loadings).sum(1) + variance)  # or the numbers could not be told apart
    covariance = (loadings / unit[:, None]) @ (loadings / unit[:, None]).T
    covariance += np.diag(variance / unit**2)
    observed, cells = covariance[np.ix_(seen, seen)], ((row - mean) / unit)[seen]
    log_p = multivariate_normal(np.zeros(len(cells)), observed).logpdf(cells)
    solved = np.linalg.solve(observed, cells)
    posterior_mean = (loadings / unit[:, None])[seen].T @ solved
    log_p -= np.log(unit[seen]).sum()
    return log_p, posterior_mean, mean + unit * (covariance[:, seen] @ solved)


@pytest.fixture(scope="module")
def complete():
    """Fitted to complete rows; not to be changed."""
    return _linear().fit(_rows())


@pytest.fixture(scope="module")
def holed():
    """Fitted to rows with missing cells; not to be changed."""
    return _linear().fit(_with_holes(_rows()))


@pytest.fixture(scope="module")
def curved():
    """Trained, away from the linear start, on rows with missing cells; not to be changed."""
    return _trained().fit(_with_holes(_rows()))


FITS = ["complete", "holed", "curved"]


@pytest.fixture(params=FITS)
def any_fit(request):
    return request.getfixturevalue(request.param)


# Every number of missing cells, up to all.
PATTERNS = np.array([[column < n for column in range(6)] for n in range(7)])
PARTS = np.where(np.concatenate([PATTERNS, PATTERNS[:, ::-1]]), np.nan, _rows(14, seed=7))


# -- the linear model: closed forms ---------------------------------------------------------------


@pytest.mark.parametrize("refine", [True, False])
@pytest.mark.parametrize("fit", ["complete", "holed"])
def test_a_rows_log_likelihood_is_the_marginal_of_its_observed_part(fit, refine, request):
    # The encoder's diagonal posterior is not the exact one where cells are missing, so without
    # refinement the estimate is a sampled one.
    vae = request.getfixturevalue(fit)
    expected = [_exact(vae, row)[0] for row in PARTS]
    scores = vae.score_samples(PARTS, refine=refine)
    assert_allclose(scores, expected, rtol=0, atol=1e-6 if refine else 0.2)


@pytest.mark.parametrize("fit", ["complete", "holed"])
def test_the_code_is_the_exact_posterior_mean_given_the_observed_part(fit, request):
    vae = request.getfixturevalue(fit)
    expected = np.array([_exact(vae, row)[1] for row in PARTS]) * vae.component_scale_
    assert_allclose(vae.transform(PARTS), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("noise", ["shared", "per_column"])
def test_the_bound_is_tight_where_the_posterior_is_diagonal(noise):
    # With one component every posterior is.
    vae = _linear(n_components=1, noise=noise).fit(_with_holes(_rows()))
    expected = [_exact(vae, row)[0] for row in PARTS]
    assert_allclose(vae.score_samples(PARTS, method="elbo"), expected, rtol=0, atol=1e-6)


def test_the_bound_never_exceeds_the_log_likelihood(any_fit):
    log_p, elbo = any_fit.score_samples(PARTS), any_fit.score_samples(PARTS, method="elbo")
    assert (elbo <= log_p + 1e-2).all()


@pytest.mark.parametrize("noise", ["per_column", "shared"])
def test_conditional_means_are_those_of_the_truth_after_training_on_30_percent_missing(noise):
    scale = np.ones(6) if noise == "shared" else SCALE
    noises = np.full(6, 0.6) if noise == "shared" else NOISE
    loadings = LOADINGS / SCALE[:, None] * scale[:, None]
    rng = np.random.default_rng(0)
    n_rows = 3000
    X = rng.normal(size=(n_rows, 2)) @ loadings.T + noises * rng.normal(size=(n_rows, 6))
    scaling = None if noise == "shared" else "auto"
    vae = _linear(noise=noise, scaling=scaling).fit(_with_holes(X))
    covariance = loadings @ loadings.T + np.diag(noises**2)
    # A regression coefficient's error is about 1 / sqrt(0.7 n) of the left-over spread; the mean
    # over rows of the squared difference of two conditional means is then about p / (0.7 n) of
    # the left-over variance, for p parameters of the conditional (7: five slopes, two means).
    test = _rows(200, seed=3) / SCALE * scale - MEAN / SCALE * scale
    for column in range(6):
        others = np.arange(6) != column
        slopes = np.linalg.solve(covariance[np.ix_(others, others)], covariance[others, column])
        left = covariance[column, column] - covariance[column, others] @ slopes
        holed = test.copy()
        holed[:, column] = np.nan
        found = np.array([_exact(vae, row)[2][column] for row in holed])
        error = np.mean((found - test[:, others] @ slopes) ** 2) / left
        assert error < 4.0 * 7.0 / (0.7 * n_rows), column


def test_the_moments_of_the_rows_come_back_from_30_percent_missing():
    n_rows = 5000
    vae = _linear().fit(_with_holes(_rows(n_rows)))
    mean, loadings, variance = _gaussian(vae)
    deviation = np.sqrt(np.diag(TRUE_COVARIANCE))
    # Pairs are seen together in half of the rows; 4.5 standard errors.
    assert (np.abs(mean - MEAN) < 4.5 * deviation / np.sqrt(0.7 * n_rows)).all()
    spread = np.sqrt(np.outer(deviation, deviation) ** 2 + TRUE_COVARIANCE**2)
    error = np.abs(loadings @ loadings.T + np.diag(variance) - TRUE_COVARIANCE)
    assert (error < 4.5 * spread / np.sqrt(0.49 * n_rows)).all()


# -- what is dropped ------------------------------------------------------------------------------


@pytest.mark.parametrize("column", range(6))
def test_a_missing_column_scores_exactly_zero(any_fit, column):
    X = _rows(20, seed=7)
    X[:, column] = np.nan
    assert (any_fit.score_features(X)[:, column] == 0.0).all()
    assert (np.delete(any_fit.score_features(X), column, axis=1) != 0.0).all()


def test_the_columns_scores_sum_to_the_reconstruction_score(any_fit):
    parts = any_fit.score_features(PARTS)
    assert ((parts == 0.0) == np.isnan(PARTS)).all()
    assert_allclose(parts.sum(1), any_fit.score_samples(PARTS, method="reconstruction"), rtol=1e-12)


def test_scores_of_complete_rows_do_not_depend_on_what_others_miss(any_fit):
    X = _rows(40, seed=7)
    holed = X.copy()
    holed[::2] = _with_holes(X[::2])
    for method in METHODS:
        alone = any_fit.score_samples(X, method=method)
        mixed = any_fit.score_samples(holed, method=method)
        assert_allclose(mixed[1::2], alone[1::2], rtol=0, atol=1e-9)
        order = np.random.default_rng(0).permutation(len(X))
        assert_allclose(any_fit.score_samples(holed[order], method=method), mixed[order], atol=1e-9)
    assert_allclose(any_fit.transform(holed)[1::2], any_fit.transform(X)[1::2], rtol=1e-9)


def _in_another_unit(vae, factor):
    """The same weights, for rows whose third column is in another unit."""
    other, times = copy.deepcopy(vae), np.where(np.arange(6) == 2, factor, 1.0)
    columns = vae.model_.columns
    columns = replace(columns, shift=columns.shift * times, scale=columns.scale * times)
    other.model_ = replace(vae.model_, columns=columns)
    return other


@pytest.mark.parametrize("factor", [1e-6, 1e3])
@pytest.mark.parametrize("fit", ["refitted", *FITS])
def test_another_unit_shifts_the_scores_of_the_rows_that_observe_the_column(fit, factor, request):
    X = _with_holes(_rows(100))
    other = X.copy()
    other[:, 2] *= factor
    if fit == "refitted":
        one, two = _linear().fit(X), _linear().fit(other)
    else:
        one = request.getfixturevalue(fit)
        two = _in_another_unit(one, factor)
    for method in METHODS[:3]:
        shift = two.score_samples(other, method=method) - one.score_samples(X, method=method)
        expected = np.where(np.isnan(X[:, 2]), 0.0, -np.log(factor))
        assert_allclose(shift, expected, rtol=0, atol=1e-5)


# -- rows and columns without anything ------------------------------------------------------------

EMPTY_ROW = np.full((1, 6), np.nan)


def test_an_empty_row_has_log_likelihood_zero(any_fit):
    assert_allclose(any_fit.score_samples(EMPTY_ROW), 0.0, atol=0.05)
    assert (any_fit.score_features(EMPTY_ROW) == 0.0).all()


@pytest.mark.parametrize("fit", ["complete", "holed"])
def test_an_empty_row_tells_the_linear_model_exactly_nothing(fit, request):
    vae = request.getfixturevalue(fit)
    assert_allclose(vae.transform(EMPTY_ROW), 0.0, atol=1e-12)
    for method in METHODS:
        assert_allclose(vae.score_samples(EMPTY_ROW, method=method), 0.0, atol=1e-9)


@pytest.mark.parametrize("max_iter", [0, 2])
@pytest.mark.parametrize("noise", ["shared", "per_column"])
def test_rows_and_columns_without_anything_do_not_matter(max_iter, noise):
    X = _with_holes(_rows(60))
    X[[3, 17]], X[:, 4] = np.nan, np.nan
    vae = _linear(max_iter=max_iter, noise=noise).fit(X)
    assert np.isfinite(vae.transform(X)).all() and np.isfinite(vae.sample(5)).all()
    for method in METHODS:
        assert np.isfinite(vae.score_samples(X, method=method)).all(), method
    if max_iter == 0:
        without = _linear(noise=noise).fit(np.delete(X, 4, axis=1))
        full, part = vae.score_samples(X), without.score_samples(np.delete(X, 4, axis=1))
        assert_allclose(full, part, rtol=0, atol=1e-3)


@pytest.mark.parametrize("max_iter", [0, 2])
@pytest.mark.parametrize("noise", ["shared", "per_column"])
def test_a_table_without_anything_is_the_prior(noise, max_iter):
    X = np.full((20, 3), np.nan)
    vae = _linear(n_components=1, noise=noise, max_iter=max_iter).fit(X)
    assert (vae.transform(X) == 0.0).all()
    assert_allclose(vae.score_samples(X), 0.0, atol=1e-9)


def test_one_observed_cell_is_enough():
    X = np.full((20, 3), np.nan)
    X[4, 1] = 7.0
    vae = _linear(n_components=1).fit(X)
    assert np.isfinite(vae.transform(X)).all() and np.isfinite(vae.score_samples(X)).all()
    assert vae.sample(3, random_state=0)[:, 1] == pytest.approx(7.0, abs=0.1)


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_rows", [60, 520])
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_training_with_missing_values_goes_its_ways(n_rows, objective):
    # By folds, with held-out rows; never worse than the start on what is held out.
    X = _with_holes(_rows(n_rows))
    vae = _trained(early_stopping=True, objective=objective, n_train_samples=2).fit(X)
    assert vae.validation_scores_[vae.best_iter_] >= vae.validation_scores_[0]
    assert np.isfinite(vae.validation_scores_).all() and np.isfinite(vae.loss_curve_).all()
    assert np.isfinite(vae.score(X))


def test_the_mlp_is_told_where_columns_miss_that_did_so_in_training(complete, holed):
    X = _rows()
    X[::3, 4] = np.nan
    one = _linear().fit(X)
    inputs = [vae.weights_["encoder.mlp.first.weight"].shape[1] for vae in (complete, one, holed)]
    assert inputs == [6, 7, 12]


def test_values_may_be_missing_at_transform_time_alone():
    vae = _trained(n_components=2).fit(_rows())
    assert np.isfinite(vae.transform(PARTS)).all()
    for method in METHODS:
        assert np.isfinite(vae.score_samples(PARTS, method=method)).all()
    vae.partial_fit(PARTS)
    assert np.isfinite(vae.score_samples(PARTS)).all()


def test_the_order_of_the_rows_and_their_repetition_do_not_matter():
    X = _with_holes(_rows(60))
    weight = np.random.default_rng(0).integers(0, 4, len(X)).astype(float)
    expected = _trained().fit(X, sample_weight=weight).transform(X)
    repeated = np.random.default_rng(1).permutation(np.repeat(X, weight.astype(int), axis=0))
    assert_array_equal(_trained().fit(repeated).transform(X), expected)


# -- what stands for a missing value --------------------------------------------------------------


def _as_objects(X):
    return np.where(np.isnan(X), None, X.astype(object))


def _as_pandas(X, missing, dtype):
    pandas = pytest.importorskip("pandas")
    cells = np.where(np.isnan(X), missing, X.astype(object))
    return pandas.DataFrame(cells, columns=list("abcdef")).astype(dtype)


def _na():
    return pytest.importorskip("pandas").NA


def _as_polars(X):
    polars = pytest.importorskip("polars")
    rows = [[None if cell != cell else cell for cell in column] for column in X.T.tolist()]
    return polars.DataFrame(dict(zip("abcdef", rows, strict=True)))


WAYS = {
    "None": _as_objects,
    "lists with None": lambda X: _as_objects(X).tolist(),
    "pandas, nan": lambda X: _as_pandas(X, np.nan, float),
    "pandas, objects": lambda X: _as_pandas(X, None, object),
    "pandas, pd.NA in objects": lambda X: _as_pandas(X, _na(), object),
    "pandas, pd.NA": lambda X: _as_pandas(X, _na(), "Float64"),
    "polars, null": _as_polars,
    "polars, nan": lambda X: _as_polars(X).fill_null(float("nan")),
    "sparse": csr_array,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_say_that_a_value_is_missing_means_the_same(way):
    X = _with_holes(_rows(60))
    expected = _linear().fit(X)
    rows = WAYS[way](X)
    vae = _linear().fit(rows)
    # Sparse rows are not centred, and an iteration that starts elsewhere ends a little elsewhere.
    atol = 1e-4 if way == "sparse" else 1e-9
    assert_allclose(vae.transform(rows), expected.transform(X), rtol=1e-6, atol=atol)
    assert_allclose(vae.score_samples(rows), expected.score_samples(X), rtol=1e-6, atol=atol)


@pytest.mark.parametrize("way", ["None", "sparse"])
def test_new_rows_may_say_so_in_another_way(way, holed):
    # Complete rows go another way when dense: the last bit is not promised.
    codes = holed.transform(WAYS[way](PARTS))
    assert_allclose(codes, holed.transform(PARTS), rtol=1e-13, atol=1e-15)


# -- other likelihoods ----------------------------------------------------------------------------

LIKELIHOODS = {
    "gaussian": lambda X: X,
    "student_t": lambda X: X,
    "log_normal": lambda X: np.exp(X / SCALE),
    "bernoulli": lambda X: (X > MEAN).astype(float),
    "categorical": lambda X: np.digitize((X - MEAN) / SCALE, [-1.0, 1.0]).astype(float),
    "ordinal": lambda X: np.digitize((X - MEAN) / SCALE, [-1.0, 0.0, 1.0]).astype(float),
    "poisson": lambda X: np.floor(np.abs(X / SCALE)),
    "negative_binomial": lambda X: np.floor(np.abs(X / SCALE)),
    "multinomial": lambda X: np.floor(np.abs(X / SCALE)),
}


@pytest.mark.parametrize("max_iter", [0, 3])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_takes_missing_values(likelihood, max_iter):
    rows = LIKELIHOODS[likelihood](_rows(80))
    X = _with_holes(rows, 0.2)
    X[5] = np.nan
    vae = _linear(likelihood=likelihood, max_iter=max_iter).fit(X)
    assert np.isfinite(vae.transform(X)).all()
    for method in METHODS:
        assert np.isfinite(vae.score_samples(X, method=method)).all(), method
    parts = vae.score_features(X)
    assert (parts[np.isnan(X)] == 0.0).all()
    # Dropping a factor that is a probability cannot make a row less probable.
    if likelihood in ("bernoulli", "categorical", "ordinal", "poisson", "negative_binomial"):
        assert (vae.score_samples(X) >= vae.score_samples(rows) - 0.05).all()


@pytest.mark.parametrize("factor", [1e-8, 1.0, 1e8])
def test_curves_are_in_nats_a_row_and_original_units(factor):
    # The start's bound is its evidence, and a row counts the units of what it observes.
    X = factor * _with_holes(_rows(400))
    still = {"learning_rate_init": 1e-30, "n_train_samples": 100, "max_iter": 2}
    vae = _trained(n_components=1, early_stopping=True, **still).fit(X)
    expected = vae.score(X)
    assert vae.validation_scores_[0] == pytest.approx(expected, abs=0.2)
    assert vae.loss_curve_[0] == pytest.approx(-expected, abs=0.2)


@pytest.mark.parametrize("n_rows", [3, 60])
@pytest.mark.parametrize("max_iter", [0, 5])
def test_a_column_that_was_empty_in_fit_says_nothing_later(max_iter, n_rows):
    X = np.random.default_rng(0).normal(size=(60, 4))
    X[:, 2] = np.nan
    vae = VAETransformer(2, max_iter=max_iter, random_state=0)
    with pytest.warns(UserWarning, match="Column 2 holds no value"):
        vae.fit(X)
    later = X[:n_rows].copy()
    later[:, 2] = 1000.0
    for method in ("log_likelihood", "elbo", "reconstruction", "kl"):
        scores = vae.score_samples(later, method=method)
        assert_array_equal(scores, vae.score_samples(X[:n_rows], method=method))
    assert_array_equal(vae.transform(later), vae.transform(X[:n_rows]))
