"""Formulas of diagonal Gaussians, in nats. Everything is elementwise: the caller sums."""

import math

import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
ROOT_HALF = math.sqrt(0.5)
NARROW = 0.02  # an interval over which the density is as good as a parabola
FAR_OUT = {torch.float64: 37.0, torch.float32: 12.0, torch.float16: 3.0, torch.bfloat16: 12.0}
FARTHEST = 1e4  # of what Mills' ratio is asked: its fourth power is a float
SMALL_MASS = 1e-13


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

    An interval that lies left of zero is reflected: the mass is a difference of complementary error
    functions, then, which does not vanish before they do. Beyond, Mills' ratio stands for them.
    """
    is_left = lower + upper < 0.0
    near, far = torch.where(is_left, -upper, lower), torch.where(is_left, -lower, upper)
    width, middle = far - near, 0.5 * (near + far)
    narrow, beyond = width * near.clamp(min=1.0) < NARROW, near > FAR_OUT[near.dtype]
    wide = torch.where(narrow, NARROW, width)  # what is not chosen below must have a gradient
    end = near + wide
    mass = torch.erfc(near * ROOT_HALF) - torch.erfc(end * ROOT_HALF)
    log_around = torch.log(0.5 * torch.where(beyond, 1.0, mass))
    start = near.clamp(min=FAR_OUT[near.dtype])
    decay = torch.exp(-wide * (start + 0.5 * wide))
    tail = _mills_ratio(start) - decay * _mills_ratio(end.clamp(FAR_OUT[near.dtype], FARTHEST))
    log_tail = standard_normal_log_prob(start) + torch.log(tail)
    bend = torch.log1p((middle.square() - 1.0) * torch.where(narrow, width, 0.0).square() / 24.0)
    log_narrow = standard_normal_log_prob(middle) + torch.log(width) + bend
    return torch.where(narrow, log_narrow, torch.where(beyond, log_tail, log_around))


def _mills_ratio(x: Tensor) -> Tensor:
    """Return (1 - Phi(x)) / phi(x) far out: to 120 / x^10 of it (its continued fraction)."""
    s = x.square()
    return (s.square() + 9.0 * s + 8.0) / (x * (s.square() + 10.0 * s + 15.0))


def hidden_variance(lower: Tensor, upper: Tensor) -> Tensor:
    """Return the mass of each interval under N(0, 1), times the variance of N(0, 1) within it.

    To 1e-13 absolutely, which is what sums over intervals need.
    """
    mass = 0.5 * (torch.erf(upper * ROOT_HALF) - torch.erf(lower * ROOT_HALF))
    at_lower, at_upper = (torch.exp(standard_normal_log_prob(end)) for end in (lower, upper))
    moved = lower * at_lower - upper * at_upper
    variance = mass + moved - (at_lower - at_upper).square() / mass.clamp(min=SMALL_MASS)
    width = upper - lower
    return torch.where(width < NARROW, mass * width.square() / 12.0, variance).clamp(min=0.0)
