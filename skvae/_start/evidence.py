"""How many components: the linear model's log-density of rows that it has not seen, over K."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve

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
    rows: Array, weight: Array, fit: Callable[[Moments, int], LinearGaussian]
) -> Evidence | None:
    """Fit linear models to four fifths of the rows (N, P), and judge them by the rest.

    None where rows are too few for that.
    """
    held_out = np.arange(len(rows)) % HELD_OUT == HELD_OUT - 1
    if held_out.sum() < 2:
        return None
    moments = column_moments([(rows[~held_out], weight[~held_out])], rows.shape[1])
    share, rows = weight[held_out], rows[held_out]
    number: list[int] = []
    log_p: list[Array] = []
    best, of_best = -np.inf, 0
    for n_components in _candidates(min(rows.shape[1], int((~held_out).sum()))):
        number.append(n_components)
        log_p.append(log_densities(fit(moments, n_components), rows))
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


def log_densities(linear: LinearGaussian, rows: Array) -> Array:  # (N,)
    """Return log N(x; mean, W W^T + Psi) in nats, by the matrix I + W^T Psi^-1 W."""
    scaled = linear.loadings / linear.noise[:, None]
    left = (rows - linear.mean) / linear.noise
    inner = cho_factor(np.eye(scaled.shape[1]) + scaled.T @ scaled, lower=True)
    projected = left @ scaled
    square = (left**2).sum(1) - (projected * cho_solve(inner, projected.T).T).sum(1)
    log_det = 2.0 * (np.log(linear.noise).sum() + np.log(inner[0].diagonal()).sum())
    return -0.5 * (square + log_det + rows.shape[1] * np.log(2.0 * np.pi))
