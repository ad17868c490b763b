"""Small fitted estimators of every kind, with rows to compare them on: for tests of files."""

import copy
import datetime as dt
import warnings
from decimal import Decimal
from functools import cache

import numpy as np
import pandas as pd
import polars as pl
from scipy.sparse import csr_array

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer, likelihoods, priors

N_ROWS = 60
SMALL = {"n_components": 2, "hidden_layer_sizes": (4,), "max_iter": 1, "random_state": 0}
SMALL |= {"n_importance_samples": 4, "early_stopping": False}


def small(**parameters):
    return VAETransformer(**{**SMALL, **parameters})


def numbers(n_columns=4, holes=0.0):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N_ROWS, 2)) @ rng.normal(size=(2, n_columns))
    X += 0.3 * rng.normal(size=X.shape)
    X[rng.random(X.shape) < holes] = np.nan
    return X


def counts():
    return np.random.default_rng(0).poisson(3.0, size=(N_ROWS, 4)).astype(float)


def _picked(values, seed=0):
    rng = np.random.default_rng(seed)
    chosen = np.empty(N_ROWS, dtype=object)
    for row, place in enumerate(rng.integers(0, len(values), N_ROWS)):
        chosen[row] = values[place]
    return chosen


def mixed_pandas(holes=0.0):
    rng = np.random.default_rng(0)
    days = np.datetime64("2020-01-01") + rng.integers(0, 999, N_ROWS).astype("m8[D]")
    frame = pd.DataFrame(
        {
            "number": numbers(1)[:, 0],
            "whole": pd.array(rng.integers(0, 50, N_ROWS), dtype="Int64"),
            "short": rng.normal(size=N_ROWS).astype(np.float32),
            "switch": rng.random(N_ROWS) < 0.4,
            "perhaps": pd.array(rng.random(N_ROWS) < 0.4, dtype="boolean"),
            "category": pd.Categorical(_picked(["x", "y", "z"])),
            "ordered": pd.Categorical(_picked(["lo", "hi"]), ["lo", "mid", "hi"], ordered=True),
            "text": _picked(["u", "v", "ü"]),
            "day": days.astype("M8[s]"),
            "zoned": pd.Series(days).dt.tz_localize("Europe/Berlin"),
            "span": pd.to_timedelta(rng.integers(0, 99, N_ROWS), unit="h"),
        }
    )
    return frame.mask(rng.random(frame.shape) < holes) if holes else frame


def odd_levels():
    """A frame whose levels are of all kinds that can be levels."""
    days = pd.date_range("2020-01-31", periods=3, freq="D")
    zone = dt.timezone(dt.timedelta(hours=2), "there")
    return pd.DataFrame(
        {
            "number": numbers(1)[:, 0],
            "whole numbers": pd.Categorical(_picked([1, 2, 10])),
            "floats": pd.Categorical(_picked([0.1, 2.5, -np.inf])),
            "days": pd.Categorical(_picked(list(days))),
            "zoned days": pd.Categorical(_picked(list(days.tz_localize("Europe/Berlin")))),
            "months": pd.Categorical(
                _picked(list(pd.period_range("2020-01", periods=3, freq="M")))
            ),
            "cuts": pd.cut(numbers(1)[:, 0], 3),
            "switches": pd.Categorical(_picked([True, False])),
            "tuples": _picked([("a", 1), ("b", (2.5, None)), ()]),
            "sets": _picked([frozenset("ab"), frozenset()]),
            "bytes": _picked([b"\x00", b"a", b""]),
            "mixture": _picked(["a", 2**70, Decimal("0.10"), 1j, dt.UTC, np.str_("s"), zone]),
            "objects of days": _picked(
                [dt.date(2020, 1, 1), dt.date(1, 1, 1), dt.date(9999, 1, 1)]
            ),
            "objects of instants": _picked(
                [dt.datetime(2020, 1, day, tzinfo=zone) for day in (1, 9)]
            ),
            "objects of times": _picked([dt.time(1, 2, 3), dt.time(23)]),
            "Arrow": pd.array(_picked(["p", "q"]), dtype="string[pyarrow]"),
        }
    )


def labelled_oddly():
    frame = pd.DataFrame(numbers(3))
    frame.columns = pd.MultiIndex.from_tuples(
        [("a", 1), ("a", dt.date(2020, 1, 1)), ("b", "c")], names=["upper", 7]
    )
    return frame


def mixed_polars():
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "number": numbers(1)[:, 0],
            "whole": pl.Series(rng.integers(0, 50, N_ROWS), dtype=pl.UInt8),
            "short": pl.Series(rng.normal(size=N_ROWS), dtype=pl.Float32),
            "switch": rng.random(N_ROWS) < 0.4,
            "category": pl.Series(_picked(["x", "y", "z"]).tolist(), dtype=pl.Categorical),
            "enum": pl.Series(_picked(["lo", "hi"]).tolist(), dtype=pl.Enum(["lo", "mid", "hi"])),
            "text": _picked(["u", "v", None]).tolist(),
            "instant": pl.Series(
                [dt.datetime(2020, 1, 1) + dt.timedelta(hours=h) for h in range(N_ROWS)]
            ).dt.replace_time_zone("Europe/Berlin"),
            "day": [dt.date(2020, 1, 1) + dt.timedelta(days=d) for d in range(N_ROWS)],
            "time": [dt.time(n % 24) for n in range(N_ROWS)],
            "exact": pl.Series(rng.integers(0, 99, N_ROWS)).cast(pl.Decimal(10, 2)),
        }
    )


OWN = {
    0: likelihoods.Gaussian(floor=0.1),
    1: likelihoods.StudentT(df=30),
    2: likelihoods.NormalScores(floor=0.01),
    3: "student_t",
}
INSTANCES = {
    0: likelihoods.Bernoulli(),
    1: likelihoods.Categorical(),
    2: likelihoods.Ordinal(),
    3: likelihoods.LogNormal(),
    4: likelihoods.Poisson(),
}


def kinds():
    """Rows that each of the instances gives a density to."""
    rng = np.random.default_rng(0)
    levels = [rng.integers(0, n, N_ROWS) for n in (2, 3, 4)]
    return np.column_stack([*levels, np.exp(rng.normal(size=N_ROWS)), rng.poisson(2.0, N_ROWS)])


ROWS = {
    "kinds": kinds,
    "numbers": numbers,
    "numbers, float32": lambda: numbers().astype(np.float32),
    "numbers with holes": lambda: numbers(holes=0.2),
    "counts": counts,
    "sparse": lambda: csr_array(np.where(numbers(6) > 0.5, numbers(6), 0.0)),
    "objects": lambda: np.column_stack([numbers(2), _picked(["a", "b"])]),
    "pandas": mixed_pandas,
    "pandas with holes": lambda: mixed_pandas(holes=0.15),
    "odd levels": odd_levels,
    "odd labels": labelled_oddly,
    "polars": mixed_polars,
}
rows = {name: cache(make) for name, make in ROWS.items()}
MAKE = {
    # name: (estimator, rows)
    "default": (lambda: small(), "numbers"),
    "rows in float32": (lambda: small(precision="float64"), "numbers, float32"),
    "linear": (lambda: small(hidden_layer_sizes=()), "numbers"),
    "two layers": (lambda: small(hidden_layer_sizes=np.array([5, 3]), whiten=True), "numbers"),
    "iwae, list": (lambda: small(hidden_layer_sizes=[3], objective="iwae"), "numbers"),
    "holes": (lambda: small(noise="per_column"), "numbers with holes"),
    "modelled holes": (lambda: small(missing="model"), "pandas with holes"),
    "evidence": (lambda: small(n_components="evidence", prior="mixture"), "numbers"),
    "mixture": (lambda: small(prior=priors.Mixture(3)), "numbers"),
    "own values": (lambda: small(likelihood=OWN), "numbers"),
    "poisson": (lambda: small(likelihood="poisson"), "counts"),
    "dispersed": (lambda: small(likelihood=likelihoods.NegativeBinomial()), "counts"),
    "multinomial": (lambda: small(likelihood="multinomial"), "counts"),
    "normal scores": (lambda: small(likelihood="normal_scores"), "pandas"),
    "sparse": (lambda: small(), "sparse"),
    "objects": (lambda: small(), "objects"),
    "pandas": (lambda: small(categorical_features="from_dtype"), "pandas"),
    "few categories": (lambda: small(max_categories=2), "pandas"),
    "odd levels": (lambda: small(), "odd levels"),
    "odd labels": (lambda: small(), "odd labels"),
    "instances": (lambda: small(likelihood=INSTANCES, prior=priors.StandardNormal()), "kinds"),
    "multinomial, too": (lambda: small(likelihood=likelihoods.Multinomial()), "counts"),
    "polars": (lambda: small(likelihood={"whole": "poisson"}), "polars"),
    "random state": (lambda: small(random_state=np.random.RandomState(3)), "numbers"),
    "detector": (lambda: VAEOutlierDetector(random_state=0), "numbers with holes"),
    "detector of pandas": (lambda: VAEOutlierDetector(contamination=0.1), "pandas"),
    "detector, elbo": (
        lambda: VAEOutlierDetector(small(), score_method="elbo", fdr=0.2),
        "numbers",
    ),
    "detector, dict": (
        lambda: VAEOutlierDetector({"n_components": 1, "prior": priors.Mixture(2)}),
        "numbers",
    ),
    "imputer": (lambda: VAEImputer(small(), add_indicator=True), "numbers with holes"),
    "imputer of pandas": (
        lambda: VAEImputer(small(likelihood="normal_scores"), random_state=0),
        "pandas with holes",
    ),
    "imputer of polars": (
        lambda: VAEImputer(small(), sample_posterior=True, random_state=0),
        "polars",
    ),
    "imputer, drawing": (
        lambda: VAEImputer(
            small(random_state=None),
            sample_posterior=True,
            missing_values=-1.0,
            random_state=np.random.RandomState(5),
        ),
        "counts",
    ),
}


@cache
def fitted(name):
    """Not to be changed: every test takes a copy."""
    make, table = MAKE[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make().fit(rows[table]())


def rows_of(name):
    return rows[MAKE[name][1]]()


# What each method computes, of an estimator and rows.
METHODS = {
    "transform": lambda m, X: m.transform(X),
    "transform of a row": lambda m, X: m.transform(X[:1]),
    "inverse_transform": lambda m, X: m.inverse_transform(m.transform(X)),
    "sample": lambda m, X: m.sample(7, random_state=0),
    "log_likelihood": lambda m, X: m.score_samples(X),
    "elbo": lambda m, X: m.score_samples(X, method="elbo"),
    "score_samples": lambda m, X: m.score_samples(X),
    "score_features": lambda m, X: m.score_features(X),
    "predict": lambda m, X: m.predict(X),
    "p_values": lambda m, X: m.p_values(X),
    "explain": lambda m, X: m.explain(X),
    "sample_imputations": lambda m, X: m.sample_imputations(X, 2, random_state=0)[1],
}
OF = {
    VAETransformer: [
        *("transform", "transform of a row", "inverse_transform", "sample"),
        *("log_likelihood", "elbo", "score_features"),
    ],
    VAEOutlierDetector: ["score_samples", "predict", "p_values", "explain", "score_features"],
    VAEImputer: ["transform", "sample_imputations"],
}


def results_of(estimator, X):
    """Return all that an estimator computes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: METHODS[name](estimator, X) for name in OF[type(estimator)]}


@cache
def expected(name):
    """What the fitted estimator of a name computes, of its rows."""
    return results_of(copy.deepcopy(fitted(name)), rows_of(name))


def assert_same(one, other):
    """Compare two tables to the last bit, dtypes and labels included."""
    assert type(one) is type(other)
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    elif isinstance(one, pl.DataFrame):
        assert one.schema == other.schema and one.equals(other, null_equal=True)
    else:
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
