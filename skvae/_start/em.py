"""The linear-Gaussian model of rows in which something is missing. NumPy only."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._table.column import Array
from .linear_gaussian import Groups, LinearGaussian

MAX_EM_STEPS = 100
SETTLED = 1e-4  # relative change of the loadings in one EM step


class ObservedRows(NamedTuple):
    """Rows of features, which columns of them are observed, and how often each row counts."""

    features: Array  # (N, P)
    seen: NDArray[np.bool_]  # (N, D)
    column: NDArray[np.intp]  # (P,)  of each feature
    weight: Array  # (N,)


class _Summed(NamedTuple):
    """The rows as each step of EM needs them: of a column, all features are seen, or none is."""

    filled: Array  # (N, P)  0 where it is missing
    seen: Array  # (N, D)
    column: NDArray[np.intp]  # (P,)
    partly: NDArray[np.intp]  # the rows in which something is missing


def em_for_missing(
    linear: LinearGaussian, rows: ObservedRows, groups: Groups, floor: float
) -> LinearGaussian:
    """Fit the linear-Gaussian model to what is observed, by EM from ``linear``.

    Ilin & Raiko 2010 (PCA with missing values), section 3: each row's posterior is based on the
    features (N, P) that are ``seen`` in it, each feature's loadings on the rows that it is seen in.
    Features of one group share their noise; that of features without a group stays as it is.
    """
    n_components, column = linear.loadings.shape[1], rows.column
    filled = np.where(rows.seen[:, column], rows.features, 0.0)
    summed = _Summed(
        filled, rows.seen.astype(np.float64), column, np.flatnonzero(~rows.seen.all(axis=1))
    )
    weight = (rows.weight / rows.weight.mean())[:, None]
    weighted_seen, weighted = summed.seen * weight, filled * weight
    count = weighted_seen.sum(0)[column]
    squares = (weighted * filled).sum(0)
    ridge = 1e-8 * np.eye(n_components + 1)  # a feature that is never seen gets no loadings
    mean, loadings, noise = linear.mean, linear.loadings, linear.noise**2
    for _ in range(MAX_EM_STEPS):
        first, second = _posterior_moments(summed, mean, loadings, noise)
        products = (weighted_seen.T @ second).reshape(-1, n_components + 1, n_components + 1)
        targets = weighted.T @ first  # (P, K + 1)
        solution = np.linalg.solve((products + ridge)[column], targets[..., None])[..., 0]
        change = np.abs(solution[:, :-1] - loadings).max() / max(np.abs(loadings).max(), 1e-12)
        loadings, mean = solution[:, :-1], solution[:, -1]
        left = np.maximum(squares - (solution * targets).sum(1), 0.0)
        noise = groups.spread(groups.totals(left) / (groups.totals(count) + 1e-12), noise)
        noise = np.maximum(noise, floor**2)
        if change < SETTLED:
            break
    return LinearGaussian(mean, linear.scale, loadings, np.sqrt(noise))


def _posterior_moments(
    rows: _Summed, mean: Array, loadings: Array, noise: Array
) -> tuple[Array, Array]:
    """Return E[(z, 1)] (N, K + 1) and E[(z, 1) (z, 1)^T] (N, (K + 1)^2) given what is seen."""
    n_rows, n_components = len(rows.filled), loadings.shape[1]
    scaled = loadings / noise[:, None]

    def by_column(of_features: Array) -> Array:  # (P, Q) -> (D, Q)
        total = np.zeros((rows.seen.shape[1], of_features.shape[1]))
        np.add.at(total, rows.column, of_features)
        return total

    covariance = np.empty((n_rows, n_components, n_components))
    covariance[:] = np.linalg.inv(scaled.T @ loadings + np.eye(n_components))
    products = by_column((scaled[:, :, None] * loadings[:, None, :]).reshape(len(mean), -1))
    precision = (rows.seen[rows.partly] @ products).reshape(-1, n_components, n_components)
    covariance[rows.partly] = np.linalg.inv(precision + np.eye(n_components))
    evidence = rows.filled @ scaled - rows.seen @ by_column(mean[:, None] * scaled)
    loc = (covariance @ evidence[..., None])[..., 0]
    first = np.concatenate([loc, np.ones((n_rows, 1))], axis=1)
    second = first[:, :, None] * first[:, None, :]
    second[:, :-1, :-1] += covariance
    return first, second.reshape(n_rows, -1)
