"""Codes and scores of encoded rows, chunk by chunk, with one fixed noise bank for all rows.

A row's result depends on that row alone, and memory does not grow with rows times samples.
Everything is evaluated in float64: a density is a sum of hundreds of terms.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from scipy.special import chdtri, ndtri
from scipy.stats import qmc
from torch import Tensor

from .._gaussian import normal_sample, standard_normal_log_prob
from .._model.bounds import importance_weighted_bound, log_weights
from .._model.networks import tame
from .._model.vae import VAE
from .._parameters import CELL_LIMIT
from .._resources import for_each
from .._table.column import Array, within
from .._table.columns import Columns
from .._table.statistics import row_chunks
from .codebook import POINTS, Codebook
from .diagnostics import effective_sample_size, pareto_k, standard_error
from .importance import Estimate, refined_log_likelihood
from .modes import MOST_MODES

STEP = 1e-4  # of a central difference: exact for a linear decoder, else to about 1e-8
CHUNK_NUMBERS = 2**22  # float64 numbers that belong to a chunk's rows: 32 MB
ONE_PASS = 2**18  # the same where each row is evaluated once: what fits a processor's cache
BLOCK = 1  # samples of all rows of a chunk that are evaluated at once: the same
STAGES = (1, 1, 2, 4, 8, 16)  # times n_importance_samples: all rows get the first, others on need
ROUNDS = 20  # in which noise gets its lengths and its covariance, each a little wrong by the other


@lru_cache(maxsize=32)
def noise_bank(n_samples: int, n_components: int, number: int = 0) -> Tensor:  # (S, 1, K)
    """Return the same eps for every row: antithetic pairs, quasi-random, of N(0, I)'s moments.

    Their mean is 0, their squared lengths are quantiles of chi-squared, and from 2 K samples on
    their covariance is I: the mean of any quadratic is exact (spherical-radial rules: Genz &
    Monahan 1998). ``number`` tells independent banks apart.
    """
    n_pairs = (n_samples + 1) // 2
    sobol = qmc.Sobol(n_components, seed=np.random.default_rng(number))
    uniform = sobol.random_base2((n_pairs - 1).bit_length())[:n_pairs]
    half = ndtri(np.clip(uniform, 1e-9, 1.0 - 1e-9))
    length = np.sqrt(chdtri(n_components, 1.0 - (np.arange(n_pairs) + 0.5) / n_pairs))
    for _ in range(ROUNDS):
        rank = np.linalg.norm(half, axis=1).argsort().argsort()
        half *= (length[rank] / np.linalg.norm(half, axis=1))[:, None]
        half = _of_unit_covariance(half)
    paired = np.stack([half, -half], axis=1).reshape(-1, n_components)[:n_samples]
    return torch.from_numpy(paired)[:, None, :]


def _of_unit_covariance(half: Array) -> Array:
    """Make the second moments those of N(0, I); of too few points, only the variances."""
    second = half.T @ half / len(half)
    if len(half) < half.shape[1]:
        return half / np.sqrt(second.diagonal())
    values, vectors = np.linalg.eigh(second)
    return half @ (vectors / np.sqrt(values)) @ vectors.T


def by_chunks(
    function: Callable[[Tensor, Tensor | None], tuple[Tensor, ...]],
    columns: Columns,
    table: Any,
    vae: VAE,
    per_row: int,
    *,
    dtype: Any = None,
    in_order: bool = False,
) -> tuple[Array, ...]:
    """Apply ``function`` to x and observed of some rows at a time, and put the results together.

    ``per_row`` is how often it evaluates a network for a row. ``dtype`` is that of the results;
    None takes theirs. Chunks run in threads where that pays, unless they have to be ``in_order``:
    a chunk of many samples is many small steps, which gain nothing from threads of their own.
    """
    n_rows, device = table.shape[0], vae.device
    results: list[Array] = []

    def of_rows(rows: slice) -> None:
        x, observed = columns.encode(table[rows])
        seen = None if observed is None else torch.from_numpy(observed).to(device)
        with torch.no_grad():
            values = function(torch.from_numpy(x).to(device), seen)
        parts = [value.numpy(force=True) for value in values]
        if not results:
            # At once: results kept chunk by chunk would lie scattered in memory and hold it.
            results.extend(np.empty((n_rows, *p.shape[1:]), dtype or p.dtype) for p in parts)
        for result, part in zip(results, parts, strict=True):
            result[rows] = part

    numbers = ONE_PASS if per_row == 1 else CHUNK_NUMBERS
    first, *others = row_chunks(n_rows, _numbers_of_a_row(vae, per_row), numbers)
    apart = device.type == "cpu" and not in_order
    for_each(of_rows, [first], 0.0)
    for_each(of_rows, others, float(n_rows) * per_row * vae.widest**2 if apart else 0.0)
    return tuple(results)


def _numbers_of_a_row(vae: VAE, per_row: int) -> int:
    """Return how many numbers belong to a row while it is scored by so many evaluations."""
    if per_row == 1:
        return vae.widest
    k = vae.n_components
    sampled = per_row * (k + 2) + MOST_MODES * k * k + POINTS
    return max(BLOCK * vae.widest + sampled, vae.likelihood.n_columns)


def in_original_units(
    function: Callable[[Tensor, Tensor | None], tuple[Tensor, ...]],
    columns: Columns,
    hidden: int | None = None,
) -> Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]:
    """Turn log-densities of x, the first result, into such of the user's units.

    A ``hidden`` column has no part in them.
    """

    def function_in_units(x: Tensor, observed: Tensor | None) -> tuple[Tensor, ...]:
        scores, *others = function(x, observed)
        seen = None if observed is None else observed.numpy(force=True)
        if hidden is not None:
            seen = np.ones(x.shape, dtype=bool) if seen is None else seen.copy()
            seen[:, hidden] = False
        by_row = columns.log_jacobian_of(x.numpy(force=True), seen)
        log_jacobian = torch.as_tensor(by_row, device=scores.device)
        return (scores + log_jacobian, *others)

    return function_in_units


def score_function(
    vae: VAE, method: str, n_samples: int, codebook: Codebook | None
) -> Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]:
    """Return what scores x (N,); of a log-likelihood it gives all of ``Estimate``.

    That is refined where there is a codebook to search from.
    """
    if method == "log_likelihood" and codebook is not None:
        banks = [
            noise_bank(times * n_samples, vae.n_components, number).to(vae.device)
            for number, times in enumerate(STAGES)
        ]
        return partial(refined_log_likelihood, vae, banks=banks, codebook=codebook)
    functions: dict[str, Callable[..., tuple[Tensor, ...]]] = {
        "log_likelihood": encoder_log_likelihood,
        "elbo": sampled_elbo,
        "reconstruction": reconstruction,
        "kl": negative_kl,
    }
    bank = noise_bank(n_samples, vae.n_components).to(vae.device)
    return partial(functions[method], vae, bank=bank)


def negative_distance(vae: VAE, x: Tensor, observed: Tensor | None) -> tuple[Tensor]:  # (N,)
    """Return minus the mean square of what is observed, in robust units: how central a row is.

    Tamed as for the encoder, so that no single feature decides. Where there are numbers on a scale,
    they alone count: a rare level is no less central than a frequent one.
    """
    encoder, on_scale = vae.encoder, vae.likelihood.is_location.to(x.device)
    robust = tame(encoder.in_robust_units(vae.likelihood.features(x)), CELL_LIMIT)
    counted = on_scale if bool(on_scale.any()) else torch.ones_like(on_scale)
    seen = counted.expand(robust.shape)
    if observed is not None:
        seen = seen & observed[:, encoder.column]
    return (-torch.where(seen, robust.square(), 0.0).sum(-1) / seen.sum(-1).clamp(min=1),)


def posterior_means(
    vae: VAE, x: Tensor, observed: Tensor | None, scale: Tensor
) -> tuple[Tensor]:  # (N, K)
    return (vae.encode(x, observed)[0] * scale,)


def posterior_scales(vae: VAE, x: Tensor, observed: Tensor | None) -> tuple[Tensor]:  # (N, K)
    """Return the standard deviations of q(z | x)."""
    return (torch.exp(vae.encode(x, observed)[1]),)


def encoder_log_likelihood(vae: VAE, x: Tensor, observed: Tensor | None, bank: Tensor) -> Estimate:
    """Estimate log p(x) by importance sampling from the encoder (Burda et al. 2016)."""
    terms = vae(x, observed, bank.expand(-1, len(x), -1))
    log_w = log_weights(terms)
    return Estimate(
        importance_weighted_bound(terms),
        effective_sample_size(log_w),
        pareto_k(log_w),
        torch.full((len(x),), len(bank)),
        standard_error(log_w, torch.zeros_like(log_w)),
        torch.full((len(x),), math.nan),  # nobody has searched
    )


def sampled_elbo(vae: VAE, x: Tensor, observed: Tensor | None, bank: Tensor) -> tuple[Tensor]:
    """Return the mean log weight: the ELBO, without noise where q is the posterior."""
    loc, log_scale = vae.encode(x, observed)
    total = torch.zeros_like(loc[:, 0])
    for eps in bank.split(BLOCK):
        log_qz_x = standard_normal_log_prob(eps).sum(-1) - log_scale.sum(-1)
        log_joint = vae.log_joint(x, observed, normal_sample(loc, log_scale, eps))
        total += (log_joint - log_qz_x).sum(0)
    return (total / len(bank),)


def negative_kl(vae: VAE, x: Tensor, observed: Tensor | None, bank: Tensor) -> tuple[Tensor]:
    """Return minus KL(q(z | x) || p(z)): in closed form where there is one, else by sampling."""
    kl = vae.prior.now.closed_kl(*vae.encode(x, observed))
    if kl is not None:
        return (-kl.sum(-1),)
    draws = [vae(x, observed, eps.expand(1, len(x), -1)).kl.sum(-1) for eps in bank]
    return (-torch.stack(draws).mean(0),)


def reconstruction(
    vae: VAE, x: Tensor, observed: Tensor | None, bank: Tensor
) -> tuple[Tensor]:  # (N,)
    return (reconstruction_by_column(vae, x, observed, bank)[0].sum(1),)


def reconstruction_by_column(
    vae: VAE, x: Tensor, observed: Tensor | None, bank: Tensor
) -> tuple[Tensor]:  # (N, D)
    """Return E_q log p(x_d | z): the reconstruction probability of An & Cho 2015, by column."""
    loc, log_scale = vae.encode(x, observed)
    total = torch.zeros_like(x)
    for eps in bank.split(BLOCK):
        z = normal_sample(loc, log_scale, eps)
        total += vae.log_px_z_by_column(x, observed, z).sum(0)
    return (total / len(bank),)


def shares_of_columns(
    vae: VAE, x: Tensor, observed: Tensor | None, bank: Tensor, columns: Columns
) -> tuple[Tensor]:  # (N, D)
    """Return the same in original units: 0 for what is missing."""
    (share,) = reconstruction_by_column(vae, x, observed, bank)
    log_jacobian = torch.from_numpy(columns.log_jacobian_at(x.numpy(force=True))).to(x.device)
    return (share + (log_jacobian if observed is None else observed * log_jacobian),)


def decoded(
    vae: VAE, z: Array, of_raw: Callable[[Tensor], Tensor], columns: Columns, dtype: Any
) -> Array:
    """Return mean, mode or draw of each row of ``z`` (N, K), in original units."""
    result = np.empty((len(z), len(columns.shift)), dtype)
    for rows in row_chunks(len(z), vae.widest):
        with torch.no_grad():
            x = of_raw(vae.decoder(torch.from_numpy(z[rows]).to(vae.device)))
        result[rows] = within(columns.decode(x.cpu().numpy()), result.dtype)
    return result


def component_scales(vae: VAE, x: Tensor, observed: Tensor | None) -> Array:  # (K,)
    """Return the norm of the reconstruction's derivative by z_k, root mean square of the rows.

    In the units of the encoded features: a step of one along a scaled component moves the
    reconstruction by one.
    """

    def reconstruct(z: Tensor) -> Tensor:
        return vae.likelihood.feature_mean(vae.decoder(z)) / vae.feature_scale

    with torch.no_grad():
        if vae.decoder.mlp is None and not bool(vae.decoder.tamed.any()):
            weight = vae.decoder.linear.weight / vae.feature_scale[:, None]
            return weight.square().sum(0).sqrt().cpu().numpy()
        z = vae.encode(x, observed)[0]
        norms = []
        for step in STEP * torch.eye(z.shape[-1], dtype=z.dtype, device=z.device):
            slope = (reconstruct(z + step) - reconstruct(z - step)) / (2.0 * STEP)
            norms.append(slope.square().sum(-1).mean())
    return torch.stack(norms).sqrt().cpu().numpy()
