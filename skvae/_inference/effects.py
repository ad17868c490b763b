"""What the decoder says at points of z: means of numbers and probabilities of levels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from .._model.vae import VAE
from .._table.column import Array
from .._table.columns import Columns
from .._table.statistics import row_chunks
from ..likelihoods._levels import Categorical
from ..priors import StandardNormal
from .scores import noise_bank

PRIOR_POINTS = 256  # of N(0, I), whose moments they have exactly
PRIOR_DRAWS = 4096  # of any other prior


def prior_codes(vae: VAE) -> Tensor:  # (M, K)
    """Return points that stand for the prior, the same in every call."""
    n_components, prior = vae.n_components, vae.prior.now
    if type(prior) is StandardNormal:
        return noise_bank(max(PRIOR_POINTS, 2 * n_components), n_components)[:, 0]
    generator = torch.Generator(vae.device).manual_seed(0)
    return prior.sample(PRIOR_DRAWS, n_components, generator).double()


def prior_quantiles(vae: VAE, shares: Array) -> Array:  # (Q,) -> (Q, K)
    """Return quantiles of the prior of each component."""
    if type(vae.prior.now) is StandardNormal:
        return np.repeat(ndtri(shares)[:, None], vae.n_components, axis=1)
    return np.quantile(prior_codes(vae).numpy(force=True), shares, axis=0)


class Readout(NamedTuple):
    """What is read off the decoder: for each column its mean, or the probability of each level."""

    columns: Columns
    n_levels: Sequence[int]  # of each column; 0 for numbers

    @torch.no_grad()
    def at(self, vae: VAE, z: Array) -> Array:  # (N, K) -> (N, M)
        """Return means in original units, and probabilities, in the order of the columns."""
        result = np.empty((len(z), sum(max(n, 1) for n in self.n_levels)))
        for rows in row_chunks(len(z), vae.widest):
            raw = vae.decoder(torch.from_numpy(z[rows]).to(vae.device))
            result[rows] = np.hstack(self._parts(vae, raw))
        return result

    def _parts(self, vae: VAE, raw: Tensor) -> list[Array]:
        likelihood = vae.likelihood
        means = self.columns.decode(likelihood.mean(raw).cpu().numpy())
        if not any(self.n_levels):
            return [means]
        shares, of_features = likelihood.feature_mean(raw), likelihood.column
        parts = []
        for column, n_levels in enumerate(self.n_levels):
            if not n_levels:
                parts.append(means[:, [column]])
            elif likelihood.kind_of(column) is Categorical:  # whose features are the levels
                parts.append(shares[:, of_features == column].cpu().numpy())
            else:
                parts.append(_probabilities(vae, raw, column, n_levels))
        return parts

    def moved(self, vae: VAE, z: Array, component: int, step: float) -> Array:  # (N, M)
        """Return how it changes from half a step below z to half a step above."""
        half = np.zeros(z.shape[1])
        half[component] = 0.5 * step
        return self.at(vae, z + half) - self.at(vae, z - half)


def _probabilities(vae: VAE, raw: Tensor, column: int, n_levels: int) -> Array:  # (N, L)
    alone = vae.likelihood.alone(column, raw[None])
    levels = [torch.full_like(raw[:, 0], float(level)) for level in range(n_levels)]
    p = torch.stack([alone.log_prob(level)[0].exp() for level in levels], 1)
    return (p / p.sum(1, keepdim=True)).cpu().numpy()
