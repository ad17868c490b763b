"""
A table as it comes
===================

A table as it comes: categories, numbers and missing cells, without an encoder or a scaler.

Prints what VAETransformer makes of each column, rows drawn from the model, the accuracy of a
logistic regression on its codes against one-hot encoding and PCA, the oddest rows with the columns
that make them odd, and what happens to a level that was not there in ``fit``. The table is UCI
Adult (who earns more than 50,000 dollars?) where it is at hand in ../shared/data, else
scikit-learn's breast-cancer data with columns cut into categories and cells removed.
"""

import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from skvae import VAETransformer

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
N_ROWS = 4000


def load_adult():
    sys.path.append(str(SHARED))
    from load import load

    X, y, _ = load("adult")
    X = X.sample(N_ROWS, random_state=0)
    return X, y.loc[X.index].astype(str)


def make_mixed_table():
    """Ten columns of the breast-cancer data: four of them categories, a tenth of cells missing."""
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    X = X.iloc[:, :10].copy()
    for name in X.columns[6:]:
        X[name] = pd.qcut(X[name], 4, labels=["low", "middling", "high", "very high"])
    removed = np.random.default_rng(0).random(X.shape) < 0.1
    return X.mask(removed), y.map({0: "malignant", 1: "benign"})


# %%
# What it takes without skvae: an imputer, a scaler and an encoder for each kind of column, and then
# PCA.


def one_hot_pca(X, n_components):
    """What it takes without skvae: fill, scale, encode, project."""
    numbers = Pipeline([("fill", SimpleImputer()), ("scale", StandardScaler())])
    levels = Pipeline(
        [
            ("fill", SimpleImputer(strategy="most_frequent")),
            ("encode", OneHotEncoder(handle_unknown="ignore", sparse_output=False)),
        ]
    )
    is_number = [pd.api.types.is_numeric_dtype(dtype) for dtype in X.dtypes]
    columns = [("numbers", numbers, is_number), ("levels", levels, ~np.array(is_number))]
    return Pipeline([("columns", ColumnTransformer(columns)), ("pca", PCA(n_components))])


def accuracy(reducer, train, test):
    classifier = [("scale", StandardScaler()), ("clf", LogisticRegression(max_iter=1000))]
    pipeline = Pipeline([("reduce", reducer), *classifier]).fit(*train)
    return 100 * pipeline.score(*test), pipeline["reduce"]


# %%
# ``score_features`` splits a row's reconstruction by column, so it tells what is odd about a row.


def print_oddest(vae, X, n_rows=3, n_columns=3):
    """A column is odd where its score is far below what it usually is.

    A value that an unlikely code explains is less surprising here than in log p(x).
    """
    scores = vae.score_samples(X)
    by_column = vae.score_features(X)  # 0 where a cell is missing
    surprise = np.where(X.isna(), 0.0, np.median(by_column, axis=0) - by_column)
    print(f"  (median row: log p = {np.median(scores):.1f})")
    for row in np.argsort(scores)[:n_rows]:
        worst = np.argsort(-surprise[row])[:n_columns]
        why = [f"{X.columns[c]} = {X.iat[row, c]} ({surprise[row, c]:.1f})" for c in worst]
        print(f"  row {X.index[row]}: log p = {scores[row]:.1f}; " + ", ".join(why))


# %%
# The table goes in as it is, and drawn rows come back as one of its kind.


def main():
    start = time.perf_counter()
    if SHARED.exists():
        X, y = load_adult()
        print(f"UCI Adult: {len(X)} rows, {int(X.isna().sum().sum())} missing cells\n")
    else:
        X, y = make_mixed_table()
        print("No ../shared/data here: breast-cancer data, cut into categories, cells removed\n")
    n_train = max(500, int(0.7 * len(X)))  # fewer would be cross-validated inside: more time
    X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=n_train, random_state=0)
    train, test = (X_train, y_train), (X_test, y_test)

    ours, vae = accuracy(VAETransformer(10, random_state=0), train, test)
    print("Likelihood of each column:")
    print(pd.Series(vae.likelihood_, vae.feature_names_in_).to_string(), "\n")
    print("Rows drawn from the model:")
    print(vae.sample(4, random_state=0).to_string(index=False), "\n")

    theirs, _ = accuracy(one_hot_pca(X, 10), train, test)
    most_frequent = 100 * (y_test == y_train.mode()[0]).mean()
    print("Logistic regression on 10 components, accuracy in percent:")
    print(f"  skvae {ours:.1f}; filled, scaled, one-hot, PCA {theirs:.1f}; ", end="")
    print(f"most frequent class {most_frequent:.1f}\n")

    print("Oddest of 200 new rows (in brackets: nats below the column's median score):")
    print_oddest(vae, X_test[:200])

    name = next(c for c in X if isinstance(X[c].dtype, pd.CategoricalDtype))
    row = X_test[:1].astype({name: object})
    unseen, missing = row.assign(**{name: "never seen"}), row.assign(**{name: None})
    same = np.allclose(vae.transform(unseen), vae.transform(missing))
    print(f"\nA level of {name!r} that fit has not seen is taken as missing: {same}")
    vae.set_params(handle_unknown="error")
    try:
        vae.transform(unseen)
    except ValueError as error:
        print(f'With handle_unknown="error": {error}')
    print(f"\n{time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
