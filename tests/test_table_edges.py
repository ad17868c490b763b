"""Tables at the edges of what is promised: each was once wrong."""

from decimal import Decimal

import numpy as np
import pytest
from scipy import sparse

from skvae import VAEImputer, VAETransformer

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
    with pytest.raises(ValueError, match="as it was in fit"):
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


def test_a_lazy_frame_is_refused_with_the_fix():
    with pytest.raises(TypeError, match="collect"):
        _vae().fit(polars.LazyFrame({"x": Z}))


def test_counts_in_many_columns_start_where_their_bound_is_sane():
    # A Newton step alone left the start 1e8 nats too low above 1,500 columns.
    rng = np.random.default_rng(1)
    rate = np.exp(
        rng.normal(-3.0, 1.0, 1600) + rng.normal(size=(600, 2)) @ rng.normal(size=(2, 1600))
    )
    X = sparse.csr_matrix(rng.poisson(np.minimum(rate, 50.0)).astype(float))
    vae = _vae(likelihood="poisson", max_iter=0).fit(X[:550])
    null = _vae(likelihood="poisson", max_iter=0).fit(X[:550])
    null.weights_["decoder.linear.weight"][:] = 0.0
    bounds = [m.score_samples(X[550:], method="elbo").mean() for m in (vae, null)]
    assert bounds[0] > bounds[1]


def test_the_linear_model_of_a_table_with_switches_is_fitted():
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=(80, 3)), rng.uniform(size=(80, 2)) < 0.4])
    vae = VAETransformer(2, hidden_layer_sizes=(), max_iter=0, random_state=0).fit(X)
    assert vae.likelihood_.tolist() == ["gaussian"] * 3 + ["bernoulli"] * 2
