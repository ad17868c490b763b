"""Formulas of diagonal Gaussians, in nats. Everything is elementwise: the caller sums."""

import math

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
ROOT_HALF = math.sqrt(0.5)
NARROW = 0.02  # an interval over which the density is as good as a parabola


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


def log_normal_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """Return log (Phi(upper) - Phi(lower)) of each element, lower < upper, in the tails, too.

    An interval that lies left of zero is reflected: the mass is a difference of scaled
    complementary error functions, then, which does not vanish.
    """
    is_left = lower + upper < 0.0
    near, far = torch.where(is_left, -upper, lower), torch.where(is_left, -lower, upper)
    width, middle = far - near, 0.5 * (near + far)
    narrow, beyond = width < NARROW, near > 0.0
    wide = torch.where(narrow, NARROW, width)  # what is not chosen below must have a gradient
    one, two = near * ROOT_HALF, (near + wide) * ROOT_HALF
    first, second = one.clamp(min=0.0), torch.where(beyond, two, 1.0)
    decay = torch.exp(-wide * (near.clamp(min=0.0) + 0.5 * wide))
    tail = torch.special.erfcx(first) - decay * torch.special.erfcx(second)
    log_tail = torch.log(0.5 * torch.where(beyond, tail, 1.0)) - first.square()
    around = torch.erf(two) - torch.erf(torch.where(beyond, -1.0, one))
    log_around = torch.log(0.5 * torch.where(beyond, 1.0, around))
    bend = torch.log1p((middle.square() - 1.0) * torch.where(narrow, width, 0.0).square() / 24.0)
    log_narrow = standard_normal_log_prob(middle) + torch.log(width) + bend
    return torch.where(narrow, log_narrow, torch.where(beyond, log_tail, log_around))


def normal_mass_moments(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Return Phi(upper) - Phi(lower), and the variance of N(0, 1) between the two."""
    log_mass = log_normal_mass(lower, upper)
    at_lower = torch.exp(standard_normal_log_prob(lower) - log_mass)
    at_upper = torch.exp(standard_normal_log_prob(upper) - log_mass)
    variance = 1.0 + lower * at_lower - upper * at_upper - (at_lower - at_upper).square()
    width = upper - lower
    variance = torch.where(width < NARROW, width.square() / 12.0, variance)
    return torch.exp(log_mass), variance.clamp(0.0, 1.0)
