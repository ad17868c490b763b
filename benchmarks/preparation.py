"""What comes before the first step, and what a small fit costs, in multiples of PCA's time.

    python benchmarks/preparation.py
    python benchmarks/preparation.py --parts tables     # without shared data

Every figure is a ratio of two times of the processor that one run measured in turns, on one thread,
but for the busy machine, where it is of the user's clock. Parts:

* tables: max_iter=0, with one noise for all and one for each column, beside PCA by the covariance:
  30,000 x 784 of MNIST, 1,000,000 x 20, and 200 x 20,000, whose memory counts, too (tracemalloc).
* mixed: max_iter=0 and a default fit of 3,000 rows beside a Pipeline of imputers, StandardScaler,
  OneHotEncoder and PCA.
* sparse: an epoch of 20,000 x 30,000 with 0.3% stored, beside the products of stored cells with the
  networks' weights, two in the encoder and two in the decoder.
* row: milliseconds that one row of a frame takes.
* busy: calls with two processes beside that never rest, by their time alone: 2 is the fair share.
  It wants a machine where nothing else runs.

Exits with 1 above a floor. Not all of them are reached so far: docs/benchmarks.md says which.
"""

import subprocess
import sys
import time
import tracemalloc
import warnings
from functools import partial

import numpy as np
import torch
from _harness import check_floors, load_set, parser, print_table, save, shared_data
from scipy.sparse import random as random_sparse
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from skvae import VAEOutlierDetector, VAETransformer

N_COMPONENTS = 10
NOISES = ["shared", "per_column"]
# Floors, in multiples of PCA's time.
TABLES = {"MNIST": 3.0, "1,000,000 x 20": 6.0, "200 x 20,000": 4.0}
MEMORY = 10.0  # times the input
MIXED = {"start": 10.0, "default fit": 10.0}
ROW_MS = {"score_samples": 3.0, "predict": 1.0, "transform": 1.0}
BUSY = 3.0
SPARSE = 5.0


def low_rank(n_rows, n_columns):
    """Eight dimensions and noise of the same size, in float32."""
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(8, n_columns))
    X = rng.normal(size=(n_rows, 8)) @ loadings + rng.normal(size=(n_rows, n_columns))
    return X.astype(np.float32)


def seconds(call, clock=time.process_time):
    begun = clock()
    call()
    return clock() - begun


def fastest(calls, repeats=3, clock=time.process_time):
    """The least time of each of several calls, which take turns: others only ever add to it."""
    return np.min([[seconds(call, clock) for call in calls] for _ in range(repeats)], axis=0)


def start(X, noise="shared"):
    return lambda: VAETransformer(N_COMPONENTS, max_iter=0, noise=noise, random_state=0).fit(X)


def result(what, value, floor):
    return {"what": what, "value": float(value), "floor": floor}


def peak(X):
    """The most memory that a start takes at a time, in sizes of the input."""
    tracemalloc.start()
    try:
        start(X)()
        return tracemalloc.get_traced_memory()[1] / X.nbytes
    finally:
        tracemalloc.stop()


def run_tables():
    wide = low_rank(200, 20_000)
    tables = {"1,000,000 x 20": low_rank(1_000_000, 20), "200 x 20,000": wide}
    if shared_data() is not None:
        tables["MNIST"] = load_set("mnist")[0][:30_000].astype(np.float32)
    rows = []
    for name, X in tables.items():
        solver = "covariance_eigh" if len(X) > X.shape[1] else "auto"
        pca = PCA(N_COMPONENTS, svd_solver=solver)
        noises = NOISES if len(X) > X.shape[1] else NOISES[:1]
        peer, *ours = fastest([partial(pca.fit, X), *(start(X, noise) for noise in noises)])
        for noise, own in zip(noises, ours, strict=True):
            rows.append(result(f"{name}, {noise}", own / peer, TABLES[name]))
    rows.append(result("200 x 20,000: memory, in sizes of X", peak(wide), MEMORY))
    return rows


def mixed(name, n_rows=3000):
    X, _ = load_set(name)
    order = np.random.default_rng(0).permutation(len(X))[:n_rows]
    return X.iloc[order].reset_index(drop=True)


def pipeline(X):
    """What a user would fit without us."""
    numbers = list(X.select_dtypes("number"))
    levels = OneHotEncoder(sparse_output=False, handle_unknown="ignore")
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), numbers),
            (
                "levels",
                make_pipeline(SimpleImputer(strategy="most_frequent"), levels),
                list(X.drop(columns=numbers)),
            ),
        ]
    )
    return make_pipeline(columns, PCA(min(N_COMPONENTS, X.shape[1])))


def run_mixed():
    rows = []
    for name in ("adult", "titanic", "german_credit"):
        X = mixed(name)
        peer = pipeline(X)
        fit = VAETransformer(N_COMPONENTS, random_state=0)
        theirs, begun = fastest([partial(peer.fit, X), start(X)])
        whole = seconds(partial(fit.fit, X))
        rows.append(result(f"{name}: start", begun / theirs, MIXED["start"]))
        rows.append(result(f"{name}: default fit", whole / theirs, MIXED["default fit"]))
    return rows


def epoch_of(X, n_epochs):
    """The seconds of an epoch: those of several less those of one."""
    vae = VAETransformer(N_COMPONENTS, early_stopping=False, random_state=0)
    few, many = (clone(vae).set_params(max_iter=n) for n in (1, 1 + n_epochs))
    one, all_of_them = fastest([partial(few.fit, X), partial(many.fit, X)], repeats=2)
    return (all_of_them - one) / n_epochs


def run_sparse():
    rng = np.random.default_rng(0)
    X = random_sparse(20_000, 30_000, 0.003, "csr", np.float32, random_state=rng)
    X.data[:] = rng.poisson(2, X.nnz) + 1
    hidden = 256
    layer = np.ones((X.shape[1], hidden + N_COMPONENTS + 1), np.float32)
    codes = np.ones((len(layer[0]), 512), np.float32).T.copy()
    parts = [X[some : some + 512] for some in range(0, X.shape[0], 512)]

    def products():
        for _ in ("encoder", "decoder"):
            for part in parts:
                part @ layer
                part.T @ codes[: part.shape[0]]

    product = fastest([products])[0]
    return [result("sparse, an epoch by its products", epoch_of(X, 2) / product, SPARSE)]


def run_row():
    X = mixed("adult")
    one = X.iloc[:1]
    vae = VAETransformer(N_COMPONENTS, max_iter=10, random_state=0).fit(X)
    detector = VAEOutlierDetector(random_state=0).fit(X[:800])
    calls = [
        lambda: vae.score_samples(one),
        lambda: detector.predict(one),
        lambda: vae.transform(one),
    ]
    times = fastest(calls, repeats=20, clock=time.perf_counter)
    return [
        result(f"{method} of one row, ms", 1e3 * spent, ROW_MS[method])
        for method, spent in zip(ROW_MS, times, strict=True)
    ]


def run_busy():
    X = mixed("adult", 4000)
    many = load_set("mnist")[0][:20_000].astype(np.float32)  # steps with much to multiply
    pixels = many[:4000]
    vae = VAETransformer(N_COMPONENTS, max_iter=3, random_state=0).fit(X)
    calls = {
        "start of adult": start(X),
        "5 epochs of adult": lambda: VAETransformer(N_COMPONENTS, max_iter=5).fit(X),
        "an epoch of MNIST": lambda: VAETransformer(N_COMPONENTS, max_iter=1).fit(many),
        "start of MNIST": start(pixels),
        "start of MNIST, per_column": start(pixels, "per_column"),
        "score_samples": lambda: vae.score_samples(X[:200]),
        "transform": lambda: vae.transform(X),
    }
    alone = fastest(calls.values(), repeats=2, clock=time.perf_counter)
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        busy = fastest(calls.values(), repeats=2, clock=time.perf_counter)
    finally:
        for other in others:
            other.kill()
    return [
        result(f"{what}, beside two others", ratio, BUSY)
        for what, ratio in zip(calls, busy / alone, strict=True)
    ]


PARTS = {
    "tables": run_tables,
    "mixed": run_mixed,
    "sparse": run_sparse,
    "row": run_row,
    "busy": run_busy,
}
SHARED_PARTS = {"mixed", "row", "busy"}


def main():
    p = parser(__doc__.splitlines()[0], seeds=1)
    p.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    rows = []
    for part in p.parse_args().parts:
        if part in SHARED_PARTS and shared_data() is None:
            print(f"skipped (no shared data here): {part}")
            continue
        if part == "busy":  # as a user has it, with all threads
            rows += PARTS[part]()
            continue
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with threadpool_limits(limits=1):
            rows += PARTS[part]()
        torch.set_num_threads(n_threads)
    print_table(rows)
    save("preparation", rows)
    print()
    check_floors([(f"floor / {r['what']}", r["floor"] / r["value"], 1.0) for r in rows])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
