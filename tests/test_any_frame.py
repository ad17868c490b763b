"""Whatever frame comes: it is fitted, and comes back in its own columns, or an error helps."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skvae import VAEImputer, VAETransformer

pandas = pytest.importorskip("pandas")

MISSING = {"float64": np.nan, "Int64": pandas.NA, "boolean": pandas.NA}

cells = {
    "float64": st.floats(-1e9, 1e9, allow_subnormal=False),
    "int64": st.integers(-(10**9), 10**9),
    "Int64": st.integers(-5, 5),
    "bool": st.booleans(),
    "boolean": st.booleans(),
    "category": st.sampled_from(["", "a", "b", "level with spaces", "\N{GREEK SMALL LETTER MU}"]),
    "object": st.one_of(st.text(max_size=3), st.integers(0, 3)),
    "string": st.text(max_size=2),
    "datetime64[s]": st.integers(0, 10**9),
}
CANNOT_MISS = {"int64", "bool", "datetime64[s]"}


@st.composite
def columns(draw, n_rows):
    dtype = draw(st.sampled_from(sorted(cells)))
    kind = draw(st.sampled_from(["any", "constant", "empty"]))
    if dtype in CANNOT_MISS and kind == "empty":
        kind = "any"
    values = draw(st.lists(cells[dtype], min_size=n_rows, max_size=n_rows))
    if kind == "constant":
        values = n_rows * values[:1]
    if dtype not in CANNOT_MISS:
        gone = draw(st.lists(st.booleans(), min_size=n_rows, max_size=n_rows))
        none = MISSING.get(dtype)
        hide = [kind == "empty" or (kind == "any" and one) for one in gone]
        values = [none if one else value for value, one in zip(values, hide, strict=True)]
    return pandas.Series(values, dtype=dtype)


@st.composite
def frames(draw):
    n_rows = draw(st.sampled_from([1, 2, 3, 12]))
    drawn = draw(st.lists(columns(n_rows), min_size=1, max_size=4))
    return pandas.DataFrame({f"c{number}": column for number, column in enumerate(drawn)})


def finite(frame):
    """Whether every cell that is a number is finite."""
    numbers = [frame[name] for name in frame if frame[name].dtype.kind in "iuf"]
    return all(np.isfinite(column.to_numpy(dtype=float)).all() for column in numbers)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(frames())
def test_a_frame_is_fitted_and_comes_back(frame):
    vae = VAETransformer(2, max_iter=1, hidden_layer_sizes=(4,), n_importance_samples=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vae.set_params(random_state=0).fit(frame)
        assert np.isfinite(vae.transform(frame)).all()
        assert np.isfinite(vae.score_samples(frame, refine=False)).all()
        for back in (vae.sample(2, random_state=0), vae.inverse_transform(vae.transform(frame))):
            assert list(back.columns) == list(frame.columns)
            assert back.dtypes.equals(frame.dtypes)
            assert finite(back)
        filled = VAEImputer(vae, keep_empty_features=True).fit_transform(frame)
        seen = frame.notna()
        assert filled.where(seen).equals(frame.where(seen))
        assert filled.loc[:, seen.any()].notna().all(axis=None)
