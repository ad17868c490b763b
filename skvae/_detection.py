"""How a detector scores rows: by their density, with what it expects of cells that are missing."""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from ._health import warn_about_estimates
from ._table.column import Array, Unknown
from ._table.columns import Columns
from ._table.duplicates import row_keys
from ._table.frames import take_rows
from ._table.statistics import row_chunks
from ._table.unseen import with_cost
from ._transformer import VAETransformer


class RowScore(NamedTuple):
    """A score in nats, of rows in original units: higher is more normal."""

    method: str
    kernels: tuple[NDArray, ...] | None = None  # of the density of all rows
    expected: Array | None = None  # (D,)  nats of a missing cell; None: it says nothing
    known: tuple[NDArray, Array] | None = None  # rows of fit, by rising keys, and their scores
    repeats: bool = False  # rows are equal by chance: copies of a row are others
    ambiguous: bool = False  # there are so many copies that a row like one of fit may be another
    kernel_keys: NDArray | None = None  # (M,)  of the rows that kernels stand at

    def with_kernels(self, vae: VAETransformer, X: Any, weight: Array) -> "RowScore":
        """Place kernels at rows X, each of which counts so often: at a part of very many."""
        import torch

        from ._inference.aggregate import aggregate_of, n_kernels

        model = vae.model_
        module, columns = model.module(vae.device), model.columns
        chosen = np.arange(n_kernels(X.shape[0], module.n_features))  # rows are in a random order
        table = model.read(take_rows(X, chosen))
        x, observed = columns.encode(table)
        seen = None if observed is None else torch.from_numpy(observed).to(module.device)
        arrays = (x, columns.varies, weight[chosen].astype(np.float64))
        cells, varies, count = (torch.from_numpy(v).to(module.device) for v in arrays)
        aggregate = aggregate_of(module, cells, seen, varies, count, repeats=self.repeats)
        parts = tuple(part.numpy(force=True) for part in aggregate)
        return self._replace(kernels=parts, kernel_keys=row_keys(table))

    def with_expectations(self, vae: VAETransformer, X: Any, weight: Array) -> "RowScore":
        """Find out what a cell adds to the score of typical rows X, given the others of its row.

        That is what the score loses without it: about minus the cell's conditional entropy. A
        missing cell then makes a row neither odd nor typical, whatever the unit of its column.
        """
        if self.method == "kl":
            return self
        columns = vae.model_.columns
        expected = least_expected(columns)
        if columns.may_miss.any() and not issparse(X):
            self._learn(expected, vae, X, weight)
        return self._replace(expected=expected)

    def _learn(self, expected: Array, vae: VAETransformer, X: Any, weight: Array) -> None:
        """Put what the scores of rows X lose without a cell in place, for columns that may miss."""
        fast = self._replace(method="elbo") if self.method == "log_likelihood" else self
        table = vae.model_.read(X)
        may_miss = vae.model_.columns.may_miss
        whole = fast.density(vae, table, of_fit=True)
        for column in np.flatnonzero(may_miss & ~np.isnan(table).all(axis=0)).tolist():
            rows = ~np.isnan(table[:, column])
            without = fast.density(vae, table[rows], column, of_fit=True)
            finite = np.isfinite(whole[rows]) & np.isfinite(without)  # the wildest have no density
            lost = whole[rows][finite] - without[finite]
            if finite.all():
                expected[column] = np.average(lost, weights=weight[rows])
            elif finite.any():
                expected[column] = np.median(lost)

    def density(
        self, vae: VAETransformer, table: Any, hidden: int | None = None, *, of_fit: bool = False
    ) -> Array:
        """Score a table over what is observed of its rows, but for a column that is hidden."""
        model = vae.model_
        if self.kernels is not None:
            left_out = 1.0 if self.repeats else math.inf
            left_out = 0.0 if self.ambiguous and not of_fit else left_out
            return _density(vae, table, self.kernels, hidden, left_out)
        if hidden is not None:
            table = table.copy()
            table[:, hidden] = np.nan
        n_samples = vae.n_importance_samples
        scores, diagnostics = model.score(table, self.method, n_samples, device=vae.device)
        warn_about_estimates(diagnostics, refine=True)
        return scores

    def knowing(self, table: Any, scores: Array) -> "RowScore":
        """Keep the scores of rows of fit by models that were fitted without them."""
        keys, first = np.unique(row_keys(table), return_index=True)
        return self._replace(known=(keys, scores[first]))

    @property
    def known_at_kernels(self) -> Array | None:  # (M,)
        """Scores of the rows that kernels stand at, as of rows of fit; None: as of any rows."""
        if self.known is None or self.ambiguous or self.kernel_keys is None:
            return None
        nowhere = np.full(len(self.kernel_keys), np.nan)
        return _with_known(nowhere, self.kernel_keys, *self.known)

    def of(
        self, vae: VAETransformer, X: Any, unknown: Unknown = "ignore", *, of_fit: bool = False
    ) -> Array:
        """Score validated rows. A level that no typical row has is no error in a row of fit."""
        model = vae.model_
        table, unseen = model.read_all(X, unknown)
        scores = self.density(vae, table, of_fit=of_fit)
        if self.method != "kl":
            if self.expected is not None:
                scores = scores + expected_of_missing(table, self.expected)
                new = np.isnan(unseen.log_share)  # nothing was to be expected of unknown values
                np.subtract.at(scores, unseen.row[new], self.expected[unseen.column[new]])
            scores = with_cost(scores, unseen, model.columns.log_unseen)
        if self.known is None or (self.ambiguous and not of_fit):
            return scores
        return _with_known(scores, row_keys(table), *self.known)


def _density(
    vae: VAETransformer,
    table: Any,
    kernels: tuple[NDArray, ...],
    hidden: int | None,
    left_out: float,
) -> Array:  # (N,)
    """Return rows' density under kernels, nats, original units, of all but a hidden column."""
    from ._fitted import shared
    from ._inference.aggregate import Aggregate, aggregate_log_density
    from ._inference.scores import in_original_units

    model, module = vae.model_, vae.model_.module(vae.device)
    aggregate = Aggregate(*(shared(part).to(module.device) for part in kernels))
    density = partial(
        aggregate_log_density, module, aggregate=aggregate, hidden=hidden, left_out=left_out
    )
    n_numbers = max(len(aggregate.width), module.n_features * module.n_components)
    per_row = -(-n_numbers // module.n_components)
    function = in_original_units(density, model.columns, hidden)
    return model.by_chunks(function, table, module, per_row)[0]


def _with_known(scores: Array, keys: NDArray, known: NDArray, known_scores: Array) -> Array:
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[place] == keys, known_scores[place], scores)


def least_expected(columns: Columns) -> Array:  # (D,)
    """Return the least that a cell can be expected to add to a score, in nats.

    Minus the entropy of a normal distribution, or of levels that are all as frequent.
    """
    normal = columns.log_jacobian - 0.5 * math.log(2.0 * math.pi * math.e)
    uniform = -np.log(np.maximum(columns.kinds.n_levels, 2))
    return np.where(columns.kinds.with_units("none"), uniform, normal)


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
