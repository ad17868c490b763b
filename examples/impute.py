"""
Fill the holes of a mixed table
===============================

Fill the holes of a mixed table, and say how sure an estimate from the filled table is.

A fifth of the cells is removed at random, so that the truth is known. VAEImputer takes the table
as it is; KNNImputer and IterativeImputer get it one-hot encoded and standardised, and the largest
indicator tells their category. Then five completed tables are drawn: a regression on each gives an
estimate whose spread is what the holes cost (Rubin 1987). The table is the Palmer penguins where
they are at hand in ../shared/data, else scikit-learn's wines.
"""

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_wine
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAEImputer

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def load_table():
    """A table without holes, and the columns (y, x) of a regression."""
    if SHARED.exists():
        sys.path.append(str(SHARED))
        from load import load

        X, species, _ = load("penguins")
        table = X.join(species).dropna().reset_index(drop=True)
        return table, "body_mass_g", "flipper_length_mm"
    print("No ../shared/data here: scikit-learn's wines instead of penguins")
    wines = load_wine(as_frame=True)
    cultivar = wines.target.map(dict(enumerate("ABC"))).astype("category")
    return wines.data.assign(cultivar=cultivar), "proline", "alcohol"


# %%
# The peers take numbers only, so a category becomes one indicator for each of its levels, and the
# level with the largest one is what they impute.


def categories(df):
    return [c for c in df if not pd.api.types.is_numeric_dtype(df[c])]


def fill_simply(df):
    """Mean and mode."""
    filled = df.copy()
    for name in df:
        strategy = "most_frequent" if name in categories(df) else "mean"
        filled[name] = SimpleImputer(strategy=strategy).fit_transform(df[[name]])[:, 0]
    return filled


def fill_one_hot(df, imputer):
    """What an imputer of numbers makes of a mixed table.

    A category's first level has no indicator: all of them together would predict each other, and
    IterativeImputer would stay at the mode. It is what the others leave of 1.
    """
    parts = {"numbers": df.drop(columns=categories(df))}
    for name in categories(df):
        parts[name] = pd.get_dummies(df[name], drop_first=True, dtype=float)
        parts[name][df[name].isna()] = np.nan
    wide = pd.concat(parts, axis=1)
    pipeline = Pipeline([("scale", StandardScaler()), ("fill", imputer)])
    scaled = pipeline.fit_transform(wide.to_numpy(float))
    wide[:] = pipeline["scale"].inverse_transform(scaled)
    filled = wide["numbers"].copy()
    for name in categories(df):
        first = df[name].cat.categories[0]
        filled[name] = wide[name].assign(**{first: 1.0 - wide[name].sum(axis=1)}).idxmax(axis=1)
    return filled[df.columns]


# %%
# The holes were made, so what stood in them is known.


def errors(filled, truth, hole):
    """RMSE of numbers (in standard deviations) and accuracy of categories (%), over the holes."""
    rmse, correct = [], []
    for number, name in enumerate(truth):
        got, true = filled[name][hole[:, number]], truth[name][hole[:, number]]
        if name in categories(truth):
            correct.append(100 * (got.astype(str) == true.astype(str)).mean())
        else:
            rmse.append(np.sqrt(((got - true) ** 2).mean()) / truth[name].std())
    return np.mean(rmse), np.mean(correct)


def slope(df, y, x):
    """Least squares y = a + b x: b and its variance."""
    coefficients, covariance = np.polyfit(df[x].astype(float), df[y].astype(float), 1, cov=True)
    return coefficients[0], covariance[0, 0]


# %%
# A mean has a standard error, and what is imputed makes it larger: Rubin's rules add the spread of
# five completed tables.


def main():
    start = time.perf_counter()
    truth, y, x = load_table()
    hole = np.random.default_rng(0).random(truth.shape) < 0.2
    df = truth.mask(hole)
    print(f"{truth.shape[0]} rows, {truth.shape[1]} columns, {hole.sum()} cells removed\n")

    imputer = VAEImputer(random_state=0)
    iterative = IterativeImputer(max_iter=100, random_state=0)
    filled = {
        "mean and mode": fill_simply(df),
        "KNNImputer, one-hot": fill_one_hot(df, KNNImputer()),
        "IterativeImputer, one-hot": fill_one_hot(df, iterative),
        "VAEImputer": imputer.fit_transform(df),
    }
    print(f"{'':28}{'RMSE of numbers':>18}{'accuracy of categories':>25}")
    for name, table in filled.items():
        rmse, correct = errors(table, truth, hole)
        print(f"{name:28}{rmse:15.2f} sd{correct:24.0f}%")

    tables = imputer.sample_imputations(df, 5, random_state=0)
    slopes, variances = np.transpose([slope(table, y, x) for table in tables])
    between = slopes.var(ddof=1)
    total = variances.mean() + (1 + 1 / len(tables)) * between  # Rubin's rules
    true, variance = slope(truth, y, x)
    complete, spread = slope(df[[y, x]].dropna(), y, x)
    by_mean, _ = slope(filled["mean and mode"], y, x)
    print(f"\nSlope of {y} by {x} (standard error):")
    print(f"  the table without holes    {true:.1f} ({np.sqrt(variance):.1f})")
    print(f"  rows that have both        {complete:.1f} ({np.sqrt(spread):.1f})")
    print(f"  mean and mode              {by_mean:.1f} (no telling)")
    print(f"  five completed tables      {slopes.mean():.1f} ({np.sqrt(total):.1f}), from ", end="")
    print(", ".join(f"{b:.1f}" for b in slopes))
    print(f"\n{time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
