"""The terms of log p(x, z) - log q(z | x), and what reduces them to a bound on log p(x).

Shape letters here and in all files above: S samples, N rows, D columns, K components, P raw
parameters of the decoder. All values are in nats, and higher is better.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class LogTerms(NamedTuple):
    """What one evaluation of the joint density leaves behind."""

    log_px_z: Tensor  # (S, N)     log p(x | z)
    log_pz: Tensor  # (S, N)       log p(z)
    log_qz_x: Tensor  # (S, N)     log q(z | x)
    kl: Tensor  # (N, K)           KL(q(z_k | x) || p(z_k)), in closed form where there is one


def log_weights(terms: LogTerms) -> Tensor:  # (S, N)
    """Return log p(x, z_s) / q(z_s | x): the logarithm of the importance weights."""
    return terms.log_px_z + terms.log_pz - terms.log_qz_x


def elbo(terms: LogTerms, beta: float = 1.0, free_bits: float = 0.0) -> Tensor:  # (N,)
    """Return E_q log p(x | z) - beta * KL(q || p).

    Kingma & Welling 2014, eq. 10; beta: Higgins et al. 2017, eq. 4; free bits (nats that each
    component may use at no cost, on the mean over the rows): Kingma et al. 2016, eq. 15.
    """
    kl = terms.kl
    if free_bits > 0.0:
        kl = torch.where(kl.mean(0) > free_bits, kl, free_bits)
    return terms.log_px_z.mean(0) - beta * kl.sum(-1)


def importance_weighted_bound(terms: LogTerms) -> Tensor:  # (N,)
    """Return log 1/S sum_s p(x, z_s) / q(z_s | x) (Burda et al. 2016, eq. 8)."""
    log_w = log_weights(terms)
    return torch.logsumexp(log_w, dim=0) - math.log(log_w.shape[0])


def warmed_beta(progress: float, beta: float, kl_warmup: float) -> float:
    """Fade in beta over the first ``kl_warmup`` fraction of all steps (Bowman et al. 2016).

    ``progress`` is the fraction of the steps that is done.
    """
    return beta if progress >= kl_warmup else beta * progress / kl_warmup
