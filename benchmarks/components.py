"""How far is ``n_components="evidence"`` from the best number of components?

For every numeric set: ELBO of the other 30% of the rows after a fit on 70%, with shapes of columns
(``likelihood="normal_scores"``) and noise per column, for numbers of components from 1 to the
number of columns, and for those that "evidence" and "auto" choose. Of each the wildest percent of
the held-out rows is left out: an encoder can be far off for a row whose log p(x) is not. Regret is
how far below the best of all these a choice is, in nats a column; at most ``MAX_ROWS`` rows of a
set are taken.

    python benchmarks/components.py
    python benchmarks/components.py --sets wine digits --set likelihood=gaussian

Exits with 1 below a floor.
"""

import warnings

import numpy as np
from _harness import check_floors, load_set, parameters, parser, print_table, save
from bound import numeric_sets
from sklearn.model_selection import train_test_split

from skvae import VAETransformer

MAX_ROWS = 3000
WILDEST = 0.01
SETTINGS = {"likelihood": "normal_scores", "noise": "per_column"}


def numbers_of_components(most):
    """1, 2, 3, and from there on about a third more each time, up to 30 and ``most``."""
    numbers = [1, 2, 3, 4, 6, 8, 11, 15, 20, 28]
    return [number for number in numbers if number < most] + ([most] if most <= 40 else [])


def compare(name, seed, settings):
    X, _ = load_set(name)
    X = np.asarray(X, dtype=float)
    X = X[np.random.default_rng(seed).permutation(len(X))[:MAX_ROWS]]
    X = X[:, X.std(axis=0) > 0.0]
    train, test = train_test_split(X, test_size=0.3, random_state=seed)

    def bounds(n_components):
        vae = VAETransformer(n_components, random_state=seed, **{**SETTINGS, **settings})
        return vae.fit(train).n_components_, vae.score_samples(test, method="elbo")

    chosen = {rule: bounds(rule) for rule in ("evidence", "auto")}
    by_number = dict(chosen.values())
    for number in numbers_of_components(X.shape[1]):
        if number not in by_number:
            by_number[number] = bounds(number)[1]
    n_wild = int(WILDEST * len(test))
    mean = {n: np.sort(rows)[n_wild:].mean() / X.shape[1] for n, rows in by_number.items()}
    best = max(mean, key=mean.get)
    row = {"set": name, "rows": len(train), "columns": X.shape[1], "seed": seed, "best": best}
    for rule, (number, _) in chosen.items():
        row[rule] = number
        row[f"regret, {rule}"] = mean[best] - mean[number]
    return row


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    arguments = parser(__doc__.splitlines()[0], seeds=1).parse_args()
    settings = parameters(arguments.parameters)
    rows = []
    for name in arguments.sets or numeric_sets():
        for seed in range(arguments.seeds):
            rows.append(compare(name, seed, settings))
            print(rows[-1], flush=True)
    print_table(rows)
    save("components", rows)
    regrets = np.array([row["regret, evidence"] for row in rows])
    print(f"{(regrets <= 0.05).sum()} of {len(regrets)} within 0.05 nats a column of the best")
    check_floors(
        [
            ("minus mean regret of evidence, nats a column", -regrets.mean(), -0.05),
            ("minus worst regret of evidence, nats a column", -regrets.max(), -0.05),
        ]
    )
