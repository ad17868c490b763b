"""Does VAEImputer fill hidden cells better than scikit-learn's imputers?

Four tables with the published masks and the errors of HI-VAE (Nazabal et al. 2020, arXiv
1807.03653), over the hidden cells whose truth is known, each the mean over the columns of a kind,
in percent:

* categorical: share of wrong levels;
* ordinal: mean distance in levels, by the number of levels;
* numeric (real, positive, count): root mean squared error, by the column's range.

All methods fit and fill the same rows. Ours gets a DataFrame: categories and ordinals as
``category`` columns (ordinals ordered) with the levels of the whole table, the rest as floats, NaN
where hidden. The peers are deterministic and run once whatever ``--seeds`` is. The means over
columns match the paper's, the rows need not (``--max-rows``), and only the first of its ten masks
is here. The paper's own numbers are left out: they could not be checked against its tables.

    python benchmarks/imputation.py                                      # all
    python benchmarks/imputation.py --sets hivae_wine --masks 20 --methods mean knn

Exits with 1 if a peer has the lower mean error over sets, masks and kinds.
"""

import time
import warnings

import numpy as np
import pandas as pd
from _harness import available, check_floors, parameters, parser, print_table, save, shared_data
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler

SETS = ["hivae_adult", "hivae_wine", "hivae_breast", "hivae_letter"]
MASKS = [10, 20, 30, 40, 50]
DEFAULT_MASKS = [10, 30, 50]
KINDS = {"cat": "categorical", "ordinal": "ordinal"}  # what HI-VAE calls otherwise is numeric
ERRORS = ["categorical", "ordinal", "numeric"]


class Table:
    """The rows of one set under one mask: the truth, what is hidden, and each column's kind.

    Levels are numbered from 0 over the whole table, as HI-VAE does, so that a level which the
    subsample lost is still a level. The range that divides a numeric error is the whole table's
    too, or --max-rows would change the unit.
    """

    def __init__(self, name, mask, max_rows):
        X, _, about = shared_data().load(name, mask=mask)
        X = X.astype(float)
        self.kinds = [KINDS.get(kind, "numeric") for kind, *_ in about["hivae_types"]]
        self.declared = [int(n or 0) for *_, n in about["hivae_types"]]
        self.levels = [np.unique(c[~np.isnan(c)]) for c in X.T]
        self.spans = np.nanmax(X, axis=0) - np.nanmin(X, axis=0)
        rows = np.arange(len(X))
        if len(X) > max_rows:
            rows = np.sort(np.random.RandomState(0).choice(len(X), max_rows, replace=False))
        self.truth = X[rows]
        for j, kind in enumerate(self.kinds):
            if kind != "numeric":
                known = ~np.isnan(self.truth[:, j])
                self.truth[known, j] = np.searchsorted(self.levels[j], self.truth[known, j])
        hidden = about["mask"][rows]
        # Cells that the source itself lacks are hidden from all and scored for none.
        self.scored = hidden & ~np.isnan(self.truth)
        self.seen = np.where(hidden, np.nan, self.truth)

    def of_kind(self, *kinds):
        return [j for j, kind in enumerate(self.kinds) if kind in kinds]

    def frame(self):
        """What our imputer gets."""
        columns = {}
        for j, kind in enumerate(self.kinds):
            column = pd.Series(self.seen[:, j])
            if kind != "numeric":
                levels = pd.Index(np.arange(len(self.levels[j]), dtype=float))
                column = column.astype(pd.CategoricalDtype(levels, ordered=kind == "ordinal"))
            columns[f"{kind}_{j}"] = column
        return pd.DataFrame(columns)

    def to_level(self, column, j):
        """Nearest level of a number."""
        return np.clip(np.rint(column), 0, len(self.levels[j]) - 1)

    def errors(self, filled):
        """The mean error of each kind of column, in percent; NaN where the set has none."""
        found = {kind: [] for kind in ERRORS}
        for j, kind in enumerate(self.kinds):
            here = self.scored[:, j]
            gap = filled[here, j] - self.truth[here, j]
            if kind == "categorical":
                found[kind].append(np.mean(gap != 0))
            elif kind == "ordinal":
                found[kind].append(np.mean(np.abs(gap)) / self.declared[j])
            else:
                found[kind].append(np.sqrt(np.mean(gap**2)) / self.spans[j])
        return {k: 100 * float(np.mean(v)) if v else float("nan") for k, v in found.items()}


def one_hot(table):
    """Numbers and ordinals as they are, an indicator for each level but the last of a category.

    The last is left out because indicators that sum to 1 predict one another exactly, and an
    iterative imputer then never leaves the mean that it started from.
    """
    blocks = []
    for j, kind in enumerate(table.kinds):
        column = table.seen[:, [j]]
        if kind == "categorical":
            indicators = (column == np.arange(len(table.levels[j]) - 1)).astype(float)
            column = np.where(np.isnan(column), np.nan, indicators)
        blocks.append(column)
    return blocks


def from_one_hot(table, blocks):
    """The rows back: the largest indicator, the nearest level, the number."""
    columns = []
    for j, (kind, block) in enumerate(zip(table.kinds, blocks, strict=True)):
        if kind == "categorical":
            last = 1 - block.sum(1, keepdims=True)
            columns.append(np.hstack([block, last]).argmax(1))
        else:
            columns.append(table.to_level(block[:, 0], j) if kind == "ordinal" else block[:, 0])
    return np.column_stack(columns)


def scaled_fill(imputer, X):
    """Impute standardised columns, which NaN passes through, and scale back."""
    scaler = StandardScaler()
    return scaler.inverse_transform(imputer.fit_transform(scaler.fit_transform(X)))


def fill_one_hot(table, imputer):
    blocks = one_hot(table)
    ends = np.cumsum([b.shape[1] for b in blocks])[:-1]
    filled = scaled_fill(imputer, np.hstack(blocks))
    return from_one_hot(table, np.split(filled, ends, axis=1))


def mean(table, seed, settings):
    """Mean of numbers, most frequent level of the others: ordinals too, as in the paper."""
    filled = np.empty_like(table.seen)
    for strategy, kinds in [("mean", ["numeric"]), ("most_frequent", ["categorical", "ordinal"])]:
        if columns := table.of_kind(*kinds):
            imputer = SimpleImputer(strategy=strategy)
            filled[:, columns] = imputer.fit_transform(table.seen[:, columns])
    return filled


def knn(table, seed, settings):
    """Five neighbours on level numbers: cheap and common, but it averages unordered levels."""
    filled = scaled_fill(KNNImputer(), table.seen)
    for j in table.of_kind("categorical", "ordinal"):
        filled[:, j] = table.to_level(filled[:, j], j)
    return filled


def knn_one_hot(table, seed, settings):
    """Five neighbours on indicators, which vote for the level."""
    return fill_one_hot(table, KNNImputer())


def iterative(table, seed, settings):
    """Chained Bayesian ridge regressions on indicators, kept in the range of what is seen.

    Without the bounds, the chain runs away on adult (twice the numeric error of the mean).
    """
    X = StandardScaler().fit_transform(np.hstack(one_hot(table)))
    low, high = np.nanmin(X, axis=0), np.nanmax(X, axis=0)
    low = np.where(low < high, low, -np.inf)  # a level that nobody has: its column is constant
    return fill_one_hot(table, IterativeImputer(min_value=low, max_value=high, random_state=0))


def load_ours():
    """Imported when first asked for: the peers run without it."""
    from skvae import VAEImputer

    return VAEImputer


def vae(table, seed, settings):
    """Ours; what comes back is read by position, so an array does as well as a DataFrame."""
    X = table.frame()
    filled = load_ours()(random_state=seed, **settings).fit(X).transform(X)
    filled = np.asarray(filled).astype(float)
    # A category cell is a level already; an ordinal one is too unless it was treated as a number.
    for j in table.of_kind("categorical", "ordinal"):
        filled[:, j] = table.to_level(filled[:, j], j)
    return filled


METHODS = {"vae": vae, "mean": mean, "knn": knn, "knn_one_hot": knn_one_hot, "iterative": iterative}


def measure(table, method, seeds, settings):
    """Errors and seconds, the mean over the seeds."""
    errors, seconds = [], 0.0
    for seed in range(seeds):
        start = time.perf_counter()
        filled = METHODS[method](table, seed, settings)
        seconds += time.perf_counter() - start
        kept = ~np.isnan(table.seen)
        assert filled.shape == table.seen.shape, f"{method}: shape {filled.shape}"
        assert np.isfinite(filled).all(), f"{method} left a cell empty"
        assert np.allclose(filled[kept], table.seen[kept], rtol=1e-4), f"{method} changed a cell"
        errors.append(list(table.errors(filled).values()))
    return dict(zip(ERRORS, np.mean(errors, axis=0).tolist(), strict=True)) | {
        "seconds": seconds / seeds
    }


def summary(rows, methods):
    """The mean over sets and masks for each kind, and over the kinds."""
    table = pd.DataFrame(rows).groupby("method")[[*ERRORS, "seconds"]].mean().loc[methods]
    table.insert(len(ERRORS), "all kinds", table[ERRORS].mean(axis=1))
    return table.reset_index().to_dict("records")


def floors(means):
    """How far each peer's mean error is above ours, in percentage points."""
    overall = {row["method"]: row["all kinds"] for row in means}
    ours = overall.pop("vae")
    return [(f"error of {peer} above ours", error - ours, 0.0) for peer, error in overall.items()]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    p = parser(__doc__.splitlines()[0], seeds=1)
    p.add_argument("--masks", nargs="*", type=int, choices=MASKS, default=DEFAULT_MASKS)
    p.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    p.add_argument("--max-rows", type=int, default=5000, help="a fixed subsample of larger sets")
    arguments = p.parse_args()
    settings = parameters(arguments.parameters)
    if "vae" in arguments.methods:
        load_ours()  # or the first row's seconds were those of importing torch
    rows = []
    for name in available(arguments.sets or SETS):
        for mask in arguments.masks:
            table = Table(name, mask, arguments.max_rows)
            for method in arguments.methods:
                seeds = arguments.seeds if method == "vae" else 1
                result = measure(table, method, seeds, settings)
                rows.append({"set": name, "mask": mask, "method": method, **result})
            print(name, mask, flush=True)
    if rows:
        means = summary(rows, arguments.methods)
        print_table(rows)
        print_table(means)
        save("imputation", rows, mean=means, max_rows=arguments.max_rows)
        complete = {row["set"] for row in rows} == set(SETS)
        if complete and set(DEFAULT_MASKS) <= set(arguments.masks) and "vae" in arguments.methods:
            check_floors(floors(means))
