"""The imputer: what is observed stays, what is missing is what the model says given the rest."""

import pickle
import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.sparse import csc_array, csr_array, csr_matrix
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from skvae import VAEImputer, VAETransformer
from skvae._parameters import density_noise

pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:(.|\n)*(inactive|its floor|importance weight):UserWarning"),
]

N = 60


def _vae(**params):
    small = {"n_components": 2, "hidden_layer_sizes": (8,), "max_iter": 0, "random_state": 0}
    return VAETransformer(**small | params)


def _imputer(vae=None, **params):
    return VAEImputer(_vae() if vae is None else vae, **{"random_state": 0} | params)


def _holes(shape, share=0.2, seed=1):
    return np.random.default_rng(seed).uniform(size=shape) < share


def _numbers(dtype=float, missing=np.nan):
    """Rows of four columns with a common factor; a fifth of the cells is missing."""
    rng = np.random.default_rng(0)
    X = 20.0 + 4.0 * rng.normal(size=(N, 1)) + rng.normal(size=(N, 4))
    return np.where(_holes(X.shape), missing, np.rint(X) if dtype is int else X).astype(dtype)


def _without(values, every):
    return [None if row % 7 == every else value for row, value in enumerate(values)]


NUMBERS = np.random.default_rng(3).normal(10.0, 3.0, N).tolist()
COUNTS = np.random.default_rng(4).integers(0, 200, N).tolist()
BITS = [value > 10.0 for value in NUMBERS]
LETTERS = ["b" if bit else "a" for bit in BITS]
ORDERED = pandas.CategoricalDtype(["unused", "b", "a"], ordered=True)


def _pandas():
    """Every kind of column, in each of which another seventh is missing; rows have names."""
    columns = {
        "float64": pandas.Series(_without(NUMBERS, 0), dtype="float64"),
        "float32": pandas.Series(_without(NUMBERS, 1), dtype="float32"),
        "Float64": pandas.Series(_without(NUMBERS, 2), dtype="Float64"),
        "Int16": pandas.Series(_without(COUNTS, 3), dtype="Int16"),
        "boolean": pandas.Series(_without(BITS, 4), dtype="boolean"),
        "string": pandas.Series(_without(LETTERS, 5), dtype="string"),
        "object": pandas.Series(_without(LETTERS, 6), dtype=object),
        "object of booleans": pandas.Series(_without(BITS, 0), dtype=object),
        "category": pandas.Series(_without(LETTERS, 1), dtype="category"),
        "ordered": pandas.Series(_without(LETTERS, 2), dtype=ORDERED),
        "arrow": pandas.Series(_without(NUMBERS, 3), dtype="double[pyarrow]"),
        "complete": pandas.Series(COUNTS, dtype="uint8"),
        "complete category": pandas.Series(LETTERS, dtype="category"),
    }
    frame = pandas.DataFrame(columns)
    frame.index = pandas.Index([f"row {row}" for row in range(N)], name="rows")
    return frame


def _polars():
    columns = {
        "Float64": polars.Series(_without(NUMBERS, 0)),
        "nan": polars.Series([np.nan if v is None else v for v in _without(NUMBERS, 1)]),
        "Float32": polars.Series(_without(NUMBERS, 2), dtype=polars.Float32),
        "Int16": polars.Series(_without(COUNTS, 3), dtype=polars.Int16),
        "Boolean": polars.Series(_without(BITS, 4)),
        "String": polars.Series(_without(LETTERS, 5)),
        "Categorical": polars.Series(_without(LETTERS, 6), dtype=polars.Categorical),
        "Enum": polars.Series(_without(LETTERS, 0), dtype=polars.Enum(["unused", "b", "a"])),
        "complete": polars.Series(COUNTS, dtype=polars.UInt8),
        "complete Enum": polars.Series(LETTERS, dtype=polars.Enum(["b", "a"])),
    }
    return polars.DataFrame(columns)


def _objects():
    values = [_without(NUMBERS, 0), _without(COUNTS, 1), _without(LETTERS, 2), _without(BITS, 3)]
    return np.array(values, dtype=object).T.copy()


TABLES = {
    "float64": _numbers,
    "float32": lambda: _numbers(np.float32),
    "objects": _objects,
    "pandas": _pandas,
    "polars": _polars,
}


def _missing(X):
    if isinstance(X, pandas.DataFrame):
        return X.isna().to_numpy()
    if isinstance(X, polars.DataFrame):
        nothing = [[v is None or v != v for v in series.to_list()] for series in X]
        return np.array(nothing).T
    return np.array([[v is None or v != v for v in row] for row in X.tolist()])


def _cells(X):
    """Each cell as Python has it: its type and all of its bits."""
    if isinstance(X, pandas.DataFrame):
        return [X.iloc[:, number].astype(object).tolist() for number in range(X.shape[1])]
    if isinstance(X, polars.DataFrame):
        return [series.to_list() for series in X]
    return X.T.tolist()


def _observed(X, missing):
    return [
        [repr(value) for value, gone in zip(column, holes, strict=True) if not gone]
        for column, holes in zip(_cells(X), missing.T, strict=True)
    ]


@pytest.fixture(params=TABLES)
def table(request):
    return TABLES[request.param]()


# -- scikit-learn's own checks --------------------------------------------------------------------

# Shipped by scikit-learn, but not yielded by check_estimator. Those of set_output with pandas are
# left out: they expect an array of a pandas frame where an array was fitted.
UNYIELDED_CHECKS = [
    "check_transformer_get_feature_names_out",
    "check_transformer_get_feature_names_out_pandas",
    "check_get_feature_names_out_error",
    "check_set_output_transform",
    "check_set_output_transform_polars",
    "check_global_set_output_transform_polars",
    "check_dataframe_column_names_consistency",
    "check_inplace_ensure_writeable",
]


@pytest.mark.parametrize("max_iter", [0, 1])
def test_no_check_of_scikit_learn_fails_or_is_skipped(max_iter):
    # The linear start without a single warning; one epoch cannot but warn that it was too short.
    with warnings.catch_warnings():
        warnings.simplefilter("error" if max_iter == 0 else "ignore")
        estimator = VAEImputer(VAETransformer(max_iter=max_iter))
        results = estimator_checks.check_estimator(estimator, on_skip=None, on_fail=None)
    others = {r["check_name"]: r["exception"] for r in results if r["status"] != "passed"}
    assert others == {}
    assert len(results) > 40


@pytest.mark.filterwarnings("ignore:X (does not have|has feature):UserWarning")
@pytest.mark.parametrize("name", UNYIELDED_CHECKS)
def test_checks_that_scikit_learn_ships_but_does_not_yield_pass(name):
    getattr(estimator_checks, name)("VAEImputer", VAEImputer(VAETransformer(max_iter=0)))


# -- what is observed, and what is filled ---------------------------------------------------------


@pytest.mark.parametrize("sample_posterior", [False, True])
def test_observed_entries_come_back_bit_by_bit_and_nothing_is_missing(table, sample_posterior):
    missing = _missing(table)
    assert missing.any()
    filled = _imputer(sample_posterior=sample_posterior).fit_transform(table)
    assert type(filled) is type(table)
    assert _observed(filled, missing) == _observed(table, missing)
    assert not _missing(filled).any()


def test_a_complete_table_comes_back_as_it_is():
    X = np.nan_to_num(_numbers())
    X[0, 0] = 1 / 3
    filled = _imputer().fit_transform(X)
    assert_array_equal(filled, X)
    assert not np.shares_memory(filled, X)


def test_an_array_keeps_its_precision():
    for dtype in [np.float32, np.float64]:
        assert _imputer().fit_transform(_numbers(dtype)).dtype == dtype


@pytest.mark.parametrize("make", [_pandas, _polars])
def test_a_frame_keeps_dtypes_levels_order_and_index(make):
    X = make()
    filled = _imputer().fit_transform(X)
    assert list(filled.columns) == list(X.columns)
    assert list(filled.dtypes) == list(X.dtypes)  # categories and their order are part of them
    if make is _pandas:
        assert filled.index.equals(X.index) and filled.index.name == "rows"


def test_missing_levels_are_filled_with_levels_and_counts_with_whole_numbers():
    X = _pandas()
    filled = _imputer(sample_posterior=True).fit_transform(X)
    for name in ["string", "object", "category", "ordered"]:
        assert set(filled[name]) == {"a", "b"}
    assert set(filled["object of booleans"].map(type)) == {bool}


def test_the_input_is_not_changed(table):
    before = pickle.dumps(table)
    imputer = _imputer(add_indicator=True).fit(table)
    imputer.transform(table)
    imputer.sample_imputations(table, 2)
    assert repr(_cells(table)) == repr(_cells(pickle.loads(before)))
    assert type(table) is type(pickle.loads(before))


NOTHING = {
    "nan": (np.nan, float),
    "None": (None, object),
    "pd.NA": (pandas.NA, object),
    "pd.NA, Float64": (pandas.NA, "Float64"),
}


@pytest.mark.parametrize("missing_values", [np.nan, None, pandas.NA], ids=["nan", "None", "pd.NA"])
@pytest.mark.parametrize("way", NOTHING)
def test_nan_none_and_na_mean_the_same(way, missing_values):
    cell, dtype = NOTHING[way]
    X = _numbers()
    frame = pandas.DataFrame(np.where(np.isnan(X), cell, X.astype(object))).astype(dtype)
    filled = _imputer(missing_values=missing_values).fit_transform(frame)
    assert_allclose(filled.to_numpy(dtype=float), _imputer().fit_transform(X), rtol=1e-12)


def test_a_row_without_anything_is_filled_with_what_the_model_expects_of_any():
    X = _numbers()
    filled = _imputer().fit(X).transform(np.full((1, 4), np.nan))
    assert_allclose(filled[0], np.nanmean(X, axis=0), atol=0.5 * np.nanstd(X))


# -- markers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [np.array, pandas.DataFrame, polars.DataFrame])
def test_a_number_can_stand_for_a_missing_value(make):
    X = _numbers(int, -1)
    filled = _imputer(missing_values=-1).fit_transform(make(X))
    cells = np.asarray(filled)
    assert cells.dtype == (float if make is np.array else int)
    assert_array_equal(cells[X != -1], X[X != -1])
    expected = _imputer().fit_transform(np.where(X == -1, np.nan, X))
    expected = expected if make is np.array else np.rint(expected)
    assert_allclose(cells, expected, rtol=1e-9)


@pytest.mark.parametrize("kind", ["pandas", "polars", "objects"])
def test_a_string_can_stand_for_a_missing_value(kind):
    marked = ["?" if value is None else value for value in _without(LETTERS, 2)]
    frame = pandas.DataFrame({"x": NUMBERS, "a": marked, "n": COUNTS, "c": marked})
    frame["c"] = frame["c"].astype("category")
    X = {"pandas": frame, "polars": polars.from_pandas(frame)}.get(kind, frame.to_numpy(object))
    filled = _imputer(missing_values="?").fit_transform(X)
    cells, gone = _cells(filled), np.array(marked) == "?"
    for column in (1, 3):
        assert set(cells[column]) == {"a", "b"}
        assert [cells[column][row] for row in np.flatnonzero(~gone)] == [
            LETTERS[row] for row in np.flatnonzero(~gone)
        ]
    assert cells[0] == NUMBERS and cells[2] == COUNTS


def test_missing_values_are_missing_beside_the_marker_as_well():
    X = _numbers(missing=-1.0)
    X[5, 1] = np.nan
    filled = _imputer(missing_values=-1.0).fit_transform(X)
    assert not np.isnan(filled).any() and (filled != -1.0).all()


# -- indicators and empty columns -----------------------------------------------------------------


def _with_empty():
    X = _numbers()
    X[:, 1] = np.nan
    X[:, 3] = np.nan_to_num(X[:, 3], nan=20.0)
    return X


@pytest.mark.parametrize("keep", [False, True])
def test_the_indicator_is_that_of_scikit_learn(keep):
    X = _with_empty()
    new = np.where(_holes(X.shape, seed=9), np.nan, 1.0)  # also where nothing missed in fit
    imputer = _imputer(add_indicator=True, keep_empty_features=keep).fit(X)
    indicator = MissingIndicator(features="missing-only", error_on_new=False).fit(X)
    for rows in (X, new):
        expected = indicator.transform(rows)
        found = imputer.transform(rows)[:, -expected.shape[1] :]
        assert_array_equal(found, expected)
    names = imputer.get_feature_names_out()
    assert_array_equal(names[-expected.shape[1] :], indicator.get_feature_names_out())


@pytest.mark.filterwarnings("ignore:Skipping features without any observed:UserWarning")
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("add_indicator", [False, True])
@pytest.mark.parametrize("make", [np.array, pandas.DataFrame, polars.DataFrame])
def test_columns_and_their_names_are_those_of_simple_imputer(make, add_indicator, keep):
    X = _with_empty()
    if make is not np.array:
        X = make(dict(zip(["a", "b", "c", "d"], X.T, strict=True)))
    params = {"add_indicator": add_indicator, "keep_empty_features": keep}
    imputer, simple = _imputer(**params).fit(X), SimpleImputer(**params).fit(X)
    assert_array_equal(imputer.get_feature_names_out(), simple.get_feature_names_out())
    filled = imputer.transform(X)
    assert filled.shape == simple.transform(X).shape
    if make is not np.array:
        assert list(filled.columns) == simple.get_feature_names_out().tolist()


LIKELIHOODS = ["gaussian", "student_t", "log_normal", "poisson", "negative_binomial", "bernoulli"]


@pytest.mark.parametrize("sample_posterior", [False, True])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_empty_columns_are_filled_with_zero_where_they_are_kept(likelihood, sample_posterior):
    X = np.rint(_with_empty())
    X = np.where(np.isnan(X), np.nan, X > 20.0) if likelihood == "bernoulli" else X
    vae = _vae(likelihood=likelihood)
    imputer = _imputer(vae, keep_empty_features=True, sample_posterior=sample_posterior).fit(X)
    assert (imputer.transform(X)[:, 1] == 0.0).all()
    now_there = np.where(np.arange(4) == 1, 1.0, X)
    assert (imputer.transform(now_there)[:, 1] == 1.0).all()


EMPTY_NUMBERS = {
    "pandas, Int64": pandas.Series([None] * N, dtype="Int64"),
    "pandas, boolean": pandas.Series([None] * N, dtype="boolean"),
    "polars, Int8": polars.Series([None] * N, dtype=polars.Int8),
    "polars, Boolean": polars.Series([None] * N, dtype=polars.Boolean),
}
EMPTY_LEVELS = {
    "pandas, category": pandas.Series([None] * N, dtype="category"),
    "pandas, category with levels": pandas.Series([None] * N, dtype=ORDERED),
    "pandas, string": pandas.Series([None] * N, dtype="string"),
    "polars, Categorical": polars.Series([None] * N, dtype=polars.Categorical),
    "polars, Enum": polars.Series([None] * N, dtype=polars.Enum(["a", "b"])),
    "polars, String": polars.Series([None] * N, dtype=polars.String),
}
EMPTY_OBJECTS = {  # nothing says what they hold
    "pandas, object": pandas.Series([None] * N, dtype=object),
    "polars, Null": polars.Series([None] * N),
}


def _beside_numbers(column):
    make = polars.DataFrame if isinstance(column, polars.Series) else pandas.DataFrame
    return make(dict(zip("abcd", _numbers().T, strict=True)) | {"empty": column})


@pytest.mark.parametrize("kind", EMPTY_NUMBERS | EMPTY_LEVELS | EMPTY_OBJECTS)
def test_empty_columns_of_any_kind_are_dropped(kind):
    X = _beside_numbers((EMPTY_NUMBERS | EMPTY_LEVELS | EMPTY_OBJECTS)[kind])
    with pytest.warns(UserWarning, match="Column 'empty' holds no value, so transform returns no"):
        filled = _imputer().fit_transform(X)
    assert list(filled.columns) == list("abcd")
    assert not _missing(filled).any()


@pytest.mark.parametrize("kind", EMPTY_NUMBERS)
def test_empty_columns_of_numbers_are_kept_as_zeros(kind):
    X = _beside_numbers(EMPTY_NUMBERS[kind])
    filled = _imputer(keep_empty_features=True).fit_transform(X)["empty"]
    assert filled.dtype == EMPTY_NUMBERS[kind].dtype and set(filled.to_list()) == {0}


@pytest.mark.parametrize("kind", EMPTY_LEVELS)
def test_empty_columns_of_categories_are_kept_without_levels(kind):
    X = _beside_numbers(EMPTY_LEVELS[kind])
    filled = _imputer(keep_empty_features=True).fit_transform(X)
    assert filled["empty"].dtype == EMPTY_LEVELS[kind].dtype
    assert (_missing(filled) == [False, False, False, False, True]).all()


# -- levels ---------------------------------------------------------------------------------------


def test_an_unseen_level_stays_and_tells_nothing_about_the_rest_of_its_row():
    X = pandas.DataFrame({"x": _without(NUMBERS, 1), "a": LETTERS})
    imputer = _imputer(VAETransformer(1, max_iter=0, random_state=0)).fit(X)
    new = pandas.DataFrame({"x": [np.nan, np.nan], "a": ["new", None]})
    filled = imputer.transform(new)
    assert filled["a"][0] == "new" and filled["a"][1] in ("a", "b")
    assert filled["x"][0] == filled["x"][1]


def test_an_unseen_level_is_an_error_where_that_was_asked_for():
    X = pandas.DataFrame({"x": _without(NUMBERS, 1), "a": LETTERS})
    vae = VAETransformer(1, max_iter=0, handle_unknown="error", random_state=0)
    with pytest.raises(ValueError, match="holds the level 'new'"):
        _imputer(vae).fit(X).transform(pandas.DataFrame({"x": [np.nan], "a": ["new"]}))


def test_the_most_probable_level_is_taken():
    # Two columns that always agree.
    X = pandas.DataFrame({"a": _without(LETTERS, 2), "b": LETTERS, "c": LETTERS})
    filled = _imputer(VAETransformer(1, max_iter=0, random_state=0)).fit_transform(X)
    assert filled["a"].tolist() == LETTERS


# -- frames and arrays between fit and transform --------------------------------------------------

OBJECTS = _pandas()[["float64", "string", "boolean", "complete"]]
CONTAINERS = {
    "array": lambda: OBJECTS.astype(object).to_numpy(),
    "pandas": lambda: OBJECTS.reset_index(drop=True),
    "polars": lambda: polars.from_pandas(OBJECTS),
}


@pytest.mark.filterwarnings("ignore:X (does not have|has feature):UserWarning")
@pytest.mark.parametrize("later", CONTAINERS)
@pytest.mark.parametrize("first", CONTAINERS)
def test_new_rows_come_back_as_what_they_are_whatever_was_fitted(first, later):
    X = CONTAINERS[later]()
    filled = _imputer().fit(CONTAINERS[first]()).transform(X)
    assert type(filled) is type(X)
    expected = _cells(_imputer().fit_transform(X))
    for column, other in zip(_cells(filled), expected, strict=True):
        if isinstance(other[0], float):
            assert_allclose(column, other, rtol=1e-9)
        else:
            assert column == other


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_set_output_chooses_the_frame(library):
    module = {"pandas": pandas, "polars": polars}[library]
    X = _numbers()
    imputer = _imputer(add_indicator=True).set_output(transform=library)
    filled = imputer.fit_transform(X)
    assert isinstance(filled, module.DataFrame)
    assert list(filled.columns) == imputer.get_feature_names_out().tolist()
    assert_array_equal(filled.to_numpy(), _imputer(add_indicator=True).fit_transform(X))
    named = _pandas() if library == "pandas" else _polars()
    filled = _imputer().set_output(transform=library).fit_transform(named)
    assert list(filled.dtypes) == list(named.dtypes)


# -- the linear model: closed forms ---------------------------------------------------------------

SCALE = np.array([1.0, 20.0, 0.3, 5.0, 1e4, 2.0])
LOADINGS = np.random.default_rng(5).normal(size=(6, 2)) * SCALE[:, None]
NOISE = np.array([0.5, 0.7, 0.4, 0.9, 0.6, 0.5]) * SCALE


def _linear_rows(n_rows=400, seed=0):
    """Linear-Gaussian rows of two factors in six units; 30 percent of the cells are missing."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows, 2)) @ LOADINGS.T + NOISE * rng.normal(size=(n_rows, 6))
    return np.where(_holes(X.shape, 0.3, seed + 1), np.nan, X + 3.0 * SCALE)


def _conditional(vae, row):
    """Mean and covariance of the missing cells given the others, under the fitted linear model."""
    loadings = vae.weights_["decoder.linear.weight"] * vae.model_.columns.scale[:, None]
    mean = vae.model_.columns.decode(vae.weights_["decoder.linear.bias"])
    covariance = loadings @ loadings.T + np.diag(vae.noise_variance_)
    gone, seen = np.isnan(row), ~np.isnan(row)
    across = covariance[np.ix_(gone, seen)]
    slopes = np.linalg.solve(covariance[np.ix_(seen, seen)], across.T).T
    left = covariance[np.ix_(gone, gone)] - slopes @ across.T
    return mean[gone] + slopes @ (row - mean)[seen], left


@pytest.fixture(scope="module", params=["shared", "per_column"])
def linear(request):
    """Fitted to rows with missing cells, and left at the linear start; not to be changed."""
    vae = _vae(noise=request.param, n_importance_samples=256)
    return _imputer(vae).fit(_linear_rows())


def test_the_linear_model_fills_in_the_exact_conditional_mean(linear):
    # The noise bank comes in antithetic pairs, of which both have the same weight: importance
    # sampling makes no error in the mean, however few its samples.
    X = _linear_rows(300, seed=7)
    X[0] = np.nan
    filled = linear.transform(X)
    for row, found in zip(X, filled, strict=True):
        mean, _ = _conditional(linear.vae_, row)
        assert_allclose(
            found[np.isnan(row)] / SCALE[np.isnan(row)], mean / SCALE[np.isnan(row)], atol=1e-6
        )


@pytest.mark.parametrize("n_missing", [1, 3, 5, 6])
def test_draws_have_the_conditional_mean_and_covariance(n_missing, linear):
    row = np.where(np.arange(6) < n_missing, np.nan, 3.0 * SCALE + LOADINGS @ [1.0, -0.5])
    mean, covariance = _conditional(linear.vae_, row)
    n_rows, n_tables = 500, 8
    rows = np.tile(row, (n_rows, 1))
    # By the fitted parameters: an imputer draws these, too.
    tables = [linear.vae_.sample(given=rows, random_state=seed) for seed in range(n_tables)]
    unit = np.sqrt(np.diag(covariance))
    draws = (np.concatenate(tables)[:, :n_missing] - mean) / unit
    n = n_rows * n_tables
    # 4.5 standard errors of the draws, and 5 percent of the unit for 256 importance samples of z.
    assert_allclose(draws.mean(0), 0.0, atol=4.5 / np.sqrt(n))
    expected = covariance / np.outer(unit, unit)
    assert_allclose(draws.T @ draws / n, expected, atol=4.5 * np.sqrt(2.0 / n) + 0.05)


def test_imputation_beats_the_columns_mean_on_iris():
    # In standard deviations the mean's error is 1; two factors come to 0.6.
    X = StandardScaler().fit_transform(load_iris().data)
    vae = VAETransformer(2, noise="per_column", max_iter=10, early_stopping=False, random_state=0)
    for seed in range(3):
        holes = _holes(X.shape, 0.3, seed)
        table = np.where(holes, np.nan, X)

        def error(imputer, table=table, holes=holes):
            return np.sqrt(np.mean((imputer.fit_transform(table) - X)[holes] ** 2))

        assert error(_imputer(vae)) < 0.75 * error(SimpleImputer())


# -- randomness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("max_iter", [0, 2])
def test_transform_is_deterministic(max_iter, table):
    imputer = _imputer(_vae(max_iter=max_iter), random_state=None).fit(table)
    assert _cells(imputer.transform(table)) == _cells(imputer.transform(table))


def test_a_rows_imputation_does_not_depend_on_other_rows():
    X = _linear_rows(100)
    imputer = _imputer(_vae(max_iter=2)).fit(X)
    together = imputer.transform(X)
    alone = np.concatenate([imputer.transform(X[[row]]) for row in range(20)])
    order = np.random.default_rng(0).permutation(len(X))
    assert_allclose(alone, together[:20], rtol=1e-9)
    assert_allclose(imputer.transform(X[order]), together[order], rtol=1e-9)


def test_sampled_tables_differ_in_missing_cells_alone(table):
    missing = _missing(table)
    imputer = _imputer().fit(table)
    tables = imputer.sample_imputations(table, 3, random_state=0)
    assert len(tables) == 3
    for one in tables:
        assert type(one) is type(table) and not _missing(one).any()
        assert _observed(one, missing) == _observed(table, missing)
    assert len({repr(_observed(one, ~missing)) for one in tables}) == 3
    again = imputer.sample_imputations(table, 3, random_state=0)
    assert [_cells(one) for one in tables] == [_cells(one) for one in again]


def test_sampled_tables_are_fresh_without_any_seed_and_no_global_generator_moves():
    X = _numbers()
    imputer = _imputer(_vae(random_state=0), random_state=None).fit(X)
    state = np.random.get_state()[1].copy()
    one, other = imputer.sample_imputations(X, 1), imputer.sample_imputations(X, 1)
    assert (one[0] != other[0]).any()
    assert_array_equal(np.random.get_state()[1], state)


def test_draws_without_a_seed_take_that_of_the_estimator():
    """The same rule for every method that draws: its own random_state, else the estimator's."""
    X = _numbers()
    imputer = _imputer(random_state=3).fit(X)
    for estimator, draw in [
        (imputer, lambda seed: imputer.sample_imputations(X, 1, random_state=seed)[0]),
        (imputer.vae_, lambda seed: imputer.vae_.sample(5, random_state=seed)),
        (imputer.vae_, lambda seed: imputer.vae_.sample(5, random_state=seed, given={0: 1.0})),
        (imputer.vae_, lambda seed: imputer.vae_.sample(random_state=seed, given=X)),
    ]:
        estimator.set_params(random_state=3)
        assert_array_equal(draw(None), draw(None))
        assert_array_equal(draw(None), draw(3))
        assert (draw(None) != draw(4)).any()
        estimator.set_params(random_state=np.random.RandomState(0))  # moves on with each draw
        assert (draw(None) != draw(None)).any()
        estimator.set_params(random_state=None)
        assert (draw(None) != draw(None)).any()


def test_posterior_samples_are_repeatable_by_the_random_state():
    X = _numbers()
    one, same, other = (
        _imputer(sample_posterior=True, random_state=seed).fit_transform(X) for seed in (0, 0, 1)
    )
    assert_array_equal(one, same)
    assert ((one != other) == np.isnan(X)).all()


# -- scikit-learn's conventions -------------------------------------------------------------------


def test_parameters_reach_the_model_and_clones_and_the_given_model_stays_as_it_was():
    imputer = _imputer().set_params(vae__n_components=3, add_indicator=True)
    assert imputer.get_params()["vae__n_components"] == 3
    copied = clone(imputer)
    assert copied.vae is not imputer.vae and copied.vae.n_components == 3 and copied.add_indicator
    imputer.fit(_numbers())
    assert imputer.vae_.n_components_ == 3
    assert not hasattr(imputer.vae, "weights_")


def test_without_a_model_the_default_is_noise_per_column_trained_on_the_tighter_bound():
    imputer = VAEImputer(random_state=0).fit(_numbers()[:20])
    assert imputer.vae is None
    assert imputer.vae_.noise == "per_column" and imputer.vae_.objective == "iwae"


def test_the_default_takes_any_number_of_columns():
    # Factor analysis needs the covariance, which is not formed here. (Few rows, so: soon done.)
    X = np.random.default_rng(0).normal(size=(6, 1501))
    X[2, 3] = np.nan
    noise = density_noise(X.shape[1])
    vae = VAETransformer(noise=noise, random_state=0, max_iter=0, hidden_layer_sizes=())
    filled = VAEImputer(vae).fit_transform(X)
    assert not np.isnan(filled).any()


@pytest.mark.parametrize("sample_posterior", [False, True])
def test_the_random_state_is_that_of_the_model_unless_it_has_its_own(sample_posterior):
    X = _numbers()
    params = {"sample_posterior": sample_posterior}
    free = _vae(random_state=None, max_iter=2)
    one, same = (_imputer(free, random_state=3, **params).fit_transform(X) for _ in range(2))
    assert_array_equal(one, same)
    assert _imputer(_vae(random_state=5), random_state=3).fit(X).vae_.random_state == 5


def test_a_pickled_imputer_fills_in_the_same(table):
    imputer = _imputer(add_indicator=True).fit(table)
    again = pickle.loads(pickle.dumps(imputer))
    assert _cells(again.transform(table)) == _cells(imputer.transform(table))


def _iris_with_holes():
    X, y = load_iris(return_X_y=True)
    return np.where(_holes(X.shape, 0.3), np.nan, X), y


def test_a_pipeline_classifies_rows_with_missing_values():
    X, y = _iris_with_holes()
    pipeline = make_pipeline(_imputer(), StandardScaler(), LogisticRegression())
    assert pipeline.fit(X[::2], y[::2]).score(X[1::2], y[1::2]) > 0.8


def test_a_grid_search_chooses_the_number_of_components():
    X, y = _iris_with_holes()
    pipeline = make_pipeline(_imputer(), LogisticRegression(max_iter=1000))
    grid = {"vaeimputer__vae__n_components": [1, 2]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, y)
    assert search.best_score_ > 0.8
    assert search.best_estimator_[0].vae_.n_components_ in (1, 2)


# -- weights --------------------------------------------------------------------------------------


def test_weighting_a_row_is_repeating_it():
    X = _numbers()
    weight = np.random.default_rng(0).integers(0, 3, N)
    weighted = _imputer(_vae(max_iter=2)).fit(X, sample_weight=weight.astype(float))
    repeated = _imputer(_vae(max_iter=2)).fit(np.repeat(X, weight, axis=0))
    assert_allclose(weighted.transform(X), repeated.transform(X), rtol=1e-9)


BAD_WEIGHTS = {
    "negative": (np.where(np.arange(N) == 3, -1.0, 1.0), "[Nn]egative"),
    "all zero": (np.zeros(N), "non-zero"),
    "too few": (np.ones(N - 1), "shape"),
}


@pytest.mark.parametrize("kind", BAD_WEIGHTS)
def test_bad_weights_are_named(kind):
    weight, message = BAD_WEIGHTS[kind]
    with pytest.raises(ValueError, match=message):
        _imputer().fit(_numbers(), sample_weight=weight)


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [csr_array, csr_matrix, csc_array])
def test_sparse_rows_are_refused_with_the_fix(make):
    X = np.nan_to_num(_numbers())
    for call in (_imputer().fit, _imputer().fit(X).transform, _imputer().fit(X).sample_imputations):
        with pytest.raises(TypeError, match=r"not stored is 0, not\s+missing. Use X.toarray"):
            call(make(X))


BAD_PARAMETERS = {
    "vae": "a model",
    "missing_values": [1.0, 2.0],
    "sample_posterior": "yes",
    "add_indicator": 2,
    "keep_empty_features": None,
}


@pytest.mark.parametrize("name", BAD_PARAMETERS)
def test_bad_parameters_are_named_with_what_was_given(name):
    value = BAD_PARAMETERS[name]
    imputer = _imputer().set_params(**{name: value})
    with pytest.raises(ValueError) as caught:
        imputer.fit(_numbers())
    message = str(caught.value)
    assert f"The {name!r} parameter of VAEImputer must be" in message
    assert f"Got {value!r} instead." in message


def test_a_bad_parameter_of_the_model_and_a_bad_seed_are_named():
    with pytest.raises(ValueError, match="The 'n_components' parameter of VAETransformer"):
        _imputer(_vae(n_components=0)).fit(_numbers())
    with pytest.raises(ValueError, match="random_state must be a seed"):
        _imputer(_vae(random_state=None), random_state="x").fit(_numbers())


@pytest.mark.parametrize("n_imputations", [0, -1, 2.5, "all"])
def test_a_bad_number_of_tables_is_refused(n_imputations):
    imputer = _imputer().fit(_numbers())
    with pytest.raises(ValueError, match="n_imputations must be an integer >= 1"):
        imputer.sample_imputations(_numbers(), n_imputations)


def test_an_unfitted_imputer_says_so():
    X = _numbers()
    for call in (_imputer().transform, _imputer().sample_imputations):
        with pytest.raises(NotFittedError):
            call(X)
    with pytest.raises(NotFittedError):
        _imputer().get_feature_names_out()


@pytest.mark.parametrize("bad", [{"n_components": 0}, {"likelihood": "poisson"}])
def test_a_failed_fit_leaves_the_imputer_as_it_was(bad):
    X = _numbers()
    imputer = _imputer(_vae(**bad))
    with pytest.raises(ValueError):
        imputer.fit(X)
    assert set(vars(imputer)) == set(imputer.get_params(deep=False))
    with pytest.raises(NotFittedError):
        imputer.transform(X)
    imputer = _imputer().fit(X)
    expected = imputer.transform(X)
    imputer.set_params(vae=_vae(**bad))
    with pytest.raises(ValueError):
        imputer.fit(X[:, :3])
    assert_array_equal(imputer.transform(X), expected)


def test_the_indicator_is_there_as_in_scikit_learns_imputers():
    X = np.array([[np.nan, 1, 5.0], [2, np.nan, 1], [6, 3, 2], [1, 2, 9]])
    imputer = VAEImputer(_vae(max_iter=0), add_indicator=True).fit(X)
    assert imputer.indicator_.features_.tolist() == [0, 1]
    assert_array_equal(imputer.transform(X)[:, 3:], imputer.indicator_.transform(X))
    assert VAEImputer(_vae(max_iter=0)).fit(X).indicator_ is None


@pytest.mark.parametrize("add_indicator", [False, True])
def test_texts_among_numbers_are_filled_as_what_is_missing(add_indicator):
    rng = np.random.default_rng(0)
    x = rng.normal(size=100)
    texts, holes = (pandas.DataFrame({"x": x, "y": x + rng.normal(size=100)}) for _ in range(2))
    texts = texts.astype({"x": object})
    texts.loc[[5, 9], "x"], holes.loc[[5, 9], "x"] = "?", np.nan
    holes["y"] = texts["y"]
    filled = []
    for frame in (texts, holes):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*are not numbers")
            imputer = VAEImputer(random_state=0, add_indicator=add_indicator)
            filled.append(imputer.fit_transform(frame).astype(float))
    assert_allclose(filled[0], filled[1])
    with pytest.raises(ValueError, match="Column 'x' needs numbers; row 3 holds 'n/a'"):
        imputer.transform(holes.astype({"x": object}).replace({"x": {holes["x"][3]: "n/a"}}))


@pytest.mark.parametrize("wild", [[1e6], [-1e9, 4e4]])
def test_wild_values_of_a_column_do_not_reach_what_is_filled(wild):
    rng = np.random.default_rng(0)
    X = 5.0 + rng.normal(size=(400, 1)) * [1.0, 0.8, -0.7] + 0.3 * rng.normal(size=(400, 3))
    holes = _holes(X.shape)
    holes[X[:, 0] > np.quantile(X[:, 0], 0.97), 0] = True  # those near the top, above all
    holes[: len(wild)] = False
    with_wild = X.copy()
    with_wild[: len(wild), 0] = wild
    with pytest.warns(UserWarning, match="Column 0 holds .* They are taken as missing"):
        filled = VAEImputer(random_state=0).fit_transform(np.where(holes, np.nan, with_wild))
    error = np.abs(filled - X)[holes[:, 0], 0]
    assert error.max() < 3.0 and np.sqrt((error**2).mean()) < 0.8
