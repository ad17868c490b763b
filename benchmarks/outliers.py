"""Does VAEOutlierDetector find outliers better than the detectors that people use today?

26 labelled tables of ADBench (Han et al. 2022), at most 10,000 rows each, 70/30 stratified, in two
settings:

* contaminated: the outliers of the training part stay in it, unlabelled;
* clean: trained on the inliers of the training part only.

Side by side, every detector with its defaults: ours, isolation forest, local outlier factor and
distance to the fifth neighbour (both on standardised columns, without which they are worse), pPCA
(PCA's log-density of standardised columns), and PyOD's VAE, AutoEncoder and ECOD. AUROC and
average precision in percent, seconds of fit and of scoring the test part, on one thread. The fit of
PyOD's detectors and of local outlier factor also scores the training rows, for their threshold.

Then three tables with categories, for those that take them; the peers after one-hot and scaling.

    OMP_NUM_THREADS=1 python benchmarks/outliers.py             # all
    python benchmarks/outliers.py --fast                        # without PyOD's VAE, the slowest
    python benchmarks/outliers.py --sets adb_wine --scores elbo reconstruction
    python benchmarks/outliers.py --resume                      # what an interrupted run lacks

Exits with 1 below a floor.
"""

import contextlib
import importlib
import io
import json
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _harness import check_floors, parameters, parser, print_table, save, shared_data
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

MAX_ROWS = 10_000
SETTINGS = ["contaminated", "clean"]
RESULTS = Path(__file__).parent / "results" / "outliers.json"
KEY = ["kind", "set", "seed", "setting", "method"]  # what makes a measurement
MEASURES = ["AUROC", "AP", "fit s", "score s"]
RIVALS = ["isolation forest", "5th neighbour"]  # the two that are hardest to beat
WORST = 8


class NeighbourDistance(BaseEstimator):
    """Minus the distance to the fifth nearest training row."""

    def fit(self, X, y=None):
        self.neighbours_ = NearestNeighbors(n_neighbors=5).fit(X)
        return self

    def score_samples(self, X):
        return -self.neighbours_.kneighbors(X)[0][:, -1]


def ours(seed, X, settings, **score):
    """The default; with settings of the VAE, a VAE that keeps the detector's noise per column."""
    from skvae import VAEOutlierDetector, VAETransformer  # the peers run without them

    own = settings.keys() & VAEOutlierDetector().get_params(deep=False).keys()
    arguments = {name: settings[name] for name in own} | score | {"random_state": seed}
    if rest := {name: value for name, value in settings.items() if name not in own}:
        noise = {"noise": "per_column"}
        arguments["vae"] = VAETransformer(**noise | rest, random_state=seed)
    return VAEOutlierDetector(**arguments)


def forest(seed, X, settings):
    return IsolationForest(random_state=seed)


def local_outlier_factor(seed, X, settings):
    return make_pipeline(StandardScaler(), LocalOutlierFactor(novelty=True))


def neighbour(seed, X, settings):
    return make_pipeline(StandardScaler(), NeighbourDistance())


def ppca(seed, X, settings):
    return make_pipeline(StandardScaler(), PCA(min(10, -(-X.shape[1] // 3))))


def pyod(file, name, seed, X, settings):
    detector = getattr(importlib.import_module(f"pyod.models.{file}"), name)
    return detector() if name == "ECOD" else detector(random_state=seed, verbose=0, device="cpu")


OWN = {"ours": ours}
SKLEARN = {
    "isolation forest": forest,
    "LOF": local_outlier_factor,
    "5th neighbour": neighbour,
    "pPCA": ppca,
}
PYOD = {
    "PyOD ECOD": partial(pyod, "ecod", "ECOD"),
    "PyOD AE": partial(pyod, "auto_encoder", "AutoEncoder"),
    "PyOD VAE": partial(pyod, "vae", "VAE"),
}


def after_one_hot(build, seed, X, settings):
    """The detector on categories as standardised indicators."""
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    encode = make_column_transformer(
        (StandardScaler(), make_column_selector(dtype_include="number")),
        (make_pipeline(one_hot, StandardScaler()), make_column_selector(dtype_exclude="number")),
    )
    return make_pipeline(encode, build(seed, X, settings))


MIXED_PEERS = {name: partial(after_one_hot, SKLEARN[name]) for name in RIVALS}


def has_pyod():
    """Whether PyOD and what it imports without declaring are here."""
    try:
        for file in ("vae", "auto_encoder", "ecod"):
            importlib.import_module(f"pyod.models.{file}")
    except ImportError as error:
        print(f"skipped: PyOD's detectors ({error}); the floors against them are not checked")
        return False
    return True


def methods_of(scores, fast):
    """The detectors to run on numeric tables, and on mixed ones."""
    more = {f"ours, {score}": partial(ours, score_method=score) for score in scores}
    peers = SKLEARN | (PYOD if has_pyod() else {})
    if fast and peers.pop("PyOD VAE", None):
        print("skipped: PyOD's VAE (--fast); the floors against it are not checked")
    return {"numeric": OWN | more | peers, "mixed": OWN | more | MIXED_PEERS}


def load_rows(name):
    """Rows as a float array or a frame, and 1 where a row is an outlier."""
    X, y, _ = shared_data().load(name)
    return X if isinstance(X, pd.DataFrame) else X.astype(float), np.asarray(y).astype(int)


def split(X, y, seed):
    """Train and test part of at most MAX_ROWS rows, outliers in proportion."""
    if len(y) > MAX_ROWS:
        X, _, y, _ = train_test_split(X, y, train_size=MAX_ROWS, random_state=seed, stratify=y)
    return train_test_split(X, y, test_size=0.3, random_state=seed, stratify=y)


def normality(model, X):
    """High for normal rows, as all but PyOD's scores are."""
    scored = hasattr(model, "score_samples")
    return np.asarray(model.score_samples(X) if scored else -model.decision_function(X))


def measure(model, train, test, y_test):
    with contextlib.redirect_stdout(io.StringIO()):  # PyOD's chatter
        start = time.perf_counter()
        model.fit(train)
        fitted = time.perf_counter()
        scores = normality(model, test)
        scored = time.perf_counter()
    return {
        "AUROC": 100 * float(roc_auc_score(y_test, -scores)),
        "AP": 100 * float(average_precision_score(y_test, -scores)),
        "fit s": fitted - start,
        "score s": scored - fitted,
    }


def rotated(methods, by):
    """Another order for each set and seed: nobody is always first after a slow one."""
    names = list(methods)
    by %= len(names)
    return names[by:] + names[:by]


def run_set(kind, name, turn, methods, seeds, settings, done):
    """The measurements of one set that are not among the ``done``."""
    X, y = load_rows(name)
    rows = []
    for seed in range(seeds):
        train, test, y_train, y_test = split(X, y, seed)
        for setting in SETTINGS:
            kept = train if setting == "contaminated" else train[y_train == 0]
            for method in rotated(methods, turn + seed):
                key = (kind, name, seed, setting, method)
                if key not in done:
                    model = methods[method](seed, kept, settings)
                    found = measure(model, kept, test, y_test)
                    rows.append(dict(zip(KEY, key, strict=True)) | found)
    return rows


def warm_up(methods, settings):
    """Imports, compilation and first allocations, which are nobody's training time."""
    X = np.random.RandomState(0).normal(size=(200, 5))
    with contextlib.redirect_stdout(io.StringIO()):
        for build in methods.values():
            normality(build(0, X, settings).fit(X), X)


def earlier(settings):
    """What an earlier run with these settings saved; that the code is the same is trusted."""
    if not RESULTS.exists():
        return []
    report = json.loads(RESULTS.read_text())
    if report.get("settings") != json.loads(json.dumps(settings)):  # tuples are lists in JSON
        print("nothing resumed: the saved run had other settings")
        return []
    return report["rows"]


def over_seeds(rows, kind):
    """One row a set, setting and method: the mean over the seeds."""
    table = pd.DataFrame(rows, columns=KEY + MEASURES)
    table = table[table["kind"] == kind]
    return table.groupby(["set", "setting", "method"], sort=False)[MEASURES].mean().reset_index()


def by_set(table, setting, methods):
    """AUROC of each method on each set, and the mean."""
    here = table[table["setting"] == setting]
    wide = here.pivot(index="set", columns="method", values="AUROC").sort_index()
    wide = wide[[m for m in methods if m in wide]]
    wide.loc["MEAN"] = wide.mean()
    return wide


def summary(table, methods):
    """The means over the sets, best AUROC first within a setting."""
    table = table[table["method"].isin(list(methods))]
    means = table.groupby(["setting", "method"])[MEASURES].mean().reset_index()
    means["order"] = means["setting"].map(SETTINGS.index)
    means = means.sort_values(["order", "AUROC"], ascending=[True, False])
    return means.drop(columns="order")


def losses(table):
    """Where ours is furthest below the better of the two rivals."""
    rows = []
    for setting in SETTINGS:
        wide = by_set(table, setting, ["ours", *RIVALS]).drop(index="MEAN")
        best, which = wide[RIVALS].max(axis=1), wide[RIVALS].idxmax(axis=1)
        gain = (wide["ours"] - best).sort_values()
        for name in gain[gain < 0].index[:WORST]:
            scores = {"ours": wide["ours"][name], "best": best[name], "gain": gain[name]}
            rows.append({"setting": setting, "set": name, **scores, "rival": which[name]})
    return rows


def records(frame):
    return frame.to_dict("records")


def report(title, table, methods):
    for setting in SETTINGS:
        print(f"\n{title}, {setting}: AUROC")
        print_table(records(by_set(table, setting, methods).reset_index()))
    print(f"\n{title}: means over the sets")
    print_table(records(summary(table, methods)))
    if lost := losses(table):
        print(f"\n{title}: where ours loses most to the better of {' and '.join(RIVALS)}")
        print_table(lost)


def floors(table, methods):
    """Gains in points of AUROC, and how much sooner ours is trained than PyOD's VAE."""
    auroc = {setting: by_set(table, setting, methods).loc["MEAN"] for setting in SETTINGS}
    seconds = table.groupby("method")["fit s"].mean()
    wanted = [("contaminated", "isolation forest"), ("clean", "5th neighbour")]
    wanted += [(setting, peer) for setting in SETTINGS for peer in ("PyOD VAE", "PyOD AE")]
    found = [
        (f"{setting}: AUROC over {peer}", auroc[setting]["ours"] - auroc[setting][peer], 0.0)
        for setting, peer in wanted
        if peer in methods
    ]
    if "PyOD VAE" in methods:
        found.append(("fit time of PyOD VAE by ours", seconds["PyOD VAE"] / seconds["ours"], 10.0))
    return found


def names_of_kinds(sets):
    """The sets to run of each kind: all, or those asked for."""
    data = shared_data()
    listed = {"numeric": data.names("outlier"), "mixed": data.names("outlier_mixed")}
    if unknown := set(sets or []).difference(*listed.values()):
        raise SystemExit(f"no such sets: {', '.join(sorted(unknown))}")
    return {kind: [n for n in known if not sets or n in sets] for kind, known in listed.items()}


def finish(rows, methods, names, seeds, settings):
    """Print and save the tables."""
    means = {}
    for kind, title in [("numeric", "numeric tables"), ("mixed", "tables with categories")]:
        if names[kind]:
            here = [r for r in rows if r["set"] in names[kind] and r["seed"] < seeds]
            table = over_seeds(here, kind)
            report(title, table, methods[kind])
            means[kind] = records(summary(table, methods[kind]))
    save("outliers", rows, mean=means, settings=settings, seeds=seeds)


def run(arguments):
    settings = parameters(arguments.parameters)
    methods = methods_of(arguments.scores, arguments.fast)
    names = names_of_kinds(arguments.sets)
    seeds = arguments.seeds
    rows = earlier(settings) if arguments.resume else []
    done = {tuple(row[k] for k in KEY) for row in rows}
    warm_up(methods["numeric"], settings)
    for kind in methods:
        for turn, name in enumerate(names[kind]):
            start = time.perf_counter()
            rows += run_set(kind, name, turn, methods[kind], seeds, settings, done)
            save("outliers", rows, settings=settings, seeds=seeds)  # an interrupted run leaves it
            print(f"{name} ({time.perf_counter() - start:.0f} s)", flush=True)
    finish(rows, methods, names, seeds, settings)
    if not arguments.sets:
        table = over_seeds([r for r in rows if r["seed"] < seeds], "numeric")
        print()
        check_floors(floors(table, methods["numeric"]))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    p = parser(__doc__.splitlines()[0], seeds=3)
    p.add_argument("--scores", nargs="*", default=[], help="ours with these score methods, too")
    p.add_argument("--fast", action="store_true", help="without PyOD's VAE")
    p.add_argument("--resume", action="store_true", help="keep what an earlier run measured")
    arguments = p.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        if shared_data() is None:
            print("skipped (no shared data here)")
        else:
            run(arguments)
