"""Columns become standardised ones and come back; what shares one unit is told from a table."""

from functools import partial

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

from skvae import VAETransformer
from skvae._columns import (
    CHUNK_ROWS,
    check_numbers,
    first_outside,
    fit_columns,
    robust_units,
    row_chunks,
    share_one_unit,
)

SCALES = 10.0 ** np.arange(-8.0, 9.0)
SCALINGS = ["columns", "common", None]
each_scaling = pytest.mark.parametrize("scaling", SCALINGS)


def _rows(n_rows=60, seed=0):
    """One column for each scale, and an offset as large as the spread."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n_rows, len(SCALES))) + 1.0) * SCALES


def _columns(X, scaling="columns", weight=None, standardised=True):
    return fit_columns(X, np.ones(len(X)) if weight is None else weight, scaling, standardised)


# -- there and back -------------------------------------------------------------------------------


@each_scaling
def test_decode_takes_encode_back(scaling):
    X = _rows()
    columns = _columns(X, scaling)
    back = columns.decode(columns.encode(X))
    assert (np.abs(back - X) <= 1e-14 * np.abs(X).max(0)).all()


def test_each_column_is_standardised_whatever_its_scale():
    x = _columns(X := _rows()).encode(X)
    np.testing.assert_allclose(x.mean(0), 0.0, atol=1e-13)
    np.testing.assert_allclose(x.std(0), 1.0, rtol=1e-13)


def test_a_common_scale_keeps_the_ratios_of_the_columns():
    X = _rows()[:, 7:10]
    columns = _columns(X, "common")
    assert np.ptp(columns.scale) == 0.0
    assert np.sqrt(columns.encode(X).var(0).mean()) == pytest.approx(1.0)


def test_no_scaling_only_centres():
    X = _rows()
    columns = _columns(X, None)
    assert (columns.scale == 1.0).all()
    np.testing.assert_allclose(columns.shift, X.mean(0), rtol=1e-13)
    assert columns.rms == pytest.approx(np.sqrt(X.var(0).mean()))


def test_columns_that_are_not_to_be_standardised_stay_as_they_are():
    X = _rows()
    columns = _columns(X, "columns", standardised=False)
    np.testing.assert_array_equal(columns.encode(X), X)
    assert (columns.log_jacobian == 0.0).all()


CONSTANTS = [0.0, 0.1, -0.3, 1.0, 1e-8, 1e8 + 0.3, 1e-300, 255.0, 1 / 3]


@pytest.mark.parametrize("constant", CONSTANTS)
@pytest.mark.parametrize("n_rows", [1, 7, 1000, CHUNK_ROWS + 1])
def test_a_constant_column_is_known_as_one_and_comes_back(constant, n_rows):
    # A tenth has no exact binary form, so its mean and its variance may be off by a rounding.
    X = np.c_[np.full(n_rows, constant), np.arange(n_rows)]
    columns = _columns(X)
    x = columns.encode(X)
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
    assert (columns.encode(X) == 0.0).all()


@each_scaling
def test_log_jacobian_is_the_log_derivative_of_encode(scaling):
    X = _rows()
    columns = _columns(X, scaling)
    step = np.maximum(columns.scale, SCALES)
    slope = (columns.encode(X + step) - columns.encode(X - step)) / (2.0 * step)
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
    x = columns.encode(X)
    assert x.dtype == np.float64
    np.testing.assert_array_equal(x, expected.encode(X.astype(float)))


def test_differences_of_small_unsigned_numbers_do_not_wrap_round():
    X = np.array([[0], [255], [3]], dtype=np.uint8)
    assert _columns(X).encode(X)[0, 0] < 0.0


# It is told once: not by NumPy as well.
told_once = pytest.mark.filterwarnings("error")


@told_once
@pytest.mark.parametrize("scaling", ["columns", "common", None, "auto"])
def test_a_variance_that_overflows_names_the_column(scaling):
    X = np.ones((5, 4))
    X[:, 2] = 1e200 * np.arange(5)
    message = "values of column 2 are too large: .*largest is 4e\\+200; use another unit"
    with pytest.raises(ValueError, match=message):
        _columns(X, scaling)


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


# (cells set to 2, the first of them in reading order)
OUTSIDE = [
    ([], None),
    ([(0, 0)], (0, 0)),
    ([(3, 2), (3, 1), (4, 0)], (3, 1)),
    ([(CHUNK_ROWS, 1)], (CHUNK_ROWS, 1)),
    ([(CHUNK_ROWS + 5, 0), (CHUNK_ROWS - 1, 2)], (CHUNK_ROWS - 1, 2)),
]


@pytest.mark.parametrize(("cells", "first"), OUTSIDE)
def test_the_first_cell_outside_is_found(cells, first):
    X = np.zeros((CHUNK_ROWS + 10, 3))
    for cell in cells:
        X[cell] = 2.0
    assert first_outside(X, 0.0, 1.0) == first


def test_the_limits_themselves_are_inside_and_nan_is_not():
    X = np.array([[0.0, 1.0], [0.5, np.nan]])
    assert first_outside(X[:1], 0.0, 1.0) is None
    assert first_outside(X, 0.0, 1.0) == (1, 1)
    assert first_outside(X[:1], -np.inf, np.inf) is None


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float32, np.float64])
def test_numbers_are_numbers(dtype):
    check_numbers(np.zeros((2, 2), dtype))


@pytest.mark.parametrize("dtype", ["M8[s]", "m8[s]", "U3", "O", "complex128"])
def test_what_is_no_number_is_named_by_its_dtype(dtype):
    X = np.zeros((2, 2)).astype(dtype)
    with pytest.raises(ValueError, match=r"X must hold numbers; its dtype is .*into numbers first"):
        check_numbers(X)
