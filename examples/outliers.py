"""
Find the odd rows of a table
============================

Find the odd rows of a table, set a threshold that means something, and say what is odd.

Ranks test rows by VAEOutlierDetector, IsolationForest and the distance to the fifth neighbour, all
with defaults and fitted to rows with outliers among them. Then, fitted to normal rows alone:
discoveries at a false discovery rate of 10%, a picture of the scores with the threshold
(``outlier_scores.png``), the columns that make the oddest rows odd, and faults planted in one
column at a time. The table is the thyroid data of ADBench (a few sick among many healthy) where it
is at hand in ../shared/data, else scikit-learn's breast cancers with few of the malignant.
"""

import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from skvae import VAEOutlierDetector

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
LEVEL = 0.1  # false discovery rate


def load_table():
    """Rows, and which of them are outliers."""
    if SHARED.exists():
        sys.path.append(str(SHARED))
        from load import load

        X, y, _ = load("adb_thyroid")
        # The columns of numbers of UCI's thyroid data, in its order; scaled to 0..1 by ADBench.
        names = ["age", "TSH", "T3", "TT4", "T4U", "FTI"]
        return "thyroid", pd.DataFrame(X, columns=names), y == 1
    print("No ../shared/data here: scikit-learn's breast cancers instead of the thyroid data")
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    few = y[y == 0].sample(40, random_state=0).index
    rows = y[y == 1].index.union(few)
    return "breast cancer", X.loc[rows].reset_index(drop=True), (y.loc[rows] == 0).to_numpy()


# %%
# Three detectors with their defaults rank the same rows.


def by_detector(train, test):
    return VAEOutlierDetector(random_state=0).fit(train).score_samples(test)


def by_forest(train, test):
    return IsolationForest(random_state=0).fit(train).score_samples(test)


def by_neighbour(train, test):
    scaler = StandardScaler().fit(train)
    neighbours = NearestNeighbors(n_neighbors=5).fit(scaler.transform(train))
    return -neighbours.kneighbors(scaler.transform(test))[0][:, -1]


def compare(train, test, is_outlier):
    """AUROC and average precision of three rankings, in percent."""
    rankings = {
        "VAEOutlierDetector": by_detector,
        "IsolationForest": by_forest,
        "distance to the 5th neighbour": by_neighbour,
    }
    print(f"{'':32}{'AUROC':>8}{'average precision':>20}")
    for name, scores in rankings.items():
        odd = -scores(train, test)
        auroc = 100 * roc_auc_score(is_outlier, odd)
        precision = 100 * average_precision_score(is_outlier, odd)
        print(f"{name:32}{auroc:8.1f}{precision:20.1f}")


# %%
# p-values turn scores into decisions. With ``fdr=0.1`` at most a tenth of the rows that are called
# outliers are expected to be ordinary.


def print_discoveries(detector, test, is_outlier):
    """The level bounds the share of false discoveries on average over tables, not in each."""
    found = detector.set_params(fdr=LEVEL).predict(test) == -1
    n_false = (found & ~is_outlier).sum()
    n_rows = len(detector.calibration_scores_)
    fewest = int(np.ceil(len(test) / (1 + n_rows) / LEVEL))
    print(f"\nDiscoveries at a false discovery rate of {LEVEL:.0%}, by p-values:")
    print(f"  {found.sum()} rows of {len(test)}, {n_false} of them false ", end="")
    print(f"({n_false / max(found.sum(), 1):.0%}); {is_outlier.sum()} outliers were there")
    print(f"  (of {n_rows} normal rows: fewer than {fewest} cannot be discovered)")
    flagged = detector.set_params(fdr=None).predict(test) == -1
    print(f"Below offset_, with no such promise: {flagged.sum()} rows, ", end="")
    print(f"{(flagged & ~is_outlier).sum()} of them false")
    return found


def draw(detector, test, is_outlier, found, path):
    scores = detector.score_samples(test)
    lowest = 4.0 * detector.offset_ - 3.0 * scores.max()  # what is lower stands in the first bin
    bins = np.linspace(lowest, scores.max(), 60)
    figure, axes = plt.subplots(figsize=(7, 4))
    for which, name, colour in [(~is_outlier, "normal", "C0"), (is_outlier, "outliers", "C3")]:
        axes.hist(scores[which].clip(lowest), bins, alpha=0.6, label=name, color=colour)
    axes.axvline(detector.offset_, color="black", linestyle="--", label="offset_")
    if found.any():
        name = f"false discovery rate {LEVEL:.0%}"
        axes.axvline(scores[found].max(), color="black", linestyle=":", label=name)
    axes.set(yscale="log", xlabel="log-density in nats", ylabel="rows")
    axes.set_title("Scores of the test rows")
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=120, bbox_inches="tight")


# %%
# A score says that a row is odd; ``explain`` says why. Planted faults show how often it is right.


def print_oddest(detector, test, is_outlier, n_rows=10, n_columns=2):
    """The cells with the largest shares, and between what 90% of normal rows would lie."""
    scores = detector.score_samples(test)
    oddest = np.argsort(scores)[:n_rows]
    cells = detector.explain(test.iloc[oddest])
    print("\nOddest test rows (in brackets: nats, and between what the cell would usually lie):")
    for place, row in zip(oddest, test.index[oddest], strict=True):
        worst = cells.loc[row].nlargest(n_columns, "share")
        why = [
            f"{c.Index} = {c.value:.3g} ({c.share:.1f}; {c.lower:.2g} to {c.upper:.2g})"
            for c in worst.itertuples()
        ]
        kind = "outlier" if is_outlier[place] else "normal"
        print(f"  {scores[place]:8.1f} nats  {kind:8}" + ", ".join(why))


def print_planted(detector, normal, test, n_rows=30, n_columns=6):
    """Faults of 8 standard deviations in normal rows: are they found, and in which column?"""
    spoilt_rows, others = test[:n_rows], test[n_rows:]
    is_spoilt = np.repeat([True, False], [n_rows, len(others)])
    usual = detector.score_samples(others)
    print(f"\n{n_rows} normal rows among {len(others)}, 8 sd added to one column (percent):")
    print(f"{'spoilt column':24}{'spoilt of the oddest':>22}{'column named first':>20}")
    for name in test.columns[:n_columns]:
        spoilt = spoilt_rows.assign(**{name: spoilt_rows[name] + 8.0 * normal[name].std()})
        oddest = np.argsort(np.concatenate([detector.score_samples(spoilt), usual]))[:n_rows]
        first = detector.score_features(spoilt).argmin(axis=1)
        found, named = is_spoilt[oddest].mean(), (test.columns[first] == name).mean()
        print(f"{name:24}{100 * found:22.0f}{100 * named:20.0f}")


# %%
# All of it, on one table.


def main():
    start = time.perf_counter()
    name, X, is_outlier = load_table()
    train, test, odd_train, odd_test = train_test_split(
        X, is_outlier, test_size=0.3, stratify=is_outlier, random_state=0
    )
    print(f"{name}: {X.shape[0]} rows, {X.shape[1]} columns, {is_outlier.sum()} outliers\n")
    compare(train, test, odd_test)

    # p-values are those of normal rows where all rows of fit are known to be normal.
    normal, test = train[~odd_train], pd.concat([test, train[odd_train]], ignore_index=True)
    odd_test = np.concatenate([odd_test, odd_train[odd_train]])
    detector = VAEOutlierDetector(random_state=0).fit(normal)
    found = print_discoveries(detector, test, odd_test)
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "outlier_scores.png")
    draw(detector, test, odd_test, found, path)
    print_oddest(detector, test, odd_test)
    print_planted(detector, normal, test[~odd_test])
    print(f"\nWrote {path}; {time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
