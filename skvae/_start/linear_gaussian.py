"""The maximum-likelihood linear-Gaussian model of the features, which a fit starts from.

NumPy and SciPy only. D here is the number of features: of the columns, or of the
levels of those that hold categories.

    x = W z + mean + noise * e,    z ~ N(0, I),  e ~ N(0, I)
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, eigh
from scipy.linalg.lapack import dsyevr, dsyevr_lwork
from scipy.optimize import minimize
from scipy.sparse.linalg import LinearOperator, svds

from .._parameters import MAX_COLUMNS_FOR_COVARIANCE
from .._table.column import Array

SMALLEST_SHARE = 1e-12  # of a column's variance, that can be noise
MAX_COLUMNS_FOR_ALL = 300  # eigenvalues in each step of factor analysis
MAX_FACTOR_WORK = 2**33  # of its eigenvalue problems, as multiplications
SPARE = 10  # eigenvectors that are followed beyond those that are wanted
LARGE = 15  # times as many columns as eigenvectors that are followed: from there it is faster
MOST_ROUNDS = 8  # of following before LAPACK is asked
FOLLOWED = 1e-7  # how far A v is from l v then, in sizes of the largest eigenvalue
SAME_VALUE = 1e-9  # relative: of a log-likelihood by them and by LAPACK's
FEW_ROWS = 1000  # whose products with each other are fewer than those of the columns
FIXED_NOISE = 0.25  # variance that stands for the noise of features that have none of their own
# (a column's total is 1): at 1 weak structure gets no loadings, at less what is mostly missing
# gets too many. Over 11 mixed tables 0.25 has the best codes, and about the best bound.


# (matrix, how many; None: all) -> the largest eigenvalues, rising, and their vectors
Eigenpairs = Callable[[Array, int | None], tuple[Array, Array]]


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


class LinearGaussian(NamedTuple):
    """x = loadings z + mean + noise e."""

    mean: Array  # (D,)
    scale: Array  # (D,)      the columns' marginal standard deviation
    loadings: Array  # (D, K)
    noise: Array  # (D,)      standard deviation of the noise


class Groups(NamedTuple):
    """Which features share a noise variance."""

    number: NDArray[np.intp]  # (D,)  of the group; -1: the noise is not the fit's to say

    @classmethod
    def of(cls, shared: bool, fixed: NDArray[np.bool_]) -> "Groups":
        """Make one group, or one for each feature, of those that are not ``fixed``."""
        own = np.zeros(len(fixed), dtype=np.intp) if shared else np.cumsum(~fixed) - 1
        return cls(np.where(fixed, -1, own))

    def among(self, features: NDArray[np.intp]) -> "Groups":
        """Return the groups of some of the features, numbered anew."""
        present, number = np.unique(self.number[features], return_inverse=True)
        return Groups(number - int(present[0] < 0))

    def totals(self, values: Array) -> Array:  # (D,) -> (G,)
        """Add up the features' values in each group."""
        n_groups = int(self.number.max()) + 1
        return np.bincount(self.number + 1, values, n_groups + 1)[1:].astype(np.float64)

    def mean(self, values: Array, otherwise: float) -> Array:  # (D,) -> (D,)
        """Give every feature the mean of its group."""
        count = np.maximum(self.totals(np.ones(len(values))), 1.0)
        return self.spread(self.totals(values) / count, np.full(len(values), otherwise))

    def spread(self, values: Array, otherwise: Array) -> Array:  # (G,), (D,) -> (D,)
        """Give every feature its group's value."""
        return np.where(self.number < 0, otherwise, np.append(values, 0.0)[self.number])


def column_moments(chunks: Iterable[tuple[Array, Array]], n_columns: int) -> Moments:
    """Accumulate the moments in one pass over float64 chunks of rows and their weights."""
    with_covariance = n_columns <= MAX_COLUMNS_FOR_COVARIANCE
    n_rows, total = 0, 0.0
    first = np.zeros(n_columns)
    second = np.zeros((n_columns, n_columns) if with_covariance else n_columns)
    for rows, weight in chunks:
        n_rows += len(rows)
        total += weight.sum()
        first += weight @ rows
        if with_covariance:
            alike = bool((weight == weight[0]).all())
            root = rows if alike else rows * np.sqrt(weight)[:, None]
            second += (weight[0] if alike else 1.0) * (root.T @ root)  # one triangle is computed
        else:
            second += np.einsum("n,nd,nd->d", weight, rows, rows)
    mean = first / total
    n_samples = max(total, n_rows)  # weights that sum to less are shares, not repetitions
    if not with_covariance:
        return Moments(mean, np.maximum(second / total - mean**2, 0.0), None, n_samples)
    covariance = second / total - np.outer(mean, mean)
    return Moments(mean, np.maximum(covariance.diagonal(), 0.0), covariance, n_samples)


def probabilistic_pca(
    moments: Moments,
    wide: LinearOperator | None,
    n_components: int,
    floor: float,
    noise_variance: float | None = None,
) -> LinearGaussian:
    """Fit one noise scale for all columns (Tipping & Bishop 1999, eq. 7 and 8).

    sigma^2 = mean of the discarded eigenvalues, W = U (Lambda - sigma^2)^1/2, on the unbiased
    covariance and over min(N, D) eigenvalues, as ``sklearn.decomposition.PCA``. ``wide`` are the
    centred rows over sqrt(N), needed where the covariance was not formed. ``noise_variance`` is
    sigma^2 where it is known.
    """
    n_columns = len(moments.mean)
    n_kept = min(n_components, n_columns)
    unbiased = moments.n_samples / max(moments.n_samples - 1.0, 1.0)
    eigenvalues, vectors = _leading_eigenpairs(moments, wide, n_kept)
    eigenvalues = np.maximum(eigenvalues, 0.0) * unbiased
    if noise_variance is None:
        n_discarded = min(moments.n_samples, n_columns) - n_kept
        discarded = max(moments.variance.sum() * unbiased - eigenvalues.sum(), 0.0)
        noise_variance = discarded / n_discarded if n_discarded > 0 else 0.0
    noise_variance = max(noise_variance, floor**2)
    loadings = np.zeros((n_columns, n_components))
    loadings[:, :n_kept] = vectors * np.sqrt(np.maximum(eigenvalues - noise_variance, 0.0))
    noise = np.full(n_columns, np.sqrt(noise_variance))
    return LinearGaussian(moments.mean, np.sqrt(moments.variance), loadings, noise)


def factor_analysis(
    moments: Moments, n_components: int, floor: float, groups: Groups
) -> LinearGaussian:
    """Fit a noise scale for each group of columns, by maximum likelihood.

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
    variance = np.where(groups.number < 0, FIXED_NOISE, floor**2)
    loadings = np.zeros((len(moments.mean), n_components))
    if len(varies):
        covariance = moments.covariance[np.ix_(varies, varies)]
        variance[varies] = _highest(covariance, n_components, floor, groups.among(varies))
        own, _ = _concentrated(covariance, n_components, variance[varies])
        loadings[varies, : own.shape[1]] = own
    return LinearGaussian(moments.mean, np.sqrt(moments.variance), loadings, np.sqrt(variance))


def _highest(covariance: Array, n_components: int, floor: float, groups: Groups) -> Array:  # (D,)
    """Return the noise's variances of the highest likelihood.

    Of many columns, the eigenvectors are followed from step to step, in a quarter of the time.
    What was followed is compared with LAPACK's where it ends: if an eigenvector was lost on the
    way, the climb begins again with LAPACK's.
    """
    if LARGE * (n_components + SPARE) <= len(covariance) > MAX_COLUMNS_FOR_ALL:
        followed = FollowedEigenpairs()
        variance = _climbed(covariance, n_components, floor, groups, followed)
        _, value = _concentrated(covariance, n_components, variance, followed)
        _, exact = _concentrated(covariance, n_components, variance)
        if abs(value - exact) <= SAME_VALUE * max(abs(exact), 1.0):
            return variance
    return _climbed(covariance, n_components, floor, groups, symmetric_eigenpairs)


def _climbed(
    covariance: Array, n_components: int, floor: float, groups: Groups, eigenpairs: Eigenpairs
) -> Array:  # (D,)
    """Climb from half of the columns' variances on."""
    own = covariance.diagonal()
    fixed = np.full(len(own), FIXED_NOISE)
    mean = groups.totals(own) / np.maximum(groups.totals(np.ones(len(own))), 1.0)
    if not len(mean):
        return fixed

    def objective(log_noise: Array) -> tuple[float, Array]:
        variance = groups.spread(np.exp(log_noise), fixed)
        loadings, value = _concentrated(covariance, n_components, variance, eigenpairs)
        # d/d log psi of -log p: half the diagonal of Psi Sigma^-1 (Sigma - S) Sigma^-1, where
        # Sigma^-1 (Sigma - S) Sigma^-1 has the diagonal of Psi^-1 (Sigma - S) Psi^-1.
        left = (loadings**2).sum(1) + variance - own
        return value, groups.totals(0.5 * left / variance)

    lowest = np.maximum(2.0 * np.log(floor), np.log(SMALLEST_SHARE * mean))
    steps = max(20, min(200, MAX_FACTOR_WORK // len(covariance) ** 3))
    found = minimize(
        objective,
        np.maximum(np.log(0.5 * mean), lowest),
        jac=True,
        method="L-BFGS-B",
        # At the maximum no noise is more than the variance of its columns.
        bounds=[(low, max(low, high)) for low, high in zip(lowest, np.log(mean), strict=True)],
        options={"maxiter": steps, "ftol": 0.0, "gtol": 1e-10, "maxcor": 50},
    )
    return groups.spread(np.exp(found.x), fixed)


def _concentrated(
    covariance: Array,
    n_components: int,
    noise_variance: Array,
    eigenpairs: Eigenpairs | None = None,
) -> tuple[Array, float]:
    """Return the best loadings (D, K) for a noise, and -log p of a row, less a constant.

    With the eigenvalues l of Psi^-1/2 S Psi^-1/2 they are Psi^1/2 U (l - 1)^1/2, for those above 1.
    """
    noise = np.sqrt(noise_variance)
    n_kept = min(n_components, len(covariance))
    whitened = covariance / (noise[:, None] * noise)
    # All eigenvalues keep more digits of the rest than their sum does; of many, that takes long.
    n_found = None if len(covariance) <= MAX_COLUMNS_FOR_ALL else n_kept
    values, vectors = (eigenpairs or symmetric_eigenpairs)(whitened, n_found)
    values, kept = values[::-1], vectors[:, ::-1][:, :n_kept]
    rest = values[n_kept:].sum() if n_found is None else whitened.trace() - values.sum()
    values = values[:n_kept]
    beyond = np.maximum(values, 1.0)
    log_p = np.log(beyond).sum() + np.minimum(values, 1.0).sum() + rest
    log_p += np.log(noise_variance).sum()
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


def _all_of(matrix: Array) -> tuple[Array, Array]:
    """Call LAPACK's driver as ``eigh`` does, which takes twice as long for few columns.

    Where the driver fails, there are no values.
    """
    if not len(matrix):
        return eigh(matrix)
    work, whole_work = _sizes_of_work(len(matrix))
    matrix = np.asarray_chkfinite(matrix)
    values, vectors, *_, info = dsyevr(matrix, lower=1, lwork=work, liwork=whole_work)
    return values[: 0 if info else None], vectors


@cache
def _sizes_of_work(size: int) -> tuple[int, int]:
    work, whole_work, _ = dsyevr_lwork(size, lower=1)
    return int(work), int(whole_work)


def symmetric_eigenpairs(matrix: Array, n_kept: int | None = None) -> tuple[Array, Array]:
    """Return the largest eigenvalues of a symmetric matrix, rising, and their vectors.

    LAPACK's fastest driver fails, or finds fewer, where eigenvalues repeat: a slower one follows,
    and then one for the matrix with a jitter of the size of rounding.
    """
    size = len(matrix)
    wanted = size if n_kept is None else n_kept
    subset = None if n_kept is None else (size - n_kept, size - 1)
    with suppress(LinAlgError):
        values, vectors = eigh(matrix, subset_by_index=subset) if subset else _all_of(matrix)
        if len(values) == wanted and np.isfinite(vectors).all():
            return values, vectors
    try:
        values, vectors = eigh(matrix, driver="evd")
    except LinAlgError:
        jitter = np.finfo(float).eps * np.abs(matrix).max() * np.arange(size)
        values, vectors = eigh(matrix + np.diag(jitter), driver="ev")
    return values[size - wanted :], vectors[:, size - wanted :]


class FollowedEigenpairs:
    """The largest eigenpairs of a matrix that changes a little from call to call.

    The first are LAPACK's. From the last ones, those of the next matrix are found in the space of
    them and of the matrix times them (Rayleigh-Ritz), again until nothing moves.
    """

    def __init__(self) -> None:
        self.vectors: Array = np.zeros((0, 0))

    def __call__(self, matrix: Array, n_kept: int | None) -> tuple[Array, Array]:
        assert n_kept is not None
        n_followed = n_kept + SPARE
        if self.vectors.shape == (len(matrix), n_followed):
            image: Array = matrix @ self.vectors
            for _ in range(MOST_ROUNDS):
                values, image = self._improve(matrix, image)
                lost = np.linalg.norm(image - self.vectors * values, axis=0)[-n_kept:].max()
                if lost <= FOLLOWED * values[-1]:
                    return values[-n_kept:], self.vectors[:, -n_kept:]
        values, self.vectors = symmetric_eigenpairs(matrix, n_followed)
        return values[-n_kept:], self.vectors[:, -n_kept:]

    def _improve(self, matrix: Array, image: Array) -> tuple[Array, Array]:  # (M,), (D, M)
        """Return the eigenvalues, and the matrix times the new vectors."""
        n_followed = self.vectors.shape[1]
        ahead = image / np.maximum(np.linalg.norm(image, axis=0), np.finfo(float).tiny)
        basis = np.linalg.qr(np.hstack([self.vectors, ahead]))[0]
        image = matrix @ basis
        values, mixture = symmetric_eigenpairs(basis.T @ image, n_followed)
        self.vectors = basis @ mixture
        return values, image @ mixture


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
    if n_found > 0 and wide.shape[0] <= FEW_ROWS:
        transposed = wide.rmatmat(np.eye(wide.shape[0]))  # (D, N)
        squares, rows = symmetric_eigenpairs(transposed.T @ transposed, n_found)
        values[:n_found] = np.maximum(squares[::-1], 0.0)
        known = values[:n_found] > np.finfo(float).eps * values[0]  # others have no direction
        norms = np.sqrt(np.where(known, values[:n_found], np.inf))
        vectors[:, :n_found] = transposed @ (rows[:, ::-1] / norms)
    elif n_found > 0:
        _, singular, rows = svds(wide, n_found, random_state=0)
        values[:n_found] = singular[::-1] ** 2
        vectors[:, :n_found] = rows[::-1].T
    return values, vectors
