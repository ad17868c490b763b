"""Columns become standardised ones and come back; what shares one unit is told from a table."""

import re
import warnings
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.sparse import csr_array
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

from skvae import VAETransformer
from skvae._table.automatic import Look
from skvae._table.column import raw_objects
from skvae._table.columns import fit_columns
from skvae._table.statistics import (
    CACHE_CELLS,
    CHUNK_CELLS,
    CHUNK_ROWS,
    COVARIANCE_AT_ONCE,
    heavy_tailed,
    may_be_wild,
    measure,
    quartiles,
    robust_units,
    row_chunks,
    share_one_unit,
    two_valued,
    wild_among,
)
from skvae._table.support import Kinds, Limits, Support

SCALES = 10.0 ** np.arange(-8.0, 9.0)
SCALINGS = ["columns", "common", None]
each_scaling = pytest.mark.parametrize("scaling", SCALINGS)


def _rows(n_rows=60, seed=0):
    """One column for each scale, and an offset as large as the spread."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n_rows, len(SCALES))) + 1.0) * SCALES


def _columns(X, scaling="columns", weight=None, units="location_scale"):
    n_rows, n = X.shape
    moments = measure(X, np.ones(n_rows) if weight is None else weight, n * ["x"])
    shared = share_one_unit(X) if scaling == "auto" else False
    units = n * [units] if isinstance(units, str) else units
    supports = tuple(Support(-np.inf, np.inf, "numbers", unit) for unit in units)
    names, automatic = tuple(n * ["gaussian"]), np.zeros(n, dtype=bool)
    kinds = Kinds(names, names, supports, automatic, True, tuple(n * [0]))
    return fit_columns(X, Look(moments, shared, n * ["number"]), kinds, scaling)


def _encoded(columns, X):
    """Rows without missing cells."""
    x, observed = columns.encode(X)
    assert observed is None
    return x


# -- there and back -------------------------------------------------------------------------------


@each_scaling
def test_decode_takes_encode_back(scaling):
    X = _rows()
    columns = _columns(X, scaling)
    back = columns.decode(_encoded(columns, X))
    assert (np.abs(back - X) <= 1e-14 * np.abs(X).max(0)).all()


def test_each_column_is_standardised_whatever_its_scale():
    x = _encoded(_columns(X := _rows()), X)
    np.testing.assert_allclose(x.mean(0), 0.0, atol=1e-13)
    np.testing.assert_allclose(x.std(0), 1.0, rtol=1e-13)


def test_a_common_scale_keeps_the_ratios_of_the_columns():
    X = _rows()[:, 7:10]
    columns = _columns(X, "common")
    assert np.ptp(columns.scale) == 0.0
    assert np.sqrt(_encoded(columns, X).var(0).mean()) == pytest.approx(1.0)


def test_no_scaling_only_centres():
    X = _rows()
    columns = _columns(X, None)
    assert (columns.scale == 1.0).all()
    np.testing.assert_allclose(columns.shift, X.mean(0), rtol=1e-13)
    assert columns.rms == pytest.approx(np.sqrt(X.var(0).mean()))


def test_columns_that_are_not_to_be_standardised_stay_as_they_are():
    X = _rows()
    columns = _columns(X, "columns", units="none")
    np.testing.assert_array_equal(_encoded(columns, X), X)
    assert (columns.log_jacobian == 0.0).all()


CONSTANTS = [0.0, 0.1, -0.3, 1.0, 1e-8, 1e8 + 0.3, 1e-300, 255.0, 1 / 3]


@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("n_rows", [1, 7, 1000, CHUNK_ROWS + 1])
def test_a_constant_column_is_known_as_one_and_comes_back(constant, n_rows):
    # A tenth has no exact binary form, so its mean and its variance may be off by a rounding.
    X = np.c_[np.full(n_rows, constant), np.arange(n_rows)]
    columns = _columns(X)
    x = _encoded(columns, X)
    assert columns.scale[0] == 1.0
    assert np.abs(x[:, 0]).max() <= 1e-12 * abs(constant)
    np.testing.assert_allclose(columns.decode(x)[:, 0], constant, rtol=1e-12)
    assert not columns.varies[0]
    assert columns.varies[1] == (n_rows > 1)


@each_scaling
def test_constant_columns_alone_are_no_division_by_zero(scaling):
    X = np.full((5, 3), 2.0)
    columns = _columns(X, scaling)
    assert (columns.scale == 1.0).all() and not columns.varies.any()
    assert (_encoded(columns, X) == 0.0).all()


@each_scaling
def test_log_jacobian_is_the_log_derivative_of_encode(scaling):
    X = _rows()
    columns = _columns(X, scaling)
    step = np.maximum(columns.scale, SCALES)
    slope = (_encoded(columns, X + step) - _encoded(columns, X - step)) / (2.0 * step)
    np.testing.assert_allclose(
        np.broadcast_to(columns.log_jacobian, X.shape), np.log(slope), atol=1e-9
    )


@each_scaling
def test_weights_count_as_repetitions(scaling):
    X = _rows(20)
    times = np.random.default_rng(1).integers(0, 4, len(X))
    weighted = _columns(X, scaling, times.astype(float))
    repeated = _columns(np.repeat(X, times, axis=0), scaling)
    np.testing.assert_allclose(weighted.shift, repeated.shift, rtol=1e-12)
    np.testing.assert_allclose(weighted.scale, repeated.scale, rtol=1e-12)
    assert weighted.rms == pytest.approx(repeated.rms, rel=1e-12)


def test_statistics_are_those_of_all_chunks_together():
    X = np.random.default_rng(0).normal(size=(2 * CHUNK_ROWS + 1, 2))
    X[CHUNK_ROWS:] += 50.0
    columns = _columns(X)
    np.testing.assert_allclose(columns.shift, X.mean(0), rtol=1e-12)
    np.testing.assert_allclose(columns.scale, X.std(0), rtol=1e-12)


def test_a_spread_is_found_on_top_of_a_huge_offset():
    X = 1e8 + np.random.default_rng(0).normal(size=(300, 2))
    np.testing.assert_allclose(_columns(X).scale, (X - 1e8).std(0), rtol=1e-6)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.float32])
def test_other_dtypes_are_encoded_as_the_float64_that_they_equal(dtype):
    X = np.random.default_rng(0).integers(0, 2 if dtype is bool else 200, (50, 3)).astype(dtype)
    X[0] = X.max(0)
    columns, expected = _columns(X), _columns(X.astype(float))
    np.testing.assert_array_equal(columns.shift, expected.shift)
    np.testing.assert_array_equal(columns.scale, expected.scale)
    x = _encoded(columns, X)
    assert x.dtype == np.float64
    np.testing.assert_array_equal(x, _encoded(expected, X.astype(float)))


def test_differences_of_small_unsigned_numbers_do_not_wrap_round():
    X = np.array([[0], [255], [3]], dtype=np.uint8)
    assert _encoded(_columns(X), X)[0, 0] < 0.0


# It is told once: not by NumPy as well.
told_once = pytest.mark.filterwarnings("error")


@told_once
@pytest.mark.parametrize("make", [np.asarray, csr_array, lambda X: np.where(X == 1.0, np.nan, X)])
def test_a_variance_that_overflows_names_the_column(make):
    X = np.ones((5, 4))
    X[:, 2] = 1e200 * np.arange(5)
    message = "values of column 2 are too large: .*largest is 4e\\+200; use another unit"
    with pytest.raises(ValueError, match=message):
        measure(make(X), np.ones(5), [str(n) for n in range(X.shape[1])])


@told_once
def test_a_variance_that_overflows_names_the_column_of_a_frame():
    pandas = pytest.importorskip("pandas")
    X = np.random.default_rng(0).normal(size=(20, 3)) * [1.0, 1e200, 1.0]
    with pytest.raises(ValueError, match="values of column 'visits' are too large"):
        VAETransformer(1).fit(pandas.DataFrame(X, columns=["a", "visits", "c"]))


# -- one unit or many -----------------------------------------------------------------------------


def _spectra():
    """Sums of a few broad peaks, at 40 wavelengths."""
    rng = np.random.default_rng(0)
    at, peaks = np.linspace(0.0, 1.0, 40), np.linspace(0.0, 1.0, 6)
    shapes = np.exp(-0.5 * ((at - peaks[:, None]) / 0.08) ** 2)
    return rng.uniform(size=(100, 6)) @ shapes


SIGNALS = {
    "digits": lambda shared: load_digits().data,
    "digits, integers": lambda shared: load_digits().data.astype(np.uint8),
    "digits, grey values in [0, 1]": lambda shared: load_digits().data / 16.0,
    "spectra": lambda shared: _spectra(),
    "mnist": lambda shared: shared.load("mnist")[0][:3000],
    "frey_faces": lambda shared: shared.load("frey_faces")[0],
}
TABLES = {
    "wine": lambda shared: load_wine().data,
    "breast_cancer": lambda shared: load_breast_cancer().data,
    "iris": lambda shared: load_iris().data,
    "independent uniform columns": lambda shared: np.random.default_rng(0).uniform(size=(200, 20)),
    **{
        name: partial(lambda name, shared: shared.load(name)[0][:20_000], name)
        for name in (
            "shuttle_full",
            "olive",
            "adb_donors",
            "adb_thyroid",
            "adb_pageblocks",
            "adb_cardio",
        )
    },
}


# -- missing and sparse cells ---------------------------------------------------------------------


def _with_holes(X, share=0.3, seed=1):
    holes = np.random.default_rng(seed).uniform(size=X.shape) < share
    return np.where(holes, np.nan, X)


@pytest.mark.parametrize("n_rows", [60, CHUNK_ROWS + 7])
def test_statistics_are_those_of_the_observed_cells(n_rows):
    X = _with_holes(_rows(n_rows))
    X[:, 3] = np.nan
    moments = measure(X, np.ones(n_rows), X.shape[1] * ["x"])
    seen = ~np.isnan(X)
    seen[:, 3] = False
    for column in range(X.shape[1]):
        cells = X[seen[:, column], column]
        if len(cells):
            assert moments.mean[column] == pytest.approx(cells.mean(), rel=1e-12)
            assert moments.variance[column] == pytest.approx(cells.var(), rel=1e-12)
    assert (moments.mean[3], moments.variance[3], moments.scale[3]) == (0.0, 0.0, 1.0)
    np.testing.assert_array_equal(moments.n_missing, np.isnan(X).sum(0))


@each_scaling
@pytest.mark.parametrize("units", ["location_scale", "scale", "none"])
def test_missing_cells_are_told_and_filled_with_what_is_admissible(scaling, units):
    X = np.abs(_with_holes(_rows())) + 1e-9
    X[:, 0] = np.nan
    columns = _columns(X, scaling, units=units)
    x, observed = columns.encode(X)
    np.testing.assert_array_equal(observed, ~np.isnan(X))
    assert (x[np.isnan(X)] == (1.0 if units == "scale" else 0.0)).all()
    np.testing.assert_allclose(columns.decode(x)[observed], X[observed], rtol=1e-12)
    np.testing.assert_array_equal(columns.may_miss, np.isnan(X).any(0))
    assert not columns.varies[0] and columns.varies[1:].all()


def test_columns_that_are_only_scaled_are_divided_by_their_geometric_mean():
    X = np.exp(_with_holes(np.random.default_rng(0).normal(3.0, 2.0, (200, 3))))
    x, observed = _columns(X, units="scale").encode(X)
    log_mean = np.where(observed, np.log(x), 0.0).sum(0) / observed.sum(0)
    np.testing.assert_allclose(log_mean, 0.0, atol=1e-12)


def test_each_columns_likelihood_says_what_is_done_to_it():
    X = np.abs(_rows()[:, 5:8]) + 1e-3
    columns = _columns(X, units=["none", "location_scale", "scale"])
    assert (columns.shift[[0, 2]] == 0.0).all() and columns.scale[0] == 1.0
    assert columns.shift[1] == pytest.approx(X[:, 1].mean())
    assert columns.scale[2] == pytest.approx(np.exp(np.log(X[:, 2]).mean()))


@each_scaling
@pytest.mark.parametrize("holes", [0.0, 0.2])
def test_sparse_columns_are_scaled_as_dense_ones_and_not_moved(scaling, holes):
    rng = np.random.default_rng(0)
    X = _with_holes(_rows() * (rng.uniform(size=(60, len(SCALES))) < 0.4), holes)
    dense, sparse = _columns(X, scaling), _columns(csr_array(X), scaling)
    np.testing.assert_allclose(sparse.scale, dense.scale, rtol=1e-9)
    assert (sparse.shift == 0.0).all()
    np.testing.assert_array_equal(sparse.may_miss, dense.may_miss)
    x, observed = sparse.encode(csr_array(X))
    expected, expected_observed = sparse.encode(X)
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(observed, expected_observed)


# (column, whether it holds 0 and 1 alone, and both)
TWO_VALUED = [
    ([0.0, 1.0, 1.0], True),
    ([0.0, 1.0, np.nan], True),
    ([0.0, 0.0, 0.0], False),
    ([1.0, 1.0, np.nan], False),
    ([np.nan, np.nan, np.nan], False),
    ([0.0, 1.0, 2.0], False),
    ([0.0, 1.0, 0.5], False),
    ([-1.0, 1.0, 1.0], False),
]


@pytest.mark.parametrize("make", [np.asarray, csr_array])
def test_columns_of_0_and_1_are_found(make):
    X = np.array([column for column, _ in TWO_VALUED]).T
    expected = [is_two_valued for _, is_two_valued in TWO_VALUED]
    assert two_valued(make(X)).tolist() == expected
    # Also where 0 and 1 stand in different chunks.
    many = np.concatenate([np.zeros((CHUNK_ROWS, X.shape[1])), X])
    ones = [str(column) == "[1.0, 1.0, nan]" for column, _ in TWO_VALUED]
    assert two_valued(make(many)).tolist() == np.logical_or(expected, ones).tolist()


@pytest.mark.parametrize("name", SIGNALS)
def test_signals_share_one_unit(name, shared):
    X = SIGNALS[name](shared)
    assert share_one_unit(X)
    assert _columns(X, "auto").scaling == "common"


@pytest.mark.parametrize("name", TABLES)
def test_the_columns_of_a_table_do_not(name, shared):
    X = TABLES[name](shared)
    assert not share_one_unit(X)
    assert _columns(X, "auto").scaling == "columns"


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_decide_so_shuffled_pixels_are_a_table(seed):
    X = load_digits().data
    assert not share_one_unit(X[:, np.random.default_rng(seed).permutation(X.shape[1])])
    assert share_one_unit(X[:, ::-1])


def test_a_signal_next_to_a_column_of_another_range_is_a_table():
    X = load_digits().data
    assert not share_one_unit(np.c_[X, 1e4 * np.random.default_rng(0).normal(size=len(X))])


@pytest.mark.parametrize("shape", [(1, 20), (2, 20), (50, 1), (50, 7)])
def test_too_little_to_tell_is_a_table(shape):
    assert not share_one_unit(np.cumsum(np.random.default_rng(0).normal(size=shape), axis=1))


def test_the_choice_is_told_in_scaling_():
    X = load_digits().data[:100]
    assert VAETransformer(2, max_iter=0).fit(X).scaling_ == "common"
    assert VAETransformer(2, max_iter=0).fit(X[:, :30:6]).scaling_ == "columns"


def test_missing_cells_do_not_hide_the_unit():
    assert share_one_unit(_with_holes(load_digits().data, 0.1))
    assert not share_one_unit(_with_holes(load_wine().data, 0.1))


@pytest.mark.parametrize("n_rows", [1, 2, 3, 4, 5, 8, 101])
@pytest.mark.parametrize("has_holes", [False, True])
def test_quartiles_are_numpys(n_rows, has_holes):
    cells = np.random.default_rng(n_rows).normal(size=(n_rows, 6)).round(1)
    if has_holes and n_rows > 2:
        cells[1, 2] = np.nan
    expected = np.nanquantile(cells, [0.25, 0.5, 0.75], axis=0)
    np.testing.assert_array_equal(quartiles(cells), expected)


@pytest.mark.parametrize("scaling", ["columns", "common", "none"])
def test_robust_units_are_those_of_the_observed_cells(scaling):
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(200, 3))
    x[:150, 0], x[:, 2] = np.nan, np.nan
    center, spread = robust_units(x, scaling)
    expected, _ = robust_units(x[150:, :1], scaling)
    assert center[0] == pytest.approx(expected[0]) and center[2] == 0.0
    assert (spread > 0.0).all() and np.isfinite(spread).all()


# -- the input of the encoder's MLP ---------------------------------------------------------------


def test_robust_units_are_those_of_the_normal_distribution():
    x = np.random.default_rng(0).normal(2.0, 3.0, size=(20_000, 2))
    center, spread = robust_units(x, "columns")
    np.testing.assert_allclose(center, 2.0, atol=0.1)  # 3 * 1.25 / sqrt(10,000) is 0.04
    np.testing.assert_allclose(spread, 3.0, atol=0.15)


def test_one_outlier_does_not_blow_up_the_spread():
    x = np.random.default_rng(0).normal(size=(200, 2))
    clean = robust_units(x, "columns")
    x[17, 1] = 1e9
    center, spread = robust_units(x, "columns")
    np.testing.assert_allclose(center, clean[0], atol=0.05)
    np.testing.assert_allclose(spread, clean[1], rtol=0.05)


@pytest.mark.parametrize("scaling", ["columns", "common", "none"])
@pytest.mark.parametrize("share", [0.0, 0.005, 0.1, 0.3])
def test_a_column_of_mostly_zeros_gets_a_positive_spread(scaling, share):
    x = np.zeros((200, 2))
    x[: round(share * len(x)), 0] = 5.0
    center, spread = robust_units(x, scaling)
    assert np.isfinite(center).all() and (spread > 0.0).all()


def test_columns_of_one_unit_keep_one_spread():
    # A pixel that is rarely lit must not be blown up.
    x = np.random.default_rng(0).normal(size=(100, 3)) * [1.0, 1e-3, 2.0]
    assert np.ptp(robust_units(x, "common")[1]) == 0.0


# -- cells ----------------------------------------------------------------------------------------


def test_chunks_cover_every_row_once():
    for n_rows in (1, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 3 * CHUNK_ROWS):
        covered = np.concatenate([np.arange(n_rows)[chunk] for chunk in row_chunks(n_rows)])
        np.testing.assert_array_equal(covered, np.arange(n_rows))


def test_chunks_of_wide_rows_are_small():
    for width in (1, 1000, 10**6, 10**12):
        for chunk in row_chunks(3 * CHUNK_ROWS, width):
            n_rows = len(range(*chunk.indices(3 * CHUNK_ROWS)))
            assert n_rows <= CHUNK_ROWS and (n_rows == 1 or n_rows * width <= CHUNK_CELLS)


ZERO_TO_ONE = (np.zeros(3), np.ones(3))


@pytest.mark.parametrize("cells", [[], [(0, 0)], [(3, 2), (3, 1), (4, 0)]])
def test_the_cells_outside_are_found(cells):
    X = np.zeros((10, 3))
    for cell in cells:
        X[cell] = 2.0
    found = np.argwhere(Limits(*ZERO_TO_ONE, np.zeros(3, dtype=bool)).outside(X))
    assert {tuple(cell) for cell in found.tolist()} == set(cells)


def test_the_limits_themselves_and_what_is_missing_are_inside():
    X = np.array([[0.0, 1.0, np.nan]])
    assert not Limits(*ZERO_TO_ONE, np.array([False, True, True])).outside(X).any()
    infinite = np.full(3, np.inf)
    assert not Limits(-infinite, infinite, np.zeros(3, dtype=bool)).outside(1e300 * X).any()


def test_whole_numbers_are_asked_for_where_they_are_needed():
    X = np.array([[0.5, 0.5, 1.0], [1e-9, 1e15, 1.0 + 1e-12]])
    limits = (np.full(3, -np.inf), np.full(3, np.inf))
    found = Limits(*limits, np.array([False, True, True])).outside(X)
    assert found.tolist() == [[False, True, False], [False, False, True]]


def test_whether_a_column_is_constant_does_not_depend_on_the_unit_of_the_weights():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(800, 4)) @ rng.normal(size=(4, 4)) + 50.0
    weight = rng.lognormal(size=800)
    one, other = (
        VAETransformer(2, max_iter=0, random_state=0).fit(X, sample_weight=unit * weight)
        for unit in (1e6, 1e13)
    )
    np.testing.assert_allclose(one.transform(X), other.transform(X), rtol=1e-9)
    assert other.model_.columns.varies.all()


def test_a_clock_varies_and_a_column_that_varies_by_rounding_alone_is_named():
    rng = np.random.default_rng(0)
    offset = 1.7e18  # nanoseconds since 1970
    clock, rounding = (
        offset + 1e9 * rng.integers(0, 100, 300),
        offset + 256.0 * rng.integers(0, 2, 300),
    )
    X = np.c_[rng.normal(size=(300, 3)), clock, rounding]
    with pytest.warns(UserWarning, match="Column 4 varies by no more than the rounding of float64"):
        vae = VAETransformer(2, max_iter=1, random_state=0).fit(X)
    assert vae.model_.columns.varies.tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_rows", [2, 60, 3 * CACHE_CELLS // len(SCALES)])
def test_the_covariance_comes_with_the_moments(n_rows, weighted):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, len(SCALES))) @ rng.normal(size=2 * (len(SCALES),)) + 7.0
    weight = rng.integers(1, 4, n_rows).astype(float) if weighted else np.ones(n_rows)
    moments = measure(X, weight, X.shape[1] * ["x"])
    expected = np.cov(X.T, fweights=weight.astype(int), ddof=0)
    np.testing.assert_allclose(moments.covariance, expected, rtol=0, atol=1e-12 * expected.max())
    np.testing.assert_allclose(moments.variance, expected.diagonal(), rtol=1e-12)


def test_of_holes_and_of_very_many_columns_there_is_no_covariance_with_the_moments():
    X = np.random.default_rng(0).normal(size=(20, COVARIANCE_AT_ONCE + 1))
    assert measure(X, np.ones(20), X.shape[1] * ["x"]).covariance is None
    X = X[:, :3]
    assert measure(X, np.ones(20), 3 * ["x"]).covariance is not None
    X[4, 1] = np.nan
    assert measure(X, np.ones(20), 3 * ["x"]).covariance is None


def test_the_mean_of_a_constant_column_is_its_value_to_the_last_bit():
    X = np.full((3 * CHUNK_ROWS + 5, 2), [0.1, 1.0 / 3.0])
    assert measure(X, np.ones(len(X)), ["x", "y"]).mean.tolist() == [0.1, 1.0 / 3.0]


@pytest.mark.parametrize("holes", [0.0, 0.1])
def test_heavy_tails_of_a_column_do_not_depend_on_the_others(holes):
    rng = np.random.default_rng(0)
    X = np.c_[rng.standard_t(1.5, (500, 30)), rng.normal(size=(500, 5)), rng.poisson(0.1, 500)]
    X[:, ::2] = _with_holes(X[:, ::2], holes) if holes else X[:, ::2]
    together = heavy_tailed(X)
    assert together.tolist() == [heavy_tailed(X[:, [n]])[0] for n in range(X.shape[1])]
    assert together[:30].any() and not together[30:].any()


@pytest.mark.parametrize("missing", [False, True])
def test_texts_are_read_as_other_objects_are(missing):
    rng = np.random.default_rng(0)
    texts = [f"level {n}" for n in rng.integers(0, 9, 500)]
    if missing:
        texts = [None if rng.random() < 0.2 else text for text in texts]
    own = raw_objects(texts, "a")
    slow = raw_objects([None if text is None else np.str_(text) for text in texts], "a")
    assert_array_equal(own.places, slow.places)
    assert own.levels == slow.levels and own.kind == slow.kind == "category" and own.guessed
    assert [None if p < 0 else own.levels[p] for p in own.places] == texts


# -- wild values ----------------------------------------------------------------------------------

FAR = "one or a few values that are more than 100 times as far from the median as nearly all others"
UNIT = f"holds {FAR}. They set the column's unit, in which the others hardly differ."
LEFT_OUT = f"holds {FAR}. They are taken as missing, and cost the column's mass of unseen values"
WILD = {
    "one": ([1e6], {}, UNIT),
    "some": ([-1e6, 3e7], {}, UNIT),
    "of a shape": ([1e6], {"likelihood": "normal_scores"}, LEFT_OUT),
}


@pytest.mark.parametrize("make", [np.asarray, csr_array])
@pytest.mark.parametrize("name", WILD)
def test_a_fit_names_columns_whose_unit_a_few_wild_values_would_be(name, make):
    wild, parameters, text = WILD[name]
    X = np.random.default_rng(0).gamma(3.0, size=(300, 3))
    X[: len(wild), 1] = wild
    with pytest.warns(UserWarning, match=re.escape(f"Column 1 {text}")):
        VAETransformer(1, max_iter=0, scaling="columns", **parameters).fit(make(X))


def test_wild_values_in_many_columns_are_said_in_few_warnings():
    X = np.random.default_rng(0).normal(size=(300, 30))
    X[0] = 10.0 ** np.linspace(5, 9, 30)
    with pytest.warns(UserWarning) as told:
        VAETransformer(1, max_iter=0).fit(X)
    assert len(told) <= 5


@pytest.mark.parametrize(
    ("scale", "parameters"),
    [(99.0, {}), (1e6, {"likelihood": "student_t"}), (1e6, {"scaling": None})],
)
def test_a_fit_says_nothing_of_values_that_decide_no_unit(scale, parameters):
    X = np.random.default_rng(0).normal(size=(300, 3))
    X[0, 1] = scale * np.sort(np.abs(X[:, 1] - np.median(X[:, 1])))[-4]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Column 1 holds")
        VAETransformer(1, max_iter=0, **parameters).fit(X)


@pytest.mark.parametrize(("n_rows", "n_wild"), [(25, 1), (60, 1), (110, 2), (210, 3), (2000, 20)])
def test_columns_that_may_be_wild_are_all_that_are(n_rows, n_wild):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, 30))
    X[:n_wild, :20] = 10.0 ** rng.uniform(3.0, 6.0, size=(n_wild, 20))
    X[:, 10:15] = np.where(rng.random((n_rows, 5)) < 0.9, 0.0, X[:, 10:15])
    X[:n_wild, 10:15] = 1e6
    moments = measure(X, np.ones(n_rows), 30 * ["x"])
    wild = [wild_among(*_counted(cells)).any() for cells in X.T]
    assert sum(wild) >= 10 and not any(wild[20:])
    assert may_be_wild(moments, n_rows)[wild].all()


def _counted(cells):
    values, counts = np.unique(cells, return_counts=True)
    return values, counts.astype(float)
