"""From a table to a module at its linear start: features, their moments, the fit to them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse, vstack
from scipy.sparse.linalg import LinearOperator

from ._columns import Array, Columns, robust_units, row_chunks, some_rows
from ._linear_start import (
    MAX_COLUMNS_FOR_COVARIANCE,
    LinearGaussian,
    Moments,
    centred_rows,
    column_moments,
    em_for_missing,
    factor_analysis,
    probabilistic_pca,
)
from ._networks import CODE_LIMIT, tame
from ._parameters import NOISE_FLOOR
from ._vae import VAE
from .likelihoods import Support

Seen = NDArray[np.bool_]
EM_ROWS = 5000
GLM_STEPS = 30
GLM_CELLS = 2**21  # rows times features that the decoder's start is fitted to
EXACT_CELLS = 2**26  # of wide features, up to which they are kept in float64: half a GB


@dataclass(frozen=True)
class _Features:
    """The features of a table's rows, chunk by chunk, in float64."""

    vae: VAE
    columns: Columns
    table: Any
    weight: Array

    @property
    def column(self) -> NDArray[np.intp]:
        return self.vae.encoder.column.numpy(force=True)

    def of(self, rows: Any) -> tuple[Array, Seen | None]:
        """Features (N, P) of rows of a table, and which are observed (None: all)."""
        x, observed = self.columns.encode(rows)
        features = self.vae.likelihood.features(torch.from_numpy(x).to(self.vae.device))
        seen = None if observed is None else observed[:, self.column]
        return features.numpy(force=True), seen

    def chunks(self) -> Iterator[tuple[Array, Seen | None, Array]]:
        for chunk in row_chunks(self.table.shape[0], self.vae.n_features):
            yield *self.of(self.table[chunk]), self.weight[chunk]

    def filled(self) -> Iterator[tuple[Array, Array]]:
        """With the mean of what is observed in place of what is not."""
        mean = self._observed_means() if self.columns.may_miss.any() else np.zeros(1)
        for features, seen, weight in self.chunks():
            yield features if seen is None else np.where(seen, features, mean), weight

    def _observed_means(self) -> Array:
        total = np.zeros(self.vae.n_features)
        count = np.full(self.vae.n_features, 1e-300)
        for features, seen, weight in self.chunks():
            counted = weight[:, None] * (np.ones(features.shape) if seen is None else seen)
            total += (features * counted).sum(0)
            count += counted.sum(0)
        return total / count


def start_linear(
    vae: VAE, columns: Columns, supports: Sequence[Support], table: Any, weight: Array
) -> None:
    """Fit the linear-Gaussian model of the table's features, and let ``vae`` begin there."""
    all_features = _Features(vae, columns, table, weight)
    moments = column_moments(all_features.filled(), vae.n_features)
    scale = _feature_scale(columns, supports, all_features.column, moments)
    sample, shares = some_rows(table, vae.n_features), some_rows(weight, vae.n_features)
    features, seen = all_features.of(sample)
    linear = _fit(all_features, supports, moments.in_units_of(scale), scale)
    few = slice(None, EM_ROWS)
    linear = _fit_further(
        linear,
        features[few] / scale,
        None if seen is None else seen[few],
        shares[few],
        _fixed(all_features, supports),
        vae.likelihood.noise == "shared",
        NOISE_FLOOR * columns.rms,
    )
    x, observed = columns.encode(sample)
    if observed is not None and seen is not None:
        x, features = np.where(observed, x, np.nan), np.where(seen, features, np.nan)
    robust = robust_units(features, columns.scaling)
    vae.start_from(linear, scale, robust, torch.from_numpy(x), torch.from_numpy(shares))
    fixed = torch.from_numpy(_fixed(all_features, supports))
    if fixed.any():
        few = slice(None, min(EM_ROWS, max(GLM_CELLS // vae.n_features, 100)))
        _fit_decoder(vae, fixed, *columns.encode(sample[few]), shares[few])


def _fixed(features: _Features, supports: Sequence[Support]) -> Seen:
    """Features without Gaussian noise: their variance given z is not the linear fit's to say."""
    without = np.array([support.units == "none" for support in supports])
    return without[features.column]


def _feature_scale(
    columns: Columns,
    supports: Sequence[Support],
    column: NDArray[np.intp],
    moments: Moments,
) -> Array:
    """What a feature is divided by for the linear fit: each column gets a total variance of 1.

    A category's indicators share theirs, so thousands of levels weigh no more than a number.
    Gaussian columns have been scaled before.
    """
    if columns.scaling != "columns":
        return np.ones(len(column))
    total = np.sqrt(np.bincount(column, moments.variance, len(supports)))[column]
    scaled = np.array([support.units == "location_scale" for support in supports])
    return np.where(scaled[column] | (total < 1e-6), 1.0, total)


def _fit(
    features: _Features, supports: Sequence[Support], moments: Moments, scale: Array
) -> LinearGaussian:
    """Factor analysis where every column has Gaussian noise of its own, else pPCA."""
    vae, floor = features.vae, NOISE_FLOOR * features.columns.rms
    if vae.likelihood.noise == "per_column" and not _fixed(features, supports).any():
        return factor_analysis(moments, vae.n_components, floor)
    wide = None
    if moments.covariance is None:
        wide = _wide(features, scale, moments)
    return probabilistic_pca(moments, wide, vae.n_components, floor)


def _wide(features: _Features, scale: Array, moments: Moments) -> LinearOperator:
    """All features, scaled and centred; kept sparse where that is smaller."""
    parts: list[Any] = []
    small = features.table.shape[0] * len(scale) < EXACT_CELLS
    for chunk, _ in features.filled():
        part = (chunk / scale).astype(np.float64 if small else np.float32)
        is_sparse = np.count_nonzero(part) < 0.3 * part.size
        parts.append(csr_matrix(part) if is_sparse else part)
    some_sparse = any(issparse(part) for part in parts)
    rows = vstack(parts, format="csr") if some_sparse else np.concatenate(parts)
    return centred_rows(rows, features.weight, moments.mean)


def _fit_further(
    linear: LinearGaussian,
    features: Array,
    seen: Seen | None,
    weight: Array,
    fixed: Seen,
    shared: bool,
    floor: float,
) -> LinearGaussian:
    """EM where there is no closed form: values are missing, or only some columns have own noise."""
    own_noise = not shared and bool(fixed.any())
    too_wide = features.shape[1] > MAX_COLUMNS_FOR_COVARIANCE
    if too_wide or (seen is None and not own_noise):
        return linear
    if seen is None:
        seen = np.ones(features.shape, dtype=bool)
    if shared:
        return em_for_missing(linear, features, seen, weight, True, floor)
    linear = linear._replace(noise=np.where(fixed, 1.0, linear.noise))
    return em_for_missing(linear, features, seen, weight, False, floor, fixed)


def _fit_decoder(
    vae: VAE, free: torch.Tensor, x: Array, observed: Seen | None, weight: Array
) -> None:
    """Fit the ``free`` features' linear decoders, as generalised linear models of the codes.

    One Newton step from the marginal overshoots for rare levels. The problem is convex; N(0, 1)
    priors on the weights (z has unit variance), and on how far a bias moves, keep levels finite
    that are separated or that none of these rows has.
    """
    cells = torch.from_numpy(x).to(vae.device)
    seen = None if observed is None else torch.from_numpy(observed).to(vae.device)
    share = torch.from_numpy(weight / weight.sum()).to(vae.device)
    with torch.no_grad():
        loc, log_scale = vae.encode(cells, seen)
        eps = torch.randn(loc.shape, generator=torch.Generator().manual_seed(0), dtype=loc.dtype)
        eps = eps.to(loc.device)
        z = loc + torch.exp(log_scale) * torch.stack([eps, -eps])
        z = tame(z, CODE_LIMIT)  # as the decoder does
    layer = vae.decoder.linear
    start_weight, start_bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    free = free.to(vae.device)
    is_free = free[:, None].to(layer.weight.dtype)
    delta = torch.zeros((len(free), vae.n_components + 1), dtype=loc.dtype, device=loc.device)
    delta.requires_grad_()
    optimizer = torch.optim.LBFGS([delta], max_iter=GLM_STEPS, line_search_fn="strong_wolfe")

    def penalised() -> torch.Tensor:
        w = start_weight + is_free * delta[:, :-1]
        b = start_bias + is_free[:, 0] * delta[:, -1]
        log_prob = vae.likelihood.log_prob(cells, z @ w.T + b)
        log_prob = log_prob if seen is None else torch.where(seen, log_prob, 0.0)
        penalty = (is_free * w).square().sum() + (is_free[:, 0] * delta[:, -1]).square().sum()
        penalty = 0.5 * penalty / len(cells)
        return penalty - (log_prob.sum(-1).mean(0) * share).sum()

    def closure() -> float:
        optimizer.zero_grad()
        loss = penalised()
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    with torch.no_grad():
        if bool(torch.isfinite(delta).all()):
            layer.weight.add_(is_free * delta[:, :-1])
            layer.bias.add_(is_free[:, 0] * delta[:, -1])
