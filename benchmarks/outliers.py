"""Does VAEOutlierDetector find outliers better than the detectors that people use today?

Four kinds of tables:

* numeric: 26 labelled tables of ADBench (Han et al. 2022), at most 10,000 rows each, 70/30
  stratified. Contaminated: the outliers of the training part stay in it, unlabelled. Clean: trained
  on the inliers of the training part only.
* odd: 220 tables of a later collection, in which parts are given. Clean: trained on the inliers.
  Contaminated: both parts together, fitted and scored.
* mixed: three tables with categories, split as the numeric ones.
* discretised: ten of the numeric tables with each column cut into five levels.

Side by side, every detector with its defaults: ours, isolation forest, local outlier factor and
the mean distance to five neighbours (both on standardised columns, without which they are worse),
pPCA (PCA's log-density of standardised columns), and PyOD's VAE, AutoEncoder and ECOD; but for
numeric tables only forest and neighbours, after one-hot where there are categories. AUROC and
average precision in percent, seconds of fit and of scoring the test part, on one thread. The fit of
PyOD's detectors and of local outlier factor also scores the training rows, for their threshold.

    OMP_NUM_THREADS=1 python benchmarks/outliers.py             # all
    python benchmarks/outliers.py --fast                        # without PyOD's VAE, the slowest
    python benchmarks/outliers.py --sets adb_wine --scores elbo reconstruction
    python benchmarks/outliers.py --kinds odd --resume          # what an interrupted run lacks

Exits with 1 below a floor. Labels and p-values are measured by ``labels.py``.
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
RIVALS = ["isolation forest", "5 neighbours"]  # the two that are hardest to beat
KINDS = {
    "numeric": "numeric tables",
    "odd": "tables of the later collection",
    "mixed": "tables with categories",
    "discretised": "numeric tables cut into levels",
}
LEVELS = 5
MAX_CUT_CELLS = 100_000  # of a table that is cut into levels
BANDS = {"at most 5 columns": (0, 5), "6 to 12": (6, 12), "more": (13, 10**9)}
WORST = 8


class NeighbourDistance(BaseEstimator):
    """Minus the mean distance to the five nearest training rows; a training row, to others."""

    def fit(self, X, y=None):
        self.neighbours_ = NearestNeighbors(n_neighbors=5).fit(X)
        self.rows_ = X
        return self

    def score_samples(self, X):
        of_fit = np.shape(X) == self.rows_.shape and (self.rows_ == X).all()
        return -self.neighbours_.kneighbors(None if of_fit else X)[0].mean(axis=1)


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
    "5 neighbours": neighbour,
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
    with_levels = OWN | more | MIXED_PEERS
    few = OWN | more | {name: SKLEARN[name] for name in RIVALS}
    return {
        "numeric": OWN | more | peers,
        "odd": few,
        "mixed": with_levels,
        "discretised": with_levels,
    }


def load_rows(kind, name):
    """Rows as a float array or a frame, and 1 where a row is an outlier."""
    X, y, _ = shared_data().load(name)
    X = X if isinstance(X, pd.DataFrame) else X.astype(float)
    return cut(X) if kind == "discretised" else X, np.asarray(y).astype(int)


def cut(X):
    """Each column as a category of five levels with equally many rows, or of its few values."""
    columns = {}
    for number, column in enumerate(X.T):
        inner = np.unique(np.quantile(column, np.linspace(0, 1, LEVELS + 1)[1:-1]))
        columns[f"c{number}"] = pd.Series(np.searchsorted(inner, column)).map("level {}".format)
    return pd.DataFrame(columns)


def split(X, y, seed):
    """Train and test part of at most MAX_ROWS rows, outliers in proportion."""
    if len(y) > MAX_ROWS:
        X, _, y, _ = train_test_split(X, y, train_size=MAX_ROWS, random_state=seed, stratify=y)
    return train_test_split(X, y, test_size=0.3, random_state=seed, stratify=y)


def parts(kind, name, seed):
    """The training and the test rows of each setting, and which of the latter are outliers."""
    if kind == "odd":
        train, test, y = shared_data().load_odd(name)
        both, y_both = np.concatenate([train, test]), np.append(np.zeros(len(train), bool), y)
        return {"contaminated": (both, both, y_both), "clean": (train, test, y)}
    train, test, y_train, y_test = split(*load_rows(kind, name), seed)
    clean = train[y_train == 0]
    return {"contaminated": (train, test, y_test), "clean": (clean, test, y_test)}


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
    rows = []
    for seed in range(seeds):
        for setting, (train, test, y_test) in parts(kind, name, seed).items():
            for method in rotated(methods, turn + seed):
                key = (kind, name, seed, setting, method)
                if key not in done:
                    model = methods[method](seed, train, settings)
                    found = measure(model, train, test, y_test)
                    found["columns"] = test.shape[1]
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


def floors(kind, table, methods, columns):
    """What is to be reached, in points; and how much sooner ours is trained than PyOD's VAE."""
    auroc, precision = (
        {s: table[table["setting"] == s].groupby("method")[m].mean() for s in SETTINGS}
        for m in ("AUROC", "AP")
    )
    forest, near = RIVALS

    def gain(measure, what, setting, rival, least):
        name = f"{kind}, {setting}: {what} over {rival}"
        return (name, measure[setting]["ours"] - measure[setting][rival], least)

    if kind == "odd":
        found = [
            gain(auroc, "AUROC", "clean", near, 0.5),
            gain(precision, "average precision", "clean", near, 1.0),
            gain(auroc, "AUROC", "contaminated", forest, 0.0),
            gain(auroc, "AUROC", "contaminated", near, 1.0),
            gain(precision, "average precision", "contaminated", forest, 0.0),
            gain(precision, "average precision", "contaminated", near, 0.0),
        ]
        wide = by_set(table, "clean", ["ours", near]).drop(index="MEAN")
        for band, (least, most) in BANDS.items():
            own = wide[columns.loc[wide.index].between(least, most)]
            name = f"odd, clean, {band}: AUROC over {near}"
            found.append((name, (own["ours"] - own[near]).mean(), -0.3))
        return found
    if kind != "numeric":
        return [gain(auroc, "AUROC", "clean", near, 0.0)]
    found = [
        ("numeric, clean: AUROC", auroc["clean"]["ours"], 86.2),
        ("numeric, clean: average precision", precision["clean"]["ours"], 58.5),
        ("numeric, contaminated: AUROC", auroc["contaminated"]["ours"], 77.0),
        ("numeric, contaminated: average precision", precision["contaminated"]["ours"], 44.0),
    ]
    peers = [peer for peer in ("PyOD VAE", "PyOD AE") if peer in methods]
    found += [gain(auroc, "AUROC", s, peer, 0.0) for s in SETTINGS for peer in peers]
    if "PyOD VAE" in methods:
        seconds = table.groupby("method")["fit s"].mean()
        found.append(("fit time of PyOD VAE by ours", seconds["PyOD VAE"] / seconds["ours"], 10.0))
    return found


def names_of_kinds(sets, kinds):
    """The sets to run of each kind: all, or those asked for."""
    data = shared_data()
    numeric = data.names("outlier")
    small = [name for name in numeric if data.load(name)[0].size <= MAX_CUT_CELLS][:10]
    listed = {"numeric": numeric, "odd": data.odd_names(), "mixed": data.names("outlier_mixed")}
    listed["discretised"] = small
    if unknown := set(sets or []).difference(*listed.values()):
        raise SystemExit(f"no such sets: {', '.join(sorted(unknown))}")
    return {
        kind: [n for n in known if not sets or n in sets]
        for kind, known in listed.items()
        if kind in kinds
    }


def finish(rows, methods, names, seeds, settings):
    """Print and save the tables; return what is to be reached, and was."""
    means, found = {}, []
    for kind in names:
        here = [r for r in rows if r["kind"] == kind and r["seed"] < seeds]
        here = [r for r in here if r["set"] in names[kind]]
        if here:
            table = over_seeds(here, kind)
            report(KINDS[kind], table, methods[kind])
            means[kind] = records(summary(table, methods[kind]))
            columns = pd.Series({r["set"]: r["columns"] for r in here})
            found += floors(kind, table, methods[kind], columns)
    save("outliers", rows, mean=means, settings=settings, seeds=seeds)
    return found


def run(arguments):
    settings = parameters(arguments.parameters)
    methods = methods_of(arguments.scores, arguments.fast)
    names = names_of_kinds(arguments.sets, arguments.kinds)
    seeds = arguments.seeds
    rows = earlier(settings) if arguments.resume else []
    done = {tuple(row[k] for k in KEY) for row in rows}
    warm_up(methods["numeric"], settings)
    for kind in names:
        for turn, name in enumerate(names[kind]):
            start = time.perf_counter()
            rows += run_set(kind, name, turn, methods[kind], seeds, settings, done)
            save("outliers", rows, settings=settings, seeds=seeds)  # an interrupted run leaves it
            print(f"{name} ({time.perf_counter() - start:.0f} s)", flush=True)
    found = finish(rows, methods, names, seeds, settings)
    if not arguments.sets:
        print()
        check_floors(found)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    p = parser(__doc__.splitlines()[0], seeds=3)
    p.add_argument("--scores", nargs="*", default=[], help="ours with these score methods, too")
    p.add_argument("--fast", action="store_true", help="without PyOD's VAE")
    p.add_argument("--kinds", nargs="*", choices=list(KINDS), default=list(KINDS))
    p.add_argument("--resume", action="store_true", help="keep what an earlier run measured")
    arguments = p.parse_args()
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        if shared_data() is None:
            print("skipped (no shared data here)")
        else:
            run(arguments)
