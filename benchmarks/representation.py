"""Are the codes better than PCA's at the same number of components?

``--kind numeric``: default VAETransformer against PCA on standardised columns: linear probe, 5
nearest neighbours and k-means (no scaler) on the codes.

``--kind mixed``: the raw frames, categories and missing cells included, and synthetic ones whose
holes say something, against one-hot (a hole is a level, also of a number), scaling and PCA
(truncated SVD where there are too many levels for a dense matrix): linear probe, accuracy or R^2,
in percent. Also runs score_samples, sample and inverse_transform on every frame. "holes" is what
``missing="auto"`` models.

``--kind ablation``: adult rebuilt from the codes, column by column, by a model of all columns and
by one of the categorical or numeric columns only: does either kind of column drown the other?

70/30, several seeds. Exits with 1 below a floor.
"""

import time
import warnings

import numpy as np
from _harness import (
    available,
    check_floors,
    load_set,
    parameters,
    parser,
    print_table,
    save,
    shared_data,
)
from _holes import FRAMES, frame_with_holes
from sklearn.cluster import KMeans
from sklearn.compose import make_column_transformer
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import adjusted_rand_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from skvae import VAETransformer

NUMERIC = [
    "digits",
    "wine",
    "breast_cancer",
    "letter_full",
    "satellite_full",
    "shuttle_full",
    "olive",
]
MIXED = [
    "adult",
    "german_credit",
    "titanic",
    "ames_housing",
    "income_esl",
    "soybean",
    "telco_churn",
    "flights",
    *FRAMES,
]
N_COMPONENTS = 10  # of the mixed tables
MAX_ROWS = 20_000
MAX_DENSE_LEVELS = 1_000  # one-hot columns, from which on the baseline stays sparse


def is_label(y):
    return y.dtype.kind != "f"


def linear_probe(model, X_train, X_test, y_train, y_test):
    """Accuracy of a logistic regression, or R^2 of a ridge regression, on the codes, in percent."""
    head = LogisticRegression(max_iter=1000) if is_label(y_train) else Ridge()
    probe = make_pipeline(StandardScaler(), head).fit(model.transform(X_train), y_train)
    return 100 * probe.score(model.transform(X_test), y_test)


def probe(model, X_train, X_test, y_train, y_test, seed):
    """Linear probe, 5-nearest-neighbour accuracy and adjusted Rand index, in percent."""
    Z_train, Z_test = model.transform(X_train), model.transform(X_test)
    neighbours = KNeighborsClassifier(5)
    clusters = KMeans(len(np.unique(y_train)), n_init=10, random_state=seed).fit_predict(Z_test)
    return [
        linear_probe(model, X_train, X_test, y_train, y_test),
        100 * neighbours.fit(Z_train, y_train).score(Z_test, y_test),
        100 * adjusted_rand_score(y_test, clusters),
    ]


def split(X, y, seed):
    rare = not is_label(y) or np.unique(y, return_counts=True)[1].min() < 2
    return train_test_split(X, y, test_size=0.3, random_state=seed, stratify=None if rare else y)


def fitted(model, X):
    """The fitted model and the seconds that it took."""
    start = time.perf_counter()
    model.fit(X)
    return model, time.perf_counter() - start


def compare(name, seeds, settings):
    X, y = load_set(name)
    n_components = min(10, -(-X.shape[1] // 3))
    ours, theirs, seconds = [], [], 0.0
    for seed in range(seeds):
        parts = split(X, y, seed)
        vae, took = fitted(VAETransformer(n_components, random_state=seed, **settings), parts[0])
        seconds += took
        ours.append(probe(vae, *parts, seed))
        pca = make_pipeline(StandardScaler(), PCA(n_components)).fit(parts[0])
        theirs.append(probe(pca, *parts, seed))
    row = {"set": name, "scaling": vae.scaling_, "epochs": vae.best_iter_}
    for i, score in enumerate(["linear", "knn", "ari"]):
        a, b = np.mean(ours, axis=0)[i], np.mean(theirs, axis=0)[i]
        row |= {score: float(a), f"{score} PCA": float(b), f"{score} gain": float(a - b)}
    return row | {"fit s": seconds / seeds}


def load_table(name):
    """A raw frame and its target: labels as objects, numbers as floats (see is_label)."""
    if name in FRAMES:
        return frame_with_holes(name)
    X, y, about = shared_data().load(name)
    keep = np.flatnonzero(y.notna())
    if len(keep) > MAX_ROWS:
        keep = np.sort(np.random.RandomState(0).choice(keep, MAX_ROWS, replace=False))
    y = y.iloc[keep].to_numpy(dtype=float if about["task"] == "regression" else object)
    return X.iloc[keep].reset_index(drop=True), y


def kinds(X):
    """Names of the categorical and of the numeric columns."""
    numeric = list(X.select_dtypes("number"))
    return [c for c in X if c not in numeric], numeric


def one_hot_pca(X, n_components=N_COMPONENTS, scaled=True):
    """What a user does today: impute, one-hot (a missing cell is a level of its own), scale, PCA.

    Of a number, a missing cell is the median and an indicator.

    TruncatedSVD where the indicators are sparse. ``scaled=False`` leaves them 0 and 1: where
    thousands of rare levels are scaled to unit variance, the components see nothing else.
    """
    categorical, numeric = kinds(X)
    sparse = bool(X[categorical].nunique().sum() > MAX_DENSE_LEVELS)
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=sparse)
    scale = StandardScaler(with_mean=False) if scaled else "passthrough"
    encode = make_column_transformer(
        (
            make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler()),
            numeric,
        ),
        (make_pipeline(one_hot, scale), categorical),
        sparse_threshold=float(sparse),
    )
    width = encode.fit_transform(X).shape[1]
    reduce = TruncatedSVD if sparse else PCA
    return make_pipeline(encode, reduce(min(n_components, width), random_state=0)).fit(X)


def check_methods(model, X):
    """score_samples, sample and inverse_transform run on this frame and return what they should."""
    scores = np.asarray(model.score_samples(X[:200]))
    assert scores.shape == (len(X[:200]),), scores.shape
    assert np.isfinite(scores).all(), "a score is not finite"
    for frame in (model.sample(5, random_state=0), model.inverse_transform(model.transform(X[:5]))):
        assert type(frame) is type(X), type(frame)
        assert list(frame.columns) == list(X.columns), list(frame.columns)
        assert len(frame) == 5, len(frame)


def compare_mixed(name, seeds, settings):
    X, y = load_table(name)
    ours, theirs, unscaled, seconds = [], [], [], 0.0
    for seed in range(seeds):
        parts = split(X, y, seed)
        vae, took = fitted(VAETransformer(N_COMPONENTS, random_state=seed, **settings), parts[0])
        seconds += took
        check_methods(vae, parts[1])
        ours.append(linear_probe(vae, *parts))
        theirs.append(linear_probe(one_hot_pca(parts[0]), *parts))
        unscaled.append(linear_probe(one_hot_pca(parts[0], scaled=False), *parts))
    a, b = float(np.mean(ours)), float(np.mean(theirs))
    return {
        "set": name,
        "rows": len(X),
        "columns": X.shape[1],
        "metric": "accuracy" if is_label(y) else "R2",
        "score": a,
        "baseline": b,
        "gain": a - b,
        "unscaled": float(np.mean(unscaled)),
        "holes": len(vae.model_.schema.holes),
        "fit s": seconds / seeds,
    }


def agreement(true, rebuilt, is_category):
    """Accuracy or R^2 in percent over the cells that are there."""
    seen = true.notna().to_numpy()
    a, b = true[seen].to_numpy(), rebuilt[seen].to_numpy()
    if is_category:
        return 100 * float(np.mean(a.astype(str) == b.astype(str)))
    return 100 * float(r2_score(a.astype(float), b.astype(float)))


def constant(train, test):
    """The same frame with every cell of a category column at the mode, of a number at the mean."""
    categorical, _ = kinds(train)
    fill = {c: train[c].mode()[0] if c in categorical else train[c].mean() for c in train}
    return test.assign(**fill)


def rebuild(columns, train, test, seed, settings):
    """The test rows' columns, decoded from their codes in a model of these columns only."""
    model = VAETransformer(N_COMPONENTS, random_state=seed, **settings).fit(train[columns])
    return model.inverse_transform(model.transform(test[columns]))


def ablate(name, seeds, settings):
    """One row a column: rebuilt by a constant, by the model of its kind alone, by that of all.

    Adult's 6 numeric columns have fewer dimensions than the codes, so alone they should come back
    whole; the 8 categorical ones (99 levels) should not.
    """
    X, y = load_table(name)
    categorical, numeric = kinds(X)
    scores = np.zeros((X.shape[1], 3))
    for seed in range(seeds):
        train, test, *_ = split(X, y, seed)
        alone = [rebuild(k, train, test, seed, settings) for k in (categorical, numeric)]
        whole = rebuild(list(X), train, test, seed, settings)
        for i, c in enumerate(X):
            guesses = constant(train, test), alone[c in numeric], whole
            scores[i] += [agreement(test[c], g[c], c in categorical) / seeds for g in guesses]
    return [
        {
            "column": c,
            "metric": "accuracy" if c in categorical else "R2",
            "constant": float(scores[i, 0]),
            "own kind": float(scores[i, 1]),
            "all columns": float(scores[i, 2]),
        }
        for i, c in enumerate(X)
    ]


def means(rows, **labels):
    """The row of the means of the numbers."""
    numbers = [key for key in rows[0] if isinstance(rows[0][key], float)]
    mean = {key: float(np.mean([row[key] for row in rows])) for key in numbers}
    return dict.fromkeys(rows[0], "") | mean | labels


def collect(names, measure, *arguments):
    rows = []
    for name in names:
        rows.append(measure(name, *arguments))
        print(name, flush=True)
    return rows


def run_numeric(names, seeds, settings):
    rows = collect(names, compare, seeds, settings)
    mean = means(rows, set="MEAN")
    print_table([*rows, mean])
    save("representation", rows, mean=mean)
    return [
        ("linear probe over PCA, mean", mean["linear gain"], 1.5),
        ("linear probe over PCA, worst set", min(r["linear gain"] for r in rows), -2.0),
        ("5 nearest neighbours over PCA, mean", mean["knn gain"], 0.5),
        ("adjusted Rand index over PCA, mean", mean["ari gain"], 0.0),
    ]


def run_mixed(names, seeds, settings):
    rows = collect(names, compare_mixed, seeds, settings)
    mean = means(rows, set="MEAN")
    others = means([r for r in rows if r["set"] != "flights"], set="MEAN BUT FLIGHTS")
    print_table([*rows, mean, others])
    save("representation_mixed", rows, mean=mean)
    print("unscaled: the baseline with indicators left 0 and 1 (for information, no floor)")
    return [
        ("mixed tables over one-hot and PCA, mean without flights", others["gain"], 1.5),
        ("mixed tables over one-hot and PCA, worst set", min(r["gain"] for r in rows), -0.5),
    ]


def run_ablation(names, seeds, settings):
    """No floors: the two kinds share ten codes here, so each alone may well be rebuilt better."""
    for name in names:
        rows = ablate(name, seeds, settings)
        mean = [
            means([r for r in rows if r["metric"] == metric], column="MEAN", metric=metric)
            for metric in ("accuracy", "R2")
        ]
        print_table([*rows, *mean])
        save(f"representation_ablation_{name}", rows, mean=mean)
    return []


KINDS = {
    "numeric": (run_numeric, NUMERIC),
    "mixed": (run_mixed, MIXED),
    "ablation": (run_ablation, ["adult"]),
}


def chosen(kind, sets, only):
    """The sets of this kind to run. Among all kinds, a set that no list names is numeric."""
    listed = KINDS[kind][1]
    if not sets or only:
        return sets or listed
    return [n for n in sets if n in listed or (kind == "numeric" and n not in MIXED)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    p = parser(__doc__, seeds=3)
    p.add_argument("--kind", choices=[*KINDS, "all"], default="all")
    arguments = p.parse_args()
    settings = parameters(arguments.parameters)
    only = arguments.kind != "all"
    floors = []
    for kind in [arguments.kind] if only else KINDS:
        names = available(chosen(kind, arguments.sets, only))
        if names:
            measured = KINDS[kind][0](names, arguments.seeds, settings)
            floors += measured if set(names) == set(KINDS[kind][1]) else []
    check_floors(floors)
