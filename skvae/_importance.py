"""log p(x) by importance sampling around the posterior's modes, each row on its own.

An encoder has never seen an outlier, so sampling from its posterior is wrong exactly there. Here z
climbs log p(x, z) from several starts; the Laplace approximations at the modes, mixed by their
mass, are the first proposal; a Gaussian with the moments of the weighted samples is the second
(adaptive multiple importance sampling: Cornuet et al. 2012).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._bounds import largest_weight
from ._gaussian import standard_normal_log_prob
from ._vae import VAE

WIDTH = 1.1  # of a proposal, relative to the posterior: its tails must cover the posterior's
SMALLEST_SHARE = 1e-3  # of a mode in the mixture
ACCURACY = 0.02  # nats: estimated standard error that asks for more samples
MAX_STEPS = 30
SETTLED = 1e-4  # nats that a step promises; its error is much smaller after it is taken
START_WIDTH = 4.0  # posterior standard deviations around the encoder's mean


class Mixture(NamedTuple):
    """For each row a mixture of C Gaussians N(loc, (L L^T)^-1)."""

    loc: Tensor  # (C, N, K)
    factor: Tensor  # (C, N, K, K)     L
    log_share: Tensor  # (C, N)

    def log_prob(self, z: Tensor) -> Tensor:  # (S, N, K) -> (S, N)
        log_probs = []
        for loc, factor, log_share in zip(*self, strict=True):
            standardised = torch.einsum("snk,nkj->snj", z - loc, factor)
            log_prob = standard_normal_log_prob(standardised).sum(-1) + _log_det(factor)
            log_probs.append(log_prob + log_share)
        return torch.logsumexp(torch.stack(log_probs), 0)

    def sample(self, eps: Tensor) -> Tensor:  # (S, 1, K) -> (S, N, K)
        """Give each Gaussian its share of the noise, in turn: no draw, so always the same."""
        n_samples, n_rows = len(eps), self.loc.shape[1]
        position = (torch.arange(n_samples, device=eps.device) + 0.5) / n_samples
        ends = self.log_share.exp().cumsum(0)  # (C, N)
        chosen = (position[:, None, None] > ends[:-1].T).sum(-1)  # (S, N)
        z = torch.zeros((n_samples, n_rows, eps.shape[-1]), dtype=eps.dtype, device=eps.device)
        identity = torch.eye(eps.shape[-1], dtype=eps.dtype, device=eps.device)
        for number, (loc, factor) in enumerate(zip(self.loc, self.factor, strict=True)):
            root = torch.linalg.solve_triangular(factor, identity, upper=False)  # L^-1
            offset = torch.einsum("sk,nkj->snj", eps[:, 0], root)
            z = torch.where((chosen == number)[..., None], loc + offset, z)
        return z

    def rows(self, index: Tensor) -> "Mixture":
        return Mixture(self.loc[:, index], self.factor[:, index], self.log_share[:, index])

    def widened(self) -> "Mixture":
        return self._replace(factor=self.factor / WIDTH)


@torch.no_grad()
def refined_log_likelihood(
    vae: VAE, x: Tensor, observed: Tensor | None, bank: Tensor, large_bank: Tensor
) -> tuple[Tensor, Tensor]:
    """Log p(x) (N,) in nats, and the share of the heaviest sample.

    Rows whose estimated error stays above ``ACCURACY`` are done again with the large bank.
    """
    modes, laplace = _laplace(vae, x, observed)
    log_likelihood, error, largest = _estimate(vae, x, observed, modes, laplace, bank)
    needy = torch.nonzero(error > ACCURACY)[:, 0]
    for rows in needy.split(max(1, len(x) * len(bank) // len(large_bank))):
        log_likelihood[rows], _, largest[rows] = _estimate(
            vae, x[rows], _of(observed, rows), modes.rows(rows), laplace.rows(rows), large_bank
        )
    return log_likelihood, largest


@torch.no_grad()
def posterior_draws(
    vae: VAE, x: Tensor, observed: Tensor | None, eps: Tensor
) -> tuple[Tensor, Tensor]:  # (S, N, K), (S, N)
    """Samples of z around the posterior's modes, from noise (S, 1, K), and their log weights.

    Where values are missing the posterior is far from diagonal, and the encoder's q too narrow.
    """
    proposal = _laplace(vae, x, observed)[0].widened()
    z = proposal.sample(eps)
    return z, vae.log_joint(x, observed, z) - proposal.log_prob(z)


def _of(observed: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if observed is None else observed[rows]


def _estimate(
    vae: VAE,
    x: Tensor,
    observed: Tensor | None,
    modes: Mixture,
    laplace: Mixture,
    bank: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log p(x), its estimated standard error, and the heaviest sample's share, each (N,).

    The weights are divided by those that a Gaussian posterior would have, whose mean is known to
    be 1: for a linear decoder the estimate is then exact from the first sample on.
    """
    first = modes.widened()
    z = first.sample(bank)
    log_joint = vae.log_joint(x, observed, z)
    second = _matched(z, log_joint - first.log_prob(z), laplace).widened()
    z_second = second.sample(bank)
    z = torch.cat([z, z_second])
    log_joint = torch.cat([log_joint, vae.log_joint(x, observed, z_second)])
    log_proposal = torch.logaddexp(first.log_prob(z), second.log_prob(z)) - math.log(2.0)
    log_w = log_joint - log_proposal
    log_w_laplace = laplace.log_prob(z) - log_proposal
    log_likelihood = torch.logsumexp(log_w, 0) - torch.logsumexp(log_w_laplace, 0)
    # Delta method for the logarithm of a ratio of two means over the same samples.
    error = torch.linalg.vector_norm(
        torch.softmax(log_w, 0) - torch.softmax(log_w_laplace, 0), dim=0
    )
    return log_likelihood, error, largest_weight(log_w)


def _laplace(vae: VAE, x: Tensor, observed: Tensor | None) -> tuple[Mixture, Mixture]:
    """The Laplace approximations at all modes found, and the one at the heaviest of them."""
    starts = _starts(vae, x, observed)  # (C, N, K)
    n_starts, n_rows, n_components = starts.shape
    x_all = x.repeat(n_starts, 1)
    observed_all = None if observed is None else observed.repeat(n_starts, 1)
    loc = posterior_mode(vae, x_all, observed_all, starts.reshape(-1, n_components))
    factor = torch.linalg.cholesky(vae.curvature(loc, observed_all))
    log_mass = vae.log_joint(x_all, observed_all, loc) - _log_det(factor)
    log_mass = log_mass.reshape(n_starts, n_rows)
    loc = loc.reshape(n_starts, n_rows, -1)
    factor = factor.reshape(n_starts, n_rows, n_components, n_components)
    share = torch.softmax(log_mass, 0) + SMALLEST_SHARE
    best, rows = log_mass.argmax(0), torch.arange(n_rows, device=x.device)
    heaviest = Mixture(
        loc[best, rows][None], factor[best, rows][None], torch.zeros_like(log_mass[:1])
    )
    return Mixture(loc, factor, torch.log(share / share.sum(0))), heaviest


def _starts(vae: VAE, x: Tensor, observed: Tensor | None) -> Tensor:  # (3, N, K)
    """The encoder's mean, the prior's, and the best of some points spread around both."""
    loc, log_scale = vae.encode(x, observed)
    generator = torch.Generator().manual_seed(0)  # the same points for every row and call
    eps = torch.randn((64, 1, loc.shape[-1]), generator=generator, dtype=loc.dtype).to(loc.device)
    around = loc + START_WIDTH * torch.exp(log_scale) * eps[:32]
    candidates = torch.cat([eps.expand(-1, len(x), -1), around])
    best = vae.log_joint(x, observed, candidates).argmax(0)
    rows = torch.arange(len(x), device=x.device)
    return torch.stack([loc, torch.zeros_like(loc), candidates[best, rows]])


def posterior_mode(vae: VAE, x: Tensor, observed: Tensor | None, z: Tensor) -> Tensor:  # (N, K)
    """Climb log p(x, z) from ``z`` by damped Gauss-Newton steps, each row on its own.

    A step is kept only where it climbs; else that row's damping grows (Levenberg 1944). Rows that
    have settled drop out.
    """
    z = z.clone()
    active = torch.arange(len(z), device=z.device)
    damping = z.new_full((len(z),), 1e-3)
    for _ in range(MAX_STEPS):
        if len(active) == 0:
            break
        x_a, observed_a, z_a = x[active], _of(observed, active), z[active]
        value, step, promise = _gauss_newton_step(vae, x_a, observed_a, z_a, damping[active])
        with torch.no_grad():
            climbed = vae.log_joint(x_a, observed_a, z_a + step) > value
        z[active] = torch.where(climbed[:, None], z_a + step, z_a)
        damping[active] = torch.where(climbed, 0.1 * damping[active], 8.0 * damping[active])
        settled = (promise < SETTLED) | (damping[active] > 1e12)
        active = active[~settled]
    return z


def _gauss_newton_step(
    vae: VAE, x: Tensor, observed: Tensor | None, z: Tensor, damping: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log p(x, z) (N,), the damped step (N, K), and the rise that it promises (N,)."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = vae.log_joint(x, observed, z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
    hessian = vae.curvature(z.detach(), observed)
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    damped = hessian + torch.diag_embed(damping[:, None] * diagonal)
    step = torch.cholesky_solve(gradient[..., None], torch.linalg.cholesky(damped))[..., 0]
    return value.detach(), step, (gradient * step).sum(-1)


def _matched(z: Tensor, log_w: Tensor, laplace: Mixture) -> Mixture:
    """The Gaussian that has the weighted samples' mean and covariance.

    A tenth of the Laplace covariance is mixed in: few samples may lie in a plane.
    """
    weight = torch.softmax(log_w, 0)[..., None]  # (S, N, 1)
    loc = (weight * z).sum(0)
    centred = (z - loc).transpose(0, 1)  # (N, S, K)
    covariance = (weight.transpose(0, 1) * centred).mT @ centred
    covariance = 0.9 * covariance + 0.1 * torch.cholesky_inverse(laplace.factor[0])
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(covariance)))
    return Mixture(loc[None], factor[None], torch.zeros_like(laplace.log_share))


def _log_det(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
