"""Tables at the edges of what is promised: each was once wrong."""

import copy
from decimal import Decimal

import numpy as np
import pytest
from scipy import sparse

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer
from skvae._start import glm

pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")

pytestmark = pytest.mark.filterwarnings("ignore")

RNG = np.random.default_rng(0)
N = 120
Z = RNG.normal(size=N)
SWITCHES = sparse.csr_matrix((RNG.random((N, 5)) < 0.3).astype(float))


def _vae(**parameters):
    small = {"hidden_layer_sizes": (4,), "max_iter": 1, "random_state": 0}
    return VAETransformer(2, **small | parameters)


def _imputer(**parameters):
    return VAEImputer(_vae(), random_state=0, **parameters)


def test_a_hole_is_filled_though_the_new_frame_declares_fewer_categories():
    frame = pandas.DataFrame({"c": pandas.Categorical(list("abc") * 40), "x": Z})
    new = pandas.DataFrame({"c": pandas.Categorical(["b", None]), "x": [1.0, 2.0]})
    filled = _imputer().fit(frame).transform(new)
    assert filled["c"].tolist()[0] == "b" and filled["c"].notna().all()
    assert set(filled["c"].cat.categories) <= {"a", "b", "c"}


def test_a_hole_is_filled_though_the_new_enum_has_fewer_categories():
    frame = polars.DataFrame(
        {"c": polars.Series(["a", "b", "b"] * 40, dtype=polars.Enum(["a", "b"])), "x": Z}
    )
    new = polars.DataFrame(
        {"c": polars.Series(["a", None], dtype=polars.Enum(["a"])), "x": [1.0, 2.0]}
    )
    assert _imputer().fit(frame).transform(new)["c"].null_count() == 0


def test_lenient_cells_of_sparse_rows_become_missing_in_every_chunk():
    fitted = _vae().fit(SWITCHES)
    rows = sparse.vstack([SWITCHES] * 50, format="csr")
    rows.data[::100] = 3.0
    before = rows.data.copy()
    table = fitted.model_.read(rows)
    assert np.isnan(table.toarray()).sum() == len(rows.data[::100])
    assert (rows.data == before).all()


@pytest.mark.parametrize(
    "parameters", [{"categorical_features": [0]}, {"likelihood": {0: "categorical"}}]
)
def test_categories_of_sparse_rows_are_refused_with_the_fix(parameters):
    with pytest.raises(ValueError, match=r"Column 0 .*X is sparse.*toarray"):
        _vae(**parameters).fit(SWITCHES)


def test_sparse_rows_after_a_frame_of_categories_are_refused():
    frame = pandas.DataFrame({"c": list("ab") * 60, "x": Z})
    with pytest.raises(ValueError, match="X is sparse, but fit had a frame"):
        _vae().fit(frame).transform(sparse.csr_matrix(np.ones((3, 2))))


@pytest.mark.parametrize("kind", [int, float])
def test_a_pandas_frame_of_sparse_columns_comes_back(kind):
    frame = pandas.DataFrame.sparse.from_spmatrix(SWITCHES.astype(kind))
    back = _vae().fit(frame).sample(2, random_state=0)
    assert back.dtypes.equals(frame.dtypes)


def test_a_text_marker_is_looked_for_in_text_columns_alone():
    frame = polars.DataFrame({"c": ["a", "b", "?"] * 40, "b": [True, False, True] * 40, "x": Z})
    filled = _imputer(missing_values="?").fit_transform(frame)
    assert "?" not in filled["c"].to_list()
    assert filled["b"].equals(frame["b"]) and filled["x"].equals(frame["x"])


def test_integer_labels_of_a_frame_are_labels_not_positions():
    frame = pandas.DataFrame({4: Z, 2: Z + RNG.normal(size=N), 0: RNG.normal(size=N)})
    vae = _vae(likelihood={2: "student_t"}).fit(frame)
    assert vae.likelihood_.tolist() == ["gaussian", "student_t", "gaussian"]
    with pytest.raises(ValueError, match="1, which X does not have"):
        _vae(likelihood={1: "student_t"}).fit(frame)
    with pytest.raises(ValueError, match="fit had"):
        vae.transform(frame[[2, 4, 0]])


@pytest.mark.parametrize("value", [7, 0.01, -3.5])
def test_a_constant_column_is_drawn_without_noise(value):
    frame = pandas.DataFrame({"x": Z, "y": Z + RNG.normal(size=N), "k": value})
    vae = _vae().fit(frame)
    for back in (vae.sample(50, random_state=0), vae.inverse_transform(vae.transform(frame))):
        np.testing.assert_allclose(back["k"], value, rtol=1e-14)


def test_a_row_of_weight_zero_has_no_say_in_what_a_column_holds():
    weight = np.ones(N)
    weight[3] = 0.0
    frame = pandas.DataFrame({"o": Z.astype(object), "x": Z, "y": RNG.normal(size=N)})
    frame.loc[3, "o"] = "bad"
    frame.loc[3, "x"] = np.inf
    weighted = _vae().fit(frame, sample_weight=weight)
    dropped = _vae().fit(frame.drop(3))
    assert weighted.likelihood_.tolist() == dropped.likelihood_.tolist()
    clean = frame.drop(3)
    assert (weighted.transform(clean) == dropped.transform(clean)).all()


def test_a_row_of_weight_zero_does_not_keep_an_empty_column():
    X = np.c_[np.full(N, np.nan), Z, Z + RNG.normal(size=N)]
    X[3, 0] = 5.0
    weight = np.ones(N)
    weight[3] = 0.0
    assert _imputer().fit(X, sample_weight=weight).transform(X[:3]).shape == (3, 2)


def test_curves_stay_in_the_units_of_x_where_later_rows_miss_more():
    X = 1000.0 * np.c_[Z, Z + RNG.normal(size=N), RNG.normal(size=N)]
    fewer = X.copy()
    fewer[::2, 0] = np.nan
    vae = _vae(learning_rate_init=1e-30).fit(X).partial_fit(fewer)
    expected = vae.score_samples(fewer, method="elbo").mean()
    assert -vae.loss_curve_[-1] == pytest.approx(expected, abs=0.5)


def test_an_index_of_names_says_which_columns_are_categories():
    frame = pandas.DataFrame({"c": list("ab") * 60, "n": [1, 2, 3] * 40, "x": Z})
    vae = _vae(categorical_features=pandas.Index(["c", "n"])).fit(frame)
    assert vae.likelihood_.tolist() == ["categorical", "categorical", "gaussian"]
    with pytest.raises(ValueError, match=r"Column 'c'.*categorical_features"):
        _vae(categorical_features=pandas.Index(["n"])).fit(frame)


def test_decimals_are_numbers():
    frame = pandas.DataFrame({"d": [Decimal(str(round(z, 2))) for z in Z], "x": Z})
    assert _vae().fit(frame).likelihood_.tolist() == ["gaussian", "gaussian"]


def test_a_lazy_frame_is_refused_with_the_fix_where_all_rows_are_needed_at_once():
    frame = polars.DataFrame({"x": Z, "y": Z[::-1]})
    detector = VAEOutlierDetector(random_state=0).fit(frame)
    with pytest.raises(TypeError, match=r"LazyFrame of polars.*Pass rows that are: X.collect\(\)"):
        detector.explain(frame.lazy())


def _dask_array():
    return pytest.importorskip("dask.array").from_array(np.column_stack([Z, Z]), chunks=20)


def _dask_frame():
    frames = pytest.importorskip("dask.dataframe")
    return frames.from_pandas(pandas.DataFrame({"x": Z, "y": Z}), npartitions=2)


@pytest.mark.parametrize("estimator", [VAETransformer, VAEOutlierDetector, VAEImputer])
@pytest.mark.parametrize("collection", [_dask_array, _dask_frame, lambda: _dask_frame()["x"]])
def test_rows_of_a_cluster_are_refused_and_none_are_fetched(collection, estimator, monkeypatch):
    X = collection()
    monkeypatch.setattr(type(X), "__array__", None)
    with pytest.raises(TypeError, match=r"of dask, whose rows are not in memory.*X.compute\(\)"):
        estimator().fit(X)


def test_counts_in_many_columns_start_where_their_bound_is_sane(monkeypatch):
    # A Newton step alone left the start 1e8 nats too low above 1,500 columns. A fifth of the steps
    # that follow it, and a third of the codes, do.
    monkeypatch.setattr(glm, "GLM_STEPS", 20)
    monkeypatch.setattr(glm, "ENOUGH_PAIRS", 1)
    rng = np.random.default_rng(1)
    rate = np.exp(
        rng.normal(-3.0, 1.0, 1600) + rng.normal(size=(600, 2)) @ rng.normal(size=(2, 1600))
    )
    X = sparse.csr_matrix(rng.poisson(np.minimum(rate, 50.0)).astype(float))
    vae = _vae(likelihood="poisson", max_iter=0).fit(X[:550])
    null = copy.deepcopy(vae)
    null.weights_["decoder.linear.weight"][:] = 0.0
    bounds = [m.score_samples(X[550:], method="elbo").mean() for m in (vae, null)]
    assert bounds[0] > bounds[1]


def test_the_linear_model_of_a_table_with_switches_is_fitted():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=(80, 3)), rng.uniform(size=(80, 2)) < 0.4])
    vae = VAETransformer(2, hidden_layer_sizes=(), max_iter=0, random_state=0).fit(X)
    assert vae.likelihood_.tolist() == ["gaussian"] * 3 + ["bernoulli"] * 2


@pytest.mark.parametrize("dtype", ["int32", "Int32", "uint32", "int64", "Int64", "uint64"])
def test_codes_in_single_precision_make_no_integer_wrap(dtype):
    top = np.iinfo(dtype.lower()).max
    frame = pandas.DataFrame({"i": np.where(Z > 0, top, top // 2).astype(dtype.lower()), "x": Z})
    vae = VAETransformer(1, max_iter=0).fit(frame.astype({"i": dtype}))
    codes = 3.0 * vae.transform(frame.astype({"i": dtype}))
    wide, short = (vae.inverse_transform(z)["i"] for z in (codes, codes.astype(np.float32)))
    assert np.abs(short.astype(float) - wide.astype(float)).max() <= 1e-5 * float(top)
    assert short.max() > 0.99 * top


BOOLEANS = {
    "polars": lambda: polars.DataFrame({"t": [None, None, True], "x": [-0.5, -2.0, 0.0]}),
    "boolean": lambda: _boolean_frame("boolean"),
    "bool[pyarrow]": lambda: _boolean_frame("bool[pyarrow]"),
}


def _boolean_frame(dtype):
    return pandas.DataFrame(
        {"t": pandas.array([None, None, True], dtype=dtype), "x": [-0.5, -2.0, 0.0]}
    )


@pytest.mark.parametrize("kind", BOOLEANS)
@pytest.mark.parametrize("dtype", [int, float, bool])
def test_a_boolean_is_filled_by_whether_it_is_more_probable_than_not(kind, dtype):
    if kind != "polars":
        pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"t": (Z > 0).astype(dtype), "x": Z})
    imputer = VAEImputer(VAETransformer(1, max_iter=0), random_state=0).fit(frame)
    assert list(imputer.transform(BOOLEANS[kind]())["t"]) == [False, False, True]


def test_a_rare_level_has_its_share_of_the_place_that_it_has_with_others():
    share = 1.0 / np.arange(1, 41)
    levels = np.array([f"l{i:02d}" for i in range(40)])
    held = RNG.choice(levels, 500, p=share / share.sum())
    vae = VAETransformer(1, max_iter=0, max_categories=5).fit(pandas.DataFrame({"c": held}))
    seen, counts = np.unique(held, return_counts=True)
    each = pandas.DataFrame({"c": seen})
    for method in ("log_likelihood", "elbo", "reconstruction"):
        p = np.exp(vae.score_samples(each, method=method))
        assert np.corrcoef(p, counts)[0, 1] > 0.99
    assert np.exp(vae.score_samples(each)).sum() == pytest.approx(1.0, abs=0.01)
    rare = [level not in vae.model_.schema.columns[0].levels for level in seen]
    shares = vae.score_features(each)[rare, 0]
    assert np.ptp(shares - np.log(counts[rare])) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("scaling", ["columns", "common", None])
def test_a_constant_column_moves_no_code_of_a_trained_model(scaling):
    constant = np.where(RNG.random(N) < 0.5, 0.1 + 0.2, 0.3)  # but for rounding
    X = np.column_stack([np.sin(3 * Z), np.cos(3 * Z), Z**2, constant])
    vae = VAETransformer(2, max_iter=5, scaling=scaling, early_stopping=False, random_state=0)
    vae.fit(X)
    codes = []
    for value in (0.3, 0.1 + 0.2, 0.300001, 1.0):
        X[:, 3] = value
        codes.append(vae.transform(X))
    assert max(np.abs(other - codes[0]).max() for other in codes) < 1e-9


NOT_A_NUMBER = {
    "float32": (np.float32, np.float32("nan")),
    "float16": (np.float16, np.float16("nan")),
    "Decimal": (lambda value: Decimal(repr(float(value))), Decimal("NaN")),
}


@pytest.mark.parametrize("kind", NOT_A_NUMBER)
def test_every_kind_of_nan_among_objects_is_missing(kind):
    make, hole = NOT_A_NUMBER[kind]
    X = np.empty((N, 2), dtype=object)
    X[:, 0], X[:, 1] = [make(value) for value in Z], (2.0 * Z).tolist()
    X[3, 0] = hole
    filled = VAEImputer(VAETransformer(1, max_iter=0), random_state=0).fit_transform(X)
    assert float(filled[3, 0]) == pytest.approx(Z[3], abs=0.1)
    X[:, 0] = ["a", "b"] * (N // 2)
    X[3, 0] = hole
    assert _vae().fit(X).model_.schema.columns[0].levels == ("a", "b")


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_an_indicator_takes_no_columns_name(library):
    cells = {"a": np.where(Z > 1.0, np.nan, Z), "missingindicator_a": Z + 5.0}
    frame = __import__(library).DataFrame(cells)
    with pytest.raises(ValueError, match="column 'missingindicator_a', but X has one"):
        _imputer(add_indicator=True).fit(frame)


def test_an_indicator_of_a_column_of_two_names_has_two():
    index = pandas.MultiIndex.from_tuples([("a", "x"), ("b", "y")])
    frame = pandas.DataFrame(np.c_[np.where(Z > 1.0, np.nan, Z), Z + 5.0], columns=index)
    filled = _imputer(add_indicator=True).fit_transform(frame)
    assert filled.columns.tolist() == [("a", "x"), ("b", "y"), ("missingindicator_a", "x")]


def test_what_comes_back_in_half_precision_or_decimals_is_within_them():
    half = polars.DataFrame({"a": polars.Series(20000 * Z).cast(polars.Float16), "b": Z})
    vae = VAETransformer(1, max_iter=0).fit(half)
    assert vae.inverse_transform([[100.0]])["a"][0] in (65504.0, -65504.0)
    assert not vae.sample(2000, random_state=0)["a"].is_infinite().any()
    prices = [Decimal(f"{30 * abs(value):.2f}") for value in Z]
    decimals = polars.DataFrame({"a": prices, "b": np.abs(Z)}).with_columns(
        polars.col("a").cast(polars.Decimal(4, 2), strict=False)
    )
    vae = VAETransformer(1, max_iter=0).fit(decimals)
    ends = vae.inverse_transform([[100.0], [-100.0]])["a"].to_list()
    assert sorted(ends) == [Decimal("-99.99"), Decimal("99.99")]


def test_arrow_decimals_come_back_within_their_digits():
    arrow = pytest.importorskip("pyarrow")
    dtype = pandas.ArrowDtype(arrow.decimal128(4, 2))
    frame = pandas.DataFrame({"a": pandas.Series(30 * np.abs(Z)).astype(dtype), "b": np.abs(Z)})
    ends = VAETransformer(1, max_iter=0).fit(frame).inverse_transform([[100.0], [-100.0]])["a"]
    assert sorted(ends) == [Decimal("-99.99"), Decimal("99.99")]


@pytest.mark.parametrize("text", ["12.0", "13", "1_3", "nan", "x"])
@pytest.mark.parametrize("strays", [True, False])
def test_a_text_is_no_number_among_numbers(text, strays):
    cells = Z.astype(object)
    if strays:
        cells[:2] = "12"
    vae = VAETransformer(1, max_iter=0).fit(pandas.DataFrame({"a": cells, "b": Z}))
    with pytest.raises(ValueError, match="Column 'a' needs numbers; row 1 holds"):
        vae.transform(pandas.DataFrame({"a": [1.0, text], "b": [0.0, 0.0]}, dtype=object))


def test_numbers_written_as_text_are_read_where_the_user_said_that_they_are_numbers():
    frame = pandas.DataFrame({"a": [repr(float(value)) for value in Z], "b": Z})
    vae = VAETransformer(1, max_iter=0, likelihood="gaussian").fit(frame)
    assert np.array_equal(vae.transform(frame[:9]), vae.transform(frame.astype(float)[:9]))
    with pytest.raises(ValueError, match="row 0 holds '1_3'"):
        vae.transform(pandas.DataFrame({"a": ["1_3"], "b": [0.0]}))


@pytest.mark.parametrize("kind", ["pandas", "numpy"])
def test_a_marker_that_is_a_number_is_no_truth_value(kind):
    frame = pandas.DataFrame({"a": Z > 0, "b": Z > 0.5})
    X = frame if kind == "pandas" else frame.to_numpy()
    filled = VAEImputer(VAETransformer(1, max_iter=0), missing_values=0).fit_transform(X)
    assert np.array_equal(np.asarray(filled), frame.to_numpy())


def test_an_imputed_level_that_the_new_enum_lacks_is_added_to_it():
    frame = pandas.DataFrame({"c": pandas.Categorical(np.where(Z > 0, "hi", "lo")), "x": Z})
    levels = polars.Series([None, "lo"], dtype=polars.Enum(["zz", "lo"]))
    filled = _imputer().fit(frame).transform(polars.DataFrame({"c": levels, "x": [2.0, -2.0]}))
    assert filled["c"].to_list() == ["hi", "lo"]


def test_two_columns_of_one_name_are_refused_by_it():
    frame = pandas.DataFrame(np.c_[Z, Z + 1.0], columns=["a", "a"])
    with pytest.raises(ValueError, match="two columns of the name 'a'"):
        _vae().fit(frame)


def test_draws_of_equal_rows_are_independent():
    # They shared their noise, so that the means of a table of draws were 0.2 sd off.
    X = RNG.normal(size=(N, 2)) @ RNG.normal(size=(2, 5)) + 0.3 * RNG.normal(size=(N, 5))
    vae = VAETransformer(2, max_iter=0, random_state=0).fit(X)
    holes = np.full((2000, 5), np.nan)
    drawn = [vae.sample(given=holes, random_state=seed) for seed in range(4)]
    means = np.array([(table.mean(0) - X.mean(0)) / X.std(0) for table in drawn])
    assert np.abs(means).max() < 4.5 / np.sqrt(2000)


@pytest.mark.parametrize("unit", [1e-158, 1e-170, 1e-310])
def test_differences_whose_squares_are_no_floats_are_told(unit):
    X = np.column_stack([Z, 2.0 * Z + RNG.normal(size=N), unit * RNG.normal(size=N)])
    with pytest.warns(UserWarning, match="Column 2 holds numbers whose differences are too small"):
        vae = VAETransformer(1, max_iter=3, random_state=0).fit(X)
    assert np.isfinite(vae.score_samples(X)).all()
