"""Are rows that the model draws like real ones?

Tables of numbers and categories, the target among the columns, rows with holes left out; each model
is fitted to 80% of the rows and draws as many. Of these and the real rows:

* c2st: can gradient boosting tell them apart? 1 - (2 AUC - 1), 3 folds: 1 is no, 0 is always;
* shapes: columns, 1 - Kolmogorov's distance of numbers, 1 - total variation of levels;
* pairs: 1 - half the difference of correlations of numbers, 1 - total variation of two levels;
  numbers beside levels are cut into ten;
* MI: mean difference of the mutual information of two columns, in nats;
* AUC: of gradient boosting that is trained on the draws and predicts the target of held-out rows,
  beside that of one trained on the real rows;
* closest: share of the draws that are nearer to a row of fit than to a held-out one: 0.5 is chance;
* invalid: share of the cells that no such column can hold: other levels, another side of zero,
  values between those of the column's grid; spikes: largest error of a column's commonest value.

Ours is ``VAETransformer(likelihood="normal_scores", prior="mixture")`` with noise per column.
Peers whose package is missing are skipped, which is said.

    python benchmarks/synthesis.py
    python benchmarks/synthesis.py --sets adult --seeds 1 --methods vae copula

Exits with 1 below a floor.
"""

import importlib.util
import time
import warnings

import numpy as np
import pandas as pd
from _harness import (
    available,
    check_floors,
    parameters,
    parser,
    print_table,
    save,
    shared_data,
)
from scipy.stats import ks_2samp, norm
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import mutual_info_score, roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import NearestNeighbors

from skvae import VAETransformer

SETS = ["adult", "telco_churn", "german_credit", "titanic", "income_esl", "penguins"]
MAX_ROWS = 10_000  # of either kind that a classifier sees
CLOSEST_ROWS = 2_000
BINS = 10
LARGEST = 255  # levels that gradient boosting takes as such
SETTINGS = {
    "n_components": "evidence",
    "likelihood": "normal_scores",
    "prior": "mixture",
    "noise": "per_column",
}


def load_table(name):
    """Complete rows with their target; levels as text."""
    X, y, about = shared_data().load(name)
    X = X.assign(**{about["target"]: y.to_numpy()}).dropna().reset_index(drop=True)
    for column in X:
        if not pd.api.types.is_numeric_dtype(X[column]) or column == about["target"]:
            X[column] = X[column].astype(str).astype(object)
    return X, about["target"]


def numbers_of(X):
    return [column for column in X if X[column].dtype != object]


# -- models ---------------------------------------------------------------------------------------


def vae(X, n_rows, seed, settings):
    model = VAETransformer(random_state=seed, **{**SETTINGS, **settings}).fit(X)
    return model.sample(n_rows, random_state=seed)


def independent(X, n_rows, seed, settings):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({c: X[c].to_numpy()[rng.integers(0, len(X), n_rows)] for c in X})


def copula(X, n_rows, seed, settings):
    """Normal scores of ranks, ties broken by chance, and levels in order of their frequency."""
    rng = np.random.default_rng(seed)
    ranked = {c: X[c] if c in numbers_of(X) else X[c].map(-X[c].value_counts()) for c in X}
    order = {c: np.lexsort((rng.random(len(X)), X[c], ranked[c])) for c in X}
    scores = np.empty(X.shape)
    for number, column in enumerate(X):
        scores[order[column], number] = norm.ppf((np.arange(len(X)) + 0.5) / len(X))
    drawn = norm.cdf(rng.multivariate_normal(np.zeros(X.shape[1]), np.corrcoef(scores.T), n_rows))
    place = (drawn * len(X)).astype(int).clip(0, len(X) - 1)
    return pd.DataFrame(
        {c: X[c].to_numpy()[order[c]][place[:, number]] for number, c in enumerate(X)}
    )


def factorised(X, n_rows, seed, settings, n_clusters=50, steps=50):
    """EM of a mixture in whose clusters columns are independent: levels, and bins of numbers."""
    rng = np.random.default_rng(seed)
    codes = coded(X, X, 50)
    share = rng.dirichlet(np.ones(n_clusters), len(X))
    tables = []
    for _ in range(steps):
        tables = [counted(codes[c], share) for c in X]
        log_p = np.log(share.mean(0)) + sum(
            np.log(t)[:, codes[c]].T for c, t in zip(X, tables, strict=True)
        )
        share = np.exp(log_p - log_p.max(1, keepdims=True))
        share /= share.sum(1, keepdims=True)
    cluster = rng.choice(n_clusters, n_rows, p=share.mean(0))
    drawn = {}
    for column, table in zip(X, tables, strict=True):
        uniform = rng.random((n_rows, 1))
        code = (table.cumsum(1)[cluster] < uniform).sum(1).clip(max=table.shape[1] - 1)
        drawn[column] = from_bins(X[column].to_numpy(), codes[column].to_numpy(), code, rng)
    return pd.DataFrame(drawn)


def counted(codes, share):
    table = np.zeros((share.shape[1], int(codes.max()) + 1)) + 0.01
    np.add.at(table.T, codes.to_numpy(), share)
    return table / table.sum(1, keepdims=True)


def from_bins(values, codes, drawn, rng):
    """A value of the column from each of the bins."""
    order = np.argsort(codes, kind="stable")
    begin = np.searchsorted(codes[order], np.arange(codes.max() + 2))
    size = np.maximum(begin[drawn + 1] - begin[drawn], 1)
    place = begin[drawn] + (rng.random(len(drawn)) * size).astype(int)
    return values[order[place.clip(max=len(values) - 1)]]


def arf(X, n_rows, seed, settings):
    from arfpy import arf as arfpy

    np.random.seed(seed)
    forest = arfpy.arf(
        x=X.astype({c: "category" for c in X if X[c].dtype == object}), verbose=False
    )
    forest.forde()
    drawn = forest.forge(n=n_rows)[list(X)]
    return drawn.astype({c: object if X[c].dtype == object else X[c].dtype for c in X})


def tvae(X, n_rows, seed, settings):
    import torch
    from ctgan import TVAE

    torch.manual_seed(seed)
    np.random.seed(seed)
    model = TVAE()
    model.fit(X, [c for c in X if X[c].dtype == object])
    return model.sample(n_rows)[list(X)]


METHODS = {
    "vae": vae,
    "independent": independent,
    "copula": copula,
    "factorised": factorised,
    "arf": arf,
    "tvae": tvae,
}
NEEDS = {"arf": "arfpy", "tvae": "ctgan"}


# -- what is measured -----------------------------------------------------------------------------


def coded(X, like, n_bins):
    """Levels as numbers; numbers by quantiles of ``like``."""
    result = {}
    for column in X:
        if like[column].dtype == object:
            levels = pd.Index(sorted(set(like[column]) | set(X[column])))
            result[column] = levels.get_indexer(X[column])
        else:
            ends = np.unique(np.quantile(like[column], np.linspace(0, 1, n_bins + 1)[1:-1]))
            result[column] = np.searchsorted(ends, X[column], side="right")
    return pd.DataFrame(result)


def as_matrix(X, levels):
    """Numbers as they are and levels by their number, for gradient boosting."""
    cells = [
        levels[c].get_indexer(X[c]).astype(float) if c in levels else X[c].to_numpy(float)
        for c in X
    ]
    small = [c in levels and len(levels[c]) <= LARGEST for c in X]
    return np.stack(cells, 1), np.flatnonzero(small)


def levels_of(*tables):
    both = pd.concat(tables)
    return {c: pd.Index(sorted(set(both[c]))) for c in both if both[c].dtype == object}


def c2st(real, drawn, seed):
    rng = np.random.default_rng(seed)
    n_rows = min(len(real), len(drawn), MAX_ROWS)
    parts = [table.iloc[rng.permutation(len(table))[:n_rows]] for table in (real, drawn)]
    cells, levels = as_matrix(pd.concat(parts, ignore_index=True), levels_of(real, drawn))
    is_drawn = np.repeat([0, 1], n_rows)
    judge = HistGradientBoostingClassifier(random_state=0, categorical_features=levels)
    odds = cross_val_predict(judge, cells, is_drawn, cv=3, method="predict_proba")[:, 1]
    return 2.0 - 2.0 * max(roc_auc_score(is_drawn, odds), 0.5)


def shapes(real, drawn):
    scores = []
    for column in real:
        if real[column].dtype == object:
            both = [table[column].value_counts(normalize=True) for table in (real, drawn)]
            scores.append(1.0 - 0.5 * both[0].sub(both[1], fill_value=0.0).abs().sum())
        else:
            scores.append(1.0 - ks_2samp(real[column], drawn[column]).statistic)
    return float(np.mean(scores))


def pairs(real, drawn):
    """Trends of pairs, and the mean error of their mutual information."""
    codes = [coded(table, real, BINS) for table in (real, drawn)]
    trends, errors, columns = [], [], list(real)
    for number, one in enumerate(columns):
        for other in columns[:number]:
            information = [mutual_info_score(c[one], c[other]) for c in codes]
            errors.append(abs(information[0] - information[1]))
            if real[one].dtype == object or real[other].dtype == object:
                both = [c.groupby([one, other]).size() / len(c) for c in codes]
                trends.append(1.0 - 0.5 * both[0].sub(both[1], fill_value=0.0).abs().sum())
            else:
                r = [np.corrcoef(t[one], t[other])[0, 1] for t in (real, drawn)]
                trends.append(1.0 - 0.5 * abs(r[0] - np.nan_to_num(r[1])))
    return float(np.mean(trends)), float(np.mean(errors))


def downstream(fitted, held_out, target):
    """AUC on held-out rows of gradient boosting that these rows train."""
    levels = levels_of(fitted, held_out)
    (A, small), (B, _) = (as_matrix(t.drop(columns=target), levels) for t in (fitted, held_out))
    if fitted[target].nunique() < 2:
        return 0.5
    model = HistGradientBoostingClassifier(random_state=0, categorical_features=small)
    odds = model.fit(A, fitted[target]).predict_proba(B)
    known = held_out[target].isin(model.classes_)
    y = held_out[target][known]
    if len(model.classes_) == 2:
        return roc_auc_score(y == model.classes_[1], odds[known, 1])
    return roc_auc_score(y, odds[known], multi_class="ovr", labels=model.classes_)


def closest(fitted, held_out, drawn, seed):
    """Share of the draws whose nearest row, levels and scaled numbers, is one of the fit."""
    rng, levels = np.random.default_rng(seed), levels_of(fitted, held_out, drawn)
    n_rows = min(len(held_out), CLOSEST_ROWS)
    few = [t.iloc[rng.permutation(len(t))[:n_rows]] for t in (fitted, held_out, drawn)]
    numbers = numbers_of(fitted)
    scale = fitted[numbers].std() + 1e-12
    parts = []
    for table in few:
        one_hot = [np.eye(len(levels[c]))[levels[c].get_indexer(table[c])] / 2**0.5 for c in levels]
        parts.append(np.hstack([(table[numbers] / scale).to_numpy(), *one_hot]))
    near = [NearestNeighbors(n_neighbors=1).fit(p).kneighbors(parts[2])[0][:, 0] for p in parts[:2]]
    return float((near[0] < near[1]).mean() + 0.5 * (near[0] == near[1]).mean())


def invalid(real, drawn):
    """Share of cells that no such column can hold, and the largest error of a spike."""
    wrong, spikes = [], []
    for column in real:
        seen, cells = real[column], drawn[column]
        if seen.dtype == object:
            wrong.append((~cells.isin(set(seen))).mean())
        else:
            cells = cells.to_numpy(float)
            bad = (cells < 0) & (seen.min() >= 0) | (cells > 0) & (seen.max() <= 0)
            for decimals in range(4):
                if np.allclose(seen * 10**decimals, np.rint(seen * 10**decimals), atol=1e-6):
                    bad |= np.abs(cells * 10**decimals - np.rint(cells * 10**decimals)) > 1e-6
                    break
            wrong.append(bad.mean())
        most = seen.mode().iloc[0]
        spikes.append(abs((seen == most).mean() - (drawn[column] == most).mean()))
    return float(np.mean(wrong)), float(np.max(spikes))


def measure(name, method, seed, settings):
    X, target = load_table(name)
    order = np.random.default_rng(seed).permutation(len(X))
    n_fitted = int(0.8 * len(X))
    fitted, held_out = (X.iloc[p].reset_index(drop=True) for p in np.split(order, [n_fitted]))
    start = time.perf_counter()
    drawn = METHODS[method](fitted, n_fitted, seed, settings)
    seconds = time.perf_counter() - start
    drawn = drawn.astype({c: object if X[c].dtype == object else float for c in X})
    trend, information = pairs(fitted, drawn)
    wrong, spike = invalid(fitted, drawn)
    return {
        "set": name,
        "method": method,
        "seed": seed,
        "c2st": c2st(fitted, drawn, seed),
        "shapes": shapes(fitted, drawn),
        "pairs": trend,
        "MI": information,
        "AUC": downstream(drawn, held_out, target),
        "AUC real": downstream(fitted, held_out, target),
        "closest": closest(fitted, held_out, drawn, seed),
        "invalid": wrong,
        "spikes": spike,
        "seconds": seconds,
    }


def floors(table):
    """The means over seeds of our rows, and what they must reach."""
    ours = table[table["method"] == "vae"].groupby("set").mean(numeric_only=True)
    adult, others = ours.loc["adult"], ours.drop("adult")
    return [
        ("C2ST, adult", adult["c2st"], 0.70),
        ("C2ST, mean of the others", others["c2st"].mean(), 0.65),
        ("pair trends, adult", adult["pairs"], 0.97),
        ("AUC of models trained on draws, adult", adult["AUC"], 0.90),
        ("minus distance of closest records from 0.5, adult", -abs(adult["closest"] - 0.5), -0.03),
        ("minus share of invalid cells", -ours["invalid"].max(), 0.0),
        ("minus seconds, adult", -adult["seconds"], -60.0),
    ]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    p = parser(__doc__.splitlines()[0], seeds=3)
    p.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    arguments = p.parse_args()
    settings = parameters(arguments.parameters)
    methods = [m for m in arguments.methods if importlib.util.find_spec(NEEDS.get(m, "numpy"))]
    if missing := sorted(set(arguments.methods) - set(methods)):
        print(f"skipped (package not installed): {', '.join(NEEDS[m] for m in missing)}")
    rows = []
    for name in available(arguments.sets or SETS):
        for method in methods:
            for seed in range(arguments.seeds):
                rows.append(measure(name, method, seed, settings))
            print(name, method, flush=True)
    if rows:
        table = pd.DataFrame(rows)
        means = table.groupby(["set", "method"], sort=False).mean(numeric_only=True).reset_index()
        print_table(means.drop(columns="seed").to_dict("records"))
        save("synthesis", rows)
        if set(table["set"]) == set(SETS) and "vae" in methods:
            check_floors(floors(table))
