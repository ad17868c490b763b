"""Frames go in and come back: columns, order and dtypes; levels, rare, new and missing ones."""

import datetime
import pickle
import warnings
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer

pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore:(.|\n)*(inactive|its floor|importance weight):UserWarning"),
]

N = 60
METHODS = ["log_likelihood", "elbo", "reconstruction", "kl"]


def _vae(**params):
    return VAETransformer(
        **{"n_components": 2, "hidden_layer_sizes": (8,), "max_iter": 1, "random_state": 0} | params
    )


def _rng(seed=0):
    return np.random.default_rng(seed)


def _without(values, every=7):
    """A list with some cells missing."""
    return [None if row % every == 3 else value for row, value in enumerate(values)]


COLOURS = _rng(1).choice(["red", "green", "blue"], N).tolist()
SIZES = _rng(2).choice(["S", "M", "L"], N).tolist()
NUMBERS = _rng(3).normal(10.0, 3.0, N)
COUNTS = _rng(4).integers(0, 200, N)
BITS = (NUMBERS > 10.0).tolist()

ORDERED = pandas.CategoricalDtype(["S", "M", "L"], ordered=True)
UNUSED = pandas.CategoricalDtype(["violet", "red", "green", "blue", "black"])

PANDAS = {
    "float64": pandas.Series(NUMBERS),
    "float32": pandas.Series(NUMBERS, dtype="float32"),
    "float64, nan": pandas.Series(_without(NUMBERS), dtype="float64"),
    "Float64, NA": pandas.Series(_without(NUMBERS), dtype="Float64"),
    "int64": pandas.Series(COUNTS),
    "uint8": pandas.Series(COUNTS, dtype="uint8"),
    "Int64": pandas.Series(COUNTS, dtype="Int64"),
    "Int16, NA": pandas.Series(_without(COUNTS), dtype="Int16"),
    "bool": pandas.Series(BITS),
    "boolean, NA": pandas.Series(_without(BITS), dtype="boolean"),
    "object": pandas.Series(COLOURS, dtype=object),
    "object, None": pandas.Series(_without(COLOURS), dtype=object),
    "string": pandas.Series(COLOURS, dtype="string"),
    "string, NA": pandas.Series(_without(COLOURS), dtype="string"),
    "category": pandas.Series(COLOURS, dtype="category"),
    "category, nan": pandas.Series(_without(COLOURS), dtype="category"),
    "category, unused": pandas.Series(COLOURS, dtype=UNUSED),
    "category, ordered": pandas.Series(SIZES, dtype=ORDERED),
    "category of numbers": pandas.Series(COUNTS % 3, dtype="category"),
    "arrow, float": pandas.Series(_without(NUMBERS), dtype="float64[pyarrow]"),
    "arrow, int": pandas.Series(_without(COUNTS), dtype="int32[pyarrow]"),
    "arrow, bool": pandas.Series(_without(BITS), dtype="bool[pyarrow]"),
    "arrow, string": pandas.Series(_without(COLOURS), dtype="string[pyarrow]"),
}
POLARS = {
    "Float64": polars.Series(NUMBERS),
    "Float32, null": polars.Series(_without(NUMBERS.tolist()), dtype=polars.Float32),
    "Float64, nan": polars.Series(np.where(COUNTS % 7, NUMBERS, np.nan)),
    "Int64": polars.Series(COUNTS),
    "Int16, null": polars.Series(_without(COUNTS.tolist()), dtype=polars.Int16),
    "UInt8": polars.Series(COUNTS, dtype=polars.UInt8),
    "Boolean": polars.Series(BITS),
    "Boolean, null": polars.Series(_without(BITS)),
    "String": polars.Series(COLOURS),
    "String, null": polars.Series(_without(COLOURS)),
    "Categorical": polars.Series(COLOURS, dtype=polars.Categorical),
    "Categorical, null": polars.Series(_without(COLOURS), dtype=polars.Categorical),
    "Enum": polars.Series(SIZES, dtype=polars.Enum(["S", "M", "L"])),
    "Enum, null": polars.Series(_without(SIZES), dtype=polars.Enum(["XS", "S", "M", "L"])),
}


def _pandas(names=tuple(PANDAS)):
    return pandas.DataFrame({name: PANDAS[name] for name in names})


def _polars(names=tuple(POLARS)):
    return polars.DataFrame({name: POLARS[name] for name in names})


def _schema(frame):
    if isinstance(frame, polars.DataFrame):
        return list(frame.schema.items())
    return [(name, str(dtype), dtype) for name, dtype in frame.dtypes.items()]


def _assert_comes_back(vae, X):
    """Everything is finite, and rows come back as they were: columns, order and dtypes."""
    Z = vae.transform(X)
    assert Z.shape == (len(X), vae.n_components_) and np.isfinite(Z).all()
    for method in METHODS:
        assert np.isfinite(vae.score_samples(X, method=method)).all(), method
    for back in (
        vae.inverse_transform(Z),
        vae.sample(5, random_state=0),
        vae.sample(5, random_state=0, mode=True),
    ):
        assert type(back) is type(X)
        assert list(back.columns) == list(X.columns)
        for column in back.columns:
            _assert_like(back[column], X[column])


def _assert_like(back, column):
    """The same dtype, no missing value, and levels that were there."""
    assert back.dtype == column.dtype, (back.dtype, column.dtype)
    empty = column.isna().all() if isinstance(column, pandas.Series) else _polars_empty(column)
    if empty:
        return
    missing = back.isna().sum() if isinstance(back, pandas.Series) else back.null_count()
    assert missing == 0
    values = back.to_list() if isinstance(back, polars.Series) else back.tolist()
    if all(isinstance(value, str) for value in values):
        there = column.to_list() if isinstance(column, polars.Series) else column.tolist()
        assert set(values) <= set(there)
    else:
        assert np.isfinite(np.array(values, dtype=float)).all()


def _polars_empty(column):
    there = column.drop_nulls()
    return (there.drop_nans() if column.dtype.is_float() else there).is_empty()


# -- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PANDAS)
def test_a_pandas_column_comes_back_with_its_dtype(name):
    X = pandas.DataFrame({"x": NUMBERS, name: PANDAS[name], "y": NUMBERS[::-1]})
    _assert_comes_back(_vae(max_iter=0).fit(X), X)


@pytest.mark.parametrize("name", POLARS)
def test_a_polars_column_comes_back_with_its_dtype(name):
    X = polars.DataFrame({"x": NUMBERS, name: POLARS[name], "y": NUMBERS[::-1]})
    _assert_comes_back(_vae(max_iter=0).fit(X), X)


@pytest.mark.parametrize("make", [_pandas, _polars])
def test_a_frame_of_all_kinds_of_columns_comes_back(make):
    X = make()
    vae = _vae(max_iter=2).fit(X)
    _assert_comes_back(vae, X)
    assert vae.feature_names_in_.tolist() == list(X.columns)
    assert vae.score_features(X).shape == X.shape


KINDS = {
    **dict.fromkeys(["bool", "boolean, NA", "arrow, bool"], "bernoulli"),
    **dict.fromkeys(["Boolean", "Boolean, null"], "bernoulli"),
    **{name: "categorical" for name in PANDAS if name.startswith(("object", "string", "cat"))},
    **dict.fromkeys(["arrow, string", "String", "String, null", "Categorical"], "categorical"),
    **dict.fromkeys(["Categorical, null", "Enum", "Enum, null"], "categorical"),
}


@pytest.mark.parametrize("make", [_pandas, _polars])
def test_the_dtype_of_a_column_chooses_its_likelihood(make):
    X = make()
    vae = _vae(max_iter=0).fit(X)
    expected = [KINDS.get(name, "gaussian") for name in X.columns]
    assert vae.likelihood_.tolist() == expected
    assert (np.isnan(vae.noise_variance_) == (vae.likelihood_ != "gaussian")).all()


def test_codes_can_be_a_frame_with_the_rows_index():
    X = _pandas().iloc[::-2]
    codes = _vae(max_iter=0).set_output(transform="pandas").fit_transform(X)
    assert codes.index.equals(X.index)
    assert list(codes.columns) == ["vaetransformer0", "vaetransformer1"]


@pytest.mark.parametrize("make", [pandas.DataFrame, polars.DataFrame])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_of_the_codes_is_that_of_the_frames_cells(make, dtype):
    X = make({name: NUMBERS.astype(dtype) ** power for power, name in enumerate("abc", 1)})
    assert _vae(n_components=1).fit_transform(X).dtype == dtype


def test_samples_of_numbers_alone_come_back_as_a_frame_too():
    X = pandas.DataFrame(_rng().normal(size=(N, 3)), columns=["a", "b", "c"], dtype="float32")
    _assert_comes_back(_vae().fit(X), X)


def test_column_names_that_are_no_strings_come_back():
    X = pandas.DataFrame({0: NUMBERS, 1: COLOURS})
    vae = _vae(max_iter=0).fit(X)
    assert list(vae.sample(2).columns) == [0, 1]


def test_whole_numbers_come_back_within_the_range_of_their_dtype():
    X = pandas.DataFrame(
        {"a": np.array([0, 255] * 30, "uint8"), "b": np.array([-128, 127] * 30, "int8")}
    )
    vae = _vae(n_components=1, max_iter=0, likelihood="gaussian").fit(X)
    sample = vae.sample(500, random_state=0)
    assert sample.a.min() == 0 and sample.a.max() == 255
    assert sample.b.min() == -128 and sample.b.max() == 127
    as_polars = polars.from_pandas(X)
    sample = vae.fit(as_polars).sample(500, random_state=0)
    assert sample["a"].max() == 255 and sample["b"].min() == -128


@pytest.mark.parametrize("make", [_pandas, _polars])
def test_an_estimator_fitted_on_a_frame_can_be_pickled(make):
    X = make()
    vae = _vae().fit(X)
    other = pickle.loads(pickle.dumps(vae))
    assert_array_equal(other.transform(X), vae.transform(X))
    one, two = other.sample(9, random_state=0), vae.sample(9, random_state=0)
    assert one.equals(two) and _schema(one) == _schema(two)


def test_pandas_and_polars_say_the_same():
    X = _pandas(["float64, nan", "object, None", "boolean, NA", "int64"])
    cells = {name: X[name].astype(object).where(X[name].notna(), None).tolist() for name in X}
    other = polars.DataFrame(cells)
    expected = _vae().fit(X)
    assert_allclose(_vae().fit(other).transform(other), expected.transform(X), rtol=1e-6)


def test_sampled_levels_are_as_frequent_as_those_of_the_rows():
    X = pandas.DataFrame({"a": _rng().choice(["x", "y", "z"], 400, p=[0.6, 0.3, 0.1])})
    X["b"] = _rng(1).normal(size=400)
    sample = _vae(n_components=1, max_iter=0).fit(X).sample(4000, random_state=0)
    share = sample.a.value_counts(normalize=True)
    for level, expected in X.a.value_counts(normalize=True).items():
        assert share[level] == pytest.approx(expected, abs=4.5 * (0.25 / 4000) ** 0.5 + 0.01)


# -- arrays and lists of objects ------------------------------------------------------------------

MIXED = [[float(x), colour, bit] for x, colour, bit in zip(NUMBERS, COLOURS, BITS, strict=True)]


def test_arrays_of_objects_and_lists_of_lists_are_tables_as_well():
    array = np.array(MIXED, dtype=object)
    frame = pandas.DataFrame(MIXED, columns=["x", "colour", "bit"])
    expected = _vae().fit(frame)
    assert expected.likelihood_.tolist() == ["gaussian", "categorical", "bernoulli"]
    for rows in (array, MIXED):
        vae = _vae().fit(rows)
        assert vae.likelihood_.tolist() == expected.likelihood_.tolist()
        assert_array_equal(vae.transform(rows), expected.transform(frame))
        sample = vae.sample(5, random_state=0)
        assert isinstance(sample, np.ndarray) and sample.dtype == object
        assert set(sample[:, 1]) <= set(COLOURS)
        assert all(isinstance(value, float) for value in sample[:, 0])


def test_an_array_of_strings_is_one_of_categories():
    X = np.array([COLOURS, SIZES]).T
    vae = _vae().fit(X)
    assert (vae.likelihood_ == "categorical").all()
    sample = vae.sample(20, random_state=0)
    assert set(sample[:, 0]) <= set(COLOURS) and set(sample[:, 1]) <= set(SIZES)


def test_objects_that_are_all_numbers_are_numbers():
    X = _rng().normal(size=(N, 3))
    assert_array_equal(_vae().fit(X.astype(object)).transform(X), _vae().fit(X).transform(X))


# -- levels ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colours():
    """Rows of two numbers and a category, and a fit; not to be changed."""
    X = pandas.DataFrame({"x": NUMBERS, "colour": COLOURS, "y": NUMBERS + _rng().normal(size=N)})
    return X, _vae(max_iter=3).fit(X)


def _with_cell(X, row, column, value):
    X = X.copy()
    X.loc[row, column] = value
    return X


def test_a_new_level_is_treated_as_missing(colours):
    X, vae = colours
    new, missing = _with_cell(X, 4, "colour", "mauve"), _with_cell(X, 4, "colour", None)
    assert_array_equal(vae.transform(new), vae.transform(missing))
    # In a density it has the share of what comes once (Good & Turing): nothing did, in 60 rows.
    counts = X["colour"].value_counts()
    cost = np.log(((counts == 1).sum() + 1) / (counts.sum() + 1))
    for method in METHODS:
        one, other = (vae.score_samples(rows, method=method) for rows in (new, missing))
        other[4] += 0.0 if method == "kl" else cost
        assert_array_equal(one, other)
    assert vae.score_features(new)[4, 1] == cost
    assert not np.array_equal(vae.score_samples(new)[4], vae.score_samples(X)[4])


def test_a_new_level_is_an_error_where_that_was_asked_for(colours):
    X, _ = colours
    strict = _vae(handle_unknown="error", max_iter=0).fit(X)
    message = (
        r"Column 'colour' holds the level 'mauve' in row 4, .*"
        r"its levels were 'blue', 'green', 'red'\. Correct it, or use handle_unknown='ignore'"
    )
    for method in (strict.transform, strict.score_samples, strict.partial_fit):
        with pytest.raises(ValueError, match=message):
            method(_with_cell(X, 4, "colour", "mauve"))
    # A missing value is no level.
    assert np.isfinite(strict.transform(_with_cell(X, 4, "colour", None))).all()


def test_all_new_levels_of_all_columns_are_named_where_they_are_errors():
    X = pandas.DataFrame({"a": COLOURS, "b": COLOURS, "x": NUMBERS})
    strict = _vae(handle_unknown="error", max_iter=0).fit(X)
    bad = _with_cell(_with_cell(X, 4, "a", "mauve"), 9, "a", "mauve")
    bad = _with_cell(_with_cell(bad, 7, "a", "puce"), 2, "b", "mauve")
    message = (
        r"Column 'a' holds the level 'mauve' in row 4, 9, the level 'puce' in row 7, .*"
        r"Column 'b' holds the level 'mauve' in row 2, "
    )
    with pytest.raises(ValueError, match=message):
        strict.transform(bad)


@pytest.mark.parametrize("method", ["transform", "score_samples", "score_features"])
def test_a_column_of_nothing_but_new_levels_is_told_with_examples(colours, method):
    X, vae = colours
    message = (
        "No cell of column 'colour' holds a level that was there in fit: it holds ' green'"
        ".*where fit had 'blue', 'green', 'red'.*blanks"
    )
    with pytest.warns(UserWarning, match=message):
        getattr(vae, method)(X.assign(colour=" " + X["colour"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(vae, method)(X.assign(colour=[None] * (N - 1) + ["red"]))
        getattr(vae, method)(X.assign(colour=[None] * N))


@pytest.mark.parametrize("weighted", [False, True, "one is tiny"])
@pytest.mark.parametrize("max_categories", [None, 5])
def test_a_level_that_fit_has_not_seen_costs_the_mass_of_what_came_once(max_categories, weighted):
    # Good & Turing: of 40 cells 4 have a level of their own.
    levels = ["a"] * 20 + ["b"] * 10 + ["c"] * 4 + ["d"] * 2 + ["e", "f", "g", "h"]
    X = pandas.DataFrame({"level": levels, "x": _rng().normal(size=40)})
    weight = np.full(40, 3.0) if weighted else None
    if weighted == "one is tiny":  # weights that are no counts: rows are counted
        weight[0] = 1e-9
    vae = _vae(max_iter=0, max_categories=max_categories).fit(X, sample_weight=weight)
    new, missing = (_with_cell(X, 0, "level", value) for value in ("z", None))
    cost = vae.score_samples(new)[0] - vae.score_samples(missing)[0]
    assert cost == pytest.approx(np.log(5.0 / 41.0), abs=1e-12)


def test_the_detector_takes_new_levels_as_more_odd_than_missing_ones(colours):
    X, _ = colours
    detector = VAEOutlierDetector(random_state=0).fit(X)
    new, missing = (_with_cell(X, 4, "colour", value) for value in ("mauve", None))
    # The mass of the unseen for the one, what a colour is expected to add for the other.
    columns, expected = detector.vae_.model_.columns, detector._score.expected
    place = X.columns.get_loc("colour")
    difference = detector.score_samples(new)[4] - detector.score_samples(missing)[4]
    assert difference == pytest.approx(columns.log_unseen[place] - expected[place], abs=1e-9)
    assert difference < -2.0


def _many_levels():
    shares = np.array([0.4, 0.3, 0.14, 0.1, 0.04, 0.02])
    levels = _rng().choice([*"abcdef"], 500, p=shares)
    return pandas.DataFrame({"level": levels, "x": _rng(1).normal(size=500)})


@pytest.mark.parametrize("max_categories", [2, 4, 5])
def test_rare_levels_share_one_of_which_samples_draw(max_categories):
    X = _many_levels()
    vae = _vae(n_components=1, max_iter=0, max_categories=max_categories).fit(X)
    (column, _) = vae.model_.schema.columns
    assert column.n_levels == max_categories
    assert column.levels == tuple("abcdef"[: max_categories - 1])
    assert set(column.rare) == set("abcdef"[max_categories - 1 :])
    share = vae.sample(5000, random_state=0).level.value_counts(normalize=True)
    for level, expected in X.level.value_counts(normalize=True).items():
        assert share[level] == pytest.approx(expected, abs=4.5 * (0.25 / 5000) ** 0.5 + 0.01)
    # Rare levels are one to the model, and decoded to the most frequent of them.
    rows = X.drop_duplicates("level").sort_values("level").assign(x=0.0)
    codes = vae.transform(rows)
    assert (codes[max_categories - 1 :] == codes[max_categories - 1]).all()
    decoded = set(vae.inverse_transform(vae.transform(X)).level)
    assert decoded <= set("abcdef"[:max_categories])


def test_as_many_levels_as_are_allowed_are_kept_apart():
    X = _many_levels()
    for most in (6, 255, None):
        assert _vae(max_iter=0, max_categories=most).fit(X).model_.schema.columns[0].rare == ()


def test_the_levels_of_an_ordered_category_keep_their_order():
    X = pandas.DataFrame({"size": pandas.Series(SIZES, dtype=ORDERED), "x": NUMBERS})
    for likelihood in ("auto", {"size": "ordinal"}):
        vae = _vae(likelihood=likelihood).fit(X)
        assert vae.model_.schema.columns[0].levels == ("S", "M", "L")
        _assert_comes_back(vae, X)
    assert vae.likelihood_.tolist() == ["ordinal", "gaussian"]
    as_polars = polars.DataFrame({"size": polars.Series(SIZES, dtype=polars.Enum([*"SML"]))})
    vae = _vae(n_components=1, likelihood="ordinal").fit(as_polars)
    assert vae.model_.schema.columns[0].levels == ("S", "M", "L")


# -- what does not matter -------------------------------------------------------------------------


def test_the_order_of_the_rows_does_not_matter(colours):
    X, vae = colours
    shuffled = X.sample(frac=1.0, random_state=0)
    assert_array_equal(_vae(max_iter=3).fit(shuffled).transform(X), vae.transform(X))


ORDERS = {
    "as they come": ["red", "green", "blue"],
    "another order": ["green", "blue", "red"],
    "unused ones": ["black", "red", "blue", "white", "green"],
}


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_the_declared_categories_and_unused_ones_do_not_matter(order, colours):
    X, vae = colours
    as_category = X.assign(colour=pandas.Categorical(X.colour, ORDERS[order]))
    other = _vae(max_iter=3).fit(as_category)
    assert_array_equal(other.transform(as_category), vae.transform(X))
    assert_array_equal(other.score_samples(as_category), vae.score_samples(X))
    # The other rows may come with yet another declaration, or as strings.
    assert_array_equal(other.transform(X), vae.transform(X))


def test_the_kind_of_strings_does_not_matter(colours):
    X, vae = colours
    for dtype in ("string", "category", "string[pyarrow]"):
        rows = X.astype({"colour": dtype})
        assert_array_equal(_vae(max_iter=3).fit(rows).transform(rows), vae.transform(X))
    rows = polars.from_pandas(X)
    for dtype in (polars.String, polars.Categorical):
        cast = rows.with_columns(polars.col("colour").cast(dtype))
        assert_allclose(_vae(max_iter=3).fit(cast).transform(cast), vae.transform(X), rtol=1e-9)


# -- which columns are categories -----------------------------------------------------------------


def _codes_frame():
    return pandas.DataFrame({"code": COUNTS % 4, "x": NUMBERS, "other": COUNTS % 3})


ASKED = {
    "a mask": [True, False, True],
    "a mask, array": np.array([True, False, True]),
    "numbers": [0, 2],
    "negative numbers": [-3, -1],
    "names": ["code", "other"],
}


@pytest.mark.parametrize("asked", ASKED)
def test_columns_of_numbers_can_be_asked_to_be_categories(asked):
    X = _codes_frame()
    vae = _vae(categorical_features=ASKED[asked]).fit(X)
    assert vae.likelihood_.tolist() == ["categorical", "gaussian", "categorical"]
    assert vae.model_.schema.columns[0].levels == (0.0, 1.0, 2.0, 3.0)
    _assert_comes_back(vae, X)
    if not isinstance(ASKED[asked][0], str):
        array = X.to_numpy(dtype=float)
        other = _vae(categorical_features=ASKED[asked]).fit(array)
        assert_array_equal(other.transform(array), vae.transform(X))
        sample = other.sample(20, random_state=0)
        assert set(sample[:, 0]) <= {0.0, 1.0, 2.0, 3.0}


DIGITS = (COUNTS % 4).astype(str).tolist()
NUMBERS_AS_LEVELS = {
    "pandas, category of numbers": pandas.Series(COUNTS % 4, dtype="category"),
    "pandas, category of strings": pandas.Series(DIGITS, dtype="category"),
    "polars, Categorical": polars.Series(DIGITS, dtype=polars.Categorical),
    "polars, Enum": polars.Series(DIGITS, dtype=polars.Enum([*"0123"])),
}


@pytest.mark.parametrize("kind", NUMBERS_AS_LEVELS)
def test_no_column_need_be_a_category(kind):
    column = NUMBERS_AS_LEVELS[kind]
    make = polars.DataFrame if isinstance(column, polars.Series) else pandas.DataFrame
    X = make({"a": column, "x": NUMBERS})
    vae = _vae(categorical_features=None).fit(X)
    assert vae.likelihood_.tolist() == ["gaussian", "gaussian"]
    _assert_comes_back(vae, X)


@pytest.mark.parametrize("key", ["code", 0, -3, np.int64(0)])
def test_a_likelihood_can_be_given_by_name_and_by_number(key):
    X = _codes_frame()
    vae = _vae(likelihood={key: "poisson", "other": "categorical"}).fit(X)
    assert vae.likelihood_.tolist() == ["poisson", "gaussian", "categorical"]
    _assert_comes_back(vae, X)


@pytest.mark.parametrize("likelihood", ["categorical", "ordinal"])
def test_a_likelihood_of_levels_makes_a_category_of_numbers(likelihood):
    X = _codes_frame()
    vae = _vae(likelihood={"code": likelihood}).fit(X)
    assert vae.model_.schema.columns[0].levels == (0.0, 1.0, 2.0, 3.0)
    assert set(vae.sample(30, random_state=0).code) <= {0, 1, 2, 3}


# -- dates and times ------------------------------------------------------------------------------

DAYS = pandas.date_range("2024-01-01", periods=N)
BERLIN = DAYS.tz_localize("UTC").tz_convert(ZoneInfo("Europe/Berlin"))
ZONED = list(BERLIN.to_pydatetime())
SPANS = [datetime.timedelta(days) for days in range(N)]
TIMES = [datetime.time(hour % 24, 30) for hour in range(N)]
PANDAS_DATES = {
    "nanoseconds": pandas.Series(DAYS.astype("M8[ns]")),
    "seconds": pandas.Series(DAYS.astype("M8[s]")),
    "a zone": pandas.Series(BERLIN),
    "spans": pandas.Series(DAYS - DAYS[7]),
    "months": pandas.Series(DAYS.to_period("M")),
    "arrow": pandas.Series(DAYS).astype("timestamp[us, tz=UTC][pyarrow]"),
    "arrow days": pandas.Series(DAYS).astype("date32[pyarrow]"),
    "date objects": pandas.Series(DAYS.date, dtype=object),
    "datetime objects": pandas.Series(ZONED, dtype=object),
    "timedelta objects": pandas.Series(SPANS, dtype=object),
    "time objects": pandas.Series(TIMES, dtype=object),
}
POLARS_DATES = {
    "days": polars.Series(DAYS.date.tolist()),
    "microseconds": polars.Series(DAYS.to_pydatetime().tolist()),
    "milliseconds": polars.Series(DAYS.to_pydatetime().tolist()).dt.cast_time_unit("ms"),
    "a zone": polars.Series(ZONED),
    "spans": polars.Series(SPANS),
    "times of day": polars.Series(TIMES),
}
DATES = {
    f"pandas, {name}": pandas.DataFrame({"x": NUMBERS, "day": day})
    for name, day in PANDAS_DATES.items()
}
DATES |= {
    f"polars, {name}": polars.DataFrame({"x": NUMBERS, "day": day})
    for name, day in POLARS_DATES.items()
}


def _emptied(X, name, rows):
    if isinstance(X, pandas.DataFrame):
        X = X.copy()
        X.loc[rows, name] = None
        return X
    gone = polars.Series(np.isin(np.arange(len(X)), rows))
    return X.with_columns(polars.when(gone).then(None).otherwise(X[name]).alias(name))


@pytest.mark.parametrize("kind", DATES)
def test_dates_come_in_as_numbers_and_go_out_as_dates(kind):
    X = DATES[kind]
    vae = _vae().fit(X)
    for rows in (vae.sample(5, random_state=0), vae.inverse_transform(vae.transform(X))):
        assert rows["day"].dtype == X["day"].dtype
        assert type(rows["day"][0]) is type(X["day"][0])
        assert getattr(rows["day"][0], "tzinfo", None) == getattr(X["day"][0], "tzinfo", None)
    # The table holds days, so the cells come back from it.
    table = vae.model_.read(X)
    assert list(vae.model_.write(table)["day"]) == list(X["day"])
    shift = table[8, 1] - table[7, 1]
    of_day = isinstance(X["day"][0], datetime.time)
    assert shift == pytest.approx(1 / 24 if of_day else 0.0 if "months" in kind else 1.0)


@pytest.mark.parametrize("kind", DATES)
def test_dates_that_are_missing_are_imputed(kind):
    X = _emptied(DATES[kind], "day", np.array([3, 7]))
    filled = VAEImputer(_vae(), random_state=0).fit_transform(X)
    assert filled["day"].dtype == X["day"].dtype
    kept = [row for row in range(N) if row not in (3, 7)]
    assert [filled["day"][row] for row in kept] == [X["day"][row] for row in kept]
    assert type(filled["day"][3]) is type(X["day"][0])
    assert np.isfinite(_vae().fit(X).score_samples(X)).all()


def test_whole_days_are_drawn_as_whole_days_through_their_shape():
    day = DAYS[_rng(0).integers(0, N, 200)]
    X = pandas.DataFrame({"x": np.arange(200.0), "day": day})
    drawn = _vae(likelihood="normal_scores").fit(X).sample(100, random_state=0)
    assert (drawn["day"] == drawn["day"].dt.normalize()).all()
    known = set(pandas.date_range(day.min(), day.max()))
    assert sum(value in known for value in drawn["day"]) >= 98  # beyond them, once in n rows


def test_dates_of_an_array_of_objects_come_back():
    X = np.array([NUMBERS, DAYS.date], dtype=object).T
    assert type(_vae().fit(X).sample(2, random_state=0)[0, 1]) is datetime.date


@pytest.mark.parametrize("other", [[1.0], [DAYS[0].date()], [ZONED[0]]])
def test_dates_beside_other_values_are_refused_with_the_column_and_the_fix(other):
    cells = [*DAYS[1:].to_pydatetime(), *other]
    X = pandas.DataFrame({"x": NUMBERS, "day": pandas.Series(cells, dtype=object)})
    with pytest.raises(ValueError, match=r"'day' holds dates or times beside other .*Make all of"):
        _vae().fit(X)


def test_numbers_are_no_dates_and_dates_no_numbers():
    dates, numbers = DATES["pandas, seconds"], pandas.DataFrame({"x": NUMBERS, "day": NUMBERS})
    with pytest.raises(ValueError, match="'day' holds other values, where fit had dates"):
        _vae().fit(dates).transform(numbers)
    with pytest.raises(ValueError, match="'day' holds dates, where fit had other values"):
        _vae().fit(numbers).transform(dates)


def test_another_kind_of_date_is_refused():
    naive, zoned = DATES["pandas, seconds"], DATES["pandas, a zone"]
    for fitted, other, held in (
        (zoned, naive, "'day' holds dates, where fit had dates with a time zone"),
        (naive, zoned, "'day' holds dates with a time zone, where fit had dates"),
        (naive, DATES["pandas, spans"], "'day' holds durations, where fit had dates"),
        (DATES["polars, days"], DATES["polars, times of day"], "day.? holds times of day"),
    ):
        with pytest.raises(ValueError, match=held):
            _vae().fit(fitted).score_samples(other)


@pytest.mark.parametrize("kind", DATES)
def test_dates_are_explained_as_dates(kind):
    X = DATES[kind]
    rows = X.iloc[:2] if isinstance(X, pandas.DataFrame) else X[:2]
    why = VAEOutlierDetector(random_state=0).fit(X).explain(rows)
    cells = why[why.index.get_level_values(-1) == "day"]
    moments = datetime.date | datetime.time | datetime.timedelta | pandas.Period
    for name in ("value", "expected", "lower", "upper"):
        assert all(isinstance(cell, moments) for cell in cells[name])


def test_times_and_durations_are_drawn_on_their_grid():
    rng = _rng(0)
    times = [datetime.time(int(m) // 60, int(m) % 60) for m in rng.integers(0, 1440, 600)]
    spans = pandas.to_timedelta(rng.exponential(3600, 600).astype(int), unit="s")
    X = pandas.DataFrame({"time": pandas.Series(times, dtype=object), "span": spans})
    drawn = _vae(likelihood="normal_scores").fit(X).sample(200, random_state=0)
    inside = [one for one in drawn["time"] if one.hour < 23]
    assert {(one.second, one.microsecond) for one in inside} == {(0, 0)}
    assert (drawn["span"] == drawn["span"].dt.round("s")).all()
    days = DAYS[rng.integers(0, N, 400)] + pandas.to_timedelta(rng.normal(0, 99, 400).round(), "D")
    X = pandas.DataFrame({"day": days, "x": rng.normal(size=400)})
    X.loc[:50, "day"] = None
    filled = VAEImputer(random_state=0).fit_transform(X)["day"]
    assert (filled == filled.dt.normalize()).all()


# -- what has no likelihood -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [pandas.DataFrame, polars.DataFrame])
@pytest.mark.parametrize("cell", [np.inf, -np.inf])
def test_infinity_is_refused_with_its_column_and_row(make, cell):
    numbers = NUMBERS.copy()
    numbers[11] = cell
    X = make({"x": NUMBERS, "visits": numbers})
    for call in (_vae().fit, _vae().fit(make({"x": NUMBERS, "visits": NUMBERS})).transform):
        with pytest.raises(ValueError, match=r"Column 'visits' .*row 11 holds -?inf"):
            call(X)


# -- any frame ------------------------------------------------------------------------------------


def _random_column(rng, n_rows):
    """(dtype of pandas, dtype of polars, cells) of some column, good or bad."""
    kind = rng.choice(["float", "int", "bool", "string", "category", "constant", "empty", "few"])
    holes = rng.uniform(size=n_rows) < rng.choice([0.0, 0.0, 0.3])
    if kind == "float":
        values = (10.0 ** rng.integers(-8, 9) * rng.normal(size=n_rows)).tolist()
        types = ("float64", polars.Float64)
    elif kind == "int":
        values = rng.integers(-1000, 1000, n_rows).tolist()
        types = ("Int64", polars.Int64)
    elif kind == "bool":
        values, types = (rng.uniform(size=n_rows) < 0.3).tolist(), ("boolean", polars.Boolean)
    elif kind in ("string", "category", "few"):
        n_levels = 1 if kind == "few" else int(rng.integers(1, 30))
        values = [f"level {level}" for level in rng.integers(0, n_levels, n_rows)]
        types = ("string", polars.String)
        if kind == "category":
            types = ("category", polars.Categorical)
    elif kind == "constant":
        values, types = n_rows * [float(rng.choice([0.0, 0.1, -1e8]))], ("float64", polars.Float64)
    else:
        values, types = n_rows * [None], ("float64", polars.Float64)
        if rng.uniform() < 0.4:
            types = ("string", polars.String)
    return *types, [None if hole else value for value, hole in zip(values, holes, strict=True)]


def _random_frame(seed):
    """A frame of some size and kind, with equal rows at times."""
    rng = _rng(seed)
    n_rows, n_columns = int(rng.choice([1, 2, 17, 40])), int(rng.integers(1, 7))
    columns = {f"c{number}": _random_column(rng, n_rows) for number in range(n_columns)}
    repeated = np.arange(n_rows) if rng.uniform() < 0.7 else rng.integers(0, n_rows, 2 * n_rows)
    if rng.uniform() < 0.5:
        frame = pandas.DataFrame(
            {name: pandas.Series(cells, dtype=dtype) for name, (dtype, _, cells) in columns.items()}
        )
        return frame.iloc[repeated]
    frame = polars.DataFrame(
        {name: polars.Series(cells, dtype=dtype) for name, (_, dtype, cells) in columns.items()}
    )
    return frame[repeated]


@pytest.mark.parametrize("seed", range(30))
def test_any_frame_works(seed):
    X = _random_frame(seed)
    max_iter = seed % 2
    vae = _vae(n_components="auto", max_iter=max_iter, max_categories=12).fit(X)
    _assert_comes_back(vae, X)


BAD_CELLS = {
    "infinity": (lambda numbers: [np.inf, *numbers[1:]], "inf"),
    "too large": (lambda numbers: [*numbers[1:], 1e250], "too large"),
    "dates": (lambda numbers: [DAYS[0], *numbers[1:]], "dates or times"),
    "complex numbers": (lambda numbers: [1j, *numbers[1:]], "[Cc]omplex"),
    "lists": (lambda numbers: [[1.0], *numbers[1:]], "a list"),
    "dictionaries": (lambda numbers: [{}, *numbers[1:]], "a dict"),
}


@pytest.mark.parametrize("kind", BAD_CELLS)
@pytest.mark.parametrize("seed", range(3))
def test_any_frame_with_a_bad_column_is_refused_by_name(seed, kind):
    make, held = BAD_CELLS[kind]
    X = _random_frame(seed)
    X = X if isinstance(X, pandas.DataFrame) else pandas.DataFrame(X.to_dict(as_series=False))
    X = X.reset_index(drop=True)
    X.insert(len(X.columns) // 2, "visits", pandas.Series(list(make(NUMBERS.tolist()))[: len(X)]))
    if kind == "too large" and len(X) < 3:
        pytest.skip("One number has no variance that could overflow.")
    if kind == "too large":
        X.loc[0, "visits"] = 1e250
    with pytest.raises((ValueError, TypeError), match=rf"'visits'(.|\n)*{held}|{held}.*'visits'"):
        _vae().fit(X)


# -- what is made of columns of objects -----------------------------------------------------------


def _objects(n_strays=2, n=200, stray="?"):
    rng = np.random.default_rng(0)
    z = rng.normal(size=n)
    cells = (100.0 + 10.0 * z).astype(object)
    cells[:n_strays] = stray
    return pandas.DataFrame({"amount": cells, "b": z + 0.1 * rng.normal(size=n)})


def test_a_few_texts_among_numbers_are_holes_and_named():
    frame = _objects()
    with pytest.warns(UserWarning, match=r"'amount' holds numbers, but 2 of its 200 .* \('\?'\)"):
        vae = _vae(max_iter=0).fit(frame)
    assert list(vae.likelihood_) == ["gaussian", "gaussian"]
    holed = frame.assign(amount=pandas.to_numeric(frame["amount"], errors="coerce"))
    assert_allclose(vae.score_samples(frame), _vae(max_iter=0).fit(holed).score_samples(holed))
    with pytest.raises(ValueError, match="Column 'amount' needs numbers; row 0 holds 'new'"):
        vae.transform(frame.assign(amount="new"))


def test_many_texts_among_numbers_make_a_category_and_that_is_said():
    with pytest.warns(UserWarning, match=r"30 of its 200 values are not numbers .* as a category"):
        vae = _vae(max_iter=0).fit(_objects(n_strays=30))
    assert vae.likelihood_[0] == "categorical"


@pytest.mark.parametrize(
    "asked", [{"categorical_features": ["amount"]}, {"likelihood": "gaussian"}]
)
def test_nothing_is_guessed_where_the_user_has_said_what_it_is(asked):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if "likelihood" in asked:
            with pytest.raises(ValueError, match=r"needs numbers; row 0 holds '\?'"):
                _vae(max_iter=0, **asked).fit(_objects())
            return
        warnings.filterwarnings("ignore", "The noise scale|.*inactive")
        assert _vae(max_iter=0, **asked).fit(_objects()).likelihood_[0] == "categorical"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([f"{1000 + n:,}.50" for n in range(60)] * 2, "numbers written as text"),
        ([f"customer {n}" for n in range(120)], "another level in nearly every row"),
    ],
)
def test_numbers_as_text_and_ids_are_said(cells, message):
    frame = pandas.DataFrame({"t": cells, "x": np.arange(120.0)})
    with pytest.warns(UserWarning, match=f"Column 't' holds {message}"):
        _vae(max_iter=0).fit(frame)


@pytest.mark.parametrize("cells", [list("abc") * 40, [f"id{n}" for n in range(20)] * 6])
def test_categories_are_no_news(cells):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Column 't'")
        _vae(max_iter=0).fit(pandas.DataFrame({"t": cells, "x": np.arange(120.0)}))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("random_state", range(4))
def test_a_detector_takes_texts_among_numbers_as_holes_whatever_rows_it_holds_out(random_state):
    from skvae import VAEOutlierDetector

    frame = _objects(n_strays=1)
    detector = VAEOutlierDetector(random_state=random_state).fit(frame)
    assert np.isfinite(detector.score_samples(frame)).all()
    holed = frame.assign(amount=pandas.to_numeric(frame["amount"], errors="coerce"))
    expected = VAEOutlierDetector(random_state=random_state).fit(holed).score_samples(holed)
    assert_allclose(detector.score_samples(frame), expected)
