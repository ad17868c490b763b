"""Where the time of a default fit goes: its phases, in seconds of one thread, and shares.

    python benchmarks/phases.py
    python benchmarks/phases.py --sets curved_20k_30       # without shared data

A profiler counts the calls of Python functions, so that steps of narrow layers seem to take up to a
fifth longer. Exits with 1 if the phases do not make up the fit.
"""

import cProfile
import pstats
import time
import warnings

import numpy as np
import torch
from _harness import check_floors, load_set, parser, print_table, save, shared_data
from speed import curved
from threadpoolctl import threadpool_limits

from skvae import VAETransformer

# Functions of skvae, none of which calls another but the one that is named with it.
PHASES = {
    "read, learn and encode columns": ("_preparing.py", "prepare"),
    "linear start": ("_preparing.py", "module_at_start"),
    "tests of the start": ("loop.py", "can_gain"),
    "steps": ("loop.py", "epoch"),
    "choose held-out rows": ("selection.py", "split_with_tail"),
    "held-out noise": ("held_out.py", "_calibrate"),
    "held-out bounds": ("loop.py", "_measured"),
    "describe": ("_fitting.py", "describe"),
}
INSIDE = {"linear start": "read, learn and encode columns"}


def low_rank():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300_000, 4)) @ rng.normal(size=(4, 20))
    return (X + rng.normal(size=X.shape)).astype(np.float32)


def some(name, n_rows):
    X = load_set(name)[0]
    return X.iloc[:n_rows] if hasattr(X, "iloc") else X[:n_rows].astype(np.float32)


TABLES = {
    "titanic": lambda: some("titanic", None),
    "adult_3k": lambda: some("adult", 3000),
    "flights": lambda: some("flights", None),
    "mnist_30k": lambda: some("mnist", 30_000),
    "curved_20k_30": lambda: curved(20_000, 30),
    "linear_300k_20": low_rank,
}
SHARED = {
    "titanic",
    "adult_3k",
    "flights",
    "mnist_30k",
}


def row_of(name):
    X, profile = TABLES[name](), cProfile.Profile(time.process_time, builtins=False)
    fit = profile.runcall(VAETransformer(random_state=0).fit, X)
    stats = pstats.Stats(profile).stats
    spent = {what: _cumulative(stats, *where) for what, where in PHASES.items()}
    for part, whole in INSIDE.items():
        spent[whole] -= spent[part]
    total = _cumulative(stats, "_transformer.py", "fit")
    n_steps = sum(calls[0] for at, calls in stats.items() if at[2] == "_step")
    row = {"table": name, "fit, s": total, "steps": n_steps, "epochs": fit.n_iter_}
    return row | {f"{what}, %": 100.0 * one / total for what, one in spent.items()}


def _cumulative(stats, file, function):
    return sum(
        calls[3] for at, calls in stats.items() if at[0].endswith(f"/{file}") and at[2] == function
    )


def main():
    names = parser(__doc__.splitlines()[0], seeds=1).parse_args().sets or TABLES
    torch.set_num_threads(1)
    with threadpool_limits(limits=1):
        VAETransformer(max_iter=1).fit(curved(600, 5))  # imports
        rows = [row_of(one) for one in names if one not in SHARED or shared_data() is not None]
    print_table(rows)
    save("phases", rows)
    shares = [sum(value for key, value in row.items() if key.endswith("%")) for row in rows]
    print()
    check_floors(
        [
            (f"{row['table']}: % in a phase", one, 85.0)
            for row, one in zip(rows, shares, strict=True)
        ]
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
