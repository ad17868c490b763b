"""How far a model's parameters may be off: draws of them, for imputations that are proper.

Of the decoder's linear layer and the noise scales, whose score of a row is E[d log p(x | z) | x]
(Fisher's identity: Louis 1982). The posterior of the parameters is about N(theta, I^-1), where I
sums the outer products of the scores over the rows (Little & Rubin 2019, sections 9.2 and 10.2).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._model.networks import CODE_LIMIT, tame
from .._model.vae import VAE
from ..likelihoods._mixed import Given
from .codebook import Codebook
from .importance import Decoded, posterior_draws

MOST_TOGETHER = 1500  # parameters whose uncertainties are taken as dependent
LEAST_KNOWN = 4.0  # information: what is known to half a unit; loadings are about 1


class Moved(NamedTuple):
    """Draws of what parameters are off by."""

    weight: Tensor  # (M, P, K)  of the decoder's linear layer
    bias: Tensor  # (M, P)
    log_scale: Tensor  # (M, P)  of the noise; 0 where there is none


def scores_of_rows(
    vae: VAE, x: Tensor, observed: Tensor | None, *, bank: Tensor, codebook: Codebook
) -> tuple[Tensor]:  # (N, P, K + 2)
    """Return each row's gradient of log p(x) by weights, bias and log noise scale."""
    draws = posterior_draws(vae, x, observed, bank, codebook)
    weight = torch.softmax(draws.log_weight, 0)[..., None]  # (S, N, 1)
    by_raw, by_scale = vae.likelihood.slopes(draws.raw, Given(x, observed))  # (S, N, P) each
    if observed is not None:
        seen = observed[:, vae.likelihood.column]
        by_raw, by_scale = (torch.where(seen, by, 0.0) for by in (by_raw, by_scale))
    by_weight = _by_weight(vae, draws, by_raw * weight)
    others = torch.stack([(by_raw * weight).sum(0), (by_scale * weight).sum(0)], -1)
    return (torch.cat([by_weight, others], -1),)


def _by_weight(vae: VAE, draws: Decoded, slope: Tensor) -> Tensor:  # (N, P, K)
    plain = torch.einsum("snp,snk->npk", slope, draws.z)
    tamed = vae.decoder.tamed
    if not bool(tamed.any()):
        return plain
    near = torch.einsum("snp,snk->npk", slope, tame(draws.z, CODE_LIMIT))
    return torch.where(tamed[:, None], near, plain)


def moved(scores: Tensor, counted: Tensor, n_draws: int, generator: torch.Generator) -> Moved:
    """Draw what parameters are off by, from scores (N, P, K + 2) of rows that count so often.

    Columns depend on each other as long as there are not too many parameters. Directions that the
    rows tell next to nothing of are rotations of the components, which change no density for small
    steps, and do for large ones: there nothing moves.
    """
    n_raw, n_each = scores.shape[1:]
    groups = scores.flatten(1)[None] if n_raw * n_each <= MOST_TOGETHER else scores.transpose(0, 1)
    weighted = groups * counted.to(groups)[:, None]
    information = weighted.mT @ groups  # (G, Q, Q)
    known, directions = torch.linalg.eigh(information)
    spread = torch.where(known < LEAST_KNOWN, 0.0, known.clamp(min=LEAST_KNOWN).rsqrt())
    size = (len(groups), groups.shape[-1], n_draws)
    eps = torch.randn(size, generator=generator, dtype=scores.dtype)
    draws = directions @ (spread[..., None] * eps)  # (G, Q, M)
    each = draws.permute(2, 0, 1).reshape(n_draws, n_raw, n_each)
    return Moved(each[..., :-2], each[..., -2], each[..., -1])
