"""Codes and scores of encoded rows, chunk by chunk, with one fixed noise bank for all rows.

A row's result depends on that row alone, and memory does not grow with rows times samples.
Everything is evaluated in float64: a density is a sum of hundreds of terms.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import qmc
from torch import Tensor

from ._bounds import importance_weighted_bound, largest_weight, log_weights
from ._columns import Array, Columns
from ._vae import VAE

CHUNK_NUMBERS = 2**21  # float64 numbers in the largest temporary array: 16 MB


def noise_bank(n_samples: int, n_components: int) -> Tensor:  # (S, 1, K)
    """The same eps for every row: quasi-random, in antithetic pairs, of unit second moment.

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
    function: Callable[[Tensor], tuple[Tensor, ...]],
    X: NDArray,
    columns: Columns,
    numbers_per_row: int,
    device: torch.device,
) -> tuple[Array, ...]:
    """Encode ``X`` and apply ``function`` chunk by chunk."""
    chunk_rows = max(1, min(4096, CHUNK_NUMBERS // max(numbers_per_row, 1)))
    results = []
    for start in range(0, len(X), chunk_rows):
        x = torch.from_numpy(columns.encode(X[start : start + chunk_rows])).to(device)
        with torch.no_grad():
            results.append([value.cpu().numpy() for value in function(x)])
    return tuple(np.concatenate(parts) for parts in zip(*results, strict=True))


def posterior_means(vae: VAE, x: Tensor) -> tuple[Tensor]:  # (N, K)
    return (vae.encoder(x)[0],)


def component_kl(vae: VAE, x: Tensor) -> tuple[Tensor]:  # (N, K)
    return (vae.prior.kl(*vae.encoder(x)),)


def encoder_log_likelihood(vae: VAE, x: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
    """Log p(x) by importance sampling from the encoder (Burda et al. 2016), and largest weight."""
    terms = vae(x, bank.expand(-1, len(x), -1))
    return importance_weighted_bound(terms), largest_weight(log_weights(terms))


def sampled_elbo(vae: VAE, x: Tensor, bank: Tensor) -> tuple[Tensor]:
    """Mean log weight: the ELBO, free of noise where q is the posterior (Roeder et al. 2017)."""
    return (log_weights(vae(x, bank.expand(-1, len(x), -1))).mean(0),)


def negative_kl(vae: VAE, x: Tensor) -> tuple[Tensor]:
    return (-component_kl(vae, x)[0].sum(-1),)


def reconstruction_by_column(vae: VAE, x: Tensor, bank: Tensor) -> tuple[Tensor]:  # (N, D)
    """E_q log p(x_d | z): the reconstruction probability of An & Cho 2015, column by column."""
    loc, log_scale = vae.encoder(x)
    total = torch.zeros_like(x)
    for eps in bank:
        total += vae.log_px_z_by_column(x, loc + torch.exp(log_scale) * eps)
    return (total / len(bank),)


def decode(vae: VAE, z: Array, of_raw: Callable[[Tensor], Tensor]) -> Array:
    """Mean, mode or draw of each row of ``z`` (N, K), in encoded units."""
    with torch.no_grad():
        return of_raw(vae.decoder(torch.from_numpy(z).to(vae.device))).cpu().numpy()


def component_scales(vae: VAE, x: Tensor) -> Array:  # (K,)
    """Root mean square, over the rows, of the norm of the decoder mean's derivative by z_k.

    In the units of the encoded columns: a step of one along a scaled component moves the
    reconstruction by one.
    """
    with torch.no_grad():
        z = vae.encoder(x)[0]
        raw, jacobian = vae.decoder(z), vae.decoder.jacobian(z)  # (N, P), (N, K, P)
    raw.requires_grad_()
    (slope,) = torch.autograd.grad(vae.likelihood.mean(raw).sum(), raw)
    norms = (jacobian * slope[:, None, :]).square().sum(-1)  # (N, K)
    return norms.mean(0).sqrt().detach().cpu().numpy()
