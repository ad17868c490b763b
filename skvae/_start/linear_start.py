"""From a table to a module at its linear start: features, their moments, the fit to them."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix, issparse, vstack
from scipy.sparse.linalg import LinearOperator

from .._advice import warn
from .._gaussian import normal_sample, standard_normal_like
from .._model.bounds import importance_weighted_bound
from .._model.vae import VAE
from .._parameters import MAX_COLUMNS_FOR_COVARIANCE
from .._specification import copied
from .._table.column import Array
from .._table.columns import Columns
from .._table.statistics import robust_units, row_chunks
from ..likelihoods._likelihood import LinearFit
from ..priors import StandardNormal
from .em import ObservedRows, em_for_missing
from .evidence import Evidence, evidence_of
from .features import Counted, Features, Seen
from .glm import fit_decoder, glm_rows
from .linear_gaussian import (
    FIXED_NOISE,
    LinearGaussian,
    Moments,
    centred_rows,
    column_moments,
    diagonalise,
    factor_analysis,
    probabilistic_pca,
)
from .refit import fit_encoder

EM_ROWS = 5000
MOST_OF_EM = 30  # components of a model whose moments stand for those of complete rows
JUDGED_DRAWS = 2048  # rows times pairs of samples: few rows get more samples a row
FEWEST_PAIRS, FEWEST_JUDGED = 4, 500
JUDGED_CELLS = 2**23  # rows times samples times features
HELD_OUT = 5  # one row of so many tells whether the start is worth it
GENTLE = 30.0  # times the smallest noise, that training begins with
EXACT_CELLS = 2**26  # of wide features, up to which they are kept in float64: half a GB


def start_linear(vae: VAE, columns: Columns, counted: Counted) -> tuple[VAE, float]:
    """Let ``vae`` begin at the linear-Gaussian model of the table's features.

    Where columns hold levels or something is missing, that model is no maximum of a likelihood. It
    begins with independent columns, which is K = 0, if those are better on rows not seen. Nothing
    leads training away from there, so it begins at the linear model. What training begins at is
    returned, and by how many nats a row its bound is higher on rows that it has seen.
    """
    source = Features(vae, columns, *counted)
    linear = _begin_linear(source)
    few = slice(None, EM_ROWS)
    sample, shares = (part[few] for part in source.sample())
    x, observed = columns.encode(sample)
    if not vae.prior.specification.begins_standard:
        _start_prior(vae, x, observed, shares)
    is_maximum = not source.fixed.any() and not columns.may_miss.any()
    prior = vae.prior.specification
    launch, optimism = _softened(source, linear), 0.0
    if (prior.begins_standard or isinstance(prior, StandardNormal)) and not is_maximum:
        on_seen, on_unseen = _gains(source)
        if on_unseen <= 0.0:
            launch = copied(vae) if launch is vae else launch
            optimism = max(on_seen - on_unseen, 0.0)
            _begin_independent(source)
    if prior.begins_standard:
        launch = copied(vae) if launch is vae else launch
        _start_prior(launch, x, observed, shares)
    return launch, optimism


def _softened(source: Features, linear: LinearGaussian) -> VAE:
    """Return the linear start with no noise that is next to nothing: the start itself if none is.

    A column that the components reproduce has a posterior so narrow that any step of training
    leaves it.
    """
    vae, least = source.vae, GENTLE * source.floor
    if not (linear.noise[~source.fixed] < least).any():
        return vae
    source = replace(source, vae=copied(vae))
    noise = np.where(source.fixed, linear.noise, np.maximum(linear.noise, least))
    _place(source, linear._replace(noise=noise))
    return source.vae


def evidence_of_components(
    vae: VAE, columns: Columns, table: Any, weight: Array
) -> Evidence | None:
    """Return what held-out rows say of numbers of components; ``vae`` may have any of them.

    None where there are too few rows, or too many columns for their covariance.
    """
    source = Features(vae, columns, table, weight, np.ones(len(weight)))
    if vae.n_features > MAX_COLUMNS_FOR_COVARIANCE:
        return None
    sample, shares = source.sample()
    features, seen = source.of(sample)
    filled = features if seen is None else np.where(seen, features, source.observed_moments()[0])
    scale = _feature_scale(source, column_moments([(filled, shares)], vae.n_features))

    def fit(moments: Moments, n_components: int) -> LinearGaussian:
        return _fit(source, moments, scale, n_components)[0]

    if seen is None:
        return evidence_of(features / scale, shares, fit)
    _, observed = columns.encode(sample)
    assert observed is not None

    def complete(chosen: Seen) -> Moments:
        """Return the moments of the richest linear model that EM fits to what is observed."""
        few = np.flatnonzero(chosen)[:EM_ROWS]
        moments = column_moments([(filled[few] / scale, shares[few])], vae.n_features)
        n_components = min(vae.n_features, MOST_OF_EM, len(few))
        linear, floor = _fit(source, moments, scale, n_components)
        rows = ObservedRows(features[few] / scale, observed[few], source.column, shares[few])
        linear = em_for_missing(linear, rows, source.groups, floor)
        covariance = linear.loadings @ linear.loadings.T + np.diag(linear.noise**2)
        return Moments(linear.mean, covariance.diagonal(), covariance, moments.n_samples)

    return evidence_of(features / scale, shares, fit, seen=seen, complete=complete)


def _begin_linear(source: Features) -> LinearGaussian:
    vae, columns = source.vae, source.columns
    moments = source.moments()
    scale = _feature_scale(source, moments)
    linear, floor = _fit(source, moments.in_units_of(scale), scale, vae.n_components)
    sample, shares = source.sample()
    x, observed = columns.encode(sample)
    features, seen = source.of_cells(x, observed)
    del x  # of a wide table it is as large as the features
    if observed is not None and seen is not None:
        if moments.covariance is not None:
            few = slice(None, EM_ROWS)
            some = ObservedRows(features[few] / scale, observed[few], source.column, shares[few])
            linear = em_for_missing(linear, some, source.groups, floor)
        features = np.where(seen, features, np.nan)
    _assign(vae.feature_scale, scale)
    center, spread = _robust_units(source, features)
    _assign(vae.encoder.center, center)
    _assign(vae.encoder.spread, spread)
    _place(source, linear)
    return linear


def _robust_units(source: Features, features: Array) -> tuple[Array, Array]:
    """Find centre and spread of each feature for the MLP; joint columns share one spread."""
    columns, varies = source.columns, source.columns.varies[source.column]
    center, spread = robust_units(features, columns.scaling, varies)
    joint = source.vae.likelihood.is_joint.numpy()
    if joint.any():
        center[joint], spread[joint] = robust_units(features[:, joint], "common", varies[joint])
    return center, spread


def _place(source: Features, linear: LinearGaussian) -> None:
    """Let the module begin at a linear model, and fit what that leaves open."""
    vae, columns, (sample, shares) = source.vae, source.columns, source.sample()
    _begin_at(vae, linear, _with_nan(*columns.encode(sample)), torch.from_numpy(shares))
    if source.fixed.any():
        few = slice(None, glm_rows(vae.n_features))
        cells, own = columns.encode(sample[few]), shares[few]
        fit_decoder(vae, source.fixed, *cells, own)
        if bool(vae.likelihood.is_joint.any()):
            fit_encoder(vae, *cells, own)


def _begin_independent(source: Features) -> None:
    """Begin without loadings, after a linear start: each column has its marginal distribution."""
    vae = source.vae
    scale = vae.feature_scale.numpy(force=True)
    mean, variance = source.observed_moments()
    mean, variance = mean / scale, np.maximum(variance / scale**2, source.floor**2)
    noise = source.groups.mean(variance, FIXED_NOISE)
    nothing = np.zeros((vae.n_features, vae.n_components))
    linear = LinearGaussian(mean, np.sqrt(variance), nothing, np.sqrt(noise))
    sample, shares = source.sample()
    x = _with_nan(*source.columns.encode(sample))
    _begin_at(vae, linear, x, torch.from_numpy(shares))


def _gains(source: Features) -> tuple[float, float]:
    """Return how much better the linear start is than independent columns, in nats a row.

    On rows it has seen, and on others; where the first is too much for chance, it stands for both.
    On its own rows, each parameter gains about a nat by chance, in all rows together. Equal rows,
    which count several times, are held out by their number.
    """
    vae, (sample, shares) = source.vae, source.sample()
    count = source.some_of(source.copies)
    by_chance = vae.n_features * vae.n_components / min(count.sum(), glm_rows(vae.n_features))
    gain = _gain(source, sample, shares)
    held_out = np.diff(np.floor(count.cumsum() / HELD_OUT), prepend=0.0)
    if gain > by_chance or not held_out.any():
        return gain, gain
    kept = count - held_out
    trained, judged = kept > 0.0, held_out > 0.0
    part = replace(
        source,
        vae=copied(vae),
        table=sample[trained],
        weight=(shares * kept / count)[trained],
        copies=kept[trained],
        known=None,
    )
    _begin_linear(part)
    return gain, _gain(part, sample[judged], (shares * held_out / count)[judged])


@torch.no_grad()
def _gain(source: Features, rows: Array, weight: Array) -> float:
    """Return how much higher log p is than that of independent columns, in nats a row.

    It is estimated by importance sampling from the encoder, which is too low: the more samples, the
    less a start pays for an encoder that does not fit its decoder yet.
    """
    vae, other = source.vae, replace(source, vae=copied(source.vae))
    _begin_independent(other)
    n_rows = max(JUDGED_CELLS // (2 * FEWEST_PAIRS * vae.n_features), FEWEST_JUDGED)
    some = slice(None, None, -(-len(rows) // n_rows))
    weight = weight[some]
    x, observed = source.columns.encode(rows[some])
    total, generator = 0.0, torch.Generator().manual_seed(0)
    n_pairs = max(-(-JUDGED_DRAWS // len(x)), FEWEST_PAIRS)
    for some in row_chunks(len(x), vae.n_features * n_pairs):
        cells = torch.from_numpy(x[some]).to(vae.device)
        seen = None if observed is None else torch.from_numpy(observed[some]).to(vae.device)
        eps = torch.randn((n_pairs, len(cells), vae.n_components), generator=generator).to(cells)
        noise = torch.cat([eps, -eps])
        bounds = [
            importance_weighted_bound(module(cells, seen, noise)) for module in (vae, other.vae)
        ]
        total += float(weight[some] @ (bounds[0] - bounds[1]).numpy(force=True))
    return total / weight.sum()


def _with_nan(x: Array, observed: Seen | None) -> torch.Tensor:
    return torch.from_numpy(x if observed is None else np.where(observed, x, np.nan))


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
    loc, log_scale = vae.encode(torch.from_numpy(x).to(vae.device), seen)
    eps = standard_normal_like(loc, torch.Generator(loc.device).manual_seed(0))
    codes = normal_sample(loc, log_scale, eps)
    values = vae.prior.now.from_codes(codes, torch.from_numpy(weight).to(vae.device))
    if all(bool(torch.isfinite(value).all()) for value in values.values()):
        vae.prior.assign(values)
        return
    warn(
        f"The prior {vae.prior.specification!r} could not be fitted to the codes of {len(loc)} "
        "rows, so it begins with the parameters that it has by default. More rows may help."
    )


def _feature_scale(features: Features, moments: Moments) -> Array:
    """Return what a feature is divided by for the linear fit: a column's total variance is then 1.

    A category's indicators share theirs, so thousands of levels weigh no more than a number.
    Gaussian columns have been scaled before, and columns that share a total have one unit.
    """
    columns, column = features.columns, features.column
    if columns.scaling != "columns":
        return np.ones(len(column))
    total = np.sqrt(np.bincount(column, moments.variance, len(columns)))[column]
    scaled = columns.kinds.with_units("location_scale")[column]
    scaled |= features.vae.likelihood.is_joint.numpy()
    return np.where(scaled | (total < 1e-6), 1.0, total)


def _fit(
    features: Features, moments: Moments, scale: Array, n_components: int
) -> tuple[LinearGaussian, float]:
    """Fit pPCA where all columns share one Gaussian noise, else factor analysis by groups.

    Returns the fit, and the smallest noise that it may have.
    """
    vae, floor, groups = features.vae, features.floor, features.groups
    shared, mixed = vae.likelihood.noise == "shared", bool(features.fixed.any())
    wide = None if moments.covariance is not None else _wide(features, scale, moments)
    if not shared and (wide is None or not mixed):
        return factor_analysis(moments, n_components, floor, groups), floor
    linear = probabilistic_pca(moments, wide, n_components, floor)
    if not mixed:
        return linear, floor
    # As many components as numbers would leave these no noise, if that were theirs alone. If rows
    # are fewer than features, PCA's noise is that of their space: each feature has a part of it.
    n_features = len(moments.mean)
    n_left = max(min(moments.n_samples, n_features) - n_components, 0.0)
    share = n_left / max(n_features - n_components, 1)
    floor = max(float(linear.noise[0] * np.sqrt(share)), features.floor)
    if wide is None:
        return factor_analysis(moments, n_components, floor, groups), floor
    linear = probabilistic_pca(moments, wide, n_components, floor, FIXED_NOISE)
    left = np.maximum(moments.variance - (linear.loadings**2).sum(1), floor**2)
    return linear._replace(noise=np.sqrt(groups.mean(left, FIXED_NOISE))), floor


def _wide(features: Features, scale: Array, moments: Moments) -> LinearOperator:
    """Gather all features, scaled and centred; kept sparse where that is smaller."""
    parts: list[Any] = []
    small = features.table.shape[0] * len(scale) < EXACT_CELLS
    if (stored := features.stored()) is not None:
        return centred_rows(stored.multiply(1.0 / scale).tocsr(), features.weight, moments.mean)
    for chunk, _ in features.filled():
        part = (chunk / scale).astype(np.float64 if small else np.float32)
        is_sparse = np.count_nonzero(part) < 0.3 * part.size
        parts.append(csr_matrix(part) if is_sparse else part)
    some_sparse = any(issparse(part) for part in parts)
    if len(parts) == 1:
        rows = parts[0]
    else:
        rows = vstack(parts, format="csr") if some_sparse else np.concatenate(parts)
    return centred_rows(rows, features.weight, moments.mean)
