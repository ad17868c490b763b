"""log p(x) by importance sampling around the posterior's modes, each row on its own.

An encoder has never seen an outlier, so sampling from its posterior is wrong exactly there. Here z
climbs log p(x, z) from several starts; the Laplace approximations at the modes, mixed by their
mass, are the first proposal. Rows whose estimate is not sharp then go on with Gaussians that have
the moments of the weighted samples (adaptive multiple importance sampling: Cornuet et al. 2012).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._gaussian import standard_normal_log_prob
from .._model.vae import VAE
from .diagnostics import effective_sample_size, pareto_k, standard_error

WIDTH = 1.1  # of a proposal, relative to the posterior: its tails must cover the posterior's
WIDER = 1.5  # than that: a part of a proposal that was fitted to samples
WIDE_SHARE = 0.2
SMALLEST_SHARE = 1e-3  # of a mode in the mixture
ACCURACY = 0.025  # nats: estimated standard error that asks for more samples; mostly too large
MAX_STEPS = 30
SETTLED = 1e-4  # nats that a step promises; its error is much smaller after it is taken
START_WIDTH = 4.0  # posterior standard deviations around the encoder's mean
SAME_MODE = 0.5  # posterior standard deviations between two ends of one climb
PRIOR_SAMPLES = 2.0  # times K: how many samples the Laplace approximation's moments count for
NEGLIGIBLE = 12.0  # nats: how much lighter a mode may be and still count
BLOCK = 16  # samples of all rows that are evaluated at once: what fits a processor's cache


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


class Draws(NamedTuple):
    """The samples of z so far, from all proposals."""

    z: Tensor  # (S, N, K)
    log_joint: Tensor  # (S, N)      log p(x, z)
    log_total: Tensor  # (S, N)      log sum_t n_t q_t(z): proposal t gave n_t samples

    def rows(self, index: Tensor) -> "Draws":
        return Draws(*(value[:, index] for value in self))


class Estimate(NamedTuple):
    """Of log p(x) in nats, and how good it is: each (N,)."""

    log_likelihood: Tensor
    effective_sample_size: Tensor
    pareto_k: Tensor
    n_samples: Tensor

    def put(self, rows: Tensor, other: "Estimate") -> None:
        for values, new in zip(self, other, strict=True):
            values[rows] = new


class _Rows(NamedTuple):
    """What belongs to some rows while their samples are drawn."""

    x: Tensor
    observed: Tensor | None
    laplace: Mixture
    proposals: list[Mixture]
    draws: Draws | None

    def rows(self, index: Tensor) -> "_Rows":
        return _Rows(
            self.x[index],
            _of(self.observed, index),
            self.laplace.rows(index),
            [proposal.rows(index) for proposal in self.proposals],
            None if self.draws is None else self.draws.rows(index),
        )


@torch.no_grad()
def refined_log_likelihood(
    vae: VAE, x: Tensor, observed: Tensor | None, banks: Sequence[Tensor]
) -> Estimate:
    """Log p(x) in nats: the first bank's samples for all rows, the others' for those in need.

    A row is done when its estimated error is at most ``ACCURACY``, or half of it where the
    weights' tail is heavy.
    """
    modes, laplace, one_mode = _laplace(vae, x, observed)
    result = _unknown(len(x), x)
    for alone, first in ((one_mode, laplace), (~one_mode, modes)):
        index = torch.nonzero(alone)[:, 0]
        if len(index):
            work = _Rows(x, observed, laplace, [first.widened()], None).rows(index)
            result.put(index, _estimate(vae, work, banks))
    return result


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
    vae: VAE, work: _Rows, banks: Sequence[Tensor], sizes: tuple[int, ...] = ()
) -> Estimate:
    """Sample from the last proposal; rows that are not sharp then go on with a better one.

    The weights are divided by those that a Gaussian posterior would have, whose mean is known to
    be 1: for a linear decoder the estimate is then exact from the first sample on.
    """
    bank, later, sizes = banks[0], banks[1:], (*sizes, len(banks[0]))
    draws = _drawn(vae, work, bank, sizes)
    log_w = draws.log_joint - draws.log_total
    log_control = work.laplace.log_prob(draws.z) - draws.log_total
    error = standard_error(log_w, log_control)
    sharp = ~(error > (ACCURACY if later else math.inf))
    result = _unknown(len(error), log_w)
    result.put(sharp, _summary(log_w[:, sharp], log_control[:, sharp]))
    # Weights with k above 1/2 have no variance, and what is estimated as such is too small.
    sharp &= ~((result.pareto_k > 0.5) & (error > 0.5 * ACCURACY))
    needy = torch.nonzero(~sharp)[:, 0]
    if later and len(needy):
        own = work._replace(draws=draws).rows(needy)
        better = _matched(draws.z[:, needy], log_w[:, needy], own.laplace).widened()
        own.proposals.append(better)
        result.put(needy, _estimate(vae, own, later, sizes))
    return result


def _unknown(n_rows: int, like: Tensor) -> Estimate:
    nan = like.new_full((n_rows,), math.nan)
    return Estimate(nan, nan.clone(), nan.clone(), torch.zeros_like(nan, dtype=torch.long))


def _summary(log_w: Tensor, log_control: Tensor) -> Estimate:
    return Estimate(
        torch.logsumexp(log_w, 0) - torch.logsumexp(log_control, 0),
        effective_sample_size(log_w, log_control),
        pareto_k(log_w, log_control),
        torch.full_like(log_w[0], len(log_w), dtype=torch.long),
    )


def _drawn(vae: VAE, work: _Rows, bank: Tensor, sizes: tuple[int, ...]) -> Draws:
    """The earlier samples, and the last proposal's."""
    z = work.proposals[-1].sample(bank)
    log_joint = _log_joint(vae, work.x, work.observed, z)
    each = [q.log_prob(z) + math.log(n) for q, n in zip(work.proposals, sizes, strict=True)]
    log_total = torch.logsumexp(torch.stack(each), 0)
    if work.draws is None:
        return Draws(z, log_joint, log_total)
    before = work.draws
    also = work.proposals[-1].log_prob(before.z) + math.log(sizes[-1])
    return Draws(
        torch.cat([before.z, z]),
        torch.cat([before.log_joint, log_joint]),
        torch.cat([torch.logaddexp(before.log_total, also), log_total]),
    )


def _log_joint(vae: VAE, x: Tensor, observed: Tensor | None, z: Tensor) -> Tensor:  # (S, N)
    return torch.cat([vae.log_joint(x, observed, part) for part in z.split(BLOCK)])


def _laplace(
    vae: VAE, x: Tensor, observed: Tensor | None
) -> tuple[Mixture, Mixture, Tensor]:  # ..., ..., (N,)
    """The Laplace approximations at all modes found; the heaviest; and where there is no other.

    The encoder's mean leads to the first mode. The other starts are given up where they lead
    there too.
    """
    starts = _starts(vae, x, observed)  # (C, N, K)
    home = _approximation(vae, x, observed, posterior_mode(vae, x, observed, starts[0]))
    n_others, n_rows, n_components = starts[1:].shape
    rows = torch.arange(n_rows, device=x.device).repeat(n_others)
    x, observed, others = x[rows], _of(observed, rows), home.rows(rows)
    loc = posterior_mode(vae, x, observed, starts[1:].reshape(-1, n_components), others)
    others.log_share.fill_(-math.inf)
    new = torch.nonzero(~_near(loc, others))[:, 0]
    if len(new):
        found = _approximation(vae, x[new], _of(observed, new), loc[new])
        for values, of_found in zip(others, found, strict=True):
            values[:, new] = of_found
    pairs = zip(home, others, strict=True)
    modes = Mixture(*(torch.cat([a, b.reshape(n_others, *a.shape[1:])]) for a, b in pairs))
    return _shared(modes)


def _approximation(vae: VAE, x: Tensor, observed: Tensor | None, loc: Tensor) -> Mixture:
    """The Laplace approximation at ``loc``; in place of a share, its log mass."""
    factor = torch.linalg.cholesky(vae.curvature(loc, observed))
    log_mass = vae.log_joint(x, observed, loc) - _log_det(factor)
    return Mixture(loc[None], factor[None], log_mass[None])


def _shared(modes: Mixture) -> tuple[Mixture, Mixture, Tensor]:
    """Shares from masses; the heaviest mode; and where no other one counts."""
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


def _starts(vae: VAE, x: Tensor, observed: Tensor | None) -> Tensor:  # (3, N, K)
    """The encoder's mean, the prior's, and the best of some points spread around both."""
    loc, log_scale = vae.encode(x, observed)
    generator = torch.Generator().manual_seed(0)  # the same points for every row and call
    eps = torch.randn((64, 1, loc.shape[-1]), generator=generator, dtype=loc.dtype).to(loc.device)
    around = loc + START_WIDTH * torch.exp(log_scale) * eps[:32]
    candidates = torch.cat([eps.expand(-1, len(x), -1), around])
    best = _log_joint(vae, x, observed, candidates).argmax(0)
    rows = torch.arange(len(x), device=x.device)
    return torch.stack([loc, torch.zeros_like(loc), candidates[best, rows]])


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
        observed_a, gradient_a = _of(observed, active), gradient[active]
        step = _gauss_newton_step(vae, observed_a, z[active], gradient_a, damping[active])
        trial = z[active] + step
        trial_value, trial_gradient = _value_and_gradient(vae, x[active], observed_a, trial)
        climbed = trial_value > value[active]
        moved = active[climbed]
        z[moved], value[moved] = trial[climbed], trial_value[climbed]
        gradient[moved] = trial_gradient[climbed]
        damping[active] = torch.where(climbed, 0.1 * damping[active], 8.0 * damping[active])
        promise = (gradient_a * step).sum(-1)
        settled = (promise < SETTLED) | (damping[active] > 1e12)
        active = active[~settled]
    return z


def _value_and_gradient(
    vae: VAE, x: Tensor, observed: Tensor | None, z: Tensor
) -> tuple[Tensor, Tensor]:  # (N,), (N, K)
    """Log p(x, z) and its gradient by z."""
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


def _matched(z: Tensor, log_w: Tensor, laplace: Mixture) -> Mixture:
    """Two Gaussians of the weighted samples' mean and covariance, one of them wider.

    The Laplace covariance counts as some more samples: few may lie in a plane, and moments that
    are fitted to the samples too closely bias their weights. The wide one bounds the weights where
    a posterior is curved, and its tails are not those of any Gaussian (Hesterberg 1995).
    """
    weight = torch.softmax(log_w, 0)[..., None]  # (S, N, 1)
    loc = (weight * z).sum(0)
    centred = (z - loc).transpose(0, 1)  # (N, S, K)
    covariance = (weight.transpose(0, 1) * centred).mT @ centred
    size = effective_sample_size(log_w)
    trust = (size / (size + PRIOR_SAMPLES * z.shape[-1]))[:, None, None]
    covariance = trust * covariance + (1.0 - trust) * torch.cholesky_inverse(laplace.factor[0])
    factor = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(covariance)))
    shares = loc.new_tensor([1.0 - WIDE_SHARE, WIDE_SHARE]).log()[:, None]
    factors = torch.stack([factor, factor / WIDER])
    return Mixture(loc.expand(2, -1, -1), factors, shares.expand(-1, len(loc)))


def _log_det(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
