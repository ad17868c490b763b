"""The maximum-likelihood linear-Gaussian model of the columns, which a fit starts from.

NumPy, SciPy and scikit-learn only, from the moments of the (encoded) columns:

    x = W z + mean + noise * e,    z ~ N(0, I),  e ~ N(0, I)
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.decomposition import FactorAnalysis
from sklearn.utils.extmath import randomized_svd

Array = NDArray[np.floating]

# Up to here the covariance is formed (D^2 numbers) and decomposed exactly.
MAX_COLUMNS_FOR_COVARIANCE = 1500


class Moments(NamedTuple):
    """First and second moments of the encoded columns."""

    mean: Array  # (D,)
    variance: Array  # (D,)
    covariance: Array | None  # (D, D), None where D is too large to form it
    n_samples: float  # how many rows the weights stand for


class LinearGaussian(NamedTuple):
    """x = loadings z + mean + noise e."""

    mean: Array  # (D,)
    scale: Array  # (D,)      the columns' marginal standard deviation
    loadings: Array  # (D, K)
    noise: Array  # (D,)      standard deviation of the noise


def column_moments(chunks: Iterable[tuple[Array, Array]], n_columns: int) -> Moments:
    """Accumulate the moments in one pass over float64 chunks of rows and their weights."""
    with_covariance = n_columns <= MAX_COLUMNS_FOR_COVARIANCE
    n_rows, total = 0, 0.0
    first = np.zeros(n_columns)
    second = np.zeros((n_columns, n_columns) if with_covariance else n_columns)
    for rows, weight in chunks:
        weighted = rows * weight[:, None]
        n_rows += len(rows)
        total += weight.sum()
        first += weighted.sum(0)
        second += weighted.T @ rows if with_covariance else (weighted * rows).sum(0)
    mean = first / total
    n_samples = max(total, n_rows)  # weights that sum to less are shares, not repetitions
    if not with_covariance:
        return Moments(mean, np.maximum(second / total - mean**2, 0.0), None, n_samples)
    covariance = second / total - np.outer(mean, mean)
    return Moments(mean, np.maximum(covariance.diagonal(), 0.0), covariance, n_samples)


def probabilistic_pca(
    moments: Moments, x: Array, weight: Array, n_components: int, floor: float
) -> LinearGaussian:
    """One noise scale for all columns (Tipping & Bishop 1999, eq. 7 and 8).

    sigma^2 = mean of the discarded eigenvalues, W = U (Lambda - sigma^2)^1/2, on the unbiased
    covariance and over min(N, D) eigenvalues, as ``sklearn.decomposition.PCA``.
    """
    n_columns = len(moments.mean)
    n_kept = min(n_components, n_columns)
    unbiased = moments.n_samples / max(moments.n_samples - 1.0, 1.0)
    eigenvalues, vectors = _leading_eigenpairs(moments, x, weight, n_kept)
    eigenvalues = np.maximum(eigenvalues, 0.0) * unbiased
    n_discarded = min(moments.n_samples, n_columns) - n_kept
    discarded = max(moments.variance.sum() * unbiased - eigenvalues.sum(), 0.0)
    noise_variance = discarded / n_discarded if n_discarded > 0 else 0.0
    noise_variance = max(noise_variance, floor**2)
    loadings = np.zeros((n_columns, n_components))
    loadings[:, :n_kept] = vectors * np.sqrt(np.maximum(eigenvalues - noise_variance, 0.0))
    noise = np.full(n_columns, np.sqrt(noise_variance))
    return LinearGaussian(moments.mean, np.sqrt(moments.variance), loadings, noise)


def factor_analysis(moments: Moments, n_components: int, floor: float) -> LinearGaussian:
    """A noise scale for each column, by ``sklearn.decomposition.FactorAnalysis``.

    Its likelihood depends on the rows only through their covariance, so it is given 2 D rows that
    have exactly that covariance and mean zero (and ``tol`` on their scale): as fast for millions
    of rows, and weights count.
    """
    if moments.covariance is None:
        raise ValueError(
            f"noise='per_column' starts from factor analysis, which needs the covariance of the "
            f"columns: at most {MAX_COLUMNS_FOR_COVARIANCE} columns, got {len(moments.mean)}. "
            "Use noise='shared'."
        )
    n_columns = len(moments.mean)
    eigenvalues, vectors = eigh(moments.covariance)
    half = vectors * np.sqrt(np.maximum(eigenvalues, 0.0) * n_columns)  # (D, D)
    rows = np.concatenate([half.T, -half.T])
    model = FactorAnalysis(
        n_components=min(n_components, n_columns), tol=1e-2 * len(rows) / moments.n_samples
    ).fit(rows)
    loadings = np.zeros((n_columns, n_components))
    loadings[:, : len(model.components_)] = model.components_.T
    noise = np.sqrt(np.maximum(model.noise_variance_, floor**2))
    return LinearGaussian(moments.mean, np.sqrt(moments.variance), loadings, noise)


def diagonalise(loadings: Array, noise_variance: Array) -> tuple[Array, Array]:
    """Rotate z so that the exact posterior is diagonal: W^T Psi^-1 W = diag(g), g falling.

    Returns the rotated loadings (D, K) and g (K,). Signs: the largest loading is positive.
    """
    gram = (loadings / noise_variance[:, None]).T @ loadings
    information, rotation = eigh(gram)
    order = np.argsort(-information, kind="stable")
    rotated = loadings @ rotation[:, order]
    largest = np.take_along_axis(rotated, np.abs(rotated).argmax(0)[None], axis=0)
    rotated = rotated * np.where(largest < 0.0, -1.0, 1.0)
    return rotated, np.maximum(information[order], 0.0)


def _leading_eigenpairs(
    moments: Moments, x: Array, weight: Array, n_kept: int
) -> tuple[Array, Array]:
    """The largest eigenvalues (K,) of the biased covariance, falling, and vectors (D, K)."""
    n_columns = len(moments.mean)
    if moments.covariance is not None:
        values, vectors = eigh(
            moments.covariance, subset_by_index=(n_columns - n_kept, n_columns - 1)
        )
        return values[::-1], vectors[:, ::-1]
    root = np.sqrt(weight / weight.sum()).astype(x.dtype)[:, None]
    centred = (x - moments.mean.astype(x.dtype)) * root
    _, singular, rows = randomized_svd(centred, n_kept, n_iter=7, random_state=0)
    values = np.zeros(n_kept)
    values[: len(singular)] = singular.astype(np.float64) ** 2
    vectors = np.zeros((n_columns, n_kept))
    vectors[:, : len(singular)] = rows.T
    return values, vectors
