"""Codes and scores of encoded rows, chunk by chunk, with one fixed noise bank for all rows.

A row's result depends on that row alone, and memory does not grow with rows times samples.
Everything is evaluated in float64: a density is a sum of hundreds of terms.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from scipy.stats import qmc
from torch import Tensor

from .._gaussian import normal_sample
from .._model.bounds import importance_weighted_bound, log_weights
from .._model.networks import CELL_LIMIT, tame
from .._model.vae import VAE
from .._table.column import Array, within
from .._table.columns import Columns, EncodedChunk
from .._table.statistics import row_chunks
from .diagnostics import effective_sample_size, pareto_k
from .importance import Estimate, refined_log_likelihood

STEP = 1e-4  # of a central difference: exact for a linear decoder, else to about 1e-8
CHUNK_NUMBERS = 2**21  # float64 numbers in the largest temporary array: 16 MB
STAGES = (1, 2, 4, 8)  # times n_importance_samples: all rows get the first, 15 in all if need be


@lru_cache(maxsize=16)
def noise_bank(n_samples: int, n_components: int) -> Tensor:  # (S, 1, K)
    """Return the same eps for every row: quasi-random antithetic pairs of unit second moment.

    So its mean and variance are exactly those of N(0, 1), as is every expectation of a quadratic.
    """
    n_pairs = (n_samples + 1) // 2
    sobol = qmc.Sobol(n_components, seed=np.random.default_rng(0))
    uniform = sobol.random_base2((n_pairs - 1).bit_length())[:n_pairs]
    half = ndtri(np.clip(uniform, 1e-9, 1.0 - 1e-9))
    half /= np.sqrt((half**2).mean(axis=0))
    paired = np.stack([half, -half], axis=1).reshape(-1, n_components)[:n_samples]
    return torch.from_numpy(paired)[:, None, :]


def by_chunks(
    function: Callable[[Tensor, Tensor | None], tuple[Tensor, ...]],
    chunks: Iterable[EncodedChunk],
    n_rows: int,
    device: torch.device,
    dtype: Any = None,
) -> tuple[Array, ...]:
    """Apply ``function`` to x and observed of each chunk, and put the results together.

    ``dtype`` is that of the results; None takes theirs.
    """
    results: tuple[Array, ...] = ()
    for rows, x, observed in chunks:
        seen = None if observed is None else torch.from_numpy(observed).to(device)
        with torch.no_grad():
            values = function(torch.from_numpy(x).to(device), seen)
        parts = [value.cpu().numpy() for value in values]
        # Allocated at once: results kept chunk by chunk would lie scattered in memory and hold it.
        results = results or tuple(
            np.empty((n_rows, *part.shape[1:]), dtype or part.dtype) for part in parts
        )
        for result, part in zip(results, parts, strict=True):
            result[rows] = part
    return results


def in_original_units(
    function: Callable[[Tensor, Tensor | None], tuple[Tensor, ...]], columns: Columns
) -> Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]:
    """Turn log-densities of x, the first result, into such of the user's units."""

    def function_in_units(x: Tensor, observed: Tensor | None) -> tuple[Tensor, ...]:
        scores, *others = function(x, observed)
        seen = None if observed is None else observed.numpy(force=True)
        log_jacobian = torch.as_tensor(columns.log_jacobian_of(seen), device=scores.device)
        return (scores + log_jacobian, *others)

    return function_in_units


def score_function(
    vae: VAE, method: str, n_samples: int, refine: bool
) -> Callable[[Tensor, Tensor | None], tuple[Tensor, ...]]:
    """Return what scores x (N,); of a log-likelihood it gives all of ``Estimate``."""
    if method == "log_likelihood" and refine:
        sizes = [times * n_samples for times in STAGES]
        bank = noise_bank(sum(sizes), vae.n_components).to(vae.device)
        return partial(refined_log_likelihood, vae, banks=bank.split(sizes))
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

    Tamed as for the encoder, so that no single feature decides.
    """
    encoder = vae.encoder
    robust = tame(encoder.in_robust_units(vae.likelihood.features(x)), CELL_LIMIT)
    if observed is None:
        return (-robust.square().mean(-1),)
    seen = observed[:, encoder.column]
    return (-torch.where(seen, robust.square(), 0.0).sum(-1) / seen.sum(-1).clamp(min=1),)


def posterior_means(
    vae: VAE, x: Tensor, observed: Tensor | None, scale: Tensor
) -> tuple[Tensor]:  # (N, K)
    return (vae.encode(x, observed)[0] * scale,)


def encoder_log_likelihood(vae: VAE, x: Tensor, observed: Tensor | None, bank: Tensor) -> Estimate:
    """Estimate log p(x) by importance sampling from the encoder (Burda et al. 2016)."""
    terms = vae(x, observed, bank.expand(-1, len(x), -1))
    log_w = log_weights(terms)
    return Estimate(
        importance_weighted_bound(terms),
        effective_sample_size(log_w),
        pareto_k(log_w),
        torch.full((len(x),), len(bank)),
    )


def sampled_elbo(vae: VAE, x: Tensor, observed: Tensor | None, bank: Tensor) -> tuple[Tensor]:
    """Return the mean log weight: the ELBO, without noise where q is the posterior."""
    return (log_weights(vae(x, observed, bank.expand(-1, len(x), -1))).mean(0),)


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
    for eps in bank:
        total += vae.log_px_z_by_column(x, observed, normal_sample(loc, log_scale, eps))
    return (total / len(bank),)


def shares_of_columns(
    vae: VAE, x: Tensor, observed: Tensor | None, bank: Tensor, log_jacobian: Tensor
) -> tuple[Tensor]:  # (N, D)
    """Return the same in original units: 0 for what is missing."""
    (share,) = reconstruction_by_column(vae, x, observed, bank)
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
