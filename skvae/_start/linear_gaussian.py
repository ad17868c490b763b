"""The maximum-likelihood linear-Gaussian model of the features, which a fit starts from.

NumPy and SciPy only. D here is the number of features: of the columns, or of the
levels of those that hold categories.

    x = W z + mean + noise * e,    z ~ N(0, I),  e ~ N(0, I)
"""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, eigh
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, svds

from .._parameters import MAX_COLUMNS_FOR_COVARIANCE
from .._table.column import Array

SMALLEST_SHARE = 1e-12  # of a column's variance, that can be noise
MAX_FACTOR_WORK = 2**33  # of its eigenvalue problems, as multiplications
MAX_EM_STEPS = 100
SETTLED = 1e-4  # relative change of the loadings in one EM step


class Moments(NamedTuple):
    """First and second moments of the features."""

    mean: Array  # (D,)
    variance: Array  # (D,)
    covariance: Array | None  # (D, D), None where D is too large to form it
    n_samples: float  # how many rows the weights stand for

    def in_units_of(self, scale: Array) -> "Moments":
        covariance = self.covariance
        if covariance is not None:
            covariance = covariance / (scale[:, None] * scale)
        return Moments(self.mean / scale, self.variance / scale**2, covariance, self.n_samples)


class ObservedRows(NamedTuple):
    """Rows of features, which of them are observed (None: all), and how often each row counts."""

    features: Array  # (N, D)
    seen: NDArray[np.bool_] | None
    weight: Array  # (N,)


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
    moments: Moments, wide: LinearOperator | None, n_components: int, floor: float
) -> LinearGaussian:
    """Fit one noise scale for all columns (Tipping & Bishop 1999, eq. 7 and 8).

    sigma^2 = mean of the discarded eigenvalues, W = U (Lambda - sigma^2)^1/2, on the unbiased
    covariance and over min(N, D) eigenvalues, as ``sklearn.decomposition.PCA``. ``wide`` are the
    centred rows over sqrt(N), needed where the covariance was not formed.
    """
    n_columns = len(moments.mean)
    n_kept = min(n_components, n_columns)
    unbiased = moments.n_samples / max(moments.n_samples - 1.0, 1.0)
    eigenvalues, vectors = _leading_eigenpairs(moments, wide, n_kept)
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
    """Fit a noise scale for each column, by maximum likelihood.

    The likelihood depends on the rows only through their covariance. It climbs in the noise alone,
    with the best loadings for it (Joreskog 1967, as R's ``factanal``), where EM would slow down
    long before the maximum. A column that does not vary has no loadings.
    """
    if moments.covariance is None:
        raise ValueError(
            f"noise='per_column' starts from factor analysis, which needs the covariance of the "
            f"columns: at most {MAX_COLUMNS_FOR_COVARIANCE} columns, got {len(moments.mean)}. "
            "Use noise='shared'."
        )
    varies = np.flatnonzero(moments.variance > 0.0)
    loadings, noise = np.zeros((len(moments.mean), n_components)), np.full_like(moments.mean, floor)
    if len(varies):
        covariance = moments.covariance[np.ix_(varies, varies)]
        variance = _climbed(covariance, n_components, floor)
        own, _ = _concentrated(covariance, n_components, variance)
        loadings[varies, : own.shape[1]], noise[varies] = own, np.sqrt(variance)
    return LinearGaussian(moments.mean, np.sqrt(moments.variance), loadings, noise)


def _climbed(covariance: Array, n_components: int, floor: float) -> Array:  # (D,)
    """Return the noise's variances of the highest likelihood, from half of the columns' on."""

    def objective(log_noise: Array) -> tuple[float, Array]:
        variance = np.exp(log_noise)
        loadings, value = _concentrated(covariance, n_components, variance)
        # d/d log psi of -log p: half the diagonal of Psi Sigma^-1 (Sigma - S) Sigma^-1, where
        # Sigma^-1 (Sigma - S) Sigma^-1 has the diagonal of Psi^-1 (Sigma - S) Psi^-1.
        left = (loadings**2).sum(1) + variance - covariance.diagonal()
        return value, 0.5 * left / variance

    lowest = np.maximum(2.0 * np.log(floor), np.log(SMALLEST_SHARE * covariance.diagonal()))
    steps = max(20, min(200, MAX_FACTOR_WORK // len(covariance) ** 3))
    found = minimize(
        objective,
        np.maximum(np.log(0.5 * covariance.diagonal()), lowest),
        jac=True,
        method="L-BFGS-B",
        bounds=[(low, None) for low in lowest],
        options={"maxiter": steps, "ftol": 0.0, "gtol": 1e-10, "maxcor": 50},
    )
    return np.exp(found.x)


def _concentrated(
    covariance: Array, n_components: int, noise_variance: Array
) -> tuple[Array, float]:
    """Return the best loadings (D, K) for a noise, and -log p of a row, less a constant.

    With the eigenvalues l of Psi^-1/2 S Psi^-1/2 they are Psi^1/2 U (l - 1)^1/2, for those above 1.
    """
    noise = np.sqrt(noise_variance)
    n_kept = min(n_components, len(covariance))
    values, vectors = symmetric_eigenpairs(covariance / (noise[:, None] * noise))
    values, kept = values[::-1], vectors[:, ::-1][:, :n_kept]
    beyond = np.maximum(values[:n_kept], 1.0)
    log_p = np.log(beyond).sum() + n_kept + np.minimum(values[:n_kept] - 1.0, 0.0).sum()
    log_p += values[n_kept:].sum() + np.log(noise_variance).sum()
    return noise[:, None] * kept * np.sqrt(beyond - 1.0), 0.5 * float(log_p)


def diagonalise(loadings: Array, noise_variance: Array) -> tuple[Array, Array]:
    """Rotate z so that the exact posterior is diagonal: W^T Psi^-1 W = diag(g), g falling.

    Returns the rotated loadings (D, K) and g (K,). Signs: the largest loading is positive.
    """
    gram = (loadings / noise_variance[:, None]).T @ loadings
    information, rotation = symmetric_eigenpairs(gram)
    order = np.argsort(-information, kind="stable")
    rotated = loadings @ rotation[:, order]
    largest = np.take_along_axis(rotated, np.abs(rotated).argmax(0)[None], axis=0)
    rotated = rotated * np.where(largest < 0.0, -1.0, 1.0)
    return rotated, np.maximum(information[order], 0.0)


def centred_rows(rows: Any, weight: Array, mean: Array) -> LinearOperator:
    """Return diag(sqrt(w)) (rows - 1 mean^T) for any rows, without forming it; sum w = 1."""
    root = np.sqrt(weight / weight.sum())

    def times(v: Array) -> Array:
        v = v.reshape(len(mean), -1)
        return root[:, None] * (rows @ v - mean @ v)

    def transposed_times(u: Array) -> Array:
        u = root[:, None] * u.reshape(len(root), -1)
        return rows.T @ u - mean[:, None] * u.sum(0)

    return LinearOperator(rows.shape, times, transposed_times, times, np.float64, transposed_times)


def symmetric_eigenpairs(matrix: Array, n_kept: int | None = None) -> tuple[Array, Array]:
    """Return the largest eigenvalues of a symmetric matrix, rising, and their vectors.

    LAPACK's fastest driver fails, or finds fewer, where eigenvalues repeat: a slower one follows,
    and then one for the matrix with a jitter of the size of rounding.
    """
    size = len(matrix)
    wanted = size if n_kept is None else n_kept
    subset = None if n_kept is None else (size - n_kept, size - 1)
    with suppress(LinAlgError):
        values, vectors = eigh(matrix, subset_by_index=subset)
        if len(values) == wanted and np.isfinite(vectors).all():
            return values, vectors
    try:
        values, vectors = eigh(matrix, driver="evd")
    except LinAlgError:
        jitter = np.finfo(float).eps * np.abs(matrix).max() * np.arange(size)
        values, vectors = eigh(matrix + np.diag(jitter), driver="ev")
    return values[size - wanted :], vectors[:, size - wanted :]


def _leading_eigenpairs(
    moments: Moments, wide: LinearOperator | None, n_kept: int
) -> tuple[Array, Array]:
    """Return the largest eigenvalues (K,) of the biased covariance, falling; vectors (D, K)."""
    n_columns = len(moments.mean)
    if moments.covariance is not None:
        values, vectors = symmetric_eigenpairs(moments.covariance, n_kept)
        return values[::-1], vectors[:, ::-1]
    assert wide is not None
    n_found = min(n_kept, min(wide.shape) - 1)
    values, vectors = np.zeros(n_kept), np.zeros((n_columns, n_kept))
    if n_found > 0:
        _, singular, rows = svds(wide, n_found, random_state=0)
        values[:n_found] = singular[::-1] ** 2
        vectors[:, :n_found] = rows[::-1].T
    return values, vectors


def em_for_missing(
    linear: LinearGaussian,
    rows: ObservedRows,
    shared: bool,
    floor: float,
    fixed: NDArray[np.bool_] | None = None,
) -> LinearGaussian:
    """Fit the linear-Gaussian model to what is observed, by EM from ``linear``.

    Ilin & Raiko 2010 (PCA with missing values), section 3: each row's posterior is based on the
    features (N, D) that are ``seen`` in it, each feature's loadings on the rows that it is seen in.
    The noise of ``fixed`` features stays as it is.
    """
    n_components = linear.loadings.shape[1]
    features, seen, weight = rows
    if seen is None:
        seen = np.ones(features.shape, dtype=bool)
    filled, present = np.where(seen, features, 0.0), seen.astype(np.float64)
    weighted = present * (weight / weight.mean())[:, None]
    count = weighted.sum(0)
    squares = (weighted * filled**2).sum(0)
    ridge = 1e-8 * np.eye(n_components + 1)  # a feature that is never seen gets no loadings
    mean, loadings, noise = linear.mean, linear.loadings, linear.noise**2
    for _ in range(MAX_EM_STEPS):
        first, second = _posterior_moments(filled, present, mean, loadings, noise)
        products = (weighted.T @ second).reshape(-1, n_components + 1, n_components + 1)
        targets = (weighted * filled).T @ first  # (D, K + 1)
        solution = np.linalg.solve(products + ridge, targets[..., None])[..., 0]
        change = np.abs(solution[:, :-1] - loadings).max() / max(np.abs(loadings).max(), 1e-12)
        loadings, mean = solution[:, :-1], solution[:, -1]
        left = np.maximum(squares - (solution * targets).sum(1), 0.0)
        new = (
            np.full_like(noise, left.sum() / max(count.sum(), 1e-12))
            if shared
            else left / (count + 1e-12)
        )
        new = np.maximum(new, floor**2)
        noise = new if fixed is None else np.where(fixed, noise, new)
        if change < SETTLED:
            break
    return LinearGaussian(mean, linear.scale, loadings, np.sqrt(noise))


def _posterior_moments(
    filled: Array, seen: Array, mean: Array, loadings: Array, noise: Array
) -> tuple[Array, Array]:
    """Return E[(z, 1)] (N, K + 1) and E[(z, 1) (z, 1)^T] (N, (K + 1)^2) given what is seen."""
    n_rows, n_components = len(filled), loadings.shape[1]
    scaled = loadings / noise[:, None]
    covariance = np.empty((n_rows, n_components, n_components))
    covariance[:] = np.linalg.inv(scaled.T @ loadings + np.eye(n_components))
    partly = np.flatnonzero(~seen.all(axis=1))  # each other row has the same covariance
    products = (scaled[:, :, None] * loadings[:, None, :]).reshape(len(mean), -1)
    precision = (seen[partly] @ products).reshape(-1, n_components, n_components)
    covariance[partly] = np.linalg.inv(precision + np.eye(n_components))
    loc = (covariance @ (((seen * (filled - mean)) @ scaled)[..., None]))[..., 0]
    first = np.concatenate([loc, np.ones((n_rows, 1))], axis=1)
    second = first[:, :, None] * first[:, None, :]
    second[:, :-1, :-1] += covariance
    return first, second.reshape(n_rows, -1)
