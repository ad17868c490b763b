"""
Quickstart: codes, clusters, outliers and a picture
===================================================

What VAETransformer does, on scikit-learn's digits and breast-cancer data, in under a minute.

Prints one table (features for a classifier, clusters, outlier scores; each against what people use
now) and writes the grid of digits decoded from two components to ``digits_manifold.png``.
"""

import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score, roc_auc_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from skvae import VAETransformer
from skvae.displays import ManifoldDisplay

# %%
# Features for a classifier, clusters, and outliers: each job with the codes of skvae, and with what
# people use now.


def classify(X, y, n_components):
    """Cross-validated accuracy of a logistic regression on the codes, in percent."""

    def accuracy(*steps):
        classifier = [("scale", StandardScaler()), ("clf", LogisticRegression(max_iter=1000))]
        return 100 * cross_val_score(Pipeline([*steps, *classifier]), X, y, cv=3).mean()

    vae = accuracy(("vae", VAETransformer(n_components, random_state=0)))
    pca = accuracy(("raw", StandardScaler()), ("pca", PCA(n_components)))
    return vae, pca


def cluster(X, y, n_components):
    """Adjusted Rand index of k-means on the codes, in percent."""

    def rand_index(Z):
        found = KMeans(len(np.unique(y)), n_init=10, random_state=0).fit_predict(Z)
        return 100 * adjusted_rand_score(y, found)

    vae = VAETransformer(n_components, random_state=0).fit_transform(X)
    pca = PCA(n_components).fit_transform(StandardScaler().fit_transform(X))
    return rand_index(vae), rand_index(pca)


def rank_outliers(X, y):
    """AUROC of each score for malignant against benign, trained on half of the benign rows."""
    benign = np.flatnonzero(y == 1)
    train, rest = benign[::2], np.setdiff1d(np.arange(len(y)), benign[::2])
    vae = VAETransformer(noise="per_column", random_state=0).fit(X[train])
    forest = IsolationForest(random_state=0).fit(X[train])
    is_outlier = y[rest] == 0
    reference = 100 * roc_auc_score(is_outlier, -forest.score_samples(X[rest]))
    for method in ["log_likelihood", "elbo", "reconstruction", "kl"]:
        scores = vae.score_samples(X[rest], method=method)
        yield method, 100 * roc_auc_score(is_outlier, -scores), reference


# %%
# With two components the prior is a plane, and its quantiles are an even grid on it. Each point of
# the grid is decoded to the digit that it stands for.


def draw_manifold(X, path):
    """Decode an even grid of quantiles of the prior over two components: one picture of all X."""
    vae = VAETransformer(2, random_state=0).fit(X)
    display = ManifoldDisplay.from_estimator(vae, image_shape=(8, 8), vmin=0, vmax=16)
    display.ax_.set_title("Digits decoded from a grid over two components")
    display.figure_.savefig(path, dpi=120)


# %%
# The table and the picture. Accuracies, Rand indices and areas under the ROC curve are in percent.


def main():
    # Short folds may end while they still improve a little; that is no matter here.
    start = time.perf_counter()
    digits, cancer = load_digits(return_X_y=True), load_breast_cancer(return_X_y=True)
    rows = []
    for name, (X, y), k in [("digits", digits, 10), ("breast cancer", cancer, 10)]:
        rows.append((f"{name}: logistic regression, accuracy", *classify(X, y, k), "PCA"))
        rows.append((f"{name}: k-means, adjusted Rand index", *cluster(X, y, k), "PCA"))
    for method, ours, forest in rank_outliers(*cancer):
        rows.append(
            (f"breast cancer: outliers by {method}, AUROC", ours, forest, "IsolationForest")
        )
    print(f"{'':52}{'skvae':>8}{'against':>9}")
    for task, ours, theirs, other in rows:
        print(f"{task:52}{ours:8.1f}{theirs:9.1f}  {other}")
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "digits_manifold.png")
    draw_manifold(digits[0], path)
    print(f"\nWrote {path}; {time.perf_counter() - start:.0f} s in all.")


if __name__ == "__main__":
    main()
