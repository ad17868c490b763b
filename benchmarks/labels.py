"""Do labels and p-values of VAEOutlierDetector mean what they say, for new rows?

200 fits of clean tables, 60 to 5,000 rows by 3 to 1,000 columns (at most a million cells), drawn
from factor models with normal, clustered, heavy-tailed and curved factors, in units far apart. New
rows come from where the rows of fit came from. In half of the tables, planted outliers (off in a
tenth of the columns) are among the new rows when labels are asked for at a false discovery rate.

    OMP_NUM_THREADS=1 python benchmarks/labels.py
    python benchmarks/labels.py --fits 40

Exits with 1 where the share of new rows that ``contamination=0.05`` flags is not 0.03 to 0.07 in
the mean or more than 0.12 in more than 5% of the fits, where p-values are too small at 0.01, 0.05
or 0.1 by more than 3 standard errors, or where the false discovery rate is above the nominal one by
more than 2.
"""

import argparse
import sys
import time
import warnings

import numpy as np
import torch
from _harness import print_table, save

from skvae import VAEOutlierDetector

CONTAMINATION, FDR = 0.05, 0.1
LEVELS = (0.01, 0.05, 0.1)
N_NEW, MAX_CELLS = 1000, 1_000_000
KINDS = ("normal", "clustered", "heavy-tailed", "curved")


def table_maker(seed):
    """How many rows and columns, and what draws rows."""
    rng = np.random.default_rng(seed)
    n_rows = int(np.exp(rng.uniform(np.log(60), np.log(5000))))
    n_columns = int(np.exp(rng.uniform(np.log(3), np.log(1000))))
    n_rows = min(n_rows, MAX_CELLS // n_columns)
    n_factors = int(rng.integers(1, min(10, n_columns)))
    loadings, unit = rng.normal(size=(n_factors, n_columns)), np.exp(2 * rng.normal(size=n_columns))
    kind = KINDS[seed % len(KINDS)]

    def draw(n):
        z = rng.normal(size=(n, n_factors))
        if kind == "clustered":
            z += 4.0 * rng.integers(0, 3, size=(n, 1))
        if kind == "heavy-tailed":
            z = rng.standard_t(4, size=(n, n_factors))
        x = z @ loadings + 0.5 * rng.normal(size=(n, n_columns))
        if kind == "curved":
            x = np.tanh(x) + 0.1 * rng.normal(size=(n, n_columns))
        return x * unit

    return n_rows, kind, draw, rng


def planted(rows, scale, rng):
    """Rows that are six standard deviations off in a tenth of their columns."""
    n_off = -(-rows.shape[1] // 10)
    spoilt = rows.copy()
    for row in spoilt:
        which = rng.permutation(len(row))[:n_off]
        row[which] += 6.0 * scale[which] * rng.choice([-1.0, 1.0], n_off)
    return spoilt


def measure(seed):
    n_rows, kind, draw, rng = table_maker(seed)
    rows, new = draw(n_rows), draw(N_NEW)
    detector = VAEOutlierDetector(contamination=CONTAMINATION, random_state=seed)
    start = time.perf_counter()
    detector.fit(rows)
    seconds = time.perf_counter() - start
    p = detector.p_values(new)
    found = {
        "rows": n_rows,
        "columns": rows.shape[1],
        "kind": kind,
        "fit s": seconds,
        "flagged": float((detector.predict(new) == -1).mean()),
        **{f"p <= {level}": float((p <= level).mean()) for level in LEVELS},
    }
    n_odd = 100 if seed % 2 else 0
    given = np.concatenate([new[n_odd:], planted(new[:n_odd], rows.std(0), rng)])
    detector.set_params(contamination="auto", fdr=FDR)
    called = detector.predict(given) == -1
    n_false = int(called[: N_NEW - n_odd].sum())
    found["false discoveries"] = n_false / max(int(called.sum()), 1)
    found["discovered"] = float(called[N_NEW - n_odd :].mean()) if n_odd else np.nan
    return found


def checks(fits):
    """What is measured, and the least and the most that it may be."""

    def column(name):
        return np.array([fit[name] for fit in fits])

    flagged, n_fits = column("flagged"), len(fits)
    yield "flagged at 0.05, mean", flagged.mean(), 0.03, 0.07
    yield "flagged at 0.05, more than 0.12: share of fits", (flagged > 0.12).mean(), 0.0, 0.05
    for level in LEVELS:
        share = column(f"p <= {level}")
        error = share.std() / np.sqrt(n_fits)
        yield f"p <= {level}", share.mean(), 0.0, level + 3.0 * error
    rate = column("false discoveries")
    error = rate.std() / np.sqrt(n_fits)
    yield f"false discovery rate at {FDR}", rate.mean(), 0.0, FDR + 2.0 * error


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--fits", type=int, default=200)
    arguments = p.parse_args()
    fits = []
    for seed in range(arguments.fits):
        fits.append(measure(seed))
        print(seed, fits[-1], flush=True)
    found = [
        {"": name, "measured": float(value), "least": least, "most": float(most)}
        for name, value, least, most in checks(fits)
    ]
    print_table(found)
    print(f"planted rows discovered: {np.nanmean([fit['discovered'] for fit in fits]):.3f}")
    save("labels", fits, mean=found, fits=arguments.fits)
    sys.exit(any(not row["least"] <= row["measured"] <= row["most"] for row in found))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main()
