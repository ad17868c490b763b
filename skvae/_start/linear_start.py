"""From a table to a module at its linear start: features, their moments, the fit to them."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse, vstack
from scipy.sparse.linalg import LinearOperator

from .._gaussian import normal_sample
from .._model.networks import CODE_LIMIT, tame
from .._model.vae import VAE
from .._parameters import NOISE_FLOOR
from .._table.column import Array
from .._table.columns import Columns
from .._table.statistics import robust_units, some_rows
from ..likelihoods._likelihood import LinearFit
from .linear_gaussian import (
    MAX_COLUMNS_FOR_COVARIANCE,
    LinearGaussian,
    Moments,
    ObservedRows,
    centred_rows,
    column_moments,
    diagonalise,
    em_for_missing,
    factor_analysis,
    probabilistic_pca,
)

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

    @property
    def fixed(self) -> Seen:
        """Those without Gaussian noise: their variance given z is not the linear fit's to say."""
        return self.columns.kinds.with_units("none")[self.column]

    @property
    def floor(self) -> float:
        """The smallest noise scale."""
        return NOISE_FLOOR * self.columns.rms

    def of(self, rows: Any) -> tuple[Array, Seen | None]:
        """Return features (N, P) of rows of a table, and which are observed (None: all)."""
        return self._features(*self.columns.encode(rows))

    def _features(self, x: Array, observed: Seen | None) -> tuple[Array, Seen | None]:
        features = self.vae.likelihood.features(torch.from_numpy(x).to(self.vae.device))
        seen = None if observed is None else observed[:, self.column]
        return features.numpy(force=True), seen

    def chunks(self) -> Iterator[tuple[Array, Seen | None, Array]]:
        for rows, x, observed in self.columns.chunks(self.table, self.vae.n_features):
            yield *self._features(x, observed), self.weight[rows]

    def filled(self) -> Iterator[tuple[Array, Array]]:
        """Yield them with the mean of what is observed in place of what is not."""
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


def start_linear(vae: VAE, columns: Columns, table: Any, weight: Array) -> None:
    """Fit the linear-Gaussian model of the table's features, and let ``vae`` begin there."""
    all_features = _Features(vae, columns, table, weight)
    moments = column_moments(all_features.filled(), vae.n_features)
    scale = _feature_scale(all_features, moments)
    sample, shares = some_rows(table, vae.n_features), some_rows(weight, vae.n_features)
    features, seen = all_features.of(sample)
    few = slice(None, EM_ROWS)
    some = ObservedRows(features[few] / scale, None if seen is None else seen[few], shares[few])
    linear = _fit(all_features, moments.in_units_of(scale), scale)
    linear = _fit_further(linear, some, all_features)
    x, observed = columns.encode(sample)
    if observed is not None and seen is not None:
        x, features = np.where(observed, x, np.nan), np.where(seen, features, np.nan)
    _assign(vae.feature_scale, scale)
    center, spread = robust_units(features, columns.scaling)
    _assign(vae.encoder.center, center)
    _assign(vae.encoder.spread, spread)
    _begin_at(vae, linear, torch.from_numpy(x), torch.from_numpy(shares))
    fixed = all_features.fixed
    if fixed.any():
        few = slice(None, min(EM_ROWS, max(GLM_CELLS // vae.n_features, 100)))
        _fit_decoder(vae, torch.from_numpy(fixed), *columns.encode(sample[few]), shares[few])
    few = slice(None, EM_ROWS)
    _start_prior(vae, *columns.encode(sample[few]), shares[few])


@torch.no_grad()
def _begin_at(vae: VAE, linear: LinearGaussian, x: torch.Tensor, weight: torch.Tensor) -> None:
    """Begin at a linear-Gaussian model of the features: the bound equals its evidence.

    ``linear`` is in units of the module's ``feature_scale``; ``x`` and ``weight`` are rows, nan
    where values are missing.
    """
    unit = vae.feature_scale.numpy(force=True)
    moments = (linear.mean, linear.scale, linear.noise)
    fit = LinearFit(*(torch.from_numpy(value * unit) for value in moments))
    start = vae.likelihood.from_linear_fit(x, weight, fit)
    variance = start.variance.numpy()
    loadings, information = diagonalise(linear.loadings * unit[:, None], variance)
    per_loading = start.weight_per_loading.numpy()[:, None]
    posterior_variance = 1.0 / (1.0 + information)
    projection = posterior_variance[:, None] * (loadings / variance[:, None]).T  # (K, P)
    mean = fit.mean.numpy()
    _assign(vae.decoder.linear.weight, loadings * per_loading)
    _assign(vae.decoder.linear.bias, start.bias.numpy())
    _assign(vae.decoder.unit, np.where(vae.decoder.tamed.cpu(), 1.0, np.sqrt(variance)))
    _assign(vae.encoder.linear.weight, projection)
    _assign(vae.encoder.linear.bias, -projection @ mean)
    _assign(vae.encoder.log_scale, 0.5 * np.log(posterior_variance))
    _assign(vae.encoder.mean, mean)
    _assign(vae.encoder.loadings, loadings)
    _assign(vae.encoder.variance, variance)
    _assign(vae.encoder.unit, np.sqrt(posterior_variance))


@torch.no_grad()
def _assign(parameter: torch.Tensor, value: Array) -> None:
    parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))


@torch.no_grad()
def _start_prior(vae: VAE, x: Array, observed: Seen | None, weight: Array) -> None:
    """Let a prior that learns begin where the codes of the linear start are."""
    if not list(vae.prior.parameters()):
        return
    seen = None if observed is None else torch.from_numpy(observed).to(vae.device)
    loc, _ = vae.encode(torch.from_numpy(x).to(vae.device), seen)
    values = vae.prior.now.from_codes(loc, torch.from_numpy(weight).to(vae.device))
    if all(bool(torch.isfinite(value).all()) for value in values.values()):
        vae.prior.assign(values)
        return
    warnings.warn(
        f"from_codes of the prior {vae.prior.specification!r} gave values that are not finite for "
        f"{len(loc)} rows, so it begins as its parameters() say. More rows may help.",
        stacklevel=2,
    )


def _feature_scale(features: _Features, moments: Moments) -> Array:
    """Return what a feature is divided by for the linear fit: a column's total variance is then 1.

    A category's indicators share theirs, so thousands of levels weigh no more than a number.
    Gaussian columns have been scaled before.
    """
    columns, column = features.columns, features.column
    if columns.scaling != "columns":
        return np.ones(len(column))
    total = np.sqrt(np.bincount(column, moments.variance, len(columns)))[column]
    scaled = columns.kinds.with_units("location_scale")
    return np.where(scaled[column] | (total < 1e-6), 1.0, total)


def _fit(features: _Features, moments: Moments, scale: Array) -> LinearGaussian:
    """Fit factor analysis where every column has Gaussian noise of its own, else pPCA."""
    vae = features.vae
    if vae.likelihood.noise == "per_column" and not features.fixed.any():
        return factor_analysis(moments, vae.n_components, features.floor)
    wide = None
    if moments.covariance is None:
        wide = _wide(features, scale, moments)
    return probabilistic_pca(moments, wide, vae.n_components, features.floor)


def _wide(features: _Features, scale: Array, moments: Moments) -> LinearOperator:
    """Gather all features, scaled and centred; kept sparse where that is smaller."""
    parts: list[Any] = []
    small = features.table.shape[0] * len(scale) < EXACT_CELLS
    for chunk, _ in features.filled():
        part = (chunk / scale).astype(np.float64 if small else np.float32)
        is_sparse = np.count_nonzero(part) < 0.3 * part.size
        parts.append(csr_matrix(part) if is_sparse else part)
    some_sparse = any(issparse(part) for part in parts)
    rows = vstack(parts, format="csr") if some_sparse else np.concatenate(parts)
    return centred_rows(rows, features.weight, moments.mean)


def _fit_further(linear: LinearGaussian, rows: ObservedRows, of: _Features) -> LinearGaussian:
    """Run EM where there is no closed form: values are missing, or some columns have own noise."""
    shared = of.vae.likelihood.noise == "shared"
    own_noise = not shared and bool(of.fixed.any())
    too_wide = rows.features.shape[1] > MAX_COLUMNS_FOR_COVARIANCE
    if too_wide or (rows.seen is None and not own_noise):
        return linear
    if shared:
        return em_for_missing(linear, rows, shared, of.floor)
    linear = linear._replace(noise=np.where(of.fixed, 1.0, linear.noise))
    return em_for_missing(linear, rows, shared, of.floor, of.fixed)


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
        z = normal_sample(loc, log_scale, torch.stack([eps, -eps]))
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
