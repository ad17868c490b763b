"""How a detector scores rows: by their density, with what it expects of cells that are missing."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from ._health import warn_about_estimates
from ._table.column import Array, Unknown
from ._table.columns import Columns
from ._table.frames import take_rows
from ._table.statistics import row_chunks
from ._table.unseen import with_cost
from ._transformer import VAETransformer

WITH_LEVELS = ("categorical", "ordinal", "bernoulli")


class RowScore(NamedTuple):
    """A score in nats, of rows in original units: higher is more normal."""

    method: str
    kernels: tuple[NDArray, ...] | None = None  # of the aggregated posterior
    expected: Array | None = None  # (D,)  nats of a missing cell; None: it says nothing

    def with_kernels(
        self,
        vae: VAETransformer,
        X: Any,
        fitted_rows: NDArray[np.intp],
        support_fraction: float,
        generator: np.random.Generator,
    ) -> "RowScore":
        """Place kernels at some fitted rows, typical or not: the latter as they are rebuilt."""
        from ._inference.aggregate import n_kernels

        n_rows, model = len(fitted_rows), vae.model_
        n_features = model.module(vae.device).n_features
        chosen = np.sort(generator.permutation(n_rows)[: n_kernels(n_rows, n_features)])
        table = model.read(take_rows(X, fitted_rows[chosen]))
        return self._replace(kernels=model.kernels(table, support_fraction, vae.device))

    def with_expectations(self, vae: VAETransformer, X: Any) -> "RowScore":
        """Find out what a cell adds to the score of typical rows X, given the others of its row.

        That is what the score loses without it: about minus the cell's conditional entropy. A
        missing cell then makes a row neither odd nor typical, whatever the unit of its column.
        """
        if self.method == "kl":
            return self
        columns = vae.model_.columns
        expected = least_expected(columns)
        if columns.may_miss.any() and not issparse(X):
            self._learn(expected, columns.may_miss, vae, X)
        return self._replace(expected=expected)

    def _learn(
        self, expected: Array, may_miss: NDArray[np.bool_], vae: VAETransformer, X: Any
    ) -> None:
        """Put what the scores of rows X lose without a cell in place, for columns that may miss."""
        fast = self._replace(method="elbo") if self.method == "log_likelihood" else self
        table = vae.model_.read(X)
        whole = fast.density(vae, table)
        for column in np.flatnonzero(may_miss & ~np.isnan(table).all(axis=0)).tolist():
            rows = ~np.isnan(table[:, column])
            lost = whole[rows] - fast.density(vae, table[rows], column)
            expected[column] = lost.mean() if np.isfinite(lost).all() else np.median(lost)

    def density(self, vae: VAETransformer, table: Any, hidden: int | None = None) -> Array:
        """Score a table over what is observed of its rows, but for a column that is hidden."""
        model = vae.model_
        if self.kernels is not None:
            return model.aggregate_score(table, self.kernels, vae.device, hidden)
        if hidden is not None:
            table = table.copy()
            table[:, hidden] = np.nan
        n_samples = vae.n_importance_samples
        scores, diagnostics = model.score(table, self.method, n_samples, device=vae.device)
        warn_about_estimates(diagnostics, refine=True)
        return scores

    def of(self, vae: VAETransformer, X: Any, unknown: Unknown = "ignore") -> Array:
        """Score validated rows. A level that no typical row has is no error in a row of fit."""
        model = vae.model_
        table, unseen = model.read_all(X, unknown)
        scores = self.density(vae, table)
        if self.method == "kl":
            return scores
        if self.expected is not None:
            scores = scores + expected_of_missing(table, self.expected)
            new = np.isnan(unseen.log_share)  # nothing was to be expected of unknown values
            np.subtract.at(scores, unseen.row[new], self.expected[unseen.column[new]])
        return with_cost(scores, unseen, model.columns.log_unseen)


def least_expected(columns: Columns) -> Array:  # (D,)
    """Return the least that a cell can be expected to add to a score, in nats.

    Minus the entropy of a normal distribution, or of levels that are all as frequent.
    """
    normal = columns.log_jacobian - 0.5 * np.log(2.0 * np.pi * np.e)
    uniform = -np.log(np.maximum(columns.kinds.n_levels, 2))
    return np.where(columns.kinds.with_units("none"), uniform, normal)


def log_share_of_levels(table: Any, columns: Columns) -> Array:  # (N,)
    """Add up the log-shares of each row's levels, and of its zeros and ones, in their columns."""
    total = np.zeros(table.shape[0])
    for column in np.flatnonzero([name in WITH_LEVELS for name in columns.kinds.names]):
        own = table[:, [column]]
        cells = (own.toarray() if issparse(own) else own)[:, 0].astype(np.float64)
        seen = ~np.isnan(cells)
        _, place, count = np.unique(cells[seen], return_inverse=True, return_counts=True)
        total[seen] += np.log(count / count.sum())[place]
    return total


def expected_of_missing(table: Any, expected: Array) -> Array:  # (N,)
    """Add up what is expected of each row's missing cells."""
    if issparse(table):
        missing = table.copy()
        missing.data = np.isnan(table.data).astype(np.float64)
        return np.asarray(missing @ expected)
    total = np.zeros(table.shape[0])
    if table.dtype.kind == "f":
        for rows in row_chunks(*table.shape):
            missing = np.isnan(table[rows])
            if missing.any():
                total[rows] = missing @ expected
    return total
