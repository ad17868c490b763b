"""Random tables against all public methods: a clear answer or a clear error, nothing else.

    python tests/fuzz.py 300            # tables, from the seed in SKVAE_FUZZ_SEED (0)
    python tests/fuzz.py 1 --seed 4711  # one of them again, with what happened

Each table has a random container, dtypes, scales from 1e-300 to 1e300, missing cells, and random
parameters. What must hold, whatever it is: results are finite (scores may be -inf) and of the right
shape, or a ValueError or TypeError says what is wrong and leaves the estimator as it was; there is
no RuntimeWarning; a second call gives the same bits; a row's result does not depend on the others;
the input is not touched; a copy answers the same, whether it was pickled or saved.
"""

import argparse
import datetime
import os
import pickle
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from scipy.sparse import csr_array, issparse

from skvae import VAEImputer, VAEOutlierDetector, VAETransformer, load, save

try:
    import polars
except ImportError:
    polars = None

INNER = ("Internal Error", "broadcast", "infs or NaNs", "unpack", "index out of", "NoneType")
SHORTEST = 20  # characters that can name a cause


# -- tables ---------------------------------------------------------------------------------------


def scale(rng):
    """Most columns are ordinary; some are as large or as small as floats are."""
    exponent = rng.choice([0.0, rng.uniform(-8, 8), rng.uniform(-300, 300)], p=[0.5, 0.35, 0.15])
    return 10.0**exponent


def numbers(rng, n):
    kind = rng.choice(["normal", "integer", "constant", "heavy", "bits", "clock", "few", "wild"])
    with np.errstate(over="ignore"):
        x = {
            "normal": lambda: rng.normal(size=n) * scale(rng) + rng.choice([0.0, scale(rng)]),
            "integer": lambda: rng.integers(0, 50, n).astype(float),
            "constant": lambda: np.full(n, rng.normal() * scale(rng)),
            "heavy": lambda: rng.standard_t(1, n) * scale(rng),
            "bits": lambda: (rng.random(n) < 0.3).astype(float),
            "clock": lambda: 1.7e18 + rng.integers(0, 10**6, n),
            "few": lambda: rng.choice(rng.normal(size=3) * scale(rng), n),
            "wild": lambda: np.where(rng.random(n) < 0.02, 1e150, rng.normal(size=n)),
        }[kind]()
    return np.nan_to_num(x, posinf=1e300, neginf=-1e300)


def levels(rng, n):
    size = int(rng.choice([1, 2, 5, 30, n]))
    pool = [f"level {i}" for i in range(size)]
    return np.array(pool, dtype=object)[rng.integers(0, size, n)]


def column(rng, n, dtypes):
    """A column as a list of Python objects, or as an array of some dtype."""
    dtype = rng.choice(dtypes)
    if dtype == "category":
        x = levels(rng, n)
    elif dtype == "mixed":
        x = numbers(rng, n).astype(object)
        x[rng.random(n) < 0.03] = "?"
    elif dtype == "bool":
        return rng.random(n) < 0.5
    elif dtype in ("datetime", "timedelta"):
        ticks = rng.integers(-(10**9), 2 * 10**9, n) // rng.choice([1, 60, 86_400])
        x = ticks.astype(f"{dtype[0].replace('d', 'M').replace('t', 'm')}8[s]").astype(object)
    elif dtype.startswith(("int", "uint")):
        ends = np.iinfo(dtype)
        low = max(ends.min, -1000) if rng.random() < 0.7 else ends.min
        high = min(ends.max, 1000) if rng.random() < 0.7 else ends.max
        return rng.integers(low, high, n, dtype=dtype, endpoint=True)
    else:
        with np.errstate(over="ignore"):
            x = numbers(rng, n).astype(dtype)
        x = np.nan_to_num(x, posinf=np.finfo(dtype).max / 4, neginf=-np.finfo(dtype).max / 4)
    share = rng.choice([0.0, 0.1, 0.6, 1.0], p=[0.6, 0.25, 0.12, 0.03])
    x[rng.random(n) < share] = None if x.dtype == object else np.nan
    return x


def table(rng):
    """A table in some container, and how many rows it has."""
    n, d = int(rng.choice([1, 2, 7, 40, 150, 520])), int(rng.integers(1, 9))
    floats, whole = ["float64", "float32", "float16"], ["int64", "int32", "int8", "uint8", "uint64"]
    everything = [*floats, *whole, "bool", "category", "mixed", "datetime", "timedelta"]
    container = rng.choice(["array", "array", "pandas", "pandas", "polars", "sparse", "masked"])
    if container == "polars" and polars is None:
        container = "pandas"
    if container in ("pandas", "polars"):
        cells = {f"c{i}": column(rng, n, everything) for i in range(d)}
        if container == "polars":
            return polars.DataFrame({k: v.tolist() for k, v in cells.items()}, strict=False)
        frame = pd.DataFrame(cells)
        for name in frame.columns[rng.random(d) < 0.2]:
            kinds = {type(cell) for cell in frame[name].dropna()}
            if kinds == {datetime.datetime}:
                frame[name] = pd.to_datetime(frame[name]).dt.tz_localize("UTC")
            elif frame[name].dtype == object:
                frame[name] = frame[name].astype("category")
            elif frame[name].dtype.kind in "iu":
                frame[name] = frame[name].astype(
                    "Int64" if frame[name].dtype.kind == "i" else "UInt64"
                )
        return frame
    if container == "array" and rng.random() < 0.2:
        return np.stack([column(rng, n, ["category", "mixed", "float64"]) for _ in range(d)], 1)
    kind = rng.choice([*floats, *whole])
    X = np.stack([column(rng, n, [kind]) for _ in range(d)], 1)
    if container == "sparse" and kind not in ("float16",):
        return csr_array(np.where(rng.random(X.shape) < 0.6, 0, X))
    if container == "masked":
        return np.ma.array(X, mask=rng.random(X.shape) < 0.1)
    return X


def parameters(rng):
    """Some parameters that are not the defaults."""
    choices = {
        "n_components": ["auto", "evidence", 1, 3, 20],
        "hidden_layer_sizes": ["auto", (), (8,)],
        "noise": ["shared", "per_column"],
        "scaling": ["auto", "columns", "common", None],
        "likelihood": ["auto", "normal_scores", "normal_scores", "gaussian", "student_t"],
        "prior": ["normal", "mixture"],
        "objective": ["elbo", "iwae"],
        "whiten": [False, True],
        "handle_unknown": ["ignore", "error"],
        "missing": ["auto", "ignore", "model"],
        "precision": ["auto", "float64"],
        "n_importance_samples": ["auto", 1, 8],
        "early_stopping": [True, False],
        "max_categories": [None, 5, 100],
    }
    chosen = {k: v[rng.integers(len(v))] for k, v in choices.items() if rng.random() < 0.3}
    return {"max_iter": int(rng.integers(0, 4)), "random_state": 0} | chosen


# -- what must hold -------------------------------------------------------------------------------


class Fault(Exception):
    """Something that must not be."""


def need(holds, what):
    if not holds:
        raise Fault(what)


def fingerprint(X):
    if isinstance(X, pd.DataFrame):
        return [(name, str(X[name].dtype), str(X[name].tolist())) for name in X]
    if polars is not None and isinstance(X, polars.DataFrame):
        return [(series.name, str(series.dtype), str(series.to_list())) for series in X]
    if issparse(X):
        return joblib.hash([X.data, X.indices, X.indptr])
    if isinstance(X, np.ma.MaskedArray):
        return joblib.hash([np.array(X.data), np.ma.getmaskarray(X)])
    return joblib.hash(X)


def rows_of(X, rows):
    return X.iloc[rows] if isinstance(X, pd.DataFrame) else X[rows]


def numbers_in(result):
    """The numbers of a result, for comparisons."""
    if isinstance(result, tuple):
        return np.concatenate([np.ravel(part) for part in (result[0], *result[1].values())])
    if isinstance(result, pd.DataFrame) or hasattr(result, "to_pandas"):
        frame = result if isinstance(result, pd.DataFrame) else result.to_pandas()
        kept = frame.select_dtypes(include=["number", "bool"])
        return kept.to_numpy(dtype=float, na_value=np.nan)
    result = np.asarray(result)
    if result.dtype == object:
        is_number = [[isinstance(v, float | int) for v in row] for row in result]
        return np.where(is_number, result, 0.0).astype(float)
    return result.astype(float)


def calls(estimator, X):
    """All public methods that take rows, by name."""
    if isinstance(estimator, VAETransformer):
        methods = ("log_likelihood", "elbo", "reconstruction", "kl")
        scores = {m: (lambda R, m=m: estimator.score_samples(R, method=m)) for m in methods}
        return {"transform": estimator.transform, "features": estimator.score_features, **scores}
    if isinstance(estimator, VAEOutlierDetector):
        named = ("score_samples", "predict", "decision_function", "score_features")
        return {name: getattr(estimator, name) for name in named}
    return {"transform": estimator.transform}


def through_a_file(estimator):
    with tempfile.TemporaryDirectory() as folder:
        save(estimator, Path(folder) / "model")
        return load(Path(folder) / "model")


def check_methods(estimator, X):
    n = X.shape[0]
    copies = {"pickle": pickle.loads(pickle.dumps(estimator)), "file": through_a_file(estimator)}
    for name, call in calls(estimator, X).items():
        result = call(X)
        found = numbers_in(result)
        need(len(result) == n, f"{name}: {len(result)} rows for {n}")
        need(not np.isnan(found).any(), f"{name}: nan")
        need(not np.isposinf(found).any(), f"{name}: inf")
        is_score = name not in ("transform", "predict")
        need(is_score or np.isfinite(found).all(), f"{name}: infinite")
        need(np.array_equal(found, numbers_in(call(X)), equal_nan=True), f"{name}: not repeatable")
        for how, again in copies.items():
            other = numbers_in(calls(again, X)[name](X))
            need(np.array_equal(found, other, equal_nan=True), f"{name}: a {how} differs")
        few = np.arange(n)[:: max(n // 3, 1)][:3]
        alone = numbers_in(call(rows_of(X, few)))
        size = np.nan_to_num(np.abs(found[few]), posinf=0.0)
        close = np.isclose(alone, found[few], rtol=1e-5, atol=1e-5 * (1.0 + size))
        need((close | (alone == found[few])).all(), f"{name}: depends on the other rows")
    if isinstance(estimator, VAETransformer):
        drawn = numbers_in(estimator.sample(5, random_state=0))
        need(np.isfinite(drawn).all(), "sample: not finite")
        back = estimator.inverse_transform(np.asarray(estimator.transform(X)))
        need(np.isfinite(numbers_in(back)).all(), "inverse_transform: not finite")


def check_refusal(error, estimator, before):
    said = str(error)
    need(isinstance(error, ValueError | TypeError), f"{type(error).__name__}: {said}")
    need(len(said) > SHORTEST and not any(inner in said for inner in INNER), f"inner: {said}")
    need(joblib.hash(vars(estimator)) == before, f"a failed fit changed the estimator: {said}")


def attempt(seed):
    """One table: "fitted" or "refused"; a ``Fault`` otherwise."""
    rng = np.random.default_rng(seed)
    X, chosen = table(rng), parameters(rng)
    kind = rng.choice(["transformer", "transformer", "imputer", "detector"])
    vae = VAETransformer(**chosen)
    own = vae if rng.random() < 0.5 else None
    estimator = {
        "transformer": vae,
        "imputer": VAEImputer(own or VAETransformer(max_iter=1), random_state=0),
        "detector": VAEOutlierDetector(own, random_state=0),
    }[kind]
    mark, before = fingerprint(X), joblib.hash(vars(estimator))
    weight = None
    if kind != "detector" and rng.random() < 0.2:
        weight = rng.choice([0.0, 1.0, 2.5], X.shape[0]) * scale(rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", RuntimeWarning)
        try:
            estimator.fit(X, **({} if weight is None else {"sample_weight": weight}))
        except RuntimeWarning as warning:
            raise Fault(f"fit: RuntimeWarning: {warning}") from warning
        except Exception as error:
            check_refusal(error, estimator, before)
            need(fingerprint(X) == mark, "the input was changed")
            return "refused"
        fitted = joblib.hash(vars(estimator))
        try:
            check_methods(estimator, X)
        except RuntimeWarning as warning:
            raise Fault(f"RuntimeWarning: {warning}") from warning
        except (ValueError, TypeError) as error:
            check_refusal(error, estimator, fitted)
            return "fitted, then refused"
    need(fingerprint(X) == mark, "the input was changed")
    return "fitted"


def run(n_tables, seed, loud=False):
    """Try so many tables; return how they ended, and print each fault with its seed."""
    ends = Counter()
    for number in range(seed, seed + n_tables):
        try:
            ends[attempt(number)] += 1
        except Exception as error:
            ends["fault"] += 1
            what = str(error) if isinstance(error, Fault) else repr(error)
            print(f"seed {number}: {what[:300]}", flush=True)
            if loud or not isinstance(error, Fault):
                traceback.print_exc(limit=None if loud else -3)
    return ends


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("n_tables", type=int, nargs="?", default=300)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SKVAE_FUZZ_SEED", "0")))
    arguments = parser.parse_args()
    ends = run(arguments.n_tables, arguments.seed, loud=arguments.n_tables == 1)
    print(", ".join(f"{count} {end}" for end, count in sorted(ends.items())))
    raise SystemExit(ends["fault"] > 0)
