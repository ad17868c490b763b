"""The search for the modes of each row's posterior p(z | x), and Laplace approximations there.

An encoder has never seen an outlier, so its posterior is wrong exactly there. Here z climbs
log p(x, z) from several points, each row on its own.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._gaussian import standard_normal_log_prob
from .._model.vae import VAE

MAX_STEPS = 30
SETTLED_NATS = 1e-4  # nats that a step promises; its error is much smaller after it is taken
START_WIDTH = 4.0  # posterior standard deviations around the encoder's mean
SAME_MODE = 0.5  # posterior standard deviations between two ends of one climb
SMALLEST_SHARE = 1e-3  # of a mode in the mixture
NEGLIGIBLE = 12.0  # nats: how much lighter a mode may be and still count
WIDTH = 1.1  # of a proposal, relative to the posterior: its tails must cover the posterior's
BLOCK = 16  # samples of all rows that are evaluated at once: what fits a processor's cache
AROUND = 32  # points spread around the encoder's mean; twice as many are the prior's


class Mixture(NamedTuple):
    """For each row a mixture of C Gaussians N(loc, (L L^T)^-1)."""

    loc: Tensor  # (C, N, K)
    factor: Tensor  # (C, N, K, K)     L
    log_share: Tensor  # (C, N)

    def log_prob(self, z: Tensor) -> Tensor:  # (S, N, K) -> (S, N)
        log_probs = []
        for loc, factor, log_share in zip(*self, strict=True):
            standardised = torch.einsum("snk,nkj->snj", z - loc, factor)
            log_prob = standard_normal_log_prob(standardised).sum(-1) + log_det(factor)
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


def laplace_approximations(
    vae: VAE, x: Tensor, observed: Tensor | None
) -> tuple[Mixture, Mixture, Tensor]:  # ..., ..., (N,)
    """Return the Laplace approximations at all modes, the heaviest, and where there is no other.

    The encoder's mean leads to the first mode. The other starts are given up where they lead
    there too.
    """
    starts = _search_points(vae, x, observed)  # (C, N, K)
    home = _approximation(vae, x, observed, posterior_mode(vae, x, observed, starts[0]))
    n_others, n_rows, n_components = starts[1:].shape
    rows = torch.arange(n_rows, device=x.device).repeat(n_others)
    x, observed, others = x[rows], rows_of(observed, rows), home.rows(rows)
    loc = posterior_mode(vae, x, observed, starts[1:].reshape(-1, n_components), others)
    others.log_share.fill_(-math.inf)
    new = torch.nonzero(~_near(loc, others))[:, 0]
    if len(new):
        found = _approximation(vae, x[new], rows_of(observed, new), loc[new])
        for values, of_found in zip(others, found, strict=True):
            values[:, new] = of_found
    pairs = zip(home, others, strict=True)
    modes = Mixture(*(torch.cat([a, b.reshape(n_others, *a.shape[1:])]) for a, b in pairs))
    return _mixed(modes)


def _approximation(vae: VAE, x: Tensor, observed: Tensor | None, loc: Tensor) -> Mixture:
    """Return the Laplace approximation at ``loc``; instead of a share, its log mass."""
    factor = torch.linalg.cholesky(vae.curvature(loc, observed))
    log_mass = vae.log_joint(x, observed, loc) - log_det(factor)
    return Mixture(loc[None], factor[None], log_mass[None])


def _mixed(modes: Mixture) -> tuple[Mixture, Mixture, Tensor]:
    """Return shares from masses, the heaviest mode, and where no other one counts."""
    log_mass, rows = modes.log_share, torch.arange(modes.loc.shape[1], device=modes.loc.device)
    counts = log_mass >= log_mass.amax(0) - NEGLIGIBLE
    share = torch.where(counts, torch.softmax(log_mass, 0) + SMALLEST_SHARE, 0.0)
    best = log_mass.argmax(0)
    loc, factor = modes.loc[best, rows][None], modes.factor[best, rows][None]
    heaviest = Mixture(loc, factor, torch.zeros_like(log_mass[:1]))
    return modes._replace(log_share=torch.log(share / share.sum(0))), heaviest, counts.sum(0) == 1


def _near(z: Tensor, mode: Mixture) -> Tensor:  # (N,)
    offset = torch.einsum("nk,nkj->nj", z - mode.loc[0], mode.factor[0])
    return torch.linalg.vector_norm(offset, dim=-1) < SAME_MODE


def _search_points(vae: VAE, x: Tensor, observed: Tensor | None) -> Tensor:  # (3, N, K)
    """Choose where to climb from: the encoder's mean, the prior's centre, the best of some points.

    The points are drawn from the prior and spread around the encoder's mean; they are the same for
    every row and call.
    """
    loc, log_scale = vae.encode(x, observed)
    n_components, prior = loc.shape[-1], vae.prior.now

    def generator() -> torch.Generator:
        return torch.Generator(loc.device).manual_seed(0)

    of_prior = prior.sample(2 * AROUND, n_components, generator()).to(loc)[:, None]
    size = (AROUND, 1, n_components)
    eps = torch.randn(size, generator=generator(), dtype=loc.dtype, device=loc.device)
    around = loc + START_WIDTH * torch.exp(log_scale) * eps
    candidates = torch.cat([of_prior.expand(-1, len(x), -1), around])
    best = log_joint_of_samples(vae, x, observed, candidates).argmax(0)
    rows = torch.arange(len(x), device=x.device)
    centre = prior.centre(n_components).to(loc).expand_as(loc)
    return torch.stack([loc, centre, candidates[best, rows]])


def posterior_mode(
    vae: VAE, x: Tensor, observed: Tensor | None, z: Tensor, known: Mixture | None = None
) -> Tensor:  # (N, K)
    """Climb log p(x, z) from ``z`` by damped Gauss-Newton steps, each row on its own.

    A step is kept only where it climbs; else that row's damping grows (Levenberg 1944). Rows that
    have settled, or come near the mode that is ``known``, drop out.
    """
    z = z.clone()
    value, gradient = _value_and_gradient(vae, x, observed, z)
    active = torch.arange(len(z), device=z.device)
    damping = z.new_full((len(z),), 1e-3)
    for _ in range(MAX_STEPS):
        if known is not None:
            active = active[~_near(z[active], known.rows(active))]
        if len(active) == 0:
            break
        observed_a, gradient_a = rows_of(observed, active), gradient[active]
        step = _gauss_newton_step(vae, observed_a, z[active], gradient_a, damping[active])
        trial = z[active] + step
        trial_value, trial_gradient = _value_and_gradient(vae, x[active], observed_a, trial)
        climbed = trial_value > value[active]
        moved = active[climbed]
        z[moved], value[moved] = trial[climbed], trial_value[climbed]
        gradient[moved] = trial_gradient[climbed]
        damping[active] = torch.where(climbed, 0.1 * damping[active], 8.0 * damping[active])
        promise = (gradient_a * step).sum(-1)
        settled = (promise < SETTLED_NATS) | (damping[active] > 1e12)
        active = active[~settled]
    return z


def _value_and_gradient(
    vae: VAE, x: Tensor, observed: Tensor | None, z: Tensor
) -> tuple[Tensor, Tensor]:  # (N,), (N, K)
    """Return log p(x, z) and its gradient by z."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = vae.log_joint(x, observed, z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
    return value.detach(), gradient


def _gauss_newton_step(
    vae: VAE, observed: Tensor | None, z: Tensor, gradient: Tensor, damping: Tensor
) -> Tensor:  # (N, K)
    hessian = vae.curvature(z, observed)
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    damped = hessian + torch.diag_embed(damping[:, None] * diagonal)
    return torch.cholesky_solve(gradient[..., None], torch.linalg.cholesky(damped))[..., 0]


def log_joint_of_samples(
    vae: VAE, x: Tensor, observed: Tensor | None, z: Tensor
) -> Tensor:  # (S, N)
    return torch.cat([vae.log_joint(x, observed, part) for part in z.split(BLOCK)])


def rows_of(observed: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if observed is None else observed[rows]


def log_det(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
