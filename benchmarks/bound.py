"""Is the held-out bound ever below the linear model's?

For every numeric set: ELBO of the other 30% of the rows after a default fit on 70%, against the
same estimator with max_iter=0 (probabilistic PCA). Exits with 1 if a set loses more than 0.02 nats
per column.
"""

import time
import warnings

import numpy as np
from _harness import BUNDLED, load_set, parameters, parser, print_table, save, shared_data
from sklearn.model_selection import train_test_split

from skvae import VAETransformer

ALLOWED_LOSS = 0.02  # nats per column


def numeric_sets():
    data = shared_data()
    shared = [] if data is None else [n for k in ("numeric", "outlier") for n in data.names(k)]
    return [*BUNDLED, *shared]


def compare(name, seed, settings):
    X, _ = load_set(name)
    train, test = train_test_split(X, test_size=0.3, random_state=seed)
    start = time.perf_counter()
    trained = VAETransformer(random_state=seed, **settings).fit(train)
    seconds = time.perf_counter() - start
    linear = VAETransformer(random_state=seed, **{**settings, "max_iter": 0}).fit(train)
    bounds = [m.score_samples(test, method="elbo").mean() for m in (trained, linear)]
    gain = float(bounds[0] - bounds[1])
    return {
        "set": name,
        "rows": len(train),
        "columns": X.shape[1],
        "seed": seed,
        "epochs": trained.best_iter_,
        "ELBO": float(bounds[0]),
        "linear ELBO": float(bounds[1]),
        "gain": gain,
        "gain per column": gain / X.shape[1],
        "fit s": seconds,
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    arguments = parser(__doc__, seeds=1).parse_args()
    settings = parameters(arguments.parameters)
    rows = []
    for name in arguments.sets or numeric_sets():
        for seed in range(arguments.seeds):
            rows.append(compare(name, seed, settings))
            r = rows[-1]
            print(
                f"{name} {seed}: {r['gain per column']:+.4f} a column, {r['fit s']:.1f} s",
                flush=True,
            )
    print_table(rows)
    save("bound", rows)
    worst = min(rows, key=lambda row: row["gain per column"])
    total = np.mean([row["gain per column"] for row in rows])
    print(
        f"mean gain {total:.3f} nats a column; "
        f"worst {worst['gain per column']:+.4f} ({worst['set']})"
    )
    if worst["gain per column"] < -ALLOWED_LOSS:
        raise SystemExit(f"{worst['set']} is more than {ALLOWED_LOSS} nats a column below PCA")
