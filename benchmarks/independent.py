"""Is log p(x) of a table with levels or holes ever below that of independent columns?

For every mixed set, and for synthetic tables of 5 to 60 categorical columns (2 to 300 levels,
unbalanced, up to 90% missing, 500 to 200,000 rows): mean log p of the other 30% of the rows after a
default fit on 70%, of its linear start (max_iter=0), and of independent columns. At most 5,000 rows
are scored. Exits with 1 if a fit is more than 0.01 nats a column below independent columns.
"""

import time
import warnings

import numpy as np
import pandas as pd
from _harness import load_set, parameters, parser, print_table, save, shared_data
from sklearn.model_selection import train_test_split

from skvae import VAETransformer

ALLOWED_LOSS = 0.01  # nats a column
SCORED_ROWS = 5000
N_SYNTHETIC = 16
LARGEST = 40_000  # rows of a synthetic table, but for the last one


def synthetic(seed):
    """Columns of levels that depend on 0 to 4 hidden numbers, each with its own share of holes."""
    rng = np.random.default_rng(seed)
    n_columns = int(rng.integers(5, 61))
    n_rows = int(np.exp(rng.uniform(np.log(500), np.log(LARGEST))))
    if seed == N_SYNTHETIC - 1:
        n_rows, n_columns = 200_000, 41
    hidden = rng.normal(size=(n_rows, int(rng.integers(0, 5))))
    holes = rng.choice([0.0, 0.1, 0.4, 0.9], n_columns, p=[0.4, 0.3, 0.2, 0.1])
    columns = {}
    for number in range(n_columns):
        many = rng.random() < 0.5 and n_rows < LARGEST
        n_levels = int(np.exp(rng.uniform(np.log(2), np.log(300)))) if many else rng.integers(2, 8)
        base = rng.normal(size=n_levels) * rng.choice([0.5, 2.0, 4.0])
        effect = rng.normal(size=(hidden.shape[1], n_levels)) * rng.choice([0.0, 1.0, 2.0])
        level = (base + hidden @ effect + rng.gumbel(size=(n_rows, n_levels))).argmax(1)
        level[rng.random(n_rows) < holes[number]] = -1
        names = [f"level {i}" for i in range(n_levels)]
        columns[f"c{number}"] = pd.Categorical.from_codes(level, names)
    return pd.DataFrame(columns)


def table(name):
    return synthetic(int(name.split()[1])) if name.startswith("synthetic") else load_set(name)[0]


def independent(train, test, likelihoods, holes):
    """Mean log p of rows under each column's shares of levels, or under its best single density.

    Where the fit has modelled which cells are missing, its scores say so, and so must these.
    """
    total = np.zeros(len(test))
    for name, likelihood in zip(train.columns, likelihoods, strict=True):
        if likelihood in ("categorical", "bernoulli"):
            shares = train[name].astype(object).value_counts(normalize=True)
            total += np.nan_to_num(np.log(test[name].astype(object).map(shares).astype(float)))
        else:
            alone = VAETransformer(1, max_iter=0, likelihood=str(likelihood), random_state=0)
            fitted = alone.fit(train[[name]])
            total += fitted.score_samples(test[[name]])
    for group in holes:
        missing = train.iloc[:, group[0]].isna().mean()
        total += np.log(np.where(test.iloc[:, group[0]].isna(), missing, 1.0 - missing))
    return float(total.mean())


def known(train, test):
    """The rows without levels that no training row holds: shares have none for these."""
    levels = {c: train[c].dropna().unique() for c in train.select_dtypes(exclude="number")}
    return test.assign(**{c: test[c].where(test[c].isin(known)) for c, known in levels.items()})


def compare(name, seed, settings):
    train, test = train_test_split(table(name), test_size=0.3, random_state=seed)
    test = known(train, test[:SCORED_ROWS])
    start = time.perf_counter()
    fit = VAETransformer(random_state=seed, **settings).fit(train)
    seconds = time.perf_counter() - start
    linear = VAETransformer(random_state=seed, **{**settings, "max_iter": 0}).fit(train)
    apart = independent(train, test, fit.likelihood_, fit.model_.schema.holes)
    found = float(fit.score_samples(test).mean())
    return {
        "set": name,
        "rows": len(train),
        "columns": train.shape[1],
        "levels": sum(fit.model_.schema.n_levels),
        "missing": float(train.isna().mean().mean()),
        "independent": apart,
        "start": float(linear.score_samples(test).mean()),
        "fit": found,
        "gain per column": (found - apart) / train.shape[1],
        "fit s": seconds,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    arguments = parser(__doc__, seeds=1).parse_args()
    settings = parameters(arguments.parameters)
    data = shared_data()
    mixed = [] if data is None else data.names("mixed")
    sets = arguments.sets or [*mixed, *(f"synthetic {i}" for i in range(N_SYNTHETIC))]
    rows = []
    for name in sets:
        for seed in range(arguments.seeds):
            rows.append(compare(name, seed, settings))
            print({k: round(v, 2) if isinstance(v, float) else v for k, v in rows[-1].items()})
    print_table(rows)
    save("independent", rows)
    worst = min(rows, key=lambda row: row["gain per column"])
    print(f"worst {worst['gain per column']:+.4f} nats a column ({worst['set']})")
    if worst["gain per column"] < -ALLOWED_LOSS:
        raise SystemExit(f"{worst['set']} is below independent columns")
