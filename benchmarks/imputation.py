"""Does VAEImputer fill hidden cells better than what people use today?

Twelve tables of complete rows, 30% of whose cells are hidden: completely at random (MCAR), by a
logistic model of columns that are always seen (MAR), and by the value itself (MNAR); see
``_masks.py``. The error of a column is 1 for whoever fills in its mean or mode:

* numbers: root mean squared error of the hidden cells, by their standard deviation in the table;
* levels: share of wrong ones, by that of the mode.

Beside us: mean or mode, 5 nearest neighbours, ``IterativeImputer`` with Bayesian ridge and with 30
extra trees of depth 8, and a Gaussian copula that EM fits to normal scores. All get standardised
numbers and one-hot levels, and fit and fill the same rows. Draws are judged beside
``IterativeImputer(sample_posterior=True)`` by the energy score of the hidden part of each row
(Gneiting & Raftery 2007), in standard deviations, a wrong level at distance 1; 90% intervals of
numbers come from ``predict_cells``. ``rubin.py`` has the coverage of Rubin's intervals. Time is
compared on 20,000 x 20 numbers of six factors, with the linear model (``max_iter=0``), whose error
is that of Bayesian ridge there.

    python benchmarks/imputation.py
    python benchmarks/imputation.py --sets wine --seeds 1 --methods vae ridge --mechanisms MCAR

Exits with 1 below a floor.
"""

import time
import warnings

import numpy as np
import pandas as pd
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
from _masks import MECHANISMS
from scipy.stats import norm, rankdata
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer

from skvae import VAEImputer, VAETransformer

NUMERIC = ["wine", "breast_cancer", "olive", "letter_full", "satellite_full", "adb_cardio"]
MIXED = ["adult", "german_credit", "telco_churn", "diamonds", "penguins", "titanic"]
SETS = [*NUMERIC, *MIXED]
SHARE = 0.3
MAX_ROWS = 1000
N_DRAWS = 10
JUDGED_ROWS = 500  # by draws; a third as many by intervals


class Table:
    """Complete rows as numbers: levels by their place, and how many there are of them."""

    def __init__(self, name, seed):
        if name in MIXED:
            X, _, _ = shared_data().load(name)
            X = X.dropna().reset_index(drop=True)
        else:
            X = pd.DataFrame(np.asarray(load_set(name)[0], dtype=float))
            X = X.loc[:, X.std() > 0.0]
        order = np.random.default_rng(seed).permutation(len(X))[:MAX_ROWS]
        X = X.iloc[order].reset_index(drop=True)
        is_number = [pd.api.types.is_numeric_dtype(X[c]) and X[c].nunique() > 2 for c in X]
        X = X.loc[:, X.nunique() > 1]
        is_number = [pd.api.types.is_numeric_dtype(X[c]) and X[c].nunique() > 2 for c in X]
        cells = [
            X[c].to_numpy(float) if number else pd.factorize(X[c], sort=True)[0].astype(float)
            for c, number in zip(X, is_number, strict=True)
        ]
        self.truth = np.column_stack(cells)
        self.n_levels = [
            0 if number else int(column.max()) + 1
            for number, column in zip(is_number, self.truth.T, strict=True)
        ]
        self.scale = self.truth.std(axis=0)

    def hide(self, mechanism, seed):
        mask = MECHANISMS[mechanism](self.truth, SHARE, np.random.default_rng(seed))
        mask[mask.all(axis=1), 0] = False  # no row without any value
        self.mask, self.seen = mask, np.where(mask, np.nan, self.truth)
        return self

    def frame(self):
        """What our imputer gets: levels as categories."""
        columns = {}
        for number, (column, n_levels) in enumerate(zip(self.seen.T, self.n_levels, strict=True)):
            cells = pd.Series(column)
            if n_levels:
                cells = cells.astype(pd.CategoricalDtype(np.arange(n_levels, dtype=float)))
            columns[f"column {number}"] = cells
        return pd.DataFrame(columns)

    def one_hot(self, cells):
        """Numbers as they are, and an indicator for each level; nan where a cell is hidden."""
        blocks = []
        for column, n_levels in zip(cells.T, self.n_levels, strict=True):
            block = column[:, None]
            if n_levels:
                indicators = (block == np.arange(n_levels)).astype(float)
                block = np.where(np.isnan(block), np.nan, indicators)
            blocks.append(block)
        return np.hstack(blocks)

    def from_one_hot(self, X):
        widths = [n_levels or 1 for n_levels in self.n_levels]
        blocks = np.split(X, np.cumsum(widths)[:-1], axis=1)
        return np.column_stack(
            [b.argmax(1) if n else b[:, 0] for b, n in zip(blocks, self.n_levels, strict=True)]
        )

    def error(self, filled):
        """The mean error of the columns with hidden cells: 1 for their mean or mode."""
        errors = []
        for j, n_levels in enumerate(self.n_levels):
            here = self.mask[:, j]
            if not here.any():
                continue
            gap = filled[here, j] - self.truth[here, j]
            if n_levels:
                mode = np.bincount(self.seen[~here, j].astype(int)).argmax()
                wrong = np.mean(self.truth[here, j] != mode)
                errors.append(np.mean(gap != 0) / max(wrong, 1.0 / here.sum()))
            else:
                errors.append(np.sqrt(np.mean(gap**2)) / self.scale[j])
        return float(np.mean(errors))

    def distances(self, one, other):
        """Distances (N,) of the rows of two tables in their hidden cells."""
        gap = np.abs(one - other) / self.scale
        levels = np.array(self.n_levels) > 0
        gap[:, levels] = one[:, levels] != other[:, levels]
        return np.sqrt((np.where(self.mask, gap, 0.0) ** 2).sum(axis=1))

    def energy_score(self, draws):
        """The mean over rows with hidden cells, of m draws: fair for few of them."""
        to_truth = np.mean([self.distances(draw, self.truth) for draw in draws], axis=0)
        pairs = [self.distances(a, b) for i, a in enumerate(draws) for b in draws[:i]]
        score = to_truth - 0.5 * np.mean(pairs, axis=0)
        return float(score[self.mask.any(axis=1)].mean())


# -- who fills ------------------------------------------------------------------------------------


def vae(table, seed, settings):
    filled = VAEImputer(random_state=seed, **settings).fit_transform(table.frame())
    return filled.astype(float).to_numpy()


def filled_one_hot(table, imputer, n_times=1):
    """Impute standardised indicators and numbers, and scale back."""
    X = table.one_hot(table.seen)
    mean, scale = np.nanmean(X, axis=0), np.nanstd(X, axis=0)
    scale = np.where(scale > 0.0, scale, 1.0)
    Z = (X - mean) / scale
    if hasattr(imputer, "min_value"):
        # Without bounds, a chain of regressions can run away.
        low, high = np.nanmin(Z, axis=0), np.nanmax(Z, axis=0)
        imputer.set_params(min_value=np.where(low < high, low, -np.inf), max_value=high + 1e-9)
    imputer.fit(Z)
    return [table.from_one_hot(imputer.transform(Z) * scale + mean) for _ in range(n_times)]


def mean(table, seed, settings):
    filled = np.where(table.mask, np.nanmean(table.seen, axis=0), table.truth)
    for j, n_levels in enumerate(table.n_levels):
        if n_levels:
            known = table.seen[~table.mask[:, j], j].astype(int)
            filled[table.mask[:, j], j] = np.bincount(known).argmax()
    return filled


def knn(table, seed, settings):
    return filled_one_hot(table, KNNImputer(keep_empty_features=True))[0]


def ridge(table, seed, settings):
    imputer = IterativeImputer(random_state=seed, keep_empty_features=True)
    return filled_one_hot(table, imputer)[0]


def trees(table, seed, settings):
    forest = ExtraTreesRegressor(30, max_depth=8, random_state=seed)
    imputer = IterativeImputer(forest, random_state=seed, keep_empty_features=True)
    return filled_one_hot(table, imputer)[0]


def copula(table, seed, settings):
    """Normal scores of mid-ranks, a Gaussian by EM, conditional means, and quantiles back."""
    X = table.one_hot(table.seen)
    Z = np.full(X.shape, np.nan)
    for z, x in zip(Z.T, X.T, strict=True):
        known = ~np.isnan(x)
        z[known] = norm.ppf((rankdata(x[known]) - 0.5) / known.sum())
    spread, share = np.nanstd(Z, axis=0), np.nanmean(X, axis=0)
    Z = _conditional_means(Z)
    for z, x in zip(Z.T, X.T, strict=True):
        known = ~np.isnan(x)
        x[~known] = np.quantile(x[known], norm.cdf(z[~known]))
    # Of a level it is the probit of its probability: its threshold is that of its share.
    widths = [n_levels or 1 for n_levels in table.n_levels]
    chosen = np.repeat(np.array(table.n_levels) > 0, widths)
    probit = Z / np.maximum(spread, 1e-9) + norm.ppf(np.clip(share, 1e-6, 1.0 - 1e-6))
    return table.from_one_hot(np.where(chosen, probit, X))


def _conditional_means(Z, n_steps=30, ridge=1e-3):
    known = ~np.isnan(Z)
    mean, covariance = np.nanmean(Z, axis=0), np.diag(np.nanvar(Z, axis=0) + ridge)
    patterns, member = np.unique(known, axis=0, return_inverse=True)
    filled = np.where(known, Z, mean)
    for _ in range(n_steps):
        left = np.zeros_like(covariance)
        for number, seen in enumerate(patterns):
            rows = np.flatnonzero(member == number)
            if seen.all():
                continue
            hidden = ~seen
            slope = np.linalg.solve(
                covariance[np.ix_(seen, seen)], covariance[np.ix_(seen, hidden)]
            )
            filled[np.ix_(rows, hidden)] = (filled[np.ix_(rows, seen)] - mean[seen]) @ slope
            filled[np.ix_(rows, hidden)] += mean[hidden]
            residual = covariance[np.ix_(hidden, hidden)] - covariance[np.ix_(hidden, seen)] @ slope
            left[np.ix_(hidden, hidden)] += len(rows) * residual
        mean = filled.mean(axis=0)
        covariance = np.cov(filled.T, bias=True) + left / len(Z) + ridge * np.eye(Z.shape[1])
    return filled


METHODS = {
    "vae": vae,
    "mean": mean,
    "knn": knn,
    "ridge": ridge,
    "trees": trees,
    "copula": copula,
}


# -- draws and intervals --------------------------------------------------------------------------


def judge_draws(table, seed, settings):
    """Energy scores of our draws and of a chain's, and the coverage of our 90% intervals."""
    frame = table.frame()
    imputer = VAEImputer(random_state=seed, **settings).fit(frame)
    some = np.random.default_rng(seed).permutation(len(frame))[:JUDGED_ROWS]
    rows = frame.iloc[some].reset_index(drop=True)
    ours = [
        draw.astype(float).to_numpy()
        for draw in imputer.sample_imputations(rows, N_DRAWS, random_state=seed)
    ]
    chain = IterativeImputer(sample_posterior=True, random_state=seed, keep_empty_features=True)
    theirs = [draw[some] for draw in filled_one_hot(table, chain, N_DRAWS)]
    few = some[: JUDGED_ROWS // 3]
    cells = imputer.predict_cells(frame.iloc[few].reset_index(drop=True), (0.05, 0.95))
    inside = []
    for j, (name, n_levels) in enumerate(zip(frame, table.n_levels, strict=True)):
        if not n_levels:
            hidden, truth = table.mask[few, j], table.truth[few, j]
            low, high = cells[name].to_numpy().T
            inside.extend(((low <= truth) & (truth <= high))[hidden])
    judged = Table.__new__(Table)
    judged.__dict__.update(table.__dict__, truth=table.truth[some], mask=table.mask[some])
    return {
        "energy": judged.energy_score(ours),
        "energy of a chain": judged.energy_score(theirs),
        "covered": float(np.mean(inside)) if inside else np.nan,
    }


def time_beside_a_chain():
    """Errors and seconds of the linear model and of Bayesian ridge on many rows."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, 6)) @ rng.normal(size=(6, 20)) + 0.5 * rng.normal(
        size=(20_000, 20)
    )
    mask = rng.random(X.shape) < SHARE
    seen = np.where(mask, np.nan, X)
    vae = VAETransformer(10, likelihood="normal_scores", noise="per_column", max_iter=0)
    found = {}
    for name, imputer in (("vae", VAEImputer(vae)), ("ridge", IterativeImputer())):
        start = time.perf_counter()
        filled = imputer.set_params(random_state=0).fit(seen).transform(seen)
        found[f"{name}, s"] = time.perf_counter() - start
        found[name] = float(np.sqrt(np.mean((filled - X)[mask] ** 2)) / X.std())
    return found


def measure(name, mechanism, seed, methods, settings):
    table = Table(name, seed).hide(mechanism, seed)
    row = {"set": name, "mechanism": mechanism, "seed": seed}
    for method in methods:
        start = time.perf_counter()
        filled = METHODS[method](table, seed, settings)
        row[f"{method}, s"] = time.perf_counter() - start
        kept = ~table.mask
        assert np.isfinite(filled).all(), f"{method} left a cell empty"
        assert np.allclose(filled[kept], table.truth[kept], rtol=1e-4), f"{method} changed a cell"
        row[method] = table.error(filled)
    return row


def floors(table, draws, timed):
    """By sets, of the means over mechanisms and seeds."""
    means = table.groupby("set")[list(METHODS)].mean()
    ratio = means["vae"] / means.drop(columns="vae").min(axis=1)
    checks = [
        ("minus time beside Bayesian ridge's", -timed["vae, s"] / timed["ridge, s"], -4.0),
        ("error less Bayesian ridge's, many rows, minus", timed["ridge"] - timed["vae"], 0.0),
        ("sets with less error than the best peer", (ratio < 1.0).sum(), 9),
        ("error below the best peer's, mean share", 1.0 - ratio.mean(), 0.05),
    ]
    if len(draws):
        of_set = draws.groupby("set").mean(numeric_only=True)
        no_worse = (of_set["energy"] <= of_set["energy of a chain"]).sum()
        covered = draws.loc[draws["mechanism"] != "MNAR", "covered"].mean()
        checks += [
            ("sets with an energy score no worse than a chain's", no_worse, 8),
            ("minus distance of the 90% intervals' coverage from 0.9", -abs(covered - 0.9), -0.02),
        ]
    return checks


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    p = parser(__doc__.splitlines()[0], seeds=3)
    p.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    p.add_argument("--mechanisms", nargs="*", choices=MECHANISMS, default=list(MECHANISMS))
    p.add_argument("--without-draws", action="store_true", help="only what is filled in")
    arguments = p.parse_args()
    settings = parameters(arguments.parameters)
    rows, draws = [], []
    for name in available(arguments.sets or SETS):
        for mechanism in arguments.mechanisms:
            for seed in range(arguments.seeds):
                rows.append(measure(name, mechanism, seed, arguments.methods, settings))
                print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()})
                if seed == 0 and not arguments.without_draws:
                    table = Table(name, seed).hide(mechanism, seed)
                    found = judge_draws(table, seed, settings)
                    draws.append({"set": name, "mechanism": mechanism, **found})
                    print(draws[-1], flush=True)
    if rows:
        table, draws = pd.DataFrame(rows), pd.DataFrame(draws)
        print_table(table.groupby("set").mean(numeric_only=True).reset_index().to_dict("records"))
        if len(draws):
            print_table(draws.to_dict("records"))
        save("imputation", rows, draws=draws.to_dict("records"))
        if set(table["set"]) == set(SETS) and set(arguments.methods) == set(METHODS):
            timed = time_beside_a_chain()
            print(timed)
            check_floors(floors(table, draws, timed))
