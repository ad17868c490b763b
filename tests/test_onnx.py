"""ONNX models: the same codes, scores, rows and labels, by onnxruntime, on rows of all kinds."""

import datetime
import math
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as nn
from numpy.testing import assert_allclose, assert_array_equal
from scipy import special
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder

from skvae import (
    VAEImputer,
    VAEOutlierDetector,
    VAETransformer,
    register_onnx_converters,
    to_onnx,
)
from skvae.likelihoods import LIKELIHOODS, Likelihood, Support

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")
skl2onnx = pytest.importorskip("skl2onnx")

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings(
        "ignore:(.|\n)*(inactive|its floor|No cell of column|holds no value):UserWarning"
    ),
]

DTYPES = [np.float32, np.float64]
CLOSE = {np.float32: 1e-5, np.float64: 1e-10}  # of the size of a number, and of its column
SCORES = ("elbo", "reconstruction", "kl")


def short(values):
    """Numbers that float32 holds."""
    return np.asarray(values, dtype=np.float32).astype(np.float64)


def with_holes(X, share=0.15, seed=1):
    """The same rows, of which the second half misses some cells."""
    lost = np.random.default_rng(seed).random(X.shape) < share
    lost[: len(X) // 2] = False
    return np.where(lost, np.nan, X)


RNG = np.random.default_rng(0)
N = 120
NORMAL = short(RNG.normal(size=(N, 2)) @ RNG.normal(size=(2, 5)) + 0.3 * RNG.normal(size=(N, 5)))
COUNTS = RNG.poisson(np.exp(1.0 + 0.5 * NORMAL)).astype(float)
LEVELS = np.digitize(NORMAL, [-1.0, 0.0, 1.0]).astype(float)
TABLES = {
    "gaussian": NORMAL,
    "student_t": short(NORMAL + 0.1 * RNG.standard_t(1.5, NORMAL.shape)),
    "log_normal": short(np.exp(NORMAL)),
    "bernoulli": (NORMAL > 0.0).astype(float),
    "categorical": LEVELS,
    "ordinal": LEVELS,
    "poisson": COUNTS,
    "negative_binomial": COUNTS,
    "normal_scores": np.where(NORMAL < 0.0, 0.0, short(np.exp(NORMAL))),
    "multinomial": COUNTS,
}
LEVELED = ("categorical", "ordinal")


def transformer(**parameters):
    defaults = {"n_components": 2, "hidden_layer_sizes": 16, "max_iter": 3, "random_state": 0}
    return VAETransformer(**{"early_stopping": False} | defaults | parameters)


def session_of(model):
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model, X):
    """The outputs by name; ``X`` an array, a frame or what is fed."""
    session = session_of(model)
    feed = X if isinstance(X, dict) else fed(session, X)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def fed(session, X):
    inputs = {one.name: one.type for one in session.get_inputs()}
    if isinstance(X, np.ndarray):
        return {name: X.astype(_numpy(kind)) for name, kind in inputs.items()}
    return {n: X[[n]].to_numpy().astype(_numpy(kind)) for n, kind in inputs.items()}


def _numpy(kind):
    return {"tensor(string)": object, "tensor(double)": np.float64}.get(kind, np.float32)


def assert_close(found, expected, dtype=np.float32):
    """Differences are small for the size of the numbers and the spread of their columns."""
    a, b = (np.asarray(v, dtype=np.float64).reshape(len(v), -1) for v in (found, expected))
    assert found.dtype == dtype or not np.issubdtype(found.dtype, np.floating)
    assert_array_equal(np.isnan(a), np.isnan(b))
    size = np.abs(b) + np.nanstd(b, axis=0) + 1e-12
    assert np.nanmax(np.abs(a - b) / size, initial=0.0) <= CLOSE[dtype]


def check(vae, X, dtype=np.float32):
    """Codes and scores of rows. To its last digits the bound is right if both of its parts are."""
    assert_close(run(to_onnx(vae, dtype=dtype), X)["Z"], vae.transform(X), dtype)
    for method in SCORES if dtype == np.float32 else ("elbo",):
        found = run(to_onnx(vae, method=method, dtype=dtype), X)[method]
        assert_close(found, vae.score_samples(X, method=method), dtype)


def check_inverse(vae, X, dtype=np.float32):
    """Rows that codes stand for, of an array."""
    codes = vae.transform(X).astype(dtype)
    model = to_onnx(vae, method="inverse_transform", dtype=dtype)
    back = vae.inverse_transform(codes.astype(np.float64))
    assert_close(run(model, {"Z": codes})["X"], back, dtype)


# -- transformers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_codes_scores_and_rows_are_the_estimators_by_every_likelihood(likelihood):
    X = TABLES[likelihood]
    columns = list(range(X.shape[1])) if likelihood in LEVELED else "from_dtype"
    vae = transformer(likelihood=likelihood, categorical_features=columns).fit(X)
    assert vae.model_.module().decoder.mlp is not None
    for dtype in DTYPES:
        check(vae, with_holes(X), dtype)
        check_inverse(vae, X, dtype)


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu", "tanh"])
def test_every_activation_is_there(activation):
    vae = transformer(activation=activation, hidden_layer_sizes=(8, 8)).fit(NORMAL)
    check(vae, with_holes(NORMAL))
    check_inverse(vae, NORMAL)


@pytest.mark.parametrize(
    "parameters",
    [
        {"hidden_layer_sizes": ()},
        {"max_iter": 0},
        {"n_components": 1},
        {"n_components": 5, "whiten": True},
        {"noise": "per_column", "scaling": None},
        {"prior": "mixture"},
        {"missing": "model"},
        {"missing": "model", "likelihood": "normal_scores", "prior": "mixture"},
    ],
    ids=str,
)
def test_whatever_the_parameters_the_numbers_are_the_same(parameters):
    X = with_holes(NORMAL, seed=2)
    vae = transformer(**parameters).fit(X)
    for dtype in DTYPES:
        check(vae, X, dtype)
    check_inverse(vae, X)


def test_single_rows_and_rows_without_any_cell_are_read():
    vae = transformer().fit(NORMAL)
    for rows in (NORMAL[:1], with_holes(NORMAL)[-1:], np.full((2, 5), np.nan)):
        assert_close(run(to_onnx(vae), rows)["Z"], vae.transform(rows))


def test_columns_that_were_constant_or_empty_in_fit_are_read():
    X = NORMAL.copy()
    X[:, 1], X[:, 2] = 3.0, np.nan
    check(transformer().fit(X), with_holes(NORMAL))


def test_columns_far_from_zero_keep_their_digits_in_float64():
    X = NORMAL.copy()
    X[:, 0] = 1e9 + X[:, 0]
    check(transformer().fit(X), X, np.float64)


def test_a_column_in_which_float32_is_coarse_is_that_of_the_rows_as_they_are_fed():
    X = NORMAL.copy()
    X[:, 0] = short(1e18 + 1e14 * X[:, 0])
    check(transformer().fit(X), X)


def test_values_of_a_grid_are_atoms_in_float32_too():
    prices = np.round(np.exp(NORMAL) * 7.0, 1)
    prices[::2, 0] = 12.3
    vae = transformer(likelihood="normal_scores").fit(prices)
    assert_close(run(to_onnx(vae), prices)["Z"], vae.transform(prices))


def test_wild_values_have_no_place_in_a_shape():
    X = np.exp(NORMAL)
    X[:2, 1] = 1e6, -4e5
    vae = transformer(likelihood="normal_scores").fit(short(X))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Column")
        check(vae, short(X))


@dataclass(frozen=True)
class Laplace(Likelihood):
    """A likelihood of a user's own: as in CONTRIBUTING."""

    support = Support(-math.inf, math.inf, "finite numbers", "location_scale")
    log_scale: ClassVar[torch.Tensor] = torch.zeros(1)

    def parameters(self, n_columns):
        return {"log_scale": torch.zeros(n_columns)}

    def log_prob(self, x, raw):
        return -(x - raw).abs() * torch.exp(-self.log_scale) - self.log_scale - math.log(2.0)

    def mean(self, raw):
        return raw

    def sample(self, raw, generator):
        return raw

    def information(self, raw):
        return torch.exp(-2.0 * self.log_scale).expand_as(raw)


@dataclass(frozen=True)
class Branching(Laplace):
    def log_prob(self, x, raw):
        own = super().log_prob(x, raw)
        return own if bool(own.sum() < math.inf) else 2.0 * own


@dataclass(frozen=True)
class Unknown(Laplace):
    def log_prob(self, x, raw):
        return super().log_prob(x, raw) + 0.0 * torch.special.i0(raw)


def test_a_likelihood_of_ones_own_is_exported_by_its_formula():
    vae = transformer(likelihood=Laplace()).fit(NORMAL)
    check(vae, with_holes(NORMAL), np.float64)


@pytest.mark.parametrize(
    ("kind", "why"), [(Branching, "a number that only the running"), (Unknown, "special_i0")]
)
def test_a_likelihood_that_is_no_graph_is_refused_where_it_counts(kind, why):
    vae = transformer(likelihood=kind(), max_iter=0).fit(NORMAL)
    assert_close(run(to_onnx(vae), NORMAL)["Z"], vae.transform(NORMAL))
    with pytest.raises(ValueError, match=f"'elbo' of this VAETransformer cannot be.*{why}"):
        to_onnx(vae, method="elbo")


# -- frames ---------------------------------------------------------------------------------------


def mixed_frame():
    rng = np.random.default_rng(0)
    member = pandas.array(np.where(rng.random(N) < 0.2, None, rng.random(N) < 0.5), "boolean")
    frame = pandas.DataFrame(
        {
            "age": short(rng.normal(40.0, 10.0, N)),
            "n": rng.poisson(4.0, N),
            "job": pandas.Categorical(rng.choice(["boss", "clerk", "nurse"], N)),
            "city": rng.choice(list("wxyz"), N),
            "smokes": rng.random(N) < 0.4,
            "member": member,
            "grade": pandas.Categorical(rng.integers(1, 4, N), ordered=True),
        }
    )
    frame.loc[3:9, "job"] = None
    frame.loc[5:20, "city"] = None
    frame.loc[30:50, "age"] = np.nan
    return frame


def strange(frame):
    """The same rows with levels that fit has not seen."""
    frame = frame.astype({"job": object, "city": object, "grade": object})
    frame.loc[60:66, "city"], frame.loc[64:70, "job"], frame.loc[80:82, "grade"] = "new", "new", 9
    return frame


def texts(frame):
    """What a session is fed of ``mixed_frame``, by columns."""
    numbers = [c for c in ("age", "n", "smokes", "member", "grade") if c in frame]
    feed = {c: frame[[c]].astype("Float64").to_numpy(np.float32, na_value=np.nan) for c in numbers}
    return feed | {c: frame[[c]].astype(object).to_numpy() for c in ("job", "city")}


@pytest.mark.parametrize(
    "parameters",
    [{}, {"missing": "model"}, {"max_categories": 2}, {"likelihood": {"grade": "ordinal"}}],
    ids=str,
)
def test_levels_holes_and_what_fit_has_not_seen_are_read_from_frames(parameters):
    frame = mixed_frame()
    vae = transformer(**parameters).fit(frame)
    rows = pandas.concat([frame, strange(frame)], ignore_index=True)
    assert_close(run(to_onnx(vae), texts(rows))["Z"], vae.transform(rows))
    for method in SCORES:
        found = run(to_onnx(vae, method=method), texts(rows))[method]
        assert_close(found, vae.score_samples(rows, method=method))


def test_a_model_of_a_frame_has_an_input_for_each_column():
    model = to_onnx(transformer(max_iter=0).fit(mixed_frame()))
    kinds = {one.name: one.type for one in session_of(model).get_inputs()}
    text, number = "tensor(string)", "tensor(float)"
    assert kinds == {
        **{"age": number, "n": number, "job": text, "city": text},
        **{"smokes": number, "member": number, "grade": number},
    }


def test_rows_of_frames_come_back_with_their_kinds_of_columns():
    vae = transformer().fit(mixed_frame())
    codes = vae.transform(mixed_frame())
    model = to_onnx(vae, method="inverse_transform", dtype=np.float64)
    found, back = run(model, {"Z": codes}), vae.inverse_transform(codes)
    assert list(found) == list(back.columns)
    kinds = {name: column.dtype.kind for name, column in found.items()}
    assert kinds == {
        **{"age": "f", "n": "i", "job": "O", "city": "O"},
        **{"smokes": "b", "member": "b", "grade": "f"},
    }
    assert_close(found["age"], back["age"], np.float64)
    for name in set(back) - {"age"}:
        assert_array_equal(found[name][:, 0], back[name].to_numpy())


@pytest.mark.parametrize("hole", ["", "nan", "None", "<NA>", None, math.nan])
def test_a_missing_text_is_the_empty_one_or_what_runtimes_make_of_missing_objects(hole):
    frame = pandas.DataFrame({"city": np.array(["x", "y", None] * 40, object), "age": NORMAL[:, 0]})
    vae = transformer(n_components=1, missing="model").fit(frame)
    feed = {"city": np.array([["x"], [hole]], object), "age": np.zeros((2, 1), np.float32)}
    expected = vae.transform(pandas.DataFrame({"city": ["x", None], "age": [0.0, 0.0]}))
    assert_close(run(to_onnx(vae), feed)["Z"], expected)


def test_a_level_that_looks_like_a_hole_is_a_level():
    frame = pandas.DataFrame({"city": np.array(["None", "", "x"] * 40, object), "a": NORMAL[:, 0]})
    vae = transformer(n_components=1).fit(frame)
    check(vae, frame)


def test_dates_times_and_durations_are_days():
    moments = pandas.date_range("2020-01-01", periods=N, freq="7h").to_series(index=range(N))
    moments[4] = pandas.NaT
    zoned = pandas.date_range("2020-01-01", periods=N, freq="3h", tz="Europe/Berlin")
    lasting = pandas.to_timedelta(np.arange(N) % 50, unit="h").to_series(index=range(N))
    frame = pandas.DataFrame({"when": moments, "zoned": zoned, "lasting": lasting})
    vae = transformer(n_components=1).fit(frame)
    day, epoch = pandas.Timedelta(days=1), pandas.Timestamp("1970-01-01")
    days = {
        "when": (moments - epoch) / day,
        "zoned": (frame["zoned"].dt.tz_convert("UTC").dt.tz_localize(None) - epoch) / day,
        "lasting": lasting / day,
    }
    feed = {name: column.to_numpy(float)[:, None] for name, column in days.items()}
    assert_close(run(to_onnx(vae), feed)["Z"], vae.transform(frame))


def test_frames_of_polars_and_arrays_of_objects_are_read():
    cells = {"city": ["x", "y", None] * 40, "age": NORMAL[:, 0].tolist()}
    days = [datetime.date(2020, 1, 1) + datetime.timedelta(days=n % 9) for n in range(N)]
    numbers = (np.array(days, "M8[D]") - np.datetime64("1970-01-01")).astype(float)
    feed = {"city": np.array(cells["city"], object)[:, None], "day": numbers[:, None]}
    feed["age"] = NORMAL[:, :1].astype(np.float32)
    frame = polars.DataFrame(cells | {"day": days})
    vae = transformer().fit(frame)
    assert_close(run(to_onnx(vae), feed)["Z"], vae.transform(frame))
    rows = np.array([cells["city"], cells["age"], days], dtype=object).T
    vae = transformer().fit(rows)
    named = {"x0": feed["city"], "x1": feed["age"], "x2": feed["day"]}
    assert_close(run(to_onnx(vae), named)["Z"], vae.transform(rows))


@pytest.mark.parametrize("names", [("Z", "X"), ("skvae_add_0", "constant_0"), (0, 1), ("ä b", "/")])
def test_columns_may_have_any_name(names):
    frame = pandas.DataFrame(NORMAL[:, :2], columns=list(names))
    vae = transformer(n_components=1, max_iter=0).fit(frame)
    feed = {str(name): NORMAL[:, [n]].astype(np.float32) for n, name in enumerate(names)}
    (found,) = run(to_onnx(vae), feed).values()
    assert_close(found, vae.transform(frame))


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ({"": NORMAL[:, 0], "a": NORMAL[:, 1]}, "has no name"),
        ({"a": [("x", 1), ("y", 2)] * 60, "b": NORMAL[:, 0]}, "neither all texts nor all numbers"),
        ({"a": pandas.Categorical([2**24, 2**24 + 1] * 60), "b": NORMAL[:, 0]}, "equal in float32"),
    ],
)
def test_columns_that_onnx_has_no_input_for_are_refused(frame, words):
    vae = transformer(n_components=1, max_iter=0).fit(pandas.DataFrame(frame))
    with pytest.raises(ValueError, match=words):
        to_onnx(vae)


# -- rows that are errors -------------------------------------------------------------------------


def test_rows_with_infinite_cells_have_no_code():
    rows = NORMAL.copy()
    rows[3, 2] = np.inf
    found = run(to_onnx(transformer(max_iter=0).fit(NORMAL)), rows)["Z"]
    assert_array_equal(np.isnan(found).any(axis=1), np.arange(N) == 3)


def test_rows_that_have_no_density_have_no_code_unless_the_likelihood_was_our_choice():
    rows = TABLES["bernoulli"].copy()
    rows[3, 2] = 7.0
    asked = transformer(likelihood="bernoulli", max_iter=0).fit(TABLES["bernoulli"])
    assert np.isnan(run(to_onnx(asked), rows)["Z"][3]).all()
    check(transformer().fit(TABLES["bernoulli"]), rows)  # there it is missing


def test_unknown_levels_are_errors_where_they_are_to_be():
    frame = mixed_frame()
    vae = transformer(handle_unknown="error", max_iter=0).fit(frame)
    found = run(to_onnx(vae), texts(strange(frame)))["Z"]
    expected = np.isin(np.arange(N), [*range(60, 71), *range(80, 83)])
    assert_array_equal(np.isnan(found).any(axis=1), expected)


# -- detectors ------------------------------------------------------------------------------------


def check_detector(detector, X, dtype=np.float32):
    found = run(to_onnx(detector, dtype=dtype), X)
    assert_close(found["scores"], detector.decision_function(X), dtype)
    assert_array_equal(found["label"][:, 0], detector.predict(X))
    scores = run(to_onnx(detector, method="score_samples", dtype=dtype), X)["score_samples"]
    assert_close(scores, detector.score_samples(X), dtype)


MANY = short(np.random.default_rng(3).normal(size=(900, 4)))


@pytest.mark.parametrize("holes", [False, True])
def test_new_rows_have_the_detectors_scores_and_labels(holes):
    # More rows than a block of either kind has.
    train, test = MANY[:300], with_holes(MANY[300:])
    test[0] = 50.0
    detector = VAEOutlierDetector(random_state=0).fit(with_holes(train) if holes else train)
    check_detector(detector, test)
    found = run(to_onnx(detector, dtype=np.float64), test)["scores"][:, 0]
    assert_allclose(found, detector.decision_function(test), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n_rows", [50, 300])  # scored by models that did not see them, or not
def test_rows_of_fit_have_the_scores_that_they_have_as_such(n_rows):
    X = with_holes(MANY[:n_rows], share=0.1)
    detector = VAEOutlierDetector(random_state=0).fit(X)
    check_detector(detector, X)


def test_rows_that_repeat_each_other_are_scored_by_their_copies():
    rows = np.random.default_rng(0).integers(0, 4, (400, 3)).astype(float)
    check_detector(VAEOutlierDetector(random_state=0).fit(rows[:300]), rows)
    check_detector(VAEOutlierDetector(random_state=0).fit(np.ones((9, 2))), rows[:20, :2])


def test_unknown_levels_are_as_odd_as_they_are_to_the_detector():
    names = ["age", "job", "city", "grade"]  # of few columns: it is fitted six times
    train, test = mixed_frame()[:60][names], strange(mixed_frame())[60:][names]
    detector = VAEOutlierDetector(random_state=0).fit(train)
    found = run(to_onnx(detector), texts(test))
    assert_close(found["scores"], detector.decision_function(test))
    assert_array_equal(found["label"][:, 0], detector.predict(test))


@pytest.mark.parametrize("method", SCORES)
def test_the_other_scores_of_a_detector_are_there_for_new_rows(method):
    detector = VAEOutlierDetector(score_method=method, contamination=0.1, random_state=0)
    check_detector(detector.fit(MANY[:100]), with_holes(MANY[100:200]))


def test_a_detector_with_a_model_of_ones_own_is_exported():
    vae = transformer(likelihood="normal_scores", missing="model")
    rows = with_holes(np.exp(MANY[:300]).astype(np.float32).astype(float))
    detector = VAEOutlierDetector(vae, random_state=0).fit(rows)
    check_detector(detector, with_holes(short(np.exp(MANY[300:400]))))


def test_a_row_that_is_an_error_is_labelled_an_outlier():
    rows = MANY[:3].copy()
    rows[1, 0] = np.inf
    found = run(to_onnx(VAEOutlierDetector(random_state=0).fit(MANY[:300])), rows)
    assert_array_equal(np.isnan(found["scores"][:, 0]), [False, True, False])
    assert found["label"][1, 0] == -1


# -- pipelines ------------------------------------------------------------------------------------


def test_a_pipeline_is_one_model():
    y = (NORMAL[:, 0] > 0.0).astype(int)
    pipeline = make_pipeline(StandardScaler(), transformer(), LogisticRegression()).fit(NORMAL, y)
    for rows in (NORMAL, with_holes(NORMAL)):
        found = run(to_onnx(pipeline), rows)
        assert_array_equal(found["label"], pipeline.predict(rows))
        assert_close(found["probabilities"], pipeline.predict_proba(rows))


def test_a_column_transformer_in_front_of_a_detector_is_one_model():
    frame = mixed_frame()[["age", "n", "city"]].dropna().astype({"age": np.float32})
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    encoder = make_column_transformer((StandardScaler(), ["age", "n"]), (one_hot, ["city"]))
    pipeline = make_pipeline(encoder, VAEOutlierDetector(random_state=0)).fit(frame[:60])
    rows = frame[60:].reset_index(drop=True)
    rows.loc[:5, "city"] = "new"
    feed = {"age": rows[["age"]].to_numpy(), "n": rows[["n"]].to_numpy(np.int64)}
    feed["city"] = rows[["city"]].to_numpy(object)
    register_onnx_converters()
    types = skl2onnx.common.data_types
    columns = [("age", types.FloatTensorType([None, 1])), ("n", types.Int64TensorType([None, 1]))]
    columns.append(("city", types.StringTensorType([None, 1])))
    for model in (
        to_onnx(pipeline, frame),
        skl2onnx.convert_sklearn(pipeline, initial_types=columns),
    ):
        found = run(model, feed)
        assert_array_equal(found["label"][:, 0], pipeline.predict(rows))
        assert_close(found["scores"], pipeline.decision_function(rows))


def frame_with_holes():
    """Texts and whole numbers that go together, and miss in every third row."""
    place = np.digitize(NORMAL[:, 0], [-0.6, 0.0, 0.6])
    city = np.array(["x", "y", "None", ""], object)[place]
    frame = pandas.DataFrame({"age": NORMAL[:, 0], "city": city, "n": place.astype(float)})
    frame.loc[::3, "city"], frame.loc[::3, "n"] = None, np.nan
    return frame


def fed_holes(frame, hole):
    """What a session is fed of these rows."""
    feed = {name: frame[[name]].to_numpy(np.float32) for name in ("age", "n")}
    return feed | {"city": frame[["city"]].astype(object).fillna(hole).to_numpy()}


ENCODERS = {
    "ignored": OneHotEncoder(handle_unknown="ignore"),
    "dropped": OneHotEncoder(drop="first", handle_unknown="ignore", sparse_output=False),
    "rare": OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=3),
    "ordinal": OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
    "ordinal hole": OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=math.nan, encoded_missing_value=-3
    ),
    "target": TargetEncoder(),
}


@pytest.mark.filterwarnings("ignore:Found unknown categories")
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_hole_is_to_an_encoder_in_a_pipeline_what_it_was_in_fit(kind):
    frame, y = frame_with_holes(), NORMAL[:, 0] > 0.5
    both = ("both", clone(ENCODERS[kind]), ["city", "n"])
    columns = ColumnTransformer([both, ("scale", StandardScaler(), ["age"])])
    pipeline = make_pipeline(columns, transformer(max_iter=0)).fit(frame, y)
    rows = frame[-21:].reset_index(drop=True)
    rows.loc[1:3, "city"], rows.loc[2:4, "n"] = "new", 9.0
    expected = pipeline.transform(rows)
    assert expected[0] != pytest.approx(pipeline.transform(rows.fillna({"city": "new"}))[0])
    for dtype in DTYPES:
        session = session_of(to_onnx(pipeline, frame, dtype=dtype))
        for hole in ("nan", "NaN", "<NA>"):  # "None" and "" are levels here
            feed = fed_holes(rows, hole)
            feed = {n: c if n == "city" else c.astype(dtype) for n, c in feed.items()}
            (found,) = session.run(None, feed)
            assert_allclose(found, expected, rtol=CLOSE[dtype], atol=CLOSE[dtype])


@pytest.mark.parametrize("missing", [None, math.nan])
@pytest.mark.parametrize("encoder", [OneHotEncoder(), OrdinalEncoder()], ids=str)
def test_the_empty_text_is_a_hole_to_encoders_as_to_our_own_inputs(encoder, missing):
    frame = pandas.DataFrame({"a": NORMAL[:, 0], "city": np.array(["x", "y", None] * 40, object)})
    frame["city"] = frame["city"].astype(object).where(frame["city"].notna(), missing)
    columns = make_column_transformer((clone(encoder), ["city"]), remainder="passthrough")
    pipeline = make_pipeline(columns, transformer(max_iter=0)).fit(frame)
    session = session_of(to_onnx(pipeline, frame, method="elbo"))
    expected = pipeline[-1].score_samples(columns.transform(frame), method="elbo")
    for hole in ("", "nan", "None", "<NA>", None, math.nan):
        feed = {"a": frame[["a"]].to_numpy(np.float32)}
        feed["city"] = np.array(["x", "y", hole] * 40, object)[:, None]
        assert_close(session.run(None, feed)[0], expected)


@pytest.mark.parametrize("encoder", [OneHotEncoder(), OrdinalEncoder()], ids=str)
def test_a_level_that_is_an_error_to_an_encoder_is_one_to_the_model(encoder):
    frame = frame_with_holes()
    pipeline = make_pipeline(
        make_column_transformer((encoder, ["city"]), (StandardScaler(), ["age", "n"])),
        transformer(max_iter=0),
    ).fit(frame)
    model, rows = to_onnx(pipeline, frame), frame.fillna({"city": "new"})
    with pytest.raises(ValueError, match="Found unknown categories"):
        pipeline.transform(rows)
    error = onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument
    with pytest.raises(error, match="out of data bounds"):
        run(model, fed_holes(rows, "new"))


def test_two_kinds_of_holes_in_one_column_are_refused():
    frame = frame_with_holes()
    frame["city"] = frame["city"].astype(object)
    frame.loc[0, "city"], frame.loc[5, "city"] = None, math.nan
    columns = make_column_transformer((OneHotEncoder(), ["city"]), remainder="passthrough")
    pipeline = make_pipeline(columns, transformer(max_iter=0)).fit(frame)
    with pytest.raises(ValueError, match=r"Column 'city' .* both None and nan.*Make them one"):
        to_onnx(pipeline, frame)


NULLABLE = {
    "Int64": lambda cells: pandas.array(cells, "Int64"),
    "UInt8": lambda cells: pandas.array(cells, "UInt8"),
    "boolean": lambda cells: pandas.array([c if c is None else c > 1 for c in cells], "boolean"),
    "Float64": lambda cells: pandas.array(cells, "Float64"),
    "int64[pyarrow]": lambda cells: pandas.array(cells, "int64[pyarrow]"),
    "category": lambda cells: pandas.Categorical(cells),
}


@pytest.mark.parametrize("kind", NULLABLE)
def test_an_input_of_a_nullable_column_can_hold_a_hole(kind):
    cells = [None if n % 4 == 0 else n % 3 for n in range(N)]
    frame = pandas.DataFrame({"a": NORMAL[:, 0], "n": NULLABLE[kind](cells)})
    if kind == "int64[pyarrow]":
        pytest.importorskip("pyarrow")
    steps = [(encoder, ["n"]) for encoder in (StandardScaler(), OneHotEncoder(), OrdinalEncoder())]
    columns = make_column_transformer(*steps, remainder="passthrough")
    pipeline = make_pipeline(columns, transformer(max_iter=0)).fit(frame)
    model = to_onnx(pipeline, frame[:1])
    kinds = {one.name: one.type for one in session_of(model).get_inputs()}
    assert kinds == {"a": "tensor(float)", "n": "tensor(float)"}
    feed = {"a": NORMAL[:, :1].astype(np.float32)}
    feed["n"] = frame[["n"]].astype("Float64").to_numpy(np.float32, na_value=np.nan)
    (found,) = run(model, feed).values()
    assert_close(found, pipeline.transform(frame))


def test_inputs_of_polars_can_hold_holes_and_those_of_plain_dtypes_need_not():
    cells = [n % 3 for n in range(N)]
    frame = polars.DataFrame({"n": cells, "t": [c > 1 for c in cells], "a": NORMAL[:, 0]})
    scaled = make_column_transformer((StandardScaler(), ["n", "t", "a"]))
    pipeline = make_pipeline(scaled, transformer(max_iter=0)).fit(frame)
    for rows, kinds in ((frame, "fff"), (frame.to_pandas(), "ibf")):
        found = [one.type for one in session_of(to_onnx(pipeline, rows)).get_inputs()]
        names = {"f": "tensor(float)", "i": "tensor(int64)", "b": "tensor(bool)"}
        assert found == [names[kind] for kind in kinds]
    holes = frame.with_columns(n=polars.when(polars.col("n") > 1).then(None).otherwise("n"))
    feed = {name: holes[[name]].cast(polars.Float32).to_numpy() for name in holes.columns}
    (codes,) = run(to_onnx(pipeline, frame), feed).values()
    assert_close(codes, pipeline.transform(holes))


def test_rows_given_for_a_first_step_that_knows_its_columns_change_nothing():
    # A dtype of X may say less: days would be float32, and numbers written as text texts.
    frame = mixed_frame().assign(day=pandas.date_range("2020-01-01", periods=N, freq="7h"))
    pipeline = make_pipeline(transformer(max_iter=0), StandardScaler()).fit(frame)
    one, two = to_onnx(pipeline), to_onnx(pipeline, frame)
    assert one.SerializeToString() == two.SerializeToString()


def test_a_first_step_of_frames_knows_its_columns():
    frame, y = mixed_frame(), (NORMAL[:, 0] > 0.0).astype(int)
    pipeline = make_pipeline(transformer(), LogisticRegression()).fit(frame, y)
    found = run(to_onnx(pipeline), texts(strange(frame)))
    assert_close(found["probabilities"], pipeline.predict_proba(strange(frame)))


def test_skl2onnx_converts_estimators_of_frames_once_it_knows_of_them():
    register_onnx_converters()
    frame = mixed_frame()[["age", "city"]].dropna().astype({"age": np.float32})
    vae = transformer(n_components=1).fit(frame)
    model = skl2onnx.to_onnx(vae, frame[:1])  # at its own opset
    assert_close(run(model, frame)["variable"], vae.transform(frame))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_method_of_the_last_step_is_a_choice(dtype):
    pipeline = make_pipeline(StandardScaler(), transformer()).fit(NORMAL)
    found = run(to_onnx(pipeline, method="elbo", dtype=dtype), with_holes(NORMAL))
    rows = StandardScaler().fit(NORMAL).transform(with_holes(NORMAL))
    expected = pipeline[-1].score_samples(rows, method="elbo")
    assert found["elbo"].dtype == dtype
    assert_allclose(found["elbo"][:, 0], expected, rtol=1e-5, atol=1e-5)


def test_a_pipeline_of_a_detector_gives_the_score_that_is_asked_for():
    pipeline = make_pipeline(StandardScaler(), VAEOutlierDetector(random_state=0)).fit(MANY[:300])
    model = to_onnx(pipeline, method="score_samples")
    rows = pipeline[0].transform(MANY[300:])
    assert_close(run(model, MANY[300:])["score_samples"], pipeline[-1].score_samples(rows))


def test_converters_need_the_opset_that_the_graphs_are_written_in():
    register_onnx_converters()
    vae = transformer(max_iter=0).fit(NORMAL)
    with pytest.raises(ValueError, match=r"need target_opset=18 or more. Got 17\."):
        skl2onnx.to_onnx(vae, NORMAL[:1].astype(np.float32), target_opset=17)


def test_a_pipeline_of_a_frame_asks_for_rows_of_it():
    frame = pandas.DataFrame(NORMAL[:, :3], columns=["net income", "debt/equity", "variable"])
    pipeline = make_pipeline(StandardScaler(), transformer(max_iter=0)).fit(frame)
    with pytest.raises(ValueError, match="Give some rows of it as X"):
        to_onnx(pipeline)
    feed = {name: frame[[name]].to_numpy(np.float32) for name in frame}
    (found,) = run(to_onnx(pipeline, frame), feed).values()
    assert_close(found, pipeline.transform(frame))


# -- what is refused ------------------------------------------------------------------------------


def test_what_needs_a_search_is_refused_with_what_can_be():
    vae, detector = transformer(max_iter=0).fit(NORMAL), VAEOutlierDetector(random_state=0)
    with pytest.raises(ValueError, match=r"'log_likelihood' cannot.*searches.*'elbo'.*can be"):
        to_onnx(vae, method="log_likelihood")
    with pytest.raises(ValueError, match=r"'predict' cannot be an ONNX model. Of a VAETransformer"):
        to_onnx(vae, method="predict")
    with pytest.raises(ValueError, match=r"'transform' cannot.*Of a VAEOutlierDetector, 'predict'"):
        to_onnx(detector.fit(NORMAL), method="transform")
    detector.set_params(score_method="log_likelihood", vae=transformer(max_iter=0)).fit(NORMAL[:9])
    with pytest.raises(ValueError, match=r"score_method='log_likelihood' cannot.*'auto', 'elbo'"):
        to_onnx(detector)
    imputer = VAEImputer(transformer(max_iter=0))
    for model in (imputer, make_pipeline(imputer, LogisticRegression())):
        with pytest.raises(TypeError, match=r"A VAEImputer cannot.*converts VAETransformer"):
            to_onnx(model.fit(with_holes(NORMAL), NORMAL[:, 0] > 0.0))


def test_labels_that_depend_on_the_other_rows_are_refused():
    detector = VAEOutlierDetector(fdr=0.1, random_state=0).fit(NORMAL)
    with pytest.raises(ValueError, match=r"With fdr=0.1.*Use method='decision_function'"):
        to_onnx(detector)
    assert_close(
        run(to_onnx(detector, method="decision_function"), MANY[:9, [0, 1, 2, 3, 0]])["scores"],
        detector.decision_function(MANY[:9, [0, 1, 2, 3, 0]]),
    )


@pytest.mark.parametrize("dtype", ["float16", np.int64, None, torch.float32, "nothing"])
def test_other_precisions_are_refused(dtype):
    with pytest.raises(ValueError, match=r"dtype must be 'float32' or 'float64'. Got"):
        to_onnx(transformer(max_iter=0).fit(NORMAL), dtype=dtype)


def test_what_is_not_fitted_or_not_ours_is_refused():
    with pytest.raises(NotFittedError, match="This VAETransformer instance is not fitted"):
        to_onnx(transformer())
    with pytest.raises(TypeError, match="Got StandardScaler instead; skl2onnx has converters"):
        to_onnx(StandardScaler().fit(NORMAL))
    pipeline = make_pipeline(transformer(max_iter=0), StandardScaler()).fit(NORMAL)
    with pytest.raises(ValueError, match="method='elbo' is for pipelines whose last step is one"):
        to_onnx(pipeline, method="elbo")


# -- the model ------------------------------------------------------------------------------------


def test_a_model_says_what_it_is():
    model = to_onnx(transformer(max_iter=0).fit(NORMAL), method="elbo")
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    assert opsets == {"": 18, "ai.onnx.ml": 3}
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert set(properties) == {"skvae_version", "estimator", "method"}
    assert (properties["estimator"], properties["method"]) == ("VAETransformer", "elbo")
    assert model.producer_name == "skvae"


BYTES = """
import hashlib
import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skvae import VAEOutlierDetector, VAETransformer, to_onnx
X = np.random.default_rng(0).normal(size=(60, 3))
vae = VAETransformer(2, max_iter=0).fit(X)
models = [to_onnx(vae, method="elbo"), to_onnx(VAEOutlierDetector().fit(X))]
models.append(to_onnx(make_pipeline(StandardScaler(), vae).fit(X)))
found = [hashlib.sha256(model.SerializeToString()).hexdigest() for model in models]
"""


def test_the_bytes_of_a_model_depend_on_the_estimator_alone():
    here = {}
    exec(BYTES, here)
    done = subprocess.run(
        [sys.executable, "-c", BYTES + "print(found)"],
        env=os.environ | {"PYTHONHASHSEED": "17"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == str(here["found"])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # in what Where leaves out
def test_onnxs_own_reference_gives_the_same():
    from onnx.reference import ReferenceEvaluator

    X = TABLES["normal_scores"]
    vae = transformer(likelihood="normal_scores", prior="mixture").fit(X)
    rows = with_holes(X)[-4:]
    for method in ("transform", "elbo"):
        expected = (
            vae.transform(rows) if method == "transform" else vae.score_samples(rows, method=method)
        )
        model = ReferenceEvaluator(to_onnx(vae, method=method))
        assert_close(model.run(None, {"X": rows.astype(np.float32)})[0], expected)
    detector = VAEOutlierDetector(random_state=0).fit(MANY[:60])
    rows = with_holes(MANY[60:64])
    label, scores = ReferenceEvaluator(to_onnx(detector)).run(None, {"X": rows.astype(np.float32)})
    assert_close(scores, detector.decision_function(rows))
    assert_array_equal(label[:, 0], detector.predict(rows))


def test_exporting_leaves_the_estimator_as_it_was():
    vae = transformer().fit(NORMAL)
    before = {name: value.copy() for name, value in vae.weights_.items()}
    expected = vae.score_samples(NORMAL, method="elbo")
    for method in ("transform", "elbo", "inverse_transform"):
        to_onnx(vae, method=method)
    for name, value in vae.weights_.items():
        assert_array_equal(value, before[name])
    assert_array_equal(vae.score_samples(NORMAL, method="elbo"), expected)


SERVE = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(session.run(None, {"X": np.zeros((1, 5), np.float32)})[0].tobytes().hex())
assert not {"torch", "skvae", "sklearn", "onnx"} & set(sys.modules)
"""


def test_a_saved_model_runs_where_neither_skvae_nor_torch_is_loaded(tmp_path):
    vae = transformer().fit(NORMAL)
    path = tmp_path / "vae.onnx"
    path.write_bytes(to_onnx(vae).SerializeToString())
    command = [sys.executable, "-c", SERVE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = np.frombuffer(bytes.fromhex(done.stdout.strip()), np.float32)[None]
    assert_close(found, vae.transform(np.zeros((1, 5))))


# -- traced functions -----------------------------------------------------------------------------


def computed(function, x):
    """What the graph of a function of float64 rows gives."""
    from onnx import helper

    from skvae._onnx import functions
    from skvae._onnx.graph import ML_OPSET, OPSET, Graph
    from skvae._onnx.loops import described
    from skvae._onnx.traced import given

    assert functions
    graph = Graph()
    graph.give("x")
    shape = (graph.new_size("x", 0), *x.shape[1:])
    start = given(graph, "x", torch.float64, shape)
    value = function(start)
    graph.finish(value.name, "y")
    nodes, constants = graph.needed(["y"])
    made = helper.make_graph(
        nodes, "test", [described(start, "x")], [described(value, "y")], constants
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return run(helper.make_model(made, opset_imports=opsets, ir_version=8), {"x": x})["y"]


@pytest.mark.parametrize(
    ("function", "exact", "low", "high"),
    [
        (torch.erf, special.erf, -6.0, 6.0),
        (torch.erfc, special.erfc, -6.0, 26.0),
        (torch.special.ndtr, special.ndtr, -30.0, 6.0),
        (torch.sigmoid, special.expit, -600.0, 600.0),
        (torch.lgamma, special.gammaln, 1e-3, 1e4),
    ],
)
def test_special_functions_have_the_digits_of_float64(function, exact, low, high):
    x = np.linspace(low, high, 4001)[:, None]
    assert_allclose(computed(function, x), exact(x), rtol=2e-13, atol=1e-14 * (low > 0.0))


TWO = torch.arange(12.0, dtype=torch.float64).reshape(6, 2) / 5.0


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.logsumexp(x, -1),
        lambda x: torch.logsumexp(torch.where(x > 0.0, x, -math.inf), 1, keepdim=True),
        lambda x: torch.log_softmax(x, 0 - 1) + torch.softmax(x, 1),
        lambda x: x.clamp(min=-1.0, max=2.0) + x.clamp(max=0.5),
        lambda x: x[:, [0, 2]].sum(1) + x[..., 1:].mean(-1),
        lambda x: x[:, None, torch.tensor([True, False] * 3)].expand(-1, 2, -1),
        lambda x: x.T.contiguous().T.reshape(-1, x.shape[-1]),
        lambda x: nn.gelu(x) + nn.silu(x) + nn.softplus(x) + nn.logsigmoid(x) + nn.relu(x),
        lambda x: (x > 0.0).all(1) | (x > 2.0).any(1),
        lambda x: torch.stack([part.argmax(-1) for part in x.split([2, 4], -1)], -1),
        lambda x: torch.searchsorted(TWO.contiguous(), x.T.contiguous()).T,
        lambda x: torch.tensor([2.0]).double().expand(*x.shape[:-1], 1) * x,
        lambda x: torch.cat([torch.ones(1).double().expand(*x.shape[:-1], 1), x.diff()], 1),
        lambda x: x.new_zeros((*x.shape[:-1], 9)).scatter_(-1, x.abs().long().clamp(0, 8), 1.0),
        lambda x: torch.logaddexp(x, TWO.T[:1]) + torch.log1p(x.abs()) + torch.expm1(x),
        lambda x: torch.einsum("...k,ckj->...cj", x, TWO.T.reshape(2, 6, 1)),
        lambda x: nn.pad(x, (0, 2)).movedim(-1, 0).movedim(0, -1).square().rsqrt().isinf(),
        lambda x: torch.linalg.vector_norm(x, dim=-1, keepdim=True) % 1.0 + x.sign().nan_to_num(),
    ],
)
def test_a_traced_function_is_torchs(function):
    x = np.random.default_rng(0).normal(scale=3.0, size=(50, 6))
    assert_allclose(computed(function, x), function(torch.from_numpy(x)).numpy(), rtol=1e-12)


def test_whitening_is_by_the_cholesky_factor_whatever_the_units():
    from skvae._onnx.loops import whitening_of

    rng = np.random.default_rng(0)
    factor = rng.normal(size=(20, 4, 7)) * np.logspace(-4, 4, 4)[:, None]
    matrices = factor @ factor.transpose(0, 2, 1)
    expected = np.linalg.inv(np.linalg.cholesky(matrices))
    found = computed(lambda a: whitening_of(a)[0], matrices)
    assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * np.abs(expected).max())
    log_det = computed(lambda a: whitening_of(a)[1], matrices)
    assert_allclose(log_det, np.linalg.slogdet(matrices)[1], rtol=1e-11)


@pytest.mark.parametrize("n_rows", [1, 4, 5, 6, 11])
def test_blocks_of_rows_give_what_all_rows_do(n_rows):
    from skvae._onnx.functions import where_true
    from skvae._onnx.loops import by_blocks

    def doubled(x):
        return by_blocks(lambda rows: 2.0 * rows, 5, x)

    x = np.random.default_rng(0).normal(size=(n_rows, 3))
    assert_array_equal(computed(doubled, x), 2.0 * x)
    nothing = computed(lambda x: doubled(x[where_true(x[:, 0] > 99.0)]), x)
    assert nothing.shape == (0, 3)


# -- real rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adult", "titanic", "german_credit"])
def test_real_frames_have_the_same_codes_scores_and_labels(shared, name):
    X = shared.load(name)[0].head(400)
    numeric = X.select_dtypes("float").columns
    X = X.astype(dict.fromkeys(numeric, np.float32)).astype(dict.fromkeys(numeric, np.float64))
    train, test = X[:200], X[200:].reset_index(drop=True)
    text = X.select_dtypes(["category", "object"]).columns
    test = test.astype(dict.fromkeys(text, object))
    test.loc[::7, text[0]] = "nobody knows"
    test.loc[::5, text[-1]] = None
    vae = transformer(n_components=3).fit(train)
    check(vae, test)
    detector = VAEOutlierDetector(random_state=0).fit(train[:25])  # six times
    found = run(to_onnx(detector), test)
    assert_close(found["scores"], detector.decision_function(test))


def test_real_images_have_the_same_codes_and_scores(shared):
    X = shared.load("mnist")[0][:300].reshape(300, -1).astype(float)
    vae = transformer(n_components=5, hidden_layer_sizes="auto", max_iter=1).fit(X[:200])
    check(vae, X[200:])
