"""Formulas of diagonal Gaussians, in nats. Everything is elementwise: the caller sums."""

import math

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def normal_log_prob(x: Tensor, loc: Tensor, log_scale: Tensor) -> Tensor:
    """Return log N(x; loc, exp(log_scale)^2) of each element."""
    standardised = (x - loc) * torch.exp(-log_scale)
    return -0.5 * standardised.square() - log_scale - HALF_LOG_2PI


def normal_sample(loc: Tensor, log_scale: Tensor, eps: Tensor) -> Tensor:
    """Return loc + scale * eps (Kingma & Welling 2014, section 2.4)."""
    return loc + torch.exp(log_scale) * eps


def standard_normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw N(0, 1) of this shape, precision and device."""
    return torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def standard_normal_log_prob(x: Tensor) -> Tensor:
    """Return log N(x; 0, 1) of each element."""
    return -0.5 * x.square() - HALF_LOG_2PI


def kl_to_standard_normal(loc: Tensor, log_scale: Tensor) -> Tensor:
    """Return KL(N(loc, exp(log_scale)^2) || N(0, 1)) of each element.

    -1/2 (1 + log s^2 - loc^2 - s^2): Kingma & Welling 2014, appendix B. ``expm1`` keeps the digits
    of a component that has almost collapsed onto the prior.
    """
    return 0.5 * (loc.square() + torch.expm1(2.0 * log_scale)) - log_scale
