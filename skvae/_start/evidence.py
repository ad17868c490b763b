"""How many components: the linear model's log-density of rows that it has not seen, over K."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._table.column import Array
from .linear_gaussian import LinearGaussian, Moments, column_moments

HELD_OUT = 5  # one row of so many
WILDEST = 0.01  # of these rows do not count: a few would decide alone
GROWTH = 1.25  # from one K to the next, beyond the first ones
PATIENCE = 3  # numbers of components in turn that gain nothing


class Evidence(NamedTuple):
    """What held-out rows say of numbers of components, in nats a row, up to a constant."""

    n_components: Array  # (M,)
    log_density: Array  # (M,)
    standard_error: Array  # (M,)  of the difference from the best

    @property
    def chosen(self) -> int:
        """The smallest number within a standard error of the best."""
        enough = self.log_density >= self.log_density.max() - self.standard_error
        return int(self.n_components[enough].min())


def evidence_of(
    rows: Array,
    weight: Array,
    fit: Callable[[Moments, int], LinearGaussian],
    *,
    seen: NDArray[np.bool_] | None = None,
    complete: Callable[[NDArray[np.bool_]], Moments] | None = None,
) -> Evidence | None:
    """Fit linear models to four fifths of the rows (N, P), and judge them by the rest.

    ``seen`` (N, P) says what of them is observed, None: all, and ``complete`` then gives moments of
    chosen rows as if nothing were missing. None where rows are too few.
    """
    held_out = np.arange(len(rows)) % HELD_OUT == HELD_OUT - 1
    if held_out.sum() < 2:
        return None
    if complete is None:
        moments = column_moments([(rows[~held_out], weight[~held_out])], rows.shape[1])
    else:
        moments = complete(~held_out)
    share, rows = weight[held_out], rows[held_out]
    seen = None if seen is None else seen[held_out]
    number: list[int] = []
    log_p: list[Array] = []
    best, of_best = -np.inf, 0
    for n_components in _candidates(min(rows.shape[1], int((~held_out).sum()))):
        number.append(n_components)
        log_p.append(log_densities(fit(moments, n_components), rows, seen))
        value = float(np.average(log_p[-1], weights=share))
        if value > best:
            best, of_best = value, n_components
        if sum(n > of_best for n in number) >= PATIENCE:
            break
    by_row = np.stack(log_p)  # (M, N)
    typical = np.median(by_row, axis=0)
    usual = typical >= np.quantile(typical, WILDEST)
    by_row, share = by_row[:, usual], share[usual] / share[usual].sum()
    mean = by_row @ share
    left = by_row - by_row[mean.argmax()]
    spread = (left - (left @ share)[:, None]) ** 2 @ share
    return Evidence(np.array(number), mean, np.sqrt(spread * (share**2).sum()))


def _candidates(most: int) -> Iterator[int]:
    n_components = 1
    while n_components < most:
        yield n_components
        n_components = max(n_components + 1, int(GROWTH * n_components))
    yield most


def log_densities(
    linear: LinearGaussian, rows: Array, seen: NDArray[np.bool_] | None = None
) -> Array:  # (N,)
    """Return log N(x; mean, W W^T + Psi) of what is seen, by the matrix I + W^T Psi^-1 W."""
    n_components = linear.loadings.shape[1]
    scaled = linear.loadings / linear.noise[:, None]
    left = (rows - linear.mean) / linear.noise
    log_noise, number = 2.0 * np.log(linear.noise), float(rows.shape[1])
    if seen is None:
        gram, total, count = (scaled.T @ scaled)[None], log_noise.sum(), number
    else:
        left, counted = np.where(seen, left, 0.0), seen.astype(np.float64)
        outer = (scaled[:, :, None] * scaled[:, None, :]).reshape(len(scaled), -1)
        gram = (counted @ outer).reshape(-1, n_components, n_components)
        total, count = counted @ log_noise, counted.sum(1)
    root = np.linalg.cholesky(np.eye(n_components) + gram)
    # Solved as systems of one matrix for all rows, or of one for each.
    projected = (left @ scaled).T[None] if seen is None else (left @ scaled)[:, :, None]
    known = np.linalg.solve(root, projected)
    explained = (known**2).sum(1).reshape(-1)
    log_det = total + 2.0 * np.log(np.diagonal(root, axis1=1, axis2=2)).sum(1)
    return -0.5 * ((left**2).sum(1) - explained + log_det + count * np.log(2.0 * np.pi))
