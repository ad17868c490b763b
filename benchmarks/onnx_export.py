"""How far are ONNX models from the estimators that they were exported from?

Rows that no fit has seen go through onnxruntime in float32, and through the estimator in float64.
In half of these rows one cell in twenty is missing, and one level in fifty is unknown. The
difference of two numbers is relative to the size of the estimator's and to the standard deviation
of its column: |a - b| / (|b| + sd), and what is printed is the largest one of all cells. For
``inverse_transform`` that is the standard deviation of the column that it reconstructs. Where
levels come back, the number of cells in which they differ is counted.

One table for each likelihood, and the tables that outlier detectors and pipelines are made for.
Without the shared data, only tables of scikit-learn are here.

Exits with 1 if a difference is above 1e-5.
"""

import time
import warnings
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pandas as pd
from _harness import parser, print_table, save, shared_data
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from skvae import VAEOutlierDetector, VAETransformer, to_onnx
from skvae.likelihoods import LIKELIHOODS

LARGEST = 1e-5
MAX_ROWS, N_TEST = 2000, 500
HOLES, UNKNOWN = 0.05, 0.02
METHODS = ("transform", "elbo", "reconstruction", "kl")


class Table(NamedTuple):
    name: str
    X: Any
    likelihood: Any = "auto"
    parameters: Mapping[str, Any] = MappingProxyType({})


def frame(name: str) -> pd.DataFrame:
    return shared_data().load(name)[0]


def numbers(name: str, dtype: Any = np.float64) -> np.ndarray:
    X = shared_data().load(name)[0]
    return np.asarray(X.toarray() if hasattr(X, "toarray") else X, dtype=dtype)


def frequent(X: np.ndarray, n_columns: int) -> np.ndarray:
    return X[:, np.sort(np.argsort(-X.sum(0), kind="stable")[:n_columns])]


def categories(name: str) -> pd.DataFrame:
    X = frame(name)
    return X.select_dtypes(["category", "object"])


def ordered(name: str) -> pd.DataFrame:
    """Quintiles of the numbers of a frame, as levels in order."""
    X = frame(name).select_dtypes("number")
    cut = {c: pd.qcut(X[c], 5, duplicates="drop").cat.rename_categories(str) for c in X}
    return pd.DataFrame(cut)


def tables() -> Iterator[Table]:
    """One for each likelihood, and tables of all kinds of columns."""
    if shared_data() is None:
        yield Table("breast cancer", load_breast_cancer().data)
        yield Table("digits", load_digits().data, "multinomial")
        return
    yield Table("letter", numbers("letter_full"), "gaussian")
    yield Table("cardio", numbers("adb_cardio"), "student_t")
    diamonds = frame("diamonds")[["carat", "x", "y", "z"]]
    yield Table("diamonds", diamonds[(diamonds > 0).all(axis=1)], "log_normal")
    yield Table("mnist", (numbers("mnist") > 127.0).astype(float), "bernoulli")
    yield Table("german_credit", categories("german_credit"), "categorical")
    yield Table("ames_housing", ordered("ames_housing"), "ordinal")
    yield Table("news", frequent(numbers("news_articles"), 300), "poisson")
    yield Table("pbmc", frequent(numbers("pbmc_1000"), 300), "negative_binomial")
    yield Table(
        "adult", frame("adult"), "normal_scores", {"prior": "mixture", "noise": "per_column"}
    )
    yield Table("reuters", frequent(numbers("reuters_lda"), 300), "multinomial")
    for name in ("adult", "titanic", "telco_churn", "german_credit"):
        yield Table(name, frame(name))
    yield Table("titanic, holes modelled", frame("titanic"), "auto", {"missing": "model"})
    yield Table("digits", load_digits().data)
    yield Table("mnist", numbers("mnist"))


# -- rows -----------------------------------------------------------------------------------------


def split(X: Any, seed: int = 0) -> tuple[Any, Any]:
    """Rows to fit, and others with holes and unknown levels; numbers that float32 holds."""
    order = np.random.default_rng(seed).permutation(len(X))[:MAX_ROWS]
    n_test = min(N_TEST, len(order) // 3)
    if isinstance(X, np.ndarray):
        rows = X[order].astype(np.float32).astype(np.float64)
        return rows[:-n_test], spoilt(rows[-n_test:])
    rows = X.iloc[order].reset_index(drop=True)
    floats = rows.select_dtypes("float").columns
    rows = rows.astype(dict.fromkeys(floats, np.float32)).astype(dict.fromkeys(floats, np.float64))
    return rows[:-n_test], spoilt(rows[-n_test:].reset_index(drop=True))


def spoilt(X: Any) -> Any:
    """Take cells away in the second half of the rows, and give some levels that nobody knows."""
    rng = np.random.default_rng(1)
    late = np.arange(len(X))[:, None] >= len(X) // 2
    holes, unknown = (late & (rng.random(X.shape) < share) for share in (HOLES, UNKNOWN))
    if isinstance(X, np.ndarray):
        return np.where(holes, np.nan, X)
    columns = {}
    for number, name in enumerate(X):
        cells = X[name]
        if not pd.api.types.is_numeric_dtype(cells):
            cells = cells.astype(object).where(~unknown[:, number], "nobody knows")
        columns[name] = cells.where(~holes[:, number])
    return pd.DataFrame(columns)


def fed(session: onnxruntime.InferenceSession, X: Any) -> dict[str, np.ndarray]:
    """Rows as the session wants them."""
    if isinstance(X, np.ndarray):
        return {"X": X.astype(np.float32)}
    return {
        one.name: X[[one.name]].to_numpy(object if "string" in one.type else np.float32)
        for one in session.get_inputs()
    }


def run(model: Any, X: Any) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feed = X if isinstance(X, dict) else fed(session, X)
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


# -- differences ----------------------------------------------------------------------------------


def difference(found: Any, expected: Any, original: Any = None) -> float:
    """The largest |a - b| / (|b| + sd), of b's column or of the one that it stands for."""
    a, b = (np.asarray(v, dtype=np.float64).reshape(len(v), -1) for v in (found, expected))
    if (np.isnan(a) != np.isnan(b)).any():
        return float("inf")
    scale = (
        b if original is None else np.asarray(original, dtype=np.float64).reshape(-1, b.shape[1])
    )
    size = np.abs(b) + np.nanstd(scale, axis=0)
    return float(np.nanmax(np.abs(a - b) / np.where(size > 0.0, size, 1.0), initial=0.0))


def differing(found: dict[str, np.ndarray], expected: Any, original: Any) -> tuple[float, int]:
    """The largest difference of numbers, and the number of other cells that differ."""
    if isinstance(expected, np.ndarray):
        return difference(found["X"], expected, original), 0
    largest, n_cells = 0.0, 0
    for name in expected:
        ours, theirs = expected[name], found[str(name)][:, 0]
        if theirs.dtype.kind in "fi":
            largest = max(largest, difference(theirs, ours, original[name]))
        else:
            n_cells += int((ours.to_numpy(object) != theirs.astype(object)).sum())
    return largest, n_cells


def of_transformer(table: Table) -> dict[str, Any]:
    train, test = split(table.X)
    # All epochs are kept: a linear model would have no hidden layers to compare.
    vae = VAETransformer(5, likelihood=table.likelihood, max_iter=10, early_stopping=False)
    vae.set_params(random_state=0, **table.parameters).fit(train)
    row = {"likelihood": str(table.likelihood), "table": table.name}
    row["rows"], row["columns"] = test.shape
    for method in METHODS:
        ours = (
            vae.transform(test) if method == "transform" else vae.score_samples(test, method=method)
        )
        row[method] = difference(*run(to_onnx(vae, method=method), test).values(), ours)
    codes = vae.transform(test).astype(np.float32)
    found = run(to_onnx(vae, method="inverse_transform"), {"Z": codes})
    row["inverse"], row["levels"] = differing(
        found, vae.inverse_transform(codes.astype(float)), train
    )
    return row


def of_detector(name: str, X: Any) -> dict[str, Any]:
    train, test = split(X)
    detector = VAEOutlierDetector(random_state=0).fit(train)
    found = run(to_onnx(detector), test)
    return {
        "detector": name,
        "rows": len(test),
        "columns": test.shape[1],
        "scores": difference(found["scores"], detector.decision_function(test)),
        "labels": int((found["label"][:, 0] != detector.predict(test)).sum()),
    }


def of_pipelines() -> Iterator[dict[str, Any]]:
    X, y = load_digits(return_X_y=True)
    vae, classifier = VAETransformer(10, max_iter=10, random_state=0), LogisticRegression()
    pipeline = make_pipeline(StandardScaler(), vae, classifier).fit(X[:1000], y[:1000])
    found = run(to_onnx(pipeline), X[1000:])
    yield {
        "pipeline": "StandardScaler, VAETransformer, LogisticRegression",
        "difference": difference(found["probabilities"], pipeline.predict_proba(X[1000:])),
        "labels": int((found["label"] != pipeline.predict(X[1000:])).sum()),
    }
    if shared_data() is not None:
        yield of_column_transformer()


def of_column_transformer() -> dict[str, Any]:
    X = frame("german_credit")
    X = X.astype(dict.fromkeys(X.select_dtypes("number").columns, np.float32))
    X = X.astype(dict.fromkeys(X.select_dtypes("category").columns, object))
    encoder = make_column_transformer(
        (StandardScaler(), make_column_selector(dtype_include="number")),
        (
            OneHotEncoder(handle_unknown="ignore", sparse_output=False),
            list(X.select_dtypes(object)),
        ),
    )
    pipeline = make_pipeline(encoder, VAEOutlierDetector(random_state=0)).fit(X[:700])
    test = X[700:].reset_index(drop=True)
    test.iloc[::9, 0] = "nobody knows"
    found = run(to_onnx(pipeline, X), test)
    return {
        "pipeline": "ColumnTransformer, VAEOutlierDetector",
        "difference": difference(found["scores"], pipeline.decision_function(test)),
        "labels": int((found["label"][:, 0] != pipeline.predict(test)).sum()),
    }


def shown(row: dict[str, Any]) -> dict[str, Any]:
    return {k: f"{v:.1e}" if isinstance(v, float) else v for k, v in row.items()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    arguments = parser(__doc__, seeds=1).parse_args()
    start, rows = time.perf_counter(), []
    for table in tables():
        if not arguments.sets or table.name in arguments.sets:
            rows.append(of_transformer(table))
            print(shown(rows[-1]), flush=True)
    print_table([shown(row) for row in rows])
    if arguments.sets:
        raise SystemExit
    if shared_data() is not None:
        names = {table.likelihood for table in tables()}
        assert set(LIKELIHOODS) <= names, set(LIKELIHOODS) - names
    detectors = [
        of_detector(table.name, table.X) for table in tables() if table.likelihood == "auto"
    ]
    print_table([shown(row) for row in detectors])
    pipelines = list(of_pipelines())
    print_table([shown(row) for row in pipelines])
    save("onnx_export", rows, detectors=detectors, pipelines=pipelines)
    every = [*rows, *detectors, *pipelines]
    largest = max(value for row in every for value in row.values() if isinstance(value, float))
    n_cells = sum(row.get("levels", 0) + row.get("labels", 0) for row in every)
    print(f"largest difference: {largest:.1e}; {n_cells} levels or labels differ")
    print(f"{time.perf_counter() - start:.0f} s")
    raise SystemExit(int(not (largest <= LARGEST and n_cells == 0)))
