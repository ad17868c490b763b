"""What each container and dtype holds is kept: masks, holes, the bounds of integers, rows."""

import pickle
from datetime import date
from decimal import Decimal

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer

pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

rng = np.random.default_rng(0)
N = 120
Z = rng.normal(size=N)
MASK = rng.random((N, 3)) < 0.1


def _vae(**parameters):
    return VAETransformer(1, **{"max_iter": 0, "random_state": 0} | parameters)


# -- masked arrays --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, bool])
def test_what_is_masked_is_missing(dtype):
    X = np.stack([3.0 * Z, 3.0 * Z + rng.normal(size=N), rng.normal(size=N)], 1).astype(dtype)
    X[0, 0] = X[0, 0] == 0  # booleans hold both values
    masked = np.ma.masked_array(X, mask=MASK)
    holed = np.where(MASK, np.nan, X)
    one, other = _vae().fit(masked), _vae().fit(holed)
    assert_allclose(one.transform(masked), other.transform(holed))
    assert_allclose(one.score_samples(masked), other.score_samples(holed))
    filled = VAEImputer(_vae()).fit_transform(masked)
    assert_allclose(filled, VAEImputer(_vae()).fit_transform(holed))
    assert_array_equal(filled[~MASK], X[~MASK])
    scores = [
        VAEOutlierDetector(_vae(), random_state=0).fit(A).score_samples(A) for A in (masked, holed)
    ]
    assert_allclose(*scores)


def test_masked_cells_of_objects_are_missing():
    X = np.ma.masked_array(np.array([["a", 1.0], ["b", 2.0], ["a", 3.0]] * 9, dtype=object))
    X[0, 0] = X[4, 1] = np.ma.masked
    vae = _vae().fit(X)
    assert list(vae.likelihood_) == ["categorical", "gaussian"]
    filled = VAEImputer(_vae()).fit_transform(X)
    assert filled[0, 0] in ("a", "b") and np.isfinite(float(filled[4, 1]))


def test_an_array_without_a_mask_is_itself():
    X = rng.normal(size=(N, 3))
    assert_array_equal(_vae().fit(np.ma.masked_array(X)).transform(X), _vae().fit(X).transform(X))


# -- integers and short floats --------------------------------------------------------------------

INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]


def _to_the_ends(dtype):
    """Cells all over what the dtype holds."""
    limits = np.iinfo(dtype)
    steps = [int(limits.min) + (int(limits.max) - int(limits.min)) * k // (N - 1) for k in range(N)]
    return np.array(steps, dtype=dtype)


def _pandas_integers(dtype, kind):
    cells = pandas.Series(_to_the_ends(dtype))
    if kind == "nullable":
        cells = cells.astype(dtype.replace("int", "Int").replace("uI", "UI"))
    if kind == "arrow":
        pyarrow = pytest.importorskip("pyarrow")
        cells = cells.astype(pandas.ArrowDtype(getattr(pyarrow, dtype)()))
    return pandas.DataFrame({"h": cells, "x": np.arange(N) * 1.0})


FRAMES = {
    kind: lambda dtype, kind=kind: _pandas_integers(dtype, kind)
    for kind in ("plain", "nullable", "arrow")
} | {"polars": lambda dtype: polars.DataFrame({"h": _to_the_ends(dtype), "x": np.arange(N) * 1.0})}


@pytest.mark.parametrize("kind", FRAMES)
@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_never_wrap_around(dtype, kind):
    frame, limits = FRAMES[kind](dtype), np.iinfo(dtype)
    vae = _vae().fit(frame)
    far = 100.0 * vae.transform(frame)
    for back in (vae.inverse_transform(far), vae.sample(200, random_state=0)):
        assert str(back["h"].dtype) == str(frame["h"].dtype)
        cells = [int(cell) for cell in back["h"].to_list()]
        assert min(cells) >= int(limits.min) and max(cells) <= int(limits.max)
    ends = sorted(int(cell) for cell in vae.inverse_transform(far)["h"].to_list())
    assert ends[0] == int(limits.min)
    assert ends[-1] > int(limits.max) * 0.999


@pytest.mark.parametrize("kind", ["nullable", "arrow", "polars"])
def test_missing_integers_stay_missing_where_they_can(kind):
    frame = FRAMES[kind]("int64")
    holed = frame.clone() if kind == "polars" else frame.copy()
    if kind == "polars":
        holed = holed.with_columns(
            polars.when(polars.arange(N) % 5 == 0).then(None).otherwise(holed["h"]).alias("h")
        )
    else:
        holed.loc[::5, "h"] = pandas.NA
    filled = VAEImputer(_vae()).fit_transform(holed)
    assert filled["h"].to_list()[1] == frame["h"].to_list()[1]
    assert str(filled["h"].dtype) == str(frame["h"].dtype)


@pytest.mark.parametrize("dtype", ["float16", "float32", "Float32"])
def test_short_floats_never_become_infinite(dtype):
    top = float(np.finfo(dtype.lower()).max)
    frame = pandas.DataFrame(
        {
            "s": pandas.Series(np.linspace(-top, top, N) / 2).astype(dtype),
            "x": np.linspace(-1, 1, N),
        }
    )
    vae = _vae().fit(frame)
    for back in (
        vae.inverse_transform(100.0 * vae.transform(frame)),
        vae.sample(500, random_state=0),
    ):
        assert str(back["s"].dtype) == dtype
        assert np.isfinite(back["s"].to_numpy(dtype=float)).all()


def test_short_floats_of_polars_never_become_infinite():
    top = float(np.finfo(np.float32).max)
    frame = polars.DataFrame(
        {"s": np.linspace(-top, top, N).astype(np.float32) / 2, "x": np.linspace(-1, 1, N)}
    )
    vae = _vae().fit(frame)
    back = vae.inverse_transform(100.0 * vae.transform(frame))
    assert back["s"].dtype == polars.Float32 and np.isfinite(back["s"].to_numpy()).all()


@pytest.mark.parametrize("wild", [10**400, -(10**400), Decimal(10) ** 400])
def test_an_integer_that_no_float_can_hold_is_named(wild):
    X = np.array([[1, 2.0], [wild, 3.0], [3, 4.0]], dtype=object)
    if isinstance(wild, Decimal):
        with pytest.raises(ValueError, match=r"Column 0 .*row 1 holds"):
            _vae().fit(X)
        return
    with pytest.raises(
        ValueError, match=r"Column 0 needs numbers below 1.8e308; row 1 holds an int"
    ):
        _vae().fit(X)


# -- holes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hole", [None, np.nan, pandas.NA, pandas.NaT])
@pytest.mark.parametrize("as_frame", [True, False])
def test_holes_of_every_kind_are_holes(hole, as_frame):
    cells = np.array([1.0, hole, 3.0, 4.0] * 9, dtype=object)
    X = pandas.DataFrame({"a": cells, "b": np.arange(36.0)})
    X = X if as_frame else X.to_numpy(dtype=object)
    vae = _vae().fit(X)
    assert list(vae.likelihood_) == ["gaussian", "gaussian"]
    plain = np.stack([np.array([1.0, np.nan, 3.0, 4.0] * 9), np.arange(36.0)], 1)
    assert_allclose(vae.score_samples(X), _vae().fit(plain).score_samples(plain))


def test_a_date_among_numbers_is_still_refused():
    with pytest.raises(ValueError, match="holds dates or times"):
        _vae().fit(np.array([[1.0], [pandas.NaT], [date(2020, 1, 1)]] * 5, dtype=object))


def test_rows_of_nothing_but_holes_are_filled_after_a_fit_to_strings():
    imputer = VAEImputer(_vae(), random_state=0).fit([["a", "b"], ["c", "b"], ["a", "a"]])
    expected = imputer.transform([[None, None]])
    assert_array_equal(imputer.transform([[np.nan, np.nan]]), expected)
    assert expected[0, 0] in ("a", "c") and expected[0, 1] in ("a", "b")


def test_sparse_columns_of_pandas_are_filled():
    cells = np.where(rng.random(N) < 0.5, 0.0, Z)
    cells[3] = np.nan
    frame = pandas.DataFrame({"s": pandas.arrays.SparseArray(cells), "y": Z})
    filled = VAEImputer(_vae()).fit_transform(frame)
    assert filled.dtypes["s"] == frame.dtypes["s"]
    assert_array_equal(np.delete(filled["s"].to_numpy(), 3), np.delete(cells, 3))
    assert np.isfinite(filled["s"].to_numpy()[3])


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("library", [pandas, polars])
def test_an_empty_frame_keeps_its_rows(library, keep):
    holes = {"a": [None] * 9, "b": [None] * 9}
    frame = library.DataFrame(holes)
    if library is polars:
        frame = frame.cast({"a": polars.Float64, "b": polars.String})
    filled = VAEImputer(_vae(), keep_empty_features=keep).fit_transform(frame)
    # Before version 2 of polars there are no rows without columns.
    n_rows = 9 if keep or library is pandas else len(frame.drop("a", "b"))
    assert filled.shape == (n_rows, 2 if keep else 0)


# -- polars ---------------------------------------------------------------------------------------


def test_an_object_column_of_polars_is_refused_by_name():
    frame = polars.DataFrame(
        [polars.Series("o", ["a", "b"] * 9, dtype=polars.Object), polars.Series("x", range(18))]
    )
    for estimator in (_vae(), VAEImputer(_vae()), VAEOutlierDetector(_vae())):
        with pytest.raises(ValueError, match="Column 'o' is a polars Object"):
            estimator.fit(frame)


@pytest.mark.parametrize(
    ("marker", "dtype"),
    [
        (-1, polars.UInt8),
        (-1, polars.UInt64),
        (999, polars.Int8),
        (1e300, polars.Float32),
        (2**70, polars.Int64),
    ],
)
def test_a_marker_that_a_column_cannot_hold_marks_nothing_there(marker, dtype):
    frame = polars.DataFrame(
        {"a": polars.Series([1, 2, 3] * 8, dtype=dtype), "b": [1.0, float(marker), 3.0] * 8}
    )
    filled = VAEImputer(_vae(), missing_values=marker).fit_transform(frame)
    assert filled["a"].to_list() == frame["a"].to_list()
    assert 0.0 < filled["b"][1] < 4.0


# -- ordinal columns with different numbers of levels ---------------------------------------------


@pytest.mark.parametrize("size", 10.0 ** np.arange(2, 13, 2))
def test_wild_codes_decode_to_levels_that_the_column_has(size):
    frame = pandas.DataFrame(
        {"x": Z, "a": np.digitize(Z, [0.0]), "b": np.digitize(Z, [-1, -0.5, 0, 0.5, 1])}
    )
    vae = _vae(likelihood={"a": "ordinal", "b": "ordinal"}).fit(frame)
    for sign in (1.0, -1.0):
        codes = vae.transform(frame.head(1).assign(x=sign * size))
        back = vae.inverse_transform(codes)
        assert back["a"][0] in (0, 1) and back["b"][0] in range(6)
        module = vae.model_.module().likelihood.parts[1].now
        import torch

        raw = torch.tensor([[sign * size, sign * size]], dtype=torch.float64)
        top = torch.tensor([[1.0, 5.0]], dtype=torch.float64) * (sign > 0)
        torch.testing.assert_close(module.mean(raw), top)
        torch.testing.assert_close(module.mode(raw), top)


def test_what_was_fitted_can_be_stored():
    masked = np.ma.masked_array(rng.normal(size=(N, 3)), mask=MASK)
    vae = _vae().fit(masked)
    assert_array_equal(pickle.loads(pickle.dumps(vae)).transform(masked), vae.transform(masked))


@pytest.mark.parametrize("likelihood", ["ordinal", "categorical"])
def test_numbers_that_are_levels_stay_an_array_of_numbers(likelihood):
    rng = np.random.default_rng(0)
    z = rng.normal(size=100)
    X = np.stack([np.clip(np.rint(z + 2), 0, 4), z + rng.normal(size=100)], axis=1)
    X[:20, 0] = np.nan
    vae = _vae(likelihood={0: likelihood})
    filled = VAEImputer(vae, random_state=0).fit_transform(X)
    assert filled.dtype == np.float64 and set(filled[:, 0]) <= {0.0, 1.0, 2.0, 3.0, 4.0}
    assert vae.fit(X).sample(3, random_state=0).dtype == np.float64
