"""Points of z that are decoded once: where to look for the modes of any row's posterior.

log p(x, z) of all rows at all points is about one matrix product. The points are where codes of
training rows lie, and draws from the prior, some of them spread beyond it. Local searches begin at
the best of them that are apart from each other, which is what finds modes that a single start
misses (topographical multistart: Törn & Viitanen 1992).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._model.vae import VAE, Points

CODES = 512  # of training rows that a fitted model keeps
AMONG = 4096  # rows whose codes they are chosen from
POINTS = 1024
POINTS_ELEMENTWISE = 256  # where a likelihood's log p is no matrix product
MAX_NUMBERS = 2**22  # in the points' Jacobians: 32 MB
LEAVES = 64  # parts of equally many points, of each of which only the best can be a start
SPREADS = (1.0, 2.0, 4.0)  # of the prior's draws around its centre: a half, a quarter, a quarter
APART = 0.3  # times sqrt(K): how far two starts of a row are at least from each other


class Codebook(NamedTuple):
    """M points, those of each leaf together, and what log p(x | z) is of the model's own rows."""

    points: Points
    mean: Tensor  # (D,)      of log p(x_d | z), x drawn at the codes
    variance: Tensor  # (D,)


@torch.no_grad()
def spread_codes(codes: Tensor) -> Tensor:  # (N, K) -> (M, K)
    """Choose some codes: half of them evenly by their number, half far from all others.

    Each of those is the one farthest from all that are chosen before it (Gonzalez 1985).
    """
    codes = codes[:: math.ceil(len(codes) / AMONG)]
    if len(codes) <= CODES:
        return codes
    chosen = [*range(0, len(codes), math.ceil(2 * len(codes) / CODES))]
    distance = torch.cdist(codes, codes[chosen]).amin(1)
    while len(chosen) < CODES:
        farthest = int(distance.argmax())
        chosen.append(farthest)
        far = torch.linalg.vector_norm(codes - codes[farthest], dim=1)
        distance = torch.minimum(distance, far)
    return codes[chosen]


@torch.no_grad()
def codebook_of(vae: VAE, codes: Tensor) -> Codebook:
    """Decode the codes of some training rows, and points of the prior."""
    n_points = POINTS if vae.likelihood.has_linear_form else POINTS_ELEMENTWISE
    per_point = vae.n_components * vae.n_features
    while n_points > 2 * LEAVES and n_points * per_point > MAX_NUMBERS:
        n_points //= 2
    codes = codes[:: max(2 * len(codes) // n_points, 1)].to(vae.encoder.log_scale)
    z = torch.cat([codes, _of_prior(vae, n_points - len(codes)).to(codes)])
    points = vae.points(z[_by_leaves(z)])
    generator = torch.Generator(vae.device).manual_seed(0)
    log_p = vae.log_px_z_of_draws(codes if len(codes) > 1 else points.z, generator)
    return Codebook(points, log_p.mean(0), log_p.var(0))


def _of_prior(vae: VAE, n_points: int) -> Tensor:  # (n_points, K)
    """Draw points from the prior, half of them spread further around its centre."""
    prior, n_components = vae.prior.now, vae.n_components
    generator = torch.Generator(vae.device).manual_seed(0)
    draws = prior.sample(n_points, n_components, generator)
    centre = prior.centre(n_components).to(draws)
    sizes = [n_points - n_points // 2, n_points // 2 - n_points // 4, n_points // 4]
    spread = torch.repeat_interleave(torch.tensor(SPREADS), torch.tensor(sizes)).to(draws)
    return centre + spread[:, None] * (draws - centre)


def _by_leaves(z: Tensor) -> Tensor:  # (M, K) -> (M,)
    """Order points so that equal runs are boxes: each is halved where it is longest, and again."""
    parts = [torch.arange(len(z), device=z.device)]
    while len(parts) < LEAVES:
        halves: list[Tensor] = []
        for part in parts:
            axis = int(z[part].var(0).argmax())
            halves += part[z[part, axis].argsort(stable=True)].chunk(2)
        parts = halves
    return torch.cat(parts)


def starts_of(
    codebook: Codebook, vae: VAE, x: Tensor, observed: Tensor | None, n_starts: int
) -> list[Tensor]:  # of (N,)
    """Choose for each row the best points that are apart, the best one first."""
    z = codebook.points.z
    log_joint = vae.log_joint_at(x, observed, codebook.points).nan_to_num_(nan=-math.inf)
    n_rows, each = len(x), len(z) // LEAVES
    best, within = log_joint.reshape(n_rows, LEAVES, each).max(2)
    index = within + each * torch.arange(LEAVES, device=z.device)  # (N, LEAVES)
    place = z[index]  # (N, LEAVES, K)
    apart = APART**2 * z.shape[1]
    starts = []
    for _ in range(n_starts):
        leaf = best.argmax(1, keepdim=True)
        starts.append(index.gather(1, leaf)[:, 0])
        near = (place - z[starts[-1], None]).square().sum(2) < apart
        best = best.masked_fill(near, -math.inf)
    return starts


def usual_log_prob(
    codebook: Codebook, observed: Tensor | None
) -> tuple[Tensor, Tensor]:  # (N,) or (), each
    """Return mean and variance of log p(x | z) of the model's own rows, where x is observed."""
    if observed is None:
        return codebook.mean.sum(), codebook.variance.sum()
    seen = observed.to(codebook.mean)
    return seen @ codebook.mean, seen @ codebook.variance
