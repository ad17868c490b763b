"""log p(x) by importance sampling around the posterior's modes, each row on its own.

The Laplace approximations at the modes, mixed by their mass, are the first proposal. Rows whose
estimate is not sharp then go on with Gaussians that have the moments of the weighted samples
(adaptive multiple importance sampling: Cornuet et al. 2012).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._model.vae import VAE
from .diagnostics import effective_sample_size, pareto_k, standard_error
from .modes import Mixture, laplace_approximations, log_joint_of_samples, rows_of

WIDER = 1.5  # than that: a part of a proposal that was fitted to samples
WIDE_SHARE = 0.2
ACCURACY = 0.025  # nats: estimated standard error that asks for more samples; mostly too large
PRIOR_SAMPLES = 2.0  # times K: how many samples the Laplace approximation's moments count for


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
            rows_of(self.observed, index),
            self.laplace.rows(index),
            [proposal.rows(index) for proposal in self.proposals],
            None if self.draws is None else self.draws.rows(index),
        )


@torch.no_grad()
def refined_log_likelihood(
    vae: VAE, x: Tensor, observed: Tensor | None, banks: Sequence[Tensor]
) -> Estimate:
    """Estimate log p(x) in nats: by the first bank for all rows, by the others for those in need.

    A row is done when its estimated error is at most ``ACCURACY``, or half of it where the
    weights' tail is heavy.
    """
    modes, laplace, one_mode = laplace_approximations(vae, x, observed)
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
    """Draw z around the posterior's modes, from noise (S, 1, K), and return log weights, too.

    Where values are missing the posterior is far from diagonal, and the encoder's q too narrow.
    """
    proposal = laplace_approximations(vae, x, observed)[0].widened()
    z = proposal.sample(eps)
    return z, vae.log_joint(x, observed, z) - proposal.log_prob(z)


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
    # Weights with k above 1/2 have no variance, and an estimate of it is too small.
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
    """Add the last proposal's samples to the earlier ones."""
    z = work.proposals[-1].sample(bank)
    log_joint = log_joint_of_samples(vae, work.x, work.observed, z)
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


def _matched(z: Tensor, log_w: Tensor, laplace: Mixture) -> Mixture:
    """Fit two Gaussians to the weighted samples' mean and covariance, one of them wider.

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
