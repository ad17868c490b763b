"""The features of a table's rows, chunk by chunk, and their moments."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse

from .._model.vae import VAE
from .._parameters import MAX_COLUMNS_FOR_COVARIANCE, NOISE_FLOOR
from .._table.column import Array
from .._table.columns import Columns
from .._table.statistics import ColumnMoments, some_rows
from ..likelihoods._likelihood import Likelihood
from .linear_gaussian import Groups, Moments, column_moments

Seen = NDArray[np.bool_]

FAR = 1e100  # variance of a feature, beyond which its cells may be clipped


class Counted(NamedTuple):
    """A table whose rows count."""

    table: Any
    weight: Array  # (N,)  how often each does
    copies: Array  # (N,)  how many rows each stands for, where weights are no numbers of rows
    moments: ColumnMoments | None = None  # of its columns, where they are known


@dataclass(frozen=True)
class Features:
    """The features of a table's rows, chunk by chunk, in float64."""

    vae: VAE
    columns: Columns
    table: Any
    weight: Array
    copies: Array  # (N,)  how many rows each stands for
    known: ColumnMoments | None = None  # of the table's columns

    @property
    def column(self) -> NDArray[np.intp]:
        return self.vae.encoder.column.numpy(force=True)

    @property
    def fixed(self) -> Seen:
        """Those without Gaussian noise: their variance given z is not the linear fit's to say."""
        return self.columns.kinds.with_units("none")[self.column]

    @property
    def groups(self) -> Groups:
        """Those that share their noise."""
        return Groups.of(self.vae.likelihood.noise == "shared", self.fixed)

    @property
    def floor(self) -> float:
        """The smallest noise scale."""
        return NOISE_FLOOR * self.columns.rms

    def sample(self) -> tuple[Array, Array]:
        """Return some rows of the table, and their weights."""
        return self.some_of(self.table), self.some_of(self.weight).copy()

    def some_of(self, rows: Any) -> Array:
        return some_rows(rows, self.vae.n_features)

    def of(self, rows: Any) -> tuple[Array, Seen | None]:
        """Return features (N, P) of rows of a table, and which are observed (None: all)."""
        return self.of_cells(*self.columns.encode(rows))

    def of_cells(self, x: Array, observed: Seen | None) -> tuple[Array, Seen | None]:
        """Return the same of encoded rows."""
        features = self.vae.likelihood.features(torch.from_numpy(x).to(self.vae.device))
        seen = None if observed is None else observed[:, self.column]
        return features.numpy(force=True), seen

    def chunks(self) -> Iterator[tuple[Array, Seen | None, Array]]:
        for rows, x, observed in self.columns.chunks(self.table, self.vae.n_features):
            yield *self.of_cells(x, observed), self.weight[rows]

    def filled(self) -> Iterator[tuple[Array, Array]]:
        """Yield them with the mean of what is observed in place of what is not."""
        mean = self.observed_moments()[0] if self.columns.may_miss.any() else np.zeros(1)
        for features, seen, weight in self.chunks():
            yield features if seen is None else np.where(seen, features, mean), weight

    def moments(self) -> Moments:
        """Return the moments of the features; those of numbers follow from their columns'."""
        columns, known = self.columns, self.known
        if known is None or not self._are_known(known):
            return column_moments(self.filled(), self.vae.n_features)
        # The weights of a row that count less than one are shares, not repetitions.
        n_samples = max(float(self.weight.sum()), len(self.weight))
        own = self.column  # likelihoods have their columns side by side: another order
        mean, variance = (known.mean - columns.shift)[own], known.variance[own]
        covariance = None if known.covariance is None else known.covariance[np.ix_(own, own)]
        raw = Moments(mean, variance, covariance, n_samples)
        return raw.in_units_of(columns.scale[own])

    def stored(self) -> Any:  # (N, P) CSR
        """Return sparse features of which only those of stored cells are not 0, else None."""
        known = self.known
        if not issparse(self.table) or not self.columns.keeps_zeros:
            return None
        if known is None or not self._are_cells(known):
            return None
        return self.table[:, self.column].multiply(1.0 / self.columns.scale[self.column]).tocsr()

    def _are_known(self, known: ColumnMoments) -> bool:
        """Whether what was measured of the columns is all that is needed of the features."""
        is_wide = self.vae.n_features > MAX_COLUMNS_FOR_COVARIANCE
        enough = known.covariance is not None or (is_wide and not known.n_missing.any())
        return enough and self._are_cells(known)

    def _are_cells(self, known: ColumnMoments) -> bool:
        """Whether the features are the cells themselves, moved and scaled and no more."""
        parts = [type(part.specification) for part in self.vae.likelihood.parts]
        as_they_are = all(kind.features is Likelihood.features for kind in parts)
        with np.errstate(over="ignore"):
            far = bool((known.variance / self.columns.scale**2).max() > FAR)
        return as_they_are and not self.columns.shapes and not far

    def observed_moments(self) -> tuple[Array, Array]:
        """Return the mean and the variance of what is observed."""
        first, second = np.zeros(self.vae.n_features), np.zeros(self.vae.n_features)
        count = np.full(self.vae.n_features, 1e-300)
        for features, seen, weight in self.chunks():
            counted = weight[:, None] * (np.ones(features.shape) if seen is None else seen)
            first += (features * counted).sum(0)
            second += (features**2 * counted).sum(0)
            count += counted.sum(0)
        mean = first / count
        return mean, np.maximum(second / count - mean**2, 0.0)
