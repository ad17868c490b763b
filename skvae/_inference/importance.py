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
from .climbing import rows_of
from .codebook import Codebook
from .diagnostics import effective_sample_size, pareto_k, skewness, standard_error
from .mixture import Mixture, cholesky
from .modes import find_modes

ROWS_AT_ONCE = 1024  # of decoder input: what fits a processor's cache
# What few samples do not show of their own error, times their root: by measurement of 7,000 rows.
UNSEEN_SKEWED = 0.4  # by how odd the log posterior is around its mode, in nats
UNSEEN_HEAVY = 0.16  # by Pareto k
WIDER = 1.5  # than that: a part of a proposal that was fitted to samples
WIDE_SHARE = 0.2
FIRST_MATCHED = 3  # stage from which proposals have the moments of the samples before
MOST_SAMPLES = 2**17  # of all rows that go on together
HEAVY = 0.5  # Pareto k of a tail without variance
ACCURACY = 0.05  # nats: estimated error that asks for more samples; it is a quarter, mostly
PRIOR_SAMPLES = 2.0  # times K: how many samples the Laplace approximation's moments count for


class Draws(NamedTuple):
    """The samples of z so far, from all proposals."""

    z: Tensor  # (S, N, K)
    log_joint: Tensor  # (S, N)      log p(x, z)
    log_control: Tensor  # (S, N)    log density of the heaviest mode's Laplace approximation
    log_total: Tensor  # (S, N)      log sum_t n_t q_t(z): proposal t gave n_t samples

    def rows(self, index: Tensor) -> "Draws":
        return Draws(*(value[:, index] for value in self))


class Decoded(NamedTuple):
    """Weighted samples of z given each row, and what the decoder makes of them."""

    z: Tensor  # (S, N, K)
    raw: Tensor  # (S, N, P)
    log_weight: Tensor  # (S, N)


class Estimate(NamedTuple):
    """Of log p(x) in nats, and how good it is: each (N,)."""

    log_likelihood: Tensor
    effective_sample_size: Tensor
    pareto_k: Tensor
    n_samples: Tensor
    standard_error: Tensor
    mode_gap: Tensor

    def put(self, rows: Tensor, other: "Estimate") -> None:
        for values, new in zip(self, other, strict=True):
            values[rows] = new


class _Rows(NamedTuple):
    """What belongs to some rows while their samples are drawn."""

    x: Tensor
    observed: Tensor | None
    laplace: Mixture
    proposals: list[Mixture]
    sizes: list[int]  # samples of each
    draws: Draws | None

    def rows(self, index: Tensor) -> "_Rows":
        return self._replace(
            x=self.x[index],
            observed=rows_of(self.observed, index),
            laplace=self.laplace.rows(index),
            proposals=[proposal.rows(index) for proposal in self.proposals],
            draws=None if self.draws is None else self.draws.rows(index),
        )


@torch.no_grad()
def refined_log_likelihood(
    vae: VAE, x: Tensor, observed: Tensor | None, banks: Sequence[Tensor], codebook: Codebook
) -> Estimate:
    """Estimate log p(x) in nats: by the first bank for all rows, by the others for those in need.

    A row is done when its estimated error is at most ``ACCURACY``, or half of it where the
    weights' tail is heavy.
    """
    modes, laplace, one_mode, gap = find_modes(vae, x, observed, codebook)
    result = _unknown(len(x), x)
    for alone, first in ((one_mode, laplace), (~one_mode, modes)):
        index = torch.nonzero(alone)[:, 0]
        if len(index):
            work = _Rows(x, observed, laplace, [first.widened()], [0], None).rows(index)
            result.put(index, _estimate(vae, work, banks))
    # A density beyond all floats, whose logarithm is no number any more, is 0.
    log_likelihood = result.log_likelihood.nan_to_num(-math.inf, neginf=-math.inf)
    return result._replace(log_likelihood=log_likelihood, mode_gap=gap)


@torch.no_grad()
def posterior_draws(
    vae: VAE, x: Tensor, observed: Tensor | None, eps: Tensor, codebook: Codebook
) -> Decoded:
    """Draw and decode z around the posterior's modes, from noise (S, 1 or N, K).

    Where values are missing the posterior is far from diagonal, and the encoder's q too narrow.
    """
    proposal = find_modes(vae, x, observed, codebook).modes.widened()
    z, log_prob = proposal.sample(eps)
    raw, log_px_z, log_pz = vae.decoded(x, observed, z)
    return Decoded(z, raw, log_px_z + log_pz - log_prob)


def _estimate(vae: VAE, work: _Rows, banks: Sequence[Tensor], stage: int = 0) -> Estimate:
    """Sample from the last proposal; rows that are not sharp then go on.

    The weights are divided by those that a Gaussian posterior would have, whose mean is known to
    be 1: for a linear decoder the estimate is then exact from the first sample on.
    """
    work = _drawn(vae, work, banks[stage])
    draws, last = work.draws, stage + 1 == len(banks)
    assert draws is not None
    log_w, log_control = draws.log_joint - draws.log_total, draws.log_control - draws.log_total
    summary = _summary(log_w, log_control)
    error = summary.standard_error
    # Weights with k above 1/2 have no variance, and an estimate of it is too small.
    limit = torch.where(summary.pareto_k > HEAVY, 0.5 * ACCURACY, ACCURACY)
    sharp = ~(error > limit) | last
    result = _unknown(len(error), log_w)
    result.put(sharp, Estimate(*(values[sharp] for values in summary)))
    needy = torch.nonzero(~sharp)[:, 0]
    if last or len(needy) == 0:
        return result
    # Moments of few samples are worse than the Laplace approximation, unless its tails are.
    better = (summary.pareto_k[needy] > HEAVY) | (stage + 1 >= FIRST_MATCHED)
    for matched in (False, True):
        group = needy[better == matched]
        if len(group) == 0:
            continue
        for some in group.split(max(MOST_SAMPLES // len(banks[stage + 1]), 1)):
            own = work.rows(some)
            own = _better(own, log_w[:, some]) if matched else own
            result.put(some, _estimate(vae, own, banks, stage + 1))
    return result


def _better(work: _Rows, log_w: Tensor) -> _Rows:
    """Go on with a proposal that has the moments of the samples so far."""
    assert work.draws is not None
    matched = _matched(work.draws.z, log_w, work.laplace).widened()
    return work._replace(proposals=[*work.proposals, matched], sizes=[*work.sizes, 0])


def _unknown(n_rows: int, like: Tensor) -> Estimate:
    nan = like.new_full((n_rows,), math.nan)
    none = torch.zeros_like(nan, dtype=torch.long)
    return Estimate(nan, nan.clone(), nan.clone(), none, nan.clone(), nan.clone())


def _summary(log_w: Tensor, log_control: Tensor) -> Estimate:
    k = pareto_k(log_w, log_control)
    unseen = UNSEEN_SKEWED * skewness(log_w, log_control)
    unseen += UNSEEN_HEAVY * k.nan_to_num(0.0).clamp(min=0.0)
    return Estimate(
        torch.logsumexp(log_w, 0) - torch.logsumexp(log_control, 0),
        effective_sample_size(log_w, log_control),
        k,
        torch.full_like(log_w[0], len(log_w), dtype=torch.long),
        standard_error(log_w, log_control) + unseen / math.sqrt(len(log_w)),
        torch.full_like(log_w[0], math.nan),  # only a search knows it
    )


def _drawn(vae: VAE, work: _Rows, bank: Tensor) -> _Rows:
    """Add samples of the last proposal."""
    *earlier, last = work.proposals
    z, log_prob = last.sample(bank)
    parts = z.split(max(ROWS_AT_ONCE // len(work.x), 1))
    log_joint = torch.cat([vae.log_joint(work.x, work.observed, part) for part in parts])
    log_control = work.laplace.log_prob(z)
    sizes = [*work.sizes[:-1], work.sizes[-1] + len(bank)]
    each = [q.log_prob(z) + math.log(n) for q, n in zip(earlier, sizes, strict=False)]
    log_total = _log_sum([log_prob + math.log(sizes[-1]), *each])
    new = Draws(z, log_joint, log_control, log_total)
    if work.draws is not None:
        before = work.draws
        if earlier:
            grown = _log_sum([before.log_total, last.log_prob(before.z) + math.log(len(bank))])
        else:  # more of the same
            grown = before.log_total + math.log(sizes[-1] / work.sizes[-1])
        pairs = zip(before._replace(log_total=grown), new, strict=True)
        new = Draws(*(torch.cat(pair) for pair in pairs))
    return work._replace(sizes=sizes, draws=new)


def _log_sum(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.logsumexp(torch.stack(parts), 0)


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
    factor = cholesky(torch.cholesky_inverse(cholesky(covariance)))
    shares = loc.new_tensor([1.0 - WIDE_SHARE, WIDE_SHARE]).log()[:, None]
    factors = torch.stack([factor, factor / WIDER])
    return Mixture(loc.expand(2, -1, -1), factors, shares.expand(-1, len(loc)))
