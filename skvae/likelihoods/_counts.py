"""Likelihoods of counts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._table.support import Support
from ._likelihood import Likelihood, LinearFit, LinearForm, LinearStart

BISECTIONS = 16  # of the dispersions that there may be


@dataclass(frozen=True)
class Poisson(Likelihood):
    """x_d ~ Poisson(e^raw_d): counts whose variance is their mean.

    Notes
    -----
    Domain: non-negative integers. Link: log, up to a rate of e^20, from where the rate goes on
    linearly: nothing overflows. log p = x raw - e^raw - log x!. Feature: log(1 + x).

    Examples
    --------
    >>> import torch
    >>> from skvae.likelihoods import Poisson
    >>> Poisson().log_prob(torch.zeros(1), torch.zeros(1)).item()  # rate 1
    -1.0
    """

    support = Support(0.0, math.inf, "non-negative integers", whole=True)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        log_rate, count = _log_rate(raw.double()), x.double()  # the terms of large counts cancel
        log_p = count * log_rate - torch.exp(log_rate) - torch.lgamma(count + 1.0)
        return log_p.to(raw.dtype)

    def gradient(
        self, x: Tensor, raw: Tensor, count: Tensor, g: Tensor, places: Mapping[str, Tensor]
    ) -> Tensor:
        # -d log p / d log rate = rate - x.
        (log_rate, slope), x = _log_rate_and_slope(raw.double()), x.double()
        rate = torch.exp(log_rate)
        log_p = x * log_rate - rate - torch.lgamma(x + 1.0)
        g.copy_((rate - x).mul_(slope).mul_(count))
        return (log_p * count).sum().to(raw.dtype)

    def cdf(self, x: Tensor, raw: Tensor) -> Tensor:
        rate = torch.exp(_log_rate(raw))
        below = torch.special.gammaincc(x.floor().clamp(min=0.0) + 1.0, rate)
        return torch.where(x < 0.0, 0.0, below)

    def linear_form(self, x: Tensor, raw: Tensor) -> LinearForm:
        log_rate = _log_rate(raw)
        return LinearForm(x, log_rate, torch.exp(log_rate))

    def mean(self, raw: Tensor) -> Tensor:
        return torch.exp(_log_rate(raw))

    def mode(self, raw: Tensor) -> Tensor:
        return torch.floor(self.mean(raw))

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        return torch.poisson(self.mean(raw), generator=generator)

    def information(self, raw: Tensor) -> Tensor:
        return _rate_information(raw)

    def features(self, x: Tensor) -> Tensor:
        return torch.log1p(x)

    def from_features(self, features: Tensor) -> Tensor:
        return torch.expm1(features).clamp(min=0.0)

    def feature_mean(self, raw: Tensor) -> Tensor:
        return torch.log1p(self.mean(raw))

    def from_linear_fit(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        return _count_start(x, weight, fit)


@dataclass(frozen=True)
class NegativeBinomial(Likelihood):
    """x_d ~ Poisson(e^raw_d g) with g ~ Gamma(r_d, r_d): counts that vary more than Poisson's.

    Notes
    -----
    Domain: non-negative integers. Link: as of ``Poisson``. Each column has a dispersion r of its
    own, which is learned; evaluated on its own, it is 1. With m = e^raw, log p =
    log G(x + r) - log G(r) - log x! + r log(r / (r + m)) + x log(m / (r + m)).
    Variance: m + m^2 / r. Feature: log(1 + x).

    Examples
    --------
    >>> import torch
    >>> from skvae.likelihoods import NegativeBinomial
    >>> NegativeBinomial().log_prob(torch.zeros(1), torch.zeros(1)).exp().item()  # r = 1
    0.5
    """

    support = Support(0.0, math.inf, "non-negative integers", whole=True)
    log_dispersion: ClassVar[Tensor] = torch.zeros(1)

    def parameters(self, n_columns: int) -> dict[str, Tensor]:
        return {"log_dispersion": torch.zeros(n_columns)}

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        return {"log_dispersion": (math.log(0.01), math.log(1e4))}

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        log_rate, count = _log_rate(raw.double()), x.double()  # the terms of large counts cancel
        log_r = self.log_dispersion.double()
        r = torch.exp(log_r)
        choices = torch.lgamma(count + r) - torch.lgamma(r) - torch.lgamma(count + 1.0)
        log_sum = torch.logaddexp(log_r, log_rate)
        return (choices + r * (log_r - log_sum) + count * (log_rate - log_sum)).to(raw.dtype)

    def gradient(
        self, x: Tensor, raw: Tensor, count: Tensor, g: Tensor, places: Mapping[str, Tensor]
    ) -> Tensor:
        # With q = r / (r + m): -d log p / d log m = (x + r) (1 - q) - x.
        (log_rate, slope), x = _log_rate_and_slope(raw.double()), x.double()
        log_r = self.log_dispersion.double()
        r = torch.exp(log_r)
        log_sum = torch.logaddexp(log_r, log_rate)
        log_q, q = log_r - log_sum, torch.exp(log_r - log_sum)
        choices = torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1.0)
        log_p = choices + r * log_q + x * (log_rate - log_sum)
        by_rate = (x + r) * torch.exp(log_rate - log_sum) - x
        g.copy_(by_rate.mul_(slope).mul_(count))
        by_r = _by_log_dispersion(x, r, log_q, q)
        places["log_dispersion"].copy_(-(by_r * count).sum((0, 1)))
        return (log_p * count).sum().to(raw.dtype)

    def cdf(self, x: Tensor, raw: Tensor) -> Tensor:
        from scipy.special import betainc

        r, rate = torch.exp(self.log_dispersion).to(raw.dtype), torch.exp(_log_rate(raw))
        ends = x.floor().clamp(min=0.0) + 1.0
        below = betainc(*(part.numpy(force=True) for part in (r, ends, r / (r + rate))))
        return torch.where(x < 0.0, 0.0, torch.from_numpy(below).to(raw))

    def linear_form(self, x: Tensor, raw: Tensor) -> LinearForm:
        log_rate = _log_rate(raw)
        log_sum = torch.logaddexp(self.log_dispersion, log_rate)
        return LinearForm(x, log_rate - log_sum, torch.exp(self.log_dispersion) * log_sum)

    def mean(self, raw: Tensor) -> Tensor:
        return torch.exp(_log_rate(raw))

    def mode(self, raw: Tensor) -> Tensor:
        below_one = (1.0 - torch.exp(-self.log_dispersion)).clamp(min=0.0)  # (r - 1) / r
        return torch.floor(self.mean(raw) * below_one)

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        r = torch.exp(self.log_dispersion).to(raw.dtype).expand_as(raw)
        rate = self.mean(raw) * torch._standard_gamma(r, generator=generator) / r
        return torch.poisson(rate, generator=generator)

    def information(self, raw: Tensor) -> Tensor:
        r = torch.exp(self.log_dispersion)
        return _rate_information(raw) * r / (r + self.mean(raw))

    def features(self, x: Tensor) -> Tensor:
        return torch.log1p(x)

    def from_features(self, features: Tensor) -> Tensor:
        return torch.expm1(features).clamp(min=0.0)

    def feature_mean(self, raw: Tensor) -> Tensor:
        return torch.log1p(self.mean(raw))

    @torch.no_grad()
    def from_linear_fit(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        # The dispersion that has the highest marginal likelihood at the mean: one at most is finite
        # (Levin & Reeds 1977), and lies between the ends by the sign of the slope.
        share, counts, start = _share(x, weight), x.nan_to_num(), _count_start(x, weight, fit)
        lower, upper = (torch.full_like(start.bias, end) for end in self.limits["log_dispersion"])
        for _ in range(BISECTIONS):
            middle = 0.5 * (lower + upper)
            log_q = -torch.nn.functional.softplus(start.bias - middle)
            slope = _by_log_dispersion(counts, middle.exp(), log_q, log_q.exp())
            rises = (share * slope).sum(0) > 0.0
            lower, upper = torch.where(rises, middle, lower), torch.where(rises, upper, middle)
        return start._replace(values={"log_dispersion": 0.5 * (lower + upper)})


def _by_log_dispersion(x: Tensor, r: Tensor, log_q: Tensor, q: Tensor) -> Tensor:
    """Return d log p / d log r, where q = r / (r + m) with the rate m."""
    return r * (torch.digamma(x + r) - torch.digamma(r) + log_q + 1.0) - (x + r) * q


def _log_rate(raw: Tensor) -> Tensor:
    return raw.clamp(max=20.0) + torch.log1p((raw - 20.0).clamp(min=0.0))


def _log_rate_and_slope(raw: Tensor) -> tuple[Tensor, Tensor]:
    # A GPU would have to be waited for.
    if raw.is_cpu and len(raw) and bool(raw.max() <= 20.0):
        return raw, raw.new_ones(())
    return _log_rate(raw), 1.0 / (1.0 + (raw - 20.0).clamp(min=0.0))


def _rate_information(raw: Tensor) -> Tensor:
    return torch.exp(2.0 * raw.clamp(max=20.0) - _log_rate(raw))  # (d rate / d raw)^2 / rate


def _share(x: Tensor, weight: Tensor) -> Tensor:
    """Return the part of its column that each observed cell counts."""
    share = weight.to(x.dtype)[:, None] * ~x.isnan()
    return share / share.sum(0).clamp(min=torch.finfo(x.dtype).tiny)


def _count_start(x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
    """Begin at the mean count of each column."""
    mean = (_share(x, weight) * x.nan_to_num()).sum(0).clamp(min=1e-2)
    # The slope of raw by log(1 + e^raw), which stands for the feature.
    return LinearStart(1.0 + 1.0 / mean, torch.log(mean), fit.scale.square().clamp(min=1e-3))
