"""At max_iter=0 the model is probabilistic PCA or factor analysis, to the last digits."""

import warnings
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats
from scipy.linalg import eigh, subspace_angles
from scipy.optimize import minimize, minimize_scalar
from sklearn.datasets import (
    load_breast_cancer,
    load_digits,
    load_iris,
    load_wine,
    make_low_rank_matrix,
)
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_info

from skvae import VAETransformer, _preparing
from skvae._start import features, linear_gaussian
from skvae._start.linear_gaussian import FollowedEigenpairs, symmetric_eigenpairs
from skvae._training.rows import DenseCells, Rows
from skvae.likelihoods import Bernoulli, Categorical, Poisson
from skvae.likelihoods._mixed import ColumnLikelihoods

SCALES = 10.0 ** np.linspace(-8, 8, 12)


def wild_scales():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 4)) @ rng.normal(size=(4, 12)) + rng.normal(size=(80, 12))
    return X * SCALES + 3.0 * SCALES


def duplicated_rows():
    X = load_iris().data
    return np.concatenate([X, X[:40], X[:10]])


DATA = {
    "breast_cancer": lambda: load_breast_cancer().data,
    "wine": lambda: load_wine().data,
    "column scales from 1e-8 to 1e8": wild_scales,
    "duplicated rows": duplicated_rows,
    "fewer rows than columns": lambda: make_low_rank_matrix(
        20, 30, effective_rank=15, random_state=0
    ),
    "integers with constant columns": lambda: load_digits().data.astype(np.uint8)[:300],
}
CONVERGED = {"svd_method": "lapack", "tol": 1e-11, "max_iter": 100_000}
MODELS = {"shared": PCA, "per_column": partial(FactorAnalysis, **CONVERGED)}
each_data = pytest.mark.parametrize("name", DATA)


def linear(X, n_components=3, noise="shared", **parameters):
    parameters = {"scaling": "columns", "likelihood": "gaussian"} | parameters
    return VAETransformer(n_components, max_iter=0, noise=noise, **parameters).fit(X)


def evidence(X, model, n_components=3):
    """log-density of X in original units by scikit-learn's model of the standardised columns."""
    scaler = StandardScaler().fit(X)
    Xs = scaler.transform(X)
    return model(n_components).fit(Xs).score_samples(Xs) - np.log(scaler.scale_).sum()


@each_data
@pytest.mark.parametrize("n_importance_samples", [1, 64])
@pytest.mark.parametrize("refine", [True, False])
def test_log_likelihood_is_that_of_pca(name, n_importance_samples, refine):
    X = DATA[name]()
    vae = linear(X, n_importance_samples=n_importance_samples)
    scores = vae.score_samples(X, refine=refine)
    np.testing.assert_allclose(scores, evidence(X, PCA), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["breast_cancer", "wine", "column scales from 1e-8 to 1e8"])
@pytest.mark.parametrize("n_importance_samples", [1, 64])
def test_log_likelihood_is_that_of_factor_analysis(name, n_importance_samples):
    X = DATA[name]()
    vae = linear(X, noise="per_column", n_importance_samples=n_importance_samples)
    expected = evidence(X, MODELS["per_column"])
    found = vae.score_samples(X)
    assert found.mean() > expected.mean() - 1e-9  # the maximum, which EM only comes near
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=0)


@each_data
@pytest.mark.parametrize("noise", MODELS)
def test_the_elbo_is_the_evidence(name, noise):
    X = DATA[name]()
    vae = linear(X, noise=noise)
    np.testing.assert_allclose(
        vae.score_samples(X, method="elbo"), vae.score_samples(X), atol=1e-6, rtol=0
    )


@each_data
@pytest.mark.parametrize("noise", MODELS)
def test_the_elbo_is_reconstruction_minus_kl(name, noise):
    X = DATA[name]()
    vae = linear(X, noise=noise)
    parts = vae.score_samples(X, method="reconstruction") + vae.score_samples(X, method="kl")
    np.testing.assert_allclose(vae.score_samples(X, method="elbo"), parts, atol=1e-6, rtol=1e-9)


@each_data
def test_the_codes_span_the_subspace_of_pca(name):
    X = DATA[name]()
    Z = linear(X).transform(X)
    reference = PCA(3).fit_transform(StandardScaler().fit_transform(X))
    assert subspace_angles(Z, reference).max() < 1e-6


def test_the_codes_are_pca_scores_shrunk_towards_zero():
    X = load_breast_cancer().data
    pca = PCA(3).fit(Xs := StandardScaler().fit_transform(X))
    shrinkage = 1.0 - pca.noise_variance_ / pca.explained_variance_
    Z = linear(X).transform(X)
    np.testing.assert_allclose(
        np.abs(Z), np.abs(pca.transform(Xs) * shrinkage), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize("scaling", ["common", None])
def test_other_scalings_are_pca_of_the_columns_as_they_are(scaling):
    X = load_digits().data
    pca = PCA(5, svd_solver="full").fit(X)
    vae = linear(X, 5, scaling=scaling)
    np.testing.assert_allclose(vae.score_samples(X), pca.score_samples(X), atol=1e-6, rtol=0)
    np.testing.assert_allclose(vae.noise_variance_, pca.noise_variance_, rtol=1e-9)


def test_no_hidden_layers_keep_the_model_linear_also_after_training():
    X = load_wine().data
    trained = VAETransformer(3, hidden_layer_sizes=(), random_state=0).fit(X)
    assert trained.score(X) == pytest.approx(linear(X).score(X), abs=0.05)
    np.testing.assert_allclose(
        trained.score_samples(X), trained.score_samples(X, refine=False), atol=0.3
    )


@pytest.mark.parametrize("noise", MODELS)
def test_more_components_than_columns_start_inactive(noise):
    X = load_iris().data
    with pytest.warns(UserWarning):
        vae = linear(X, 6, noise=noise)
    assert vae.n_active_components_ < 6
    assert (vae.transform(X)[:, vae.n_active_components_ :] == 0.0).all()


def test_a_bernoulli_start_is_better_than_independent_columns():
    X = (load_digits().data > 8).astype(float)
    vae = linear(X, 8, likelihood="bernoulli")
    p = X.mean(0).clip(1e-3, 1 - 1e-3)
    independent = (X * np.log(p) + (1 - X) * np.log(1 - p)).sum(1).mean()
    assert vae.score_samples(X, method="elbo").mean() > independent


def test_many_columns_start_from_a_randomised_decomposition():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 1600)) + 0.1 * rng.normal(size=(200, 1600))
    vae = linear(X, 3, n_importance_samples=1)
    np.testing.assert_allclose(vae.score_samples(X), evidence(X, PCA), rtol=1e-3)


def test_per_column_noise_of_too_many_columns_says_what_to_do():
    X = np.random.default_rng(0).normal(size=(5, 1600))
    with pytest.raises(ValueError, match=r"at most 1500 columns, got 1600\. Use noise='shared'"):
        linear(X, noise="per_column")


@pytest.mark.parametrize("method", ["log_likelihood", "elbo", "reconstruction"])
def test_a_change_of_units_shifts_the_scores_by_the_jacobian_only(method):
    X = load_wine().data
    factors = 10.0 ** np.random.default_rng(0).uniform(-4, 4, X.shape[1])
    before = linear(X).score_samples(X, method=method)
    after = linear(X * factors).score_samples(X * factors, method=method)
    np.testing.assert_allclose(after, before - np.log(factors).sum(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("n", [30, 105, 115, 120, 145])
def test_repeated_eigenvalues_are_no_obstacle(n):
    vae = VAETransformer(max_iter=0, random_state=0)
    assert np.isfinite(vae.fit(np.eye(n)).transform(np.eye(n))).all()


@pytest.mark.parametrize("n", [57, 101, 134, 178])
def test_a_column_of_ids_is_no_obstacle(n):
    ids = np.array([[f"id{i}", i % 7.0] for i in range(n)], dtype=object)
    vae = VAETransformer(17, max_iter=0, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.isfinite(vae.fit(ids).transform(ids)).all()


@pytest.mark.parametrize("n_kept", [None, 1, 7])
@pytest.mark.parametrize("kind", ["random", "identity", "zero", "one", "blocks"])
def test_eigenpairs_are_eigenpairs(kind, n_kept):
    rng = np.random.default_rng(0)
    A = rng.normal(size=(20, 12))
    matrix = {
        "random": A.T @ A,
        "identity": np.eye(12),
        "zero": np.zeros((12, 12)),
        "one": np.ones((12, 12)),
        "blocks": np.kron(np.eye(3), np.ones((4, 4))),
    }[kind]
    values, vectors = symmetric_eigenpairs(matrix, n_kept)
    assert vectors.shape == (12, n_kept or 12)
    assert_allclose(matrix @ vectors, vectors * values, atol=1e-10)
    assert_allclose(vectors.T @ vectors, np.eye(n_kept or 12), atol=1e-10)
    assert_allclose(values, np.linalg.eigvalsh(matrix)[-(n_kept or 12) :], atol=1e-10)


def test_a_driver_that_fails_is_followed_by_another(monkeypatch):
    from skvae._start import linear_gaussian

    A = np.random.default_rng(0).normal(size=(20, 12))
    matrix, eigh, tried = A.T @ A, linear_gaussian.eigh, []

    def failing(matrix, driver=None, **more):
        tried.append(driver)
        if driver != "ev":
            raise linear_gaussian.LinAlgError("Internal Error.")
        return eigh(matrix, driver=driver, **more)

    monkeypatch.setattr(linear_gaussian, "eigh", failing)
    values, vectors = symmetric_eigenpairs(matrix, 3)
    assert tried == [None, "evd", "ev"]
    assert_allclose(matrix @ vectors, vectors * values, rtol=1e-9)
    monkeypatch.setattr(linear_gaussian, "dsyevr", lambda *args, **more: (values, matrix, 1))
    values, vectors = symmetric_eigenpairs(matrix)
    assert tried[3:] == ["evd", "ev"]
    assert_allclose(matrix @ vectors, vectors * values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [1, 2, 7, 33, 130])
def test_all_eigenpairs_are_scipys_to_the_last_bit(size):
    A = np.random.default_rng(0).normal(size=(size + 2, size))
    for matrix in (A.T @ A, np.eye(size), np.ones((size, size))):
        for one, two in zip(symmetric_eigenpairs(matrix), eigh(matrix), strict=True):
            assert_array_equal(one, two)


def _correlation(n_columns, n_factors, n_rows=700, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows, n_factors)) @ rng.normal(size=(n_factors, n_columns))
    X += rng.gamma(1.0, size=n_columns) * rng.normal(size=X.shape)
    return np.corrcoef(X.T)


def test_eigenpairs_that_are_followed_are_lapacks(monkeypatch):
    whole = []

    def lapack(matrix, n_kept=None):
        whole.append(len(matrix))
        return symmetric_eigenpairs(matrix, n_kept)

    monkeypatch.setattr(linear_gaussian, "symmetric_eigenpairs", lapack)
    matrix, followed = _correlation(120, 4), FollowedEigenpairs()
    change = np.random.default_rng(1).normal(size=120)
    for step in np.linspace(0.0, 0.2, 6):
        scale = np.exp(step * change)
        moved = matrix / (scale[:, None] * scale)
        values, vectors = followed(moved, 4)
        expected, directions = eigh(moved, subset_by_index=(116, 119))
        assert_allclose(values, expected, rtol=1e-12)
        assert_allclose(np.abs((vectors * directions).sum(0)), 1.0, rtol=1e-12)
    assert whole.count(120) == 1  # the first


def test_what_cannot_be_followed_is_lapacks():
    followed = FollowedEigenpairs()
    for seed in range(3):  # matrices that have nothing in common
        matrix = _correlation(120, 60, seed=seed)
        values, vectors = followed(matrix, 4)
        assert_allclose(values, eigh(matrix, eigvals_only=True)[-4:], rtol=1e-12)
        assert_allclose(matrix @ vectors, vectors * values, atol=1e-5)
    assert followed(np.eye(50), 4)[1].shape == (50, 4)  # nor those of another size


class _Lost(FollowedEigenpairs):
    """Has lost the largest of the eigenpairs."""

    def __call__(self, matrix, n_kept):
        values, vectors = symmetric_eigenpairs(matrix, n_kept + 1)
        return values[:-1], vectors[:, :-1]


@pytest.mark.parametrize("eigenpairs", [FollowedEigenpairs, _Lost])
@pytest.mark.parametrize("shared", [False, True])
def test_factor_analysis_by_followed_eigenpairs_is_that_by_lapack(eigenpairs, shared, monkeypatch):
    covariance = _correlation(320, 6)
    fit = partial(
        linear_gaussian.factor_analysis,
        linear_gaussian.Moments(np.zeros(320), np.ones(320), covariance, 700.0),
        n_components=6,
        floor=1e-3,
        groups=linear_gaussian.Groups.of(shared, np.zeros(320, dtype=bool)),
    )
    monkeypatch.setattr(linear_gaussian, "FollowedEigenpairs", eigenpairs)
    found = fit()
    monkeypatch.setattr(linear_gaussian, "LARGE", 10**6)
    expected = fit()
    assert_allclose(found.noise, expected.noise, rtol=1e-4)
    products = [model.loadings @ model.loadings.T for model in (found, expected)]
    assert_allclose(*products, atol=1e-4)


# -- columns without Gaussian noise ---------------------------------------------------------------


def _levels(n_rows, n_columns, n_levels, strength, seed=0):
    """Columns of levels that depend on one hidden number, so strongly."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n_rows, 1))
    cells = [
        (strength * z * rng.normal(size=n_levels) + rng.gumbel(size=(n_rows, n_levels))).argmax(1)
        for _ in range(n_columns)
    ]
    return np.stack(cells, 1).astype(object)


def _independent(X, train=None):
    """The mean log-probability of a row of ``X`` by each column's shares in ``train``."""
    train, total = X if train is None else train, 0.0
    for cells, known in zip(X.T, train.T, strict=True):
        seen = Counter(level for level in known if level is not None)
        total += sum(np.log(seen[v] / seen.total()) for v in cells if v is not None)
    return total / len(X)


def _started(X, **parameters):
    vae = VAETransformer(max_iter=0, random_state=0, **parameters)
    return vae.set_params(categorical_features=list(range(X.shape[1]))).fit(X)


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("n_levels", [2, 40])
def test_no_start_of_levels_is_below_independent_columns(n_levels, strength, missing):
    X = _levels(600, 12 if n_levels == 2 else 6, n_levels, strength)
    rng = np.random.default_rng(1)
    X[rng.random(X.shape) < 0.1] = None
    X[rng.random(len(X)) < missing, 0] = None
    train, test = X[:500], X[500:]
    vae = _started(train)
    for cells, known in zip(test.T, train.T, strict=True):
        cells[~np.isin(cells, [v for v in known if v is not None])] = None
    for rows in (train, test):
        gain = vae.score_samples(rows, method="elbo").mean() - _independent(rows, train)
        assert gain > (0.1 if strength and n_levels == 2 else -0.02)


@pytest.mark.parametrize("n_columns", [80, 1600])  # by factor analysis, and by the rows' products
def test_numbers_and_switches_of_few_rows_have_the_noise_that_is_theirs(n_columns):
    # Of fewer rows than features, PCA's noise is that of the space of the rows: too much for one.
    rng = np.random.default_rng(0)
    z = rng.normal(size=(60, 3))
    X = z @ rng.normal(size=(3, n_columns)) + 2.0 * rng.normal(size=(60, n_columns))
    X[:, :20] = X[:, :20] > 2.0
    vae = VAETransformer(3, max_iter=0, random_state=0).fit(X)
    assert vae.n_active_components_ == 3
    left = (X - vae.inverse_transform(vae.transform(X)))[:, 20:] / X[:, 20:].std(0)
    assert_allclose((vae.noise_variance_[20:] / X[:, 20:].var(0)).mean(), left.var(), rtol=0.2)


def test_levels_without_structure_are_independent_columns_and_that_is_said():
    X = _levels(300, 10, 60, 0.0)
    with pytest.warns(UserWarning, match="The columns share no structure"):
        vae = _started(X)
    assert_allclose(vae.score_samples(X).mean(), _independent(X), rtol=1e-3)
    assert (vae.transform(X) == 0.0).all()
    with pytest.warns(UserWarning, match="The columns share no structure"):
        trained = VAETransformer(random_state=0, categorical_features=[*range(10)]).fit(X)
    assert trained.best_iter_ == 0


def test_what_begins_with_independent_columns_still_learns():
    # x_2 = x_0 xor x_1: no two columns tell anything of each other, three of them a bit.
    rng = np.random.default_rng(0)
    X = rng.integers(0, 2, (2000, 3))
    X[:, 2] = X[:, 0] ^ X[:, 1]
    vae = VAETransformer(2, random_state=0, categorical_features=[0, 1, 2]).fit(X)
    assert_allclose(vae.validation_scores_[0], 3.0 * np.log(0.5), atol=0.01)
    assert vae.score_samples(X, method="elbo").mean() > 3.0 * np.log(0.5) + 0.3


def test_the_decoders_of_levels_are_at_their_maximum(monkeypatch):
    from skvae._start import glm

    X = _levels(500, 8, 12, 2.0)
    found = _started(X, n_components=3)
    monkeypatch.setattr(glm, "GLM_STEPS", 2000)
    monkeypatch.setattr(glm, "SETTLED", 0.0)
    best = _started(X, n_components=3)
    scores = [v.score_samples(X, method="reconstruction").mean() for v in (found, best)]
    assert_allclose(scores[0], scores[1], atol=0.02)


CURVATURES = {  # of -log p in the raw parameter, in closed form; x does not matter
    "bernoulli": (Bernoulli(), lambda raw: torch.sigmoid(raw) * torch.sigmoid(-raw)),
    "poisson": (Poisson(), torch.exp),
    "categorical": (Categorical([3, 3]), lambda raw: _softmax_variance(raw.unflatten(-1, (2, 3)))),
}


def _softmax_variance(raw):
    p = torch.softmax(raw, -1)
    return (p * (1.0 - p)).flatten(-2)


@pytest.mark.parametrize("name", CURVATURES)
def test_the_curvature_of_raw_parameters_is_that_of_the_density(name):
    from skvae._start.glm import _Regression

    specification, closed_form = CURVATURES[name]
    rng = np.random.default_rng(0)
    n_rows, n_columns = 4000, 2 if name == "categorical" else 6
    levels = getattr(specification, "n_levels", [0] * n_columns)
    likelihood = ColumnLikelihoods([specification] * n_columns, levels)
    x = torch.from_numpy(rng.integers(0, 2, (n_rows, n_columns)))
    count = torch.from_numpy(rng.random((n_rows, n_columns)) < 0.7) / n_rows
    z = torch.from_numpy(rng.normal(size=(2, n_rows, 3)))
    regression = _Regression(likelihood, x, count, z)
    weight = torch.from_numpy(rng.normal(size=(6, 4))).float()
    raw = regression.z @ weight.T
    own = count.float()[:, likelihood.column]
    expected = (closed_form(raw) * own).sum((0, 1))
    tolerance = 0.1 if name == "categorical" else 1e-3  # the levels of a column share a row's sign
    assert_allclose(regression.curvature(weight), expected, rtol=tolerance)


@pytest.mark.parametrize("likelihood", ["poisson", "negative_binomial"])
def test_the_decoders_of_counts_of_any_size_are_found_in_few_steps(likelihood, monkeypatch):
    from skvae._start import glm

    steps = []

    def told(*args, **settings):
        found = minimize(*args, **settings)
        steps.append(found.nit)
        return found

    monkeypatch.setattr(glm, "minimize", told)
    rng = np.random.default_rng(0)
    rate = np.exp(0.5 * rng.normal(size=(600, 2)) @ rng.normal(size=(2, 12)))
    X = rng.poisson(rate * 10.0 ** np.linspace(-1, 3, 12) * rng.gamma(3.0, 1 / 3.0, (600, 12)))
    VAETransformer(2, max_iter=0, likelihood=likelihood).fit(X)
    assert steps and max(steps) <= 15


def _overdispersed(loading, mean, r, n_columns=10, n_rows=3000):
    """Return counts of a log rate that is linear in two components, and a dispersion r."""
    rng = np.random.default_rng(0)
    z, weights = rng.normal(size=(n_rows, 2)), rng.normal(size=(2, n_columns))
    noise = rng.gamma(r, 1.0 / r, (n_rows, n_columns))
    return rng.poisson(mean * np.exp(loading * z @ weights) * noise)


def _independent_counts(counts):
    """Return the highest likelihood that independent columns have, in nats a row."""
    total = 0.0
    for column in counts.T:

        def surprise(log_r, column=column):
            p = np.exp(log_r) / (np.exp(log_r) + column.mean())
            return -stats.nbinom.logpmf(column, np.exp(log_r), p).mean()

        total -= minimize_scalar(surprise, bounds=(-4.6, 9.2), method="bounded").fun
    return total


@pytest.mark.parametrize(
    ("loading", "mean", "r"),
    [(0.0, 20.0, 1.5), (0.0, 5.0, 0.3), (0.0, 0.2, 5.0), (1.0, 200.0, 1.0), (1.5, 10.0, 3.0)],
)
def test_overdispersed_counts_begin_no_worse_than_independent(loading, mean, r):
    counts = _overdispersed(loading, mean, r)
    vae = VAETransformer(2, max_iter=0, likelihood="negative_binomial", random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*inactive")
        vae.fit(counts)
    assert vae.score_samples(counts).mean() >= _independent_counts(counts) - 0.05


@pytest.mark.parametrize("r", [0.5, 10.0, 1e6])
def test_a_fit_finds_the_dispersion_that_counts_have_given_the_codes(r):
    vae = VAETransformer(2, likelihood="negative_binomial", random_state=0)
    vae.fit(_overdispersed(0.7, 50.0, r))
    (block,) = vae.model_.module().likelihood.parts
    found = block.log_dispersion.exp().median().item()
    assert found > 50.0 if r == 1e6 else found == pytest.approx(r, rel=0.15)


def test_as_many_components_as_numbers_leave_these_their_noise():
    rng = np.random.default_rng(0)
    frame = {str(n): rng.normal(size=300) for n in range(3)}
    X = np.column_stack([*frame.values(), _levels(300, 6, 5, 1.0)]).astype(object)
    vae = VAETransformer(8, max_iter=0, random_state=0).set_params(
        categorical_features=list(range(3, 9))
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The noise scale")
        warnings.filterwarnings("ignore", ".*inactive")
        vae.fit(X)
    assert (vae.noise_variance_[:3] > 0.05).all()


def test_more_components_than_columns_are_a_cap_that_is_said():
    X = load_iris().data
    with pytest.warns(UserWarning, match="n_components=9 is more than the number.* has 4"):
        vae = linear(X, 9)
    assert vae.transform(X).shape == (150, 4) and vae.n_components_ == 4


@pytest.mark.parametrize("weight", [np.ones(100), np.r_[1e-9, np.ones(99)]], ids=["1", "tiny"])
def test_a_tiny_weight_does_not_make_chance_look_like_structure(weight):
    X = _levels(100, 20, 3, 0.0)
    vae = VAETransformer(max_iter=0, random_state=0, categorical_features=[*range(20)])
    with pytest.warns(UserWarning, match="The columns share no structure"):
        vae.fit(X, sample_weight=weight)


def test_epoch_0_is_the_start_that_is_kept_also_for_callbacks():
    from skvae._training.loop import train
    from skvae._training.plan import Plan, Start

    vae = VAETransformer(2, max_iter=0, random_state=0).fit(load_iris().data)
    launch, start = vae.model_.module().float(), vae.model_.fresh_module("cpu").float()
    with torch.no_grad():
        start.decoder.linear.bias.add_(1.0)
    rows = Rows(DenseCells(torch.zeros(10, 4), None), torch.ones(10))
    plan = Plan(max_epochs=1, batch_size=5, learning_rate=0.001)
    epochs = train(launch, rows, None, plan, torch.Generator(), start=Start(start))
    assert_allclose(next(epochs).snapshot()["decoder.linear.bias"], start.decoder.linear.bias.data)


@pytest.mark.parametrize("change", ["which is 1", "the columns' order"])
def test_the_coding_of_few_kinds_of_row_moves_no_score(change):
    # One pair of codes for each kind of row left 0.99 nats to chance.
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(400, 2)) @ rng.normal(size=(2, 6)) + 0.5 * rng.normal(size=(400, 6))
    X = (hidden > 0.5 * rng.normal(size=6)).astype(float)
    other = 1.0 - X if change == "which is 1" else X[:, rng.permutation(6)]
    one, two = (linear(rows, 2).score_samples(rows) for rows in (X, other))
    assert np.abs(one - two).max() < 0.2
    assert abs((one - two).mean()) < 0.005


@pytest.mark.parametrize("n_rows", [3, 40, 120])
def test_of_very_many_columns_the_products_of_rows_give_the_same_model(n_rows, monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, 4)) @ rng.normal(size=(4, 60)) + rng.normal(size=(n_rows, 60))
    X[:, 5] = X[:, 4]
    plain = linear(X, 2)
    monkeypatch.setattr(linear_gaussian, "MAX_COLUMNS_FOR_COVARIANCE", 50)
    monkeypatch.setattr(features.Features, "_are_cells", lambda *_: False)
    for few_rows in (0, 1000):  # by Lanczos steps, and by the rows' products
        monkeypatch.setattr(linear_gaussian, "FEW_ROWS", few_rows)
        wide = linear(X, 2)
        assert_allclose(wide.score_samples(X), plain.score_samples(X), rtol=1e-9)
        assert_allclose(wide.noise_variance_, plain.noise_variance_, rtol=1e-9)


@pytest.mark.parametrize("noise", MODELS)
def test_a_table_of_numbers_is_passed_over_once_for_all_its_moments(noise, monkeypatch):
    X = load_wine().data
    expected = linear(X, noise=noise)
    again = []

    def count(*arguments):
        again.append(1)
        return linear_gaussian.column_moments(*arguments)

    monkeypatch.setattr(features, "column_moments", count)
    vae = linear(X, noise=noise)
    assert not again
    assert_allclose(vae.noise_variance_, expected.noise_variance_, rtol=1e-12)
    monkeypatch.setattr(features.Features, "_are_cells", lambda *_: False)
    vae = linear(X, noise=noise)
    assert again == [1]
    assert_allclose(vae.score_samples(X), expected.score_samples(X), rtol=1e-6)


def test_a_start_asks_for_one_thread(monkeypatch):
    seen, before = set(), torch.get_num_threads()

    def watched(name):
        own = getattr(_preparing, name)

        def call(*arguments, **keywords):
            libraries = threadpool_info()
            seen.add((name, torch.get_num_threads(), *(one["num_threads"] for one in libraries)))
            return own(*arguments, **keywords)

        monkeypatch.setattr(_preparing, name, call)

    names = ["merged", "look_and_scale", "start_linear", "rows_for"]
    for name in names:
        watched(name)
    try:
        torch.set_num_threads(2)
        linear(np.random.default_rng(0).normal(size=(50, 400)))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {name for name, *_ in seen} == set(names)
    assert {number for _, *numbers in seen for number in numbers} == {1}


@pytest.mark.parametrize("noise", MODELS)
def test_moments_of_the_first_pass_are_those_of_the_features_in_their_own_order(noise, monkeypatch):
    # Columns of one likelihood stand side by side in the module: that is not the table's order.
    X = StandardScaler().fit_transform(load_wine().data)
    X[:, [1, 4, 5]] *= np.random.default_rng(0).chisquare(3.0, size=(len(X), 1)) ** -0.5
    kinds = dict.fromkeys([1, 4, 5], "student_t")
    params = {"likelihood": kinds, "noise": noise, "max_iter": 0, "random_state": 0}
    quick = VAETransformer(2, **params).fit(X)
    monkeypatch.setattr(features.Features, "_are_cells", lambda *_: False)
    plain = VAETransformer(2, **params).fit(X)
    assert_allclose(
        quick.score_samples(X, method="elbo"), plain.score_samples(X, method="elbo"), rtol=1e-6
    )
