"""Every method works, with defaults, on every table that a user may come with."""

from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import load_breast_cancer, load_digits, load_iris

from skvae import VAETransformer
from skvae._table.statistics import heavy_tailed

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:(.|\n)*(inactive|its floor|importance weight):UserWarning"),
]

# Anything else that is said, of an overflow or a division by zero, is a fault.
no_numerical_warning = pytest.mark.filterwarnings("error::RuntimeWarning")

METHODS = ["log_likelihood", "elbo", "reconstruction", "kl"]


def _rng():
    return np.random.default_rng(0)


def _table(n_rows=60, n_columns=6, n_factors=2):
    rng = _rng()
    X = rng.normal(size=(n_rows, n_factors)) @ rng.normal(size=(n_factors, n_columns))
    return X + 0.3 * rng.normal(size=X.shape)


def _constant_columns():
    X = _table()
    X[:, 1], X[:, 4] = 0.1, 1e6
    return X


# name: (rows, parameters next to the defaults)
TABLES = {
    "1 row": (_table(1), {}),
    "2 rows": (_table(2), {}),
    "3 rows": (_table(3), {}),
    "1 row, 1 column": (np.array([[3.0]]), {}),
    "1 column": (_table(60, 1), {}),
    "more columns than rows": (_table(12, 40), {}),
    "constant columns": (_constant_columns(), {}),
    "all columns constant": (np.tile([1.0, 0.1, -1e6], (20, 1)), {}),
    "all zeros": (np.zeros((20, 3)), {}),
    "scale 1e-8": (1e-8 * _table(), {}),
    "scale 1e8": (1e8 * _table(), {}),
    "scales from 1e-8 to 1e8": (_table() * 10.0 ** np.linspace(-8, 8, 6), {}),
    "heavy tails": (_rng().standard_cauchy((120, 5)), {}),
    "one wild cell": (np.concatenate([_table(), [[0.0, 0.0, 1e6, 0.0, 0.0, 0.0]]]), {}),
    "duplicated rows": (np.repeat(_table(20), 10, axis=0), {}),
    "one distinct row": (np.repeat(_table(1), 30, axis=0), {}),
    "huge offset": (1e8 + _rng().normal(size=(60, 4)), {}),
    "binary columns": (_rng().integers(0, 2, (80, 6)).astype(float), {}),
    "booleans": (_rng().integers(0, 2, (80, 6)).astype(bool), {}),
    "integers": (_rng().poisson(3.0, (80, 5)), {}),
    "small unsigned integers": (_rng().integers(0, 256, (80, 5)).astype(np.uint8), {}),
    "float32": (_table().astype(np.float32), {}),
    "mostly zeros": (_table() * (_rng().uniform(size=(60, 6)) < 0.05), {}),
    "a last batch of 1": (_table(129), {}),
    "a last batch of 1, held-out rows": (_table(570), {"batch_size": 512}),
    "batches of 1": (_table(12), {"batch_size": 1}),
    "two identical columns": (np.c_[_table(), _table()[:, :1]], {}),
    "two identical columns, noise per column": (
        np.c_[_table(), _table()[:, :1]],
        {"noise": "per_column"},
    ),
    "identical rows and columns": (np.ones((10, 4)) * np.arange(10)[:, None], {}),
    "more components than columns": (_table(), {"n_components": 9}),
}


@pytest.fixture(scope="module")
def fits():
    """A fit of each table, made when first asked for; not to be changed."""

    class Fits(dict):
        def __missing__(self, name):
            X, params = TABLES[name]
            self[name] = VAETransformer(**{"random_state": 0, "max_iter": 20} | params).fit(X)
            return self[name]

    return Fits()


each_table = pytest.mark.parametrize("name", TABLES)


def _spread(X):
    """Of each column, by its range; that of a constant one is its rounding."""
    return np.ptp(X.astype(float), axis=0) + 1e-9 * np.abs(X.astype(float)).max(0)


@no_numerical_warning
@each_table
def test_codes_are_finite_and_the_same_each_time(name, fits):
    X, vae = TABLES[name][0], fits[name]
    Z = vae.transform(X)
    assert Z.shape == (len(X), vae.n_components_) and np.isfinite(Z).all()
    np.testing.assert_array_equal(vae.transform(X), Z)


@no_numerical_warning
@each_table
def test_scores_are_finite(name, fits):
    X, vae = TABLES[name][0][:8], fits[name]
    for method in METHODS:
        scores = vae.score_samples(X, method=method)
        assert scores.shape == (len(X),) and np.isfinite(scores).all(), method
    assert np.isfinite(vae.score_samples(X, refine=False)).all()
    assert np.isfinite(vae.score(X))


@no_numerical_warning
@each_table
def test_the_columns_scores_sum_to_the_reconstruction_score(name, fits):
    X, vae = TABLES[name][0][:8], fits[name]
    parts = vae.score_features(X)
    assert parts.shape == X.shape and np.isfinite(parts).all()
    expected = vae.score_samples(X, method="reconstruction")
    np.testing.assert_allclose(parts.sum(axis=1), expected, rtol=1e-12)


@no_numerical_warning
@each_table
def test_decoded_codes_stay_in_the_units_of_the_columns(name, fits):
    X, vae = TABLES[name][0], fits[name]
    back = vae.inverse_transform(vae.transform(X))
    assert back.shape == X.shape and np.isfinite(back).all()
    center, spread = np.median(X, axis=0), _spread(X)
    assert (np.abs(back - center) <= 3.0 * spread).all()


@no_numerical_warning
@each_table
def test_samples_are_finite_and_come_again_with_their_seed(name, fits):
    X, vae = TABLES[name][0], fits[name]
    for mode in (False, True):
        sample = vae.sample(5, random_state=0, mode=mode)
        assert sample.shape == (5, X.shape[1]) and np.isfinite(sample).all()
        np.testing.assert_array_equal(vae.sample(5, random_state=0, mode=mode), sample)
        other = vae.sample(5, random_state=1, mode=False)
        assert np.array_equal(other, sample) == (not vae.model_.columns.varies.any())


CONSTANT = ["constant columns", "all columns constant", "all zeros", "one distinct row", "1 row"]


@pytest.mark.parametrize("name", CONSTANT)
def test_a_constant_column_is_decoded_as_it_was(name, fits):
    X, vae = TABLES[name][0], fits[name]
    still = np.ptp(X, axis=0) == 0.0
    back = vae.inverse_transform(vae.transform(X))
    np.testing.assert_allclose(back[:, still], X[:, still], atol=1e-2)


@each_table
def test_the_fitted_attributes_are_finite_and_agree(name, fits):
    X, vae = TABLES[name][0], fits[name]
    kl = vae.kl_per_component_
    assert kl.shape == vae.component_scale_.shape == (vae.n_components_,)
    assert np.isfinite(kl).all() and (kl >= -1e-12).all() and (np.diff(kl) <= 0.0).all()
    assert np.isfinite(vae.component_scale_).all() and (vae.component_scale_ >= 0.0).all()
    assert vae.n_active_components_ == (kl >= 0.01).sum()
    assert vae.noise_variance_.shape == vae.likelihood_.shape == (X.shape[1],)
    gaussian = vae.likelihood_ == "gaussian"
    assert (vae.noise_variance_[gaussian] > 0.0).all()
    assert np.isnan(vae.noise_variance_[~gaussian]).all()
    assert all(np.isfinite(weight).all() for weight in vae.weights_.values())
    assert np.isfinite(vae.loss_curve_).all() and np.isfinite(vae.validation_scores_).all()


@pytest.mark.parametrize("name", TABLES)
def test_columns_of_0_and_1_alone_are_bernoulli_and_all_others_real(name, fits):
    X, vae = TABLES[name][0], fits[name]
    two_valued = [set(np.unique(column)) == {0.0, 1.0} for column in X.T.astype(float)]
    real = np.where(heavy_tailed(X.astype(float)), "student_t", "gaussian")
    assert vae.likelihood_.tolist() == np.where(two_valued, "bernoulli", real).tolist()
    assert ("student_t" in vae.likelihood_) == (name == "heavy tails")
    assert all(two_valued) == (name in ("binary columns", "booleans"))


@each_table
def test_inactive_components_are_exactly_zero_and_the_others_are_not(name, fits):
    X, vae = TABLES[name][0], fits[name]
    Z = vae.transform(X)
    n_active = vae.n_active_components_
    assert (Z[:, n_active:] == 0.0).all()
    assert (Z[:, :n_active] != 0.0).any(axis=0).all()


NEW_ROWS = {
    "far away": 1e6 * np.ones((3, 6)),
    "very far away": 1e12 * np.ones((3, 6)),
    "one cell": np.eye(6) * 1e9,
    "zeros": np.zeros((3, 6)),
}


@no_numerical_warning
@pytest.mark.parametrize("rows", NEW_ROWS)
@pytest.mark.parametrize("name", ["a last batch of 1", "scale 1e-8", "scales from 1e-8 to 1e8"])
def test_rows_unlike_any_seen_get_finite_results(name, rows, fits):
    vae, X = fits[name], NEW_ROWS[rows]
    assert np.isfinite(vae.transform(X)).all()
    assert np.isfinite(vae.inverse_transform(vae.transform(X))).all()
    for method in METHODS:
        assert np.isfinite(vae.score_samples(X, method=method)).all(), method


# -- rows on their own ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curved():
    """A trained model, far from linear, and rows, one of them wild."""
    rng = _rng()
    t = rng.normal(size=(600, 2))
    X = np.c_[t, np.sin(2.0 * t), t**2, t[:, :1] * t[:, 1:]]
    X = X + 0.2 * rng.normal(size=X.shape)
    vae = VAETransformer(2, hidden_layer_sizes=(32,), max_iter=60, random_state=0).fit(X)
    assert vae.best_iter_ > 10
    rows = X[:30].copy()
    rows[7, 3] += 50.0
    return vae, rows


SCORES = {
    **{method: partial(VAETransformer.score_samples, method=method) for method in METHODS},
    "not refined": lambda vae, X: vae.score_samples(X, refine=False),
    "score_features": lambda vae, X: vae.score_features(X),
    "transform": lambda vae, X: vae.transform(X),
}


@pytest.mark.parametrize("score", SCORES)
def test_a_row_scores_the_same_alone_in_company_and_in_any_order(curved, score):
    vae, X = curved
    call = SCORES[score]
    together = call(vae, X)
    order = _rng().permutation(len(X))
    np.testing.assert_allclose(call(vae, X[order]), together[order], rtol=0, atol=1e-9)
    for row in (0, 7, 29):
        np.testing.assert_allclose(call(vae, X[[row]])[0], together[row], rtol=0, atol=1e-9)
    np.testing.assert_allclose(call(vae, X[5:9]), together[5:9], rtol=0, atol=1e-9)


def test_chunks_do_not_show(curved, monkeypatch):
    vae, X = curved
    together = vae.score_samples(X)
    monkeypatch.setattr("skvae._inference.scores.CHUNK_NUMBERS", 40_000)
    np.testing.assert_allclose(vae.score_samples(X), together, rtol=0, atol=1e-9)


def test_the_bound_stays_below_the_log_likelihood(curved):
    vae, X = curved
    elbo, log_p = vae.score_samples(X, method="elbo"), vae.score_samples(X)
    assert (elbo <= log_p + 0.05).all()
    assert elbo.mean() < log_p.mean()


def test_the_odd_column_of_a_row_is_found(curved):
    vae, X = curved
    assert vae.score_features(X)[7].argmin() == 3
    assert vae.score_samples(X).argmin() == 7


# -- codes ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    """The same fit, with and without whitening; one component carries nothing."""
    X = _table(200, 5)
    params = {"n_components": 7, "hidden_layer_sizes": (16,), "random_state": 0}
    return X, *(
        VAETransformer(**params, max_iter=60, early_stopping=False, beta=4.0, whiten=whiten).fit(X)
        for whiten in (False, True)
    )


def test_codes_are_whitened_codes_times_the_component_scale(pair):
    X, plain, white = pair
    assert plain.n_active_components_ < 7
    np.testing.assert_allclose(plain.transform(X), white.transform(X) * plain.component_scale_)


def test_whitened_codes_and_others_decode_to_the_same_rows(pair):
    X, plain, white = pair
    backs = [vae.inverse_transform(vae.transform(X)) for vae in (plain, white)]
    np.testing.assert_allclose(*backs, rtol=1e-9, atol=1e-12)
    assert np.square(backs[0] - X).mean() < 0.1 * X.var()


@pytest.mark.parametrize("whitened", [False, True])
def test_an_inactive_component_is_ignored_in_decoding(pair, whitened):
    X, vae = pair[0], pair[1 + whitened]
    Z = vae.transform(X)
    other = Z.copy()
    other[:, vae.n_active_components_ :] = 7.0
    np.testing.assert_array_equal(vae.inverse_transform(other), vae.inverse_transform(Z))


def test_scores_do_not_depend_on_whitening(pair):
    X, plain, white = pair
    np.testing.assert_array_equal(plain.score_samples(X[:5]), white.score_samples(X[:5]))


# -- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["shared", "per_column"])
@pytest.mark.parametrize("n_components", [1, 3])
def test_samples_have_the_moments_of_linear_gaussian_rows(noise, n_components):
    n_columns, n_samples, rng = 7, 20_000, _rng()
    scale = 1.0 if noise == "shared" else rng.uniform(0.5, 1.5, n_columns)
    loadings = 2.0 * rng.normal(size=(n_columns, n_components))
    covariance = loadings @ loadings.T + np.eye(n_columns) * np.square(scale)
    mean = 10.0 * rng.normal(size=n_columns)
    # Rows that have exactly these moments.
    half = np.sqrt(n_columns) * np.linalg.cholesky(covariance).T
    X = mean + np.tile(np.concatenate([half, -half]), (100, 1))
    vae = VAETransformer(n_components, noise=noise, scaling=None, max_iter=0).fit(X)
    sample = vae.sample(n_samples, random_state=0)
    deviation = np.sqrt(np.diag(covariance))
    error = (sample.mean(0) - mean) / (deviation / np.sqrt(n_samples))
    assert np.abs(error).max() < 4.5
    # The variance of a sample covariance of normal variables (Wishart).
    spread = np.sqrt((np.outer(deviation, deviation) ** 2 + covariance**2) / n_samples)
    # Factor analysis stops iterating a little before its optimum.
    error = np.abs(np.cov(sample.T) - covariance)
    assert (error < 4.5 * spread + 0.01 * np.outer(deviation, deviation)).all()


def test_the_mode_of_a_gaussian_row_has_no_noise():
    X = _table(200, 8)
    vae = VAETransformer(2, max_iter=0).fit(X)
    assert np.linalg.matrix_rank(vae.sample(50, random_state=0, mode=True) - X.mean(0)) == 2


def test_more_samples_are_another_draw_of_the_same_model():
    vae = VAETransformer(2, max_iter=0).fit(load_iris().data)
    assert vae.sample(1, random_state=0).shape == (1, 4)
    assert not np.array_equal(vae.sample(3, random_state=0), vae.sample(3, random_state=1))


# -- 0 and 1 --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bits():
    X = load_digits().data[:600] > 8
    vae = VAETransformer(8, likelihood="bernoulli", max_iter=30, random_state=0)
    return X, vae.fit(X)


def test_binary_images_get_codes_and_finite_scores(bits):
    X, vae = bits
    assert vae.best_iter_ > 0
    Z = vae.transform(X)
    assert Z.shape == (600, 8) and np.isfinite(Z).all()
    log_p = vae.score_samples(X[:20])
    assert np.isfinite(log_p).all() and (log_p < 0.0).all()  # they are probabilities


def test_binary_images_are_decoded_to_probabilities_that_resemble_them(bits):
    X, vae = bits
    p = vae.inverse_transform(vae.transform(X))
    assert ((p >= 0.0) & (p <= 1.0)).all()
    assert ((p > 0.5) == X).mean() > 0.88


@pytest.mark.parametrize("mode", [False, True])
def test_sampled_binary_images_are_binary(bits, mode):
    X, vae = bits
    sample = vae.sample(500, random_state=0, mode=mode)
    assert set(np.unique(sample)) == {0.0, 1.0}
    if not mode:
        assert sample.mean() == pytest.approx(X.mean(), abs=0.05)


def test_a_pixel_that_is_never_lit_stays_dark(bits):
    X, vae = bits
    dark = X.mean(0) == 0.0
    assert dark.any()
    assert vae.inverse_transform(vae.transform(X))[:, dark].max() < 0.05


# -- tables of scikit-learn -----------------------------------------------------------------------


def test_a_few_rows_of_a_real_table_are_enough():
    X = load_breast_cancer().data
    vae = VAETransformer(random_state=0).fit(X[:25])
    assert np.isfinite(vae.score(X[25:60]))
    assert vae.n_components_ == 9  # a third of the rows, at most


# -- wild rows ------------------------------------------------------------------------------------

LARGEST = np.finfo(np.float64).max
WILD = [1e100, 1e155, 1e200, 1e300, LARGEST, -LARGEST]


@pytest.fixture(scope="module", params=["linear", "trained"])
def scored(request):
    X = np.random.default_rng(0).normal(size=(200, 4))
    max_iter = 0 if request.param == "linear" else 10
    return VAETransformer(2, max_iter=max_iter, random_state=0).fit(X), X


@pytest.mark.filterwarnings("error")
@pytest.mark.filterwarnings("ignore:(.|\n)*(inactive|importance weight):UserWarning")
@pytest.mark.parametrize("n_rows", [3, 100])  # by NumPy, and by torch
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("value", WILD)
def test_a_wild_row_has_finite_scores_extreme_codes_and_a_finite_mean(
    scored, value, everywhere, n_rows
):
    vae, X = scored
    rows = X[:n_rows].copy()
    rows[0, slice(None) if everywhere else 1] = value
    for method in METHODS:
        scores = vae.score_samples(rows, method=method)
        assert np.isfinite(scores[1:]).all()
        assert scores[0] < -1e100 and not np.isnan(scores[0])
    codes = vae.transform(rows)
    assert np.isfinite(codes).all() and np.abs(codes[0]).max() > 1e90
    assert_allclose(codes[1:], vae.transform(X[1:n_rows]), rtol=1e-6)
    assert np.isfinite(vae.inverse_transform(codes)).all()
    assert not np.isnan(vae.score_features(rows)).any()


@pytest.mark.filterwarnings("error")
@pytest.mark.filterwarnings("ignore:(.|\n)*(inactive|still rising)")
@pytest.mark.parametrize("factor", [5e-324, 1e-310, 1e-200, 1e200, 1e306, 1.7e308])
def test_the_unit_of_the_weights_is_no_matter_up_to_the_largest_and_smallest_floats(factor):
    X = np.random.default_rng(0).normal(size=(60, 3))
    likes = [
        VAETransformer(1, max_iter=3, random_state=0).fit(X, sample_weight=weight)
        for weight in (np.full(60, factor), np.full(60, 0.5))  # shares both: they sum to less
    ]
    if factor > 1.0:
        likes[1] = VAETransformer(1, max_iter=3, random_state=0).fit(X)
    assert_allclose(likes[0].score_samples(X), likes[1].score_samples(X), rtol=1e-6)


def test_all_that_a_factor_of_whole_weights_changes_are_degrees_of_freedom():
    # Every row twice: the unbiased variance is that of 2 n rows, and nothing else differs.
    X, n = np.random.default_rng(0).normal(size=(60, 5)), 60
    once, twice = (
        VAETransformer(2, max_iter=0).fit(X, sample_weight=np.full(n, w)) for w in (1.0, 2.0)
    )
    ratio = (2 * n / (2 * n - 1)) / (n / (n - 1))
    assert_allclose(twice.noise_variance_, once.noise_variance_ * ratio, rtol=1e-9)
    # The same rows, in both of their forms.
    repeated = VAETransformer(2, max_iter=0).fit(np.repeat(X, 2, axis=0))
    assert_allclose(twice.score_samples(X), repeated.score_samples(X), rtol=1e-9)
