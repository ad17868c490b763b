"""Sparse rows mean what the dense ones mean, and are never made dense as a whole."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csc_array, csc_matrix, csr_array, csr_matrix
from sklearn.base import clone
from sklearn.decomposition import PCA

import skvae._fitting
import skvae._inference.scores
import skvae._table.duplicates
import skvae._table.statistics
import skvae._training.loop
import skvae._training.sparse_gradient
from skvae import VAETransformer
from skvae._table.statistics import some_rows

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:(.|\n)*(inactive|its floor|importance weight):UserWarning"),
]

METHODS = ["log_likelihood", "elbo", "reconstruction", "kl"]
N, D = 150, 12


def _vae(**params):
    small = {"n_components": 2, "hidden_layer_sizes": (8,), "max_iter": 0, "random_state": 0}
    small |= {"scaling": "columns", "n_importance_samples": 8}
    return VAETransformer(**small | params)


def _counts(n_rows=N, n_columns=D, density=0.4, seed=0):
    """Whole numbers with two factors, most of them 0."""
    rng = np.random.default_rng(seed)
    rate = 2.0 * np.exp(0.4 * rng.normal(size=(n_rows, 2)) @ rng.normal(size=(2, n_columns)))
    return rng.poisson(rate) * (rng.uniform(size=(n_rows, n_columns)) < density).astype(float)


COUNTS = _counts()
MAKES = {make.__name__: make for make in (csr_array, csr_matrix, csc_array, csc_matrix)}
TABLES = {
    "gaussian": np.where(COUNTS > 0.0, COUNTS - 0.37, 0.0),
    "poisson": COUNTS,
    "negative_binomial": COUNTS,
    "multinomial": COUNTS,
    "bernoulli": (COUNTS > 0.0).astype(float),
}


def _assert_same_model(one, X, other, Y, rtol=1e-8):
    """The same scores and codes of X by the one and of Y by the other."""
    for method in METHODS:
        some = slice(40 if method == "log_likelihood" else None)  # each of them is a search
        scores = other.score_samples(Y[some], method=method)
        assert_allclose(one.score_samples(X[some], method=method), scores, rtol=rtol, atol=rtol)
    Z = other.transform(Y)
    assert_allclose(one.transform(X), Z, rtol=rtol, atol=rtol * np.abs(Z).max())


# -- the linear start -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("likelihood", TABLES)
def test_the_start_is_that_of_the_dense_rows(likelihood, make):
    X = TABLES[likelihood]
    S = MAKES[make](X)
    vae = _vae(likelihood=likelihood)
    dense = _vae(likelihood=likelihood).fit(X)
    _assert_same_model(vae.fit(S), S, dense, X)


@pytest.mark.parametrize("params", [{"noise": "per_column"}, {"scaling": "common"}, {"whiten": 1}])
def test_the_start_is_that_of_the_dense_rows_whatever_the_parameters(params):
    params = {name: bool(value) if name == "whiten" else value for name, value in params.items()}
    X = TABLES["gaussian"]
    S = csr_array(X)
    _assert_same_model(_vae(**params).fit(S), S, _vae(**params).fit(X), X, rtol=1e-7)


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_the_likelihood_is_chosen_as_for_the_dense_rows(likelihood):
    X = TABLES[likelihood]
    names = _vae().fit(csr_array(X)).likelihood_
    assert_array_equal(names, _vae().fit(X).likelihood_)
    assert set(names) == {likelihood}


@pytest.mark.parametrize("whole", [True, False], ids=["counts", "numbers"])
def test_above_1500_columns_the_start_is_pca_although_no_covariance_is_formed(whole):
    # Cells are kept in float32 there: an error of 1e-7 of each, none for counts.
    X = _counts(100, 1600, 0.2)
    X = X if whole else np.where(X > 0.0, X - 0.37, 0.0)
    pca = PCA(3, svd_solver="full").fit(X)
    S = csr_array(X)
    vae = _vae(n_components=3, likelihood="gaussian", noise="shared", scaling=None).fit(S)
    expected = pca.score_samples(X)
    scores = vae.score_samples(S)
    assert_allclose(scores, expected, rtol=1e-6)
    assert_allclose(vae.score_samples(S, method="elbo"), expected, rtol=1e-6)
    if whole:
        assert_allclose(scores, expected, rtol=0, atol=1e-6)


def test_above_1500_columns_codes_and_scores_are_those_of_the_dense_rows():
    X = _counts(100, 1600, 0.2)
    S = csr_array(X)
    params = {"n_components": 3, "likelihood": "gaussian"}
    _assert_same_model(_vae(**params).fit(S), S, _vae(**params).fit(X), X, rtol=1e-5)


# -- kinds of sparse rows -------------------------------------------------------------------------


def _with_long_indices(S):
    S = S.copy()
    S.indices, S.indptr = S.indices.astype(np.int64), S.indptr.astype(np.int64)
    return S


def _unsorted(S):
    order = np.concatenate([np.arange(b - 1, a - 1, -1) for a, b in itertools.pairwise(S.indptr)])
    return type(S)((S.data[order], S.indices[order], S.indptr), S.shape)


def _duplicated(S):
    """Each entry in two parts, which add up."""
    twice = np.repeat(S.indices, 2)
    parts = np.stack([S.data - 1, np.ones_like(S.data)], axis=1).ravel()
    return type(S)((parts, twice, 2 * S.indptr), S.shape)


def _with_stored_zeros(S):
    coordinates = [index.ravel() for index in np.indices(S.shape)]
    full = scipy.sparse.coo_array((S.toarray().ravel(), coordinates), S.shape)
    return csr_array(full) if S.format == "csr" else csc_array(full)


KINDS = {
    "float32": lambda S: S.astype(np.float32),
    "int64": lambda S: S.astype(np.int64),
    "uint8": lambda S: S.astype(np.uint8),
    "int64 indices": _with_long_indices,
    "unsorted": _unsorted,
    "duplicate entries": _duplicated,
    "stored zeros": _with_stored_zeros,
    "COO": scipy.sparse.coo_array,
    "LIL": scipy.sparse.lil_array,
}


@pytest.mark.parametrize("make", ["csr_array", "csc_array"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_sparse_rows_means_the_same(kind, make):
    plain = MAKES[make](COUNTS)
    S = KINDS[kind](plain)
    if kind == "stored zeros":
        assert S.nnz == N * D
    if kind == "duplicate entries":
        assert S.nnz == 2 * plain.nnz
    one, other = _vae(likelihood="gaussian").fit(S), _vae(likelihood="gaussian").fit(plain)
    codes = one.transform(S)
    assert codes.dtype == (np.float32 if kind == "float32" else np.float64)
    rtol = 1e-5 if kind == "float32" else 1e-9
    assert_allclose(codes, other.transform(COUNTS), rtol=rtol, atol=rtol)
    assert_allclose(one.score_samples(S), other.score_samples(COUNTS), rtol=1e-9)


@pytest.mark.parametrize("kind", ["unsorted", "duplicate entries", "stored zeros"])
def test_the_input_is_not_changed(kind):
    S = KINDS[kind](csr_array(COUNTS))
    before = [part.copy() for part in (S.data, S.indices, S.indptr)]
    vae = _vae(max_iter=1).fit(S)
    vae.partial_fit(S).score_samples(S)
    vae.transform(S)
    for part, expected in zip((S.data, S.indices, S.indptr), before, strict=True):
        assert_array_equal(part, expected)


def test_read_only_rows_are_taken():
    S = csr_array(COUNTS)
    for part in (S.data, S.indices, S.indptr):
        part.flags.writeable = False
    assert np.isfinite(_vae(max_iter=1).fit(S).score(S))


# -- trained models -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=TABLES)
def trained(request):
    """Trained, away from the linear start; not to be changed."""
    vae = _vae(likelihood=request.param, max_iter=5, early_stopping=False, learning_rate_init=0.01)
    return vae.fit(csr_array(TABLES[request.param])), TABLES[request.param]


@pytest.mark.parametrize("make", MAKES)
def test_a_trained_model_says_the_same_of_sparse_and_of_dense_rows(make, trained):
    vae, X = trained
    _assert_same_model(vae, MAKES[make](X), vae, X, rtol=1e-10)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("make", ["csr_array", "csc_matrix"])
def test_the_columns_scores_are_those_of_the_dense_rows(make, holes, trained):
    vae, X = trained
    X = _with_holes(X) if holes else X
    parts = vae.score_features(MAKES[make](X))
    assert_allclose(parts, vae.score_features(X), rtol=1e-10)
    nothing = np.isnan(X) | (X == 0.0) if vae.likelihood_[0] == "multinomial" else np.isnan(X)
    assert ((parts == 0.0) == nothing).all()


def test_a_row_alone_has_the_score_that_it_has_among_others(trained):
    vae, X = trained
    S = csr_array(X)
    alone = [vae.score_samples(S[[row]])[0] for row in range(10)]
    assert_allclose(alone, vae.score_samples(S)[:10], rtol=1e-9)


def test_counts_are_trained_on_as_if_they_were_dense():
    # Their encoding does not depend on how they are stored, as nothing is centred.
    params = {"likelihood": "poisson", "max_iter": 3}
    _assert_same_model(
        _vae(**params).fit(csr_array(COUNTS)), COUNTS, _vae(**params).fit(COUNTS), COUNTS, 1e-4
    )


@pytest.mark.parametrize("noise", ["shared", "per_column"])
@pytest.mark.parametrize("weighted", [False, True])
def test_training_by_stored_cells_is_training_on_filled_rows(noise, weighted, monkeypatch):
    X = csr_array(TABLES["gaussian"] * (np.random.default_rng(1).random((N, D)) < 0.2))
    weight = np.random.default_rng(2).uniform(0.5, 2.0, size=N) if weighted else None
    vae = _vae(max_iter=5, noise=noise, precision="float64", likelihood="gaussian")
    monkeypatch.setattr(skvae._training.sparse_gradient, "FULL", 0.0)
    filled = clone(vae).fit(X, sample_weight=weight)
    monkeypatch.setattr(skvae._training.sparse_gradient, "MANY", 0)
    used, pays = [], skvae._training.loop.pays
    monkeypatch.setattr(skvae._training.sparse_gradient, "FULL", 1.0)
    monkeypatch.setattr(
        skvae._training.loop, "pays", lambda *args: used.append(pays(*args)) or used[-1]
    )
    by_stored = clone(vae).fit(X, sample_weight=weight)
    assert used
    assert all(used)
    assert_allclose(by_stored.loss_curve_, filled.loss_curve_, rtol=1e-9)
    _assert_same_model(by_stored, X, filled, X, rtol=1e-6)


def _wide(rng):
    """Rows that train by their stored cells by default."""
    return scipy.sparse.random(400, 520, 0.01, "csr", random_state=rng)


def test_columns_far_from_zero_train_on_filled_rows(monkeypatch):
    # Of stored cells alone x^2 - 2 x raw + raw^2 would cancel all digits of float32.
    rng = np.random.default_rng(0)
    X = _wide(rng).tolil()
    X[:, :6] = 1e4 + rng.normal(size=(400, 6))
    X, vae = X.tocsr(), _vae(max_iter=3, likelihood="gaussian", early_stopping=False)
    found = clone(vae).fit(X)
    monkeypatch.setattr(skvae._training.sparse_gradient, "FULL", 0.0)
    assert found.loss_curve_ == clone(vae).fit(X).loss_curve_


@pytest.mark.parametrize("way", ["partial_fit", "warm_start"])
def test_later_rows_may_miss_what_the_first_ones_did_not(way):
    X = _wide(np.random.default_rng(0))
    holed = X.copy()
    holed.data[5] = np.nan
    vae = _vae(max_iter=2, likelihood="gaussian", early_stopping=False, warm_start=True)
    fit = vae.partial_fit if way == "partial_fit" else vae.fit
    fit(X)
    fit(holed)
    assert np.isfinite(vae.loss_curve_).all()


def test_training_raises_the_bound():
    vae = _vae(likelihood="poisson", max_iter=20, early_stopping=False).fit(csr_array(COUNTS))
    start = _vae(likelihood="poisson").fit(csr_array(COUNTS))
    bounds = [one.score_samples(COUNTS, method="elbo").mean() for one in (start, vae)]
    assert bounds[0] < bounds[1]


def test_partial_fit_takes_sparse_rows_first_and_later():
    S = csr_array(COUNTS)
    vae, dense = _vae(likelihood="poisson"), _vae(likelihood="poisson")
    for part in (slice(None, 100), slice(100, None)):
        vae.partial_fit(S[part])
        dense.partial_fit(COUNTS[part])
    _assert_same_model(vae, S, dense, COUNTS, rtol=1e-4)
    vae.partial_fit(COUNTS).partial_fit(csc_array(COUNTS))
    assert vae.n_iter_ == 4 and np.isfinite(vae.score(S))


def test_a_linear_gaussian_partial_fit_goes_on_from_sparse_to_dense_rows():
    S = csr_array(TABLES["gaussian"])
    one = _vae(likelihood="gaussian").partial_fit(S)
    other = _vae(likelihood="gaussian").partial_fit(S)
    one.partial_fit(S)
    other.partial_fit(S.toarray())
    _assert_same_model(one, S, other, S, rtol=1e-4)


# -- missing values, weights and duplicates -------------------------------------------------------


def _with_holes(X, share=0.15):
    return np.where(np.random.default_rng(1).uniform(size=X.shape) < share, np.nan, X)


@pytest.mark.parametrize("make", MAKES)
def test_a_stored_nan_is_a_missing_value_and_a_cell_that_is_not_stored_is_zero(make, trained):
    vae, X = trained
    H = _with_holes(X)
    S = MAKES[make](H)
    assert S.nnz < H.size and np.isnan(S.data).any()
    _assert_same_model(vae, S, vae, H, rtol=1e-10)


@pytest.mark.parametrize("likelihood", ["poisson", "bernoulli"])
def test_a_model_of_rows_with_missing_values_is_that_of_the_dense_ones(likelihood):
    H = _with_holes(TABLES[likelihood])
    S = csr_array(H)
    params = {"likelihood": likelihood}
    _assert_same_model(_vae(**params).fit(S), S, _vae(**params).fit(H), H)


@pytest.mark.parametrize("max_iter", [0, 3])
@pytest.mark.parametrize("likelihood", TABLES)
def test_weighting_a_sparse_row_is_repeating_it(likelihood, max_iter):
    X = TABLES[likelihood][:60]
    weight = np.random.default_rng(0).integers(0, 4, len(X))
    params = {"likelihood": likelihood, "max_iter": max_iter}
    weighted = _vae(**params).fit(csr_array(X), sample_weight=weight.astype(float))
    order = np.random.default_rng(1).permutation(weight.sum())
    repeated = _vae(**params).fit(csr_array(np.repeat(X, weight, axis=0)[order]))
    _assert_same_model(weighted, X, repeated, X, rtol=1e-9)


@pytest.mark.parametrize("holes", [False, True])
def test_duplicates_are_merged_as_the_dense_ones(holes):
    X = np.repeat(_with_holes(COUNTS) if holes else COUNTS, 2, axis=0)
    X = np.concatenate([X, X[:7]])
    weight = np.random.default_rng(2).uniform(size=len(X))
    merged = [skvae._table.duplicates.merged(rows, weight) for rows in (csr_array(X), X)]
    (sparse_rows, sparse_weight, n_copies), (rows, dense_weight, copies) = merged
    assert copies.sum() == len(X)  # such weights are no counts: rows are
    assert_array_equal(n_copies, copies)
    assert len(rows) == len(np.unique(np.nan_to_num(X, nan=-1.0), axis=0)) < len(X) / 2
    assert_array_equal(sparse_rows.toarray(), rows)
    assert_array_equal(sparse_weight, dense_weight)


# -- what is refused ------------------------------------------------------------------------------


def _with_cell(row, column, value):
    X = TABLES["poisson"] + 1.0
    X[row, column] = value
    return csr_array(X)


BAD_CELLS = {
    "log_normal": (0.0, "needs positive numbers; row 17 holds 0.0"),
    "poisson": (-2.5, "needs non-negative integers; row 17 holds -2.5"),
    "negative_binomial": (1.5, "needs non-negative integers; row 17 holds 1.5"),
}


@pytest.mark.parametrize("likelihood", BAD_CELLS)
def test_a_cell_that_its_likelihood_does_not_admit_is_named_with_column_and_row(likelihood):
    value, message = BAD_CELLS[likelihood]
    S = _with_cell(17, 4, value)
    with pytest.raises(ValueError, match=f"Column 4 .likelihood='{likelihood}'. {message}"):
        _vae(likelihood=likelihood).fit(S)


@pytest.mark.parametrize("likelihood", BAD_CELLS)
def test_a_new_cell_that_its_likelihood_does_not_admit_is_named_as_well(likelihood):
    value, message = BAD_CELLS[likelihood]
    S = _with_cell(17, 4, value)
    vae = _vae(likelihood=likelihood).fit(_with_cell(17, 4, 3.0))
    for method in (vae.score_samples, vae.transform, vae.partial_fit):
        with pytest.raises(ValueError, match=f"Column 4 .likelihood='{likelihood}'. {message}"):
            method(S)


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", ["gaussian", "poisson", "bernoulli"])
@pytest.mark.parametrize("max_iter", [0, 1])
def test_no_more_cells_than_a_chunk_or_a_sample_of_rows_are_ever_dense(
    likelihood, max_iter, monkeypatch
):
    chunk, largest = 2**14, []
    monkeypatch.setattr(skvae._table.statistics, "CHUNK_CELLS", chunk)
    monkeypatch.setattr(skvae._fitting, "CHUNK_CELLS", chunk)
    for numbers in ("CHUNK_NUMBERS", "ONE_PASS"):
        monkeypatch.setattr(skvae._inference.scores, numbers, 4 * chunk)
    for make in (csr_array, csr_matrix):
        dense = make.toarray

        def recorded(self, *args, dense=dense, **kwargs):
            largest.append(self.shape[0] * self.shape[1])
            return dense(self, *args, **kwargs)

        monkeypatch.setattr(make, "toarray", recorded)
    X = scipy.sparse.random_array((700, 300), density=0.05, format="csr", rng=0)
    X.data[:] = 1.0 if likelihood == "bernoulli" else np.ceil(3.0 * X.data)
    vae = _vae(likelihood=likelihood, max_iter=max_iter, batch_size=32).fit(X)
    vae.score_samples(X[:30])
    vae.partial_fit(X).transform(X)
    assert 0 < max(largest) <= 4 * chunk < 700 * 300


PEAK = """
import resource, sys, warnings
import scipy.sparse
from skvae import VAETransformer

warnings.simplefilter("ignore")
n_columns, *sizes = map(int, sys.argv[1:])
for n_rows in sizes:
    X = scipy.sparse.random_array((n_rows, n_columns), density=0.01, format="csr", rng=0)
    vae = VAETransformer(hidden_layer_sizes=(8,), max_iter=1, early_stopping=False, random_state=0)
    vae.fit(X)
    size = X.data.nbytes + X.indices.nbytes + X.indptr.nbytes
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, size)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in kB on Linux")
def test_a_fit_needs_no_more_memory_than_three_times_the_sparse_rows():
    # An eighth of 4,000 x 20,000, for time: there 26 MB beyond a fit of 211 rows, for rows of 9 MB
    # (dense: 640 MB). The few rows are as many as the samples that a fit looks at, so that these
    # cancel; they come first, so what they leave counts for the many. Large arrays go back to the
    # system at once, so that a peak is one.
    n_rows, n_columns = 2000, 5000
    n_few = len(some_rows(np.zeros((n_rows, 1)), n_columns))
    large = {f"MALLOC_{name}_THRESHOLD_": str(2**20) for name in ("MMAP", "TRIM")}
    environment = {**os.environ, **large, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PEAK, *map(str, (n_columns, n_few, n_rows))]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    (least, _), (most, size) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert size < n_rows * n_columns * 8 / 60
    assert most - least < 3 * size, (most - least) / size
