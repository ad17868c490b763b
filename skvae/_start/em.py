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
    """The rows as each step of EM needs them: of a column, all features are seen, or none is.

    Rows that miss the same columns have one posterior covariance, so each is computed once.
    """

    filled: Array  # (N, P)  0 where it is missing
    weight: Array  # (N, 1)  1 in the mean
    column: NDArray[np.intp]  # (P,)
    patterns: Array  # (M, D)  which columns rows see: 1, or 0
    pattern: NDArray[np.intp]  # (N,)  of each row
    shares: Array  # (M,)  weight of all rows of a pattern
    partly: NDArray[np.intp]  # (L,)  the rows in which something is missing
    holed: NDArray[np.intp]  # (H,)  the columns in which something is
    lost: Array  # (L, H)  where it is, times the row's weight


def _summed(rows: ObservedRows) -> _Summed:
    weight = (rows.weight / rows.weight.mean())[:, None]
    key = np.packbits(rows.seen, axis=1)
    _, first, pattern = np.unique(key, axis=0, return_index=True, return_inverse=True)
    pattern = pattern.reshape(-1)
    partly = np.flatnonzero(~rows.seen.all(axis=1))
    holed = np.flatnonzero(~rows.seen.all(axis=0))
    return _Summed(
        filled=np.where(rows.seen[:, rows.column], rows.features, 0.0),
        weight=weight,
        column=rows.column,
        patterns=rows.seen[first].astype(np.float64),
        pattern=pattern,
        shares=np.bincount(pattern, weight[:, 0]).astype(np.float64),
        partly=partly,
        holed=holed,
        lost=~rows.seen[np.ix_(partly, holed)] * weight[partly],
    )


def em_for_missing(
    linear: LinearGaussian, rows: ObservedRows, groups: Groups, floor: float
) -> LinearGaussian:
    """Fit the linear-Gaussian model to what is observed, by EM from ``linear``.

    Ilin & Raiko 2010 (PCA with missing values), section 3: each row's posterior is based on the
    features (N, P) that are ``seen`` in it, each feature's loadings on the rows that it is seen in.
    Features of one group share their noise; that of features without a group stays as it is.
    """
    n_components, column = linear.loadings.shape[1], rows.column
    summed = _summed(rows)
    weighted = summed.filled * summed.weight
    count = (summed.shares @ summed.patterns)[column]
    squares = np.einsum("np,np->p", weighted, summed.filled)
    ridge = 1e-8 * np.eye(n_components + 1)  # a feature that is never seen gets no loadings
    mean, loadings, noise = linear.mean, linear.loadings, linear.noise**2
    for _ in range(MAX_EM_STEPS):
        first, products = _posterior_moments(summed, mean, loadings, noise)
        targets = weighted.T @ first  # (P, K + 1)
        inverse = np.linalg.inv(products + ridge)  # of a column, for all its features
        solution = (inverse[column] @ targets[..., None])[..., 0]
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
    """Return E[(z, 1)] (N, K + 1) given what is seen, and E[(z, 1) (z, 1)^T] (D, K + 1, K + 1).

    The latter are sums over the rows in which a column is seen: over all, less those in which not.
    """
    n_rows, n_components = len(rows.filled), loadings.shape[1]
    scaled = loadings / noise[:, None]

    def by_column(of_features: Array) -> Array:  # (P, Q) -> (D, Q)
        total = np.zeros((rows.patterns.shape[1], of_features.shape[1]))
        np.add.at(total, rows.column, of_features)
        return total

    products = by_column((scaled[:, :, None] * loadings[:, None, :]).reshape(len(mean), -1))
    precision = (rows.patterns @ products).reshape(-1, n_components, n_components)
    covariance = np.linalg.inv(precision + np.eye(n_components))  # (M, K, K)
    unseen_mean = rows.patterns @ by_column(mean[:, None] * scaled)
    evidence = rows.filled @ scaled - unseen_mean[rows.pattern]
    whole = np.linalg.inv(products.sum(0).reshape(2 * [n_components]) + np.eye(n_components))
    first = np.ones((n_rows, n_components + 1))
    first[:, :-1] = evidence @ whole
    own = covariance[rows.pattern[rows.partly]]
    first[rows.partly, :-1] = (own @ evidence[rows.partly, :, None])[..., 0]
    # Sums over all rows, less those over the rows that miss a column.
    spread = np.zeros((len(covariance), n_components + 1, n_components + 1))
    spread[:, :-1, :-1] = covariance
    spread = spread.reshape(len(covariance), -1)
    sums = np.empty((rows.patterns.shape[1], spread.shape[1]))
    sums[:] = ((first * rows.weight).T @ first).reshape(-1) + rows.shares @ spread
    some = first[rows.partly]
    outer = (some[:, :, None] * some[:, None, :]).reshape(len(some), -1)
    outer += spread[rows.pattern[rows.partly]]
    sums[rows.holed] -= rows.lost.T @ outer
    return first, sums.reshape(-1, n_components + 1, n_components + 1)
