"""The missing cells of a row given its observed ones: their expectation, or a draw."""

import torch
from torch import Tensor

from .._model.vae import VAE
from .codebook import Codebook
from .importance import posterior_draws


def conditional_means(
    vae: VAE, x: Tensor, observed: Tensor | None, bank: Tensor, codebook: Codebook
) -> tuple[Tensor]:  # (N, D)
    """Estimate E[x_d | observed x] by self-normalised importance sampling.

    Mattei & Frellsen 2019, eq. 12. For a category it is the most probable level.
    """
    z, log_w = posterior_draws(vae, x, observed, bank, codebook)
    return (vae.likelihood.average(vae.decoder(z), torch.softmax(log_w, 0)),)


def conditional_draws(
    vae: VAE,
    x: Tensor,
    observed: Tensor | None,
    *,
    n_samples: int,
    generator: torch.Generator,
    codebook: Codebook,
) -> tuple[Tensor]:  # (N, D)
    """Draw each row once given its observed cells, by sampling importance resampling."""
    # Fresh noise, a row's own: draws that share theirs are not independent.
    size = (n_samples, len(x), vae.n_components)
    eps = torch.randn(size, generator=generator, dtype=x.dtype, device=x.device)
    z, log_w = posterior_draws(vae, x, observed, eps, codebook)
    chosen = torch.multinomial(torch.softmax(log_w, 0).T, 1, generator=generator)[:, 0]  # (N,)
    z = z[chosen, torch.arange(len(x), device=x.device)]
    return (vae.likelihood.sample(vae.decoder(z), generator),)
