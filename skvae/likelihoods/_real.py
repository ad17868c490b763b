"""Likelihoods of real and of positive numbers: Gaussian, Student-t, log-normal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor

from .._gaussian import HALF_LOG_2PI, normal_log_prob, standard_normal_like
from .._parameters import NOISE_FLOOR, Rule, check_parameters
from .._table.support import Support
from ._likelihood import Likelihood, LinearFit, LinearForm, LinearStart, Noise

NOISE_RULE = Rule(("per_column", "shared"))
FLOOR_RULE = Rule((None,), Real, 0.0, open_low=True)
DF_RULE = Rule((None,), Real, 1.0, open_low=True)
L = TypeVar("L", bound="Gaussian | StudentT | LogNormal")
DEGREES = (100.0, 30.0, 12.0, 6.0, 4.0, 3.0, 2.0, 1.5, 1.2)  # of freedom, from which t starts


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """x_d ~ N(raw_d, noise_d^2), with one learned noise scale per column or one for all.

    Parameters
    ----------
    noise : {"per_column", "shared"}, default="per_column"
        Whether each column has a noise scale of its own (as factor analysis) or all share one
        (as probabilistic PCA).
    floor : float or None, default=None
        Smallest noise scale, in the units of x: of the scaled columns in a model. None is 0.001 of
        the columns' standard deviation. Without a floor the density of a column that the decoder
        reproduces exactly would grow without bound.

    Notes
    -----
    Domain: all real numbers. Link: identity. log p = -1/2 ((x - raw) / s)^2 - log s - 1/2 log 2 pi.
    Evaluated on its own, the scale is 1.

    Examples
    --------
    >>> import torch
    >>> from skvae.likelihoods import Gaussian
    >>> Gaussian().log_prob(torch.zeros(1), torch.zeros(1)).item()  # log 1 / sqrt(2 pi)
    -0.9189...
    """

    noise: Noise = "per_column"
    floor: float | None = None

    support = Support(-math.inf, math.inf, "finite numbers", "location_scale")
    automatic_for = "number"
    log_scale: ClassVar[Tensor] = torch.zeros(1)

    def __post_init__(self) -> None:
        check_field(self, "noise", NOISE_RULE)
        check_field(self, "floor", FLOOR_RULE)

    @classmethod
    def named(cls, noise: str) -> Self:
        return cls("per_column" if noise == "per_column" else "shared")

    def for_columns(self, n_levels: Sequence[int], rms: float) -> Self:
        return _floored(self, rms)

    def parameters(self, n_columns: int) -> dict[str, Tensor]:
        return {"log_scale": torch.zeros(1 if self.noise == "shared" else n_columns)}

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        return {"log_scale": (math.log(_floor(self)), math.inf)}

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        return normal_log_prob(x, raw, self.log_scale)

    def gradient(
        self, x: Tensor, raw: Tensor, count: Tensor, g: Tensor, places: Mapping[str, Tensor]
    ) -> Tensor:
        # With u = (raw - x) / s: log p = -1/2 u^2 - log s - 1/2 log 2 pi,
        # -d log p / d raw = u / s, -d log p / d log s = 1 - u^2.
        n_samples, _, n_columns = raw.shape
        place = places["log_scale"]
        left = torch.sub(raw, x)
        torch.mul(left, torch.exp(-2.0 * self.log_scale), out=g)
        g *= count
        if self.noise == "shared":
            square = left.mul_(g).sum()  # of count u^2
            total = count.sum() * (n_samples * n_columns // count.shape[1])
            place = place[0]
        else:
            square = left.mul_(g).sum((0, 1))
            total = (count.sum(0) * n_samples).expand_as(square)
        torch.sub(total, square, out=place)
        return -(total * (self.log_scale + HALF_LOG_2PI)).sum() - 0.5 * square.sum()

    def cdf(self, x: Tensor, raw: Tensor) -> Tensor:
        return torch.special.ndtr((x - raw) * torch.exp(-self.log_scale))

    def linear_form(self, x: Tensor, raw: Tensor) -> LinearForm:
        eta = raw * torch.exp(-2.0 * self.log_scale)
        return LinearForm(x, eta, 0.5 * raw * eta)

    def mean(self, raw: Tensor) -> Tensor:
        return raw

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        return raw + torch.exp(self.log_scale) * standard_normal_like(raw, generator)

    def information(self, raw: Tensor) -> Tensor:
        return torch.exp(-2.0 * self.log_scale).expand_as(raw)

    def from_linear_fit(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        noise = fit.noise.clamp(min=_floor(self))
        log_scale = torch.log(noise if self.noise == "per_column" else noise[:1])
        own = {"log_scale": log_scale}
        return LinearStart(torch.ones_like(noise), fit.mean, noise.square(), own)

    def noise_values(self, variance: Tensor, count: Tensor) -> dict[str, Tensor]:
        if self.noise == "shared":
            variance = ((variance * count).sum() / count.sum().clamp(min=1.0))[None]
        return {"log_scale": 0.5 * torch.log(variance.clamp(min=_floor(self) ** 2))}

    def noise_variance(self, n_columns: int) -> Tensor:
        return torch.exp(2.0 * self.log_scale).expand(n_columns)


@dataclass(frozen=True)
class StudentT(Likelihood):
    """x_d ~ raw_d + scale_d t(df_d): as Gaussian, but wild values hardly move the fit.

    Parameters
    ----------
    df : float or None, default=None
        Degrees of freedom, above 1; None learns them for each column, between 1.1 and 100.
    floor : float or None, default=None
        Smallest scale, in the units of x: of the scaled columns in a model. None is 0.001 of the
        columns' standard deviation.

    Notes
    -----
    Domain: all real numbers. Link: identity. With u = (x - raw) / s, log p =
    log G((df + 1) / 2) - log G(df / 2) - 1/2 log(pi df) - log s - (df + 1) / 2 log(1 + u^2 / df).
    The mean exists for df > 1; the variance, s^2 df / (df - 2), only for df > 2. Each column has a
    scale of its own. Evaluated on its own, the scale is 1, and df is 5 unless it is given.

    Examples
    --------
    >>> import torch
    >>> from skvae.likelihoods import StudentT
    >>> StudentT().log_prob(torch.zeros(1), torch.zeros(1)).exp().item()  # df = 5
    0.3796...
    """

    df: float | None = None
    floor: float | None = None

    support = Support(-math.inf, math.inf, "finite numbers", "location_scale")
    automatic_for = "heavy_tailed"
    log_scale: ClassVar[Tensor] = torch.zeros(1)
    log_excess: ClassVar[Tensor] = torch.full((1,), math.log(4.0))  # of df over 1

    def __post_init__(self) -> None:
        check_field(self, "df", DF_RULE)
        check_field(self, "floor", FLOOR_RULE)

    def for_columns(self, n_levels: Sequence[int], rms: float) -> Self:
        return _floored(self, rms)

    def parameters(self, n_columns: int) -> dict[str, Tensor]:
        own = {"log_scale": torch.zeros(n_columns)}
        if self.df is None:
            own["log_excess"] = torch.full((n_columns,), math.log(4.0))
        return own

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        own = {"log_scale": (math.log(_floor(self)), math.inf)}
        return own if self.df is not None else own | {"log_excess": (math.log(0.1), math.log(99.0))}

    def _df(self) -> Tensor:
        if self.df is not None:
            return torch.full_like(self.log_scale, self.df)
        return 1.0 + torch.exp(self.log_excess)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        return _t_log_prob(x, raw, self.log_scale, self._df())

    def cdf(self, x: Tensor, raw: Tensor) -> Tensor:
        from scipy.special import stdtr

        scaled = (x - raw) * torch.exp(-self.log_scale)
        p = stdtr(self._df().numpy(force=True), scaled.numpy(force=True))
        return torch.from_numpy(p).to(scaled)

    def mean(self, raw: Tensor) -> Tensor:
        return raw

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        eps = standard_normal_like(raw, generator)
        half = (0.5 * self._df()).to(raw.dtype).expand_as(raw)
        precision = torch._standard_gamma(half, generator=generator) / half
        return raw + torch.exp(self.log_scale) * eps * precision.rsqrt()

    def information(self, raw: Tensor) -> Tensor:
        df = self._df()
        return ((df + 1.0) / (df + 3.0) * torch.exp(-2.0 * self.log_scale)).expand_as(raw)

    @torch.no_grad()
    def from_linear_fit(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        # The fit's noise has the wild values in it: only its share of the spread is taken over.
        share = (fit.noise / fit.scale.clamp(min=_floor(self))).clamp(max=1.0)
        degrees = DEGREES if self.df is None else (self.df,)
        scale, df = _marginal_t(x, weight, fit, _floor(self), degrees)
        scale = (scale * share).clamp(min=_floor(self))
        own = {"log_scale": torch.log(scale)}
        if self.df is None:
            own["log_excess"] = torch.log(df - 1.0)
        variance = (df + 3) / (df + 1) * scale.square()
        return LinearStart(torch.ones_like(scale), fit.mean, variance, own)

    def noise_variance(self, n_columns: int) -> Tensor:
        df = self._df()
        variance = torch.exp(2.0 * self.log_scale) * df / (df - 2.0)
        return torch.where(df > 2.0, variance, math.nan).expand(n_columns)


def _t_log_prob(x: Tensor, loc: Tensor, log_scale: Tensor, df: Tensor) -> Tensor:
    squared = ((x - loc) * torch.exp(-log_scale)).square()
    constant = torch.lgamma(0.5 * (df + 1.0)) - torch.lgamma(0.5 * df) - log_scale
    return constant - 0.5 * torch.log(math.pi * df) - 0.5 * (df + 1.0) * torch.log1p(squared / df)


def _marginal_t(
    x: Tensor, weight: Tensor, fit: LinearFit, floor: float, degrees: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Fit scale (D,) and degrees of freedom (D,) of each column on its own, to start from.

    Maximum likelihood by EM (Kent, Tyler & Vardi 1994) for each of the ``degrees``, on up to 500
    rows.
    """
    stride = math.ceil(len(x) / 500)
    weight = weight.to(x.dtype)[::stride, None] * ~x[::stride].isnan()
    x = x[::stride].nan_to_num()
    smallest = (0.01 * fit.scale).clamp(min=floor)  # equal values would draw it to 0
    loc, scale = fit.mean, torch.maximum(fit.scale, smallest)
    df = x.new_tensor(degrees)[:, None, None]  # (G, 1, 1)
    for _ in range(25):
        gain = weight / (df + ((x - loc) / scale).square())  # (G, N, D)
        gain = gain / gain.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        loc = (gain * x).sum(1, keepdim=True)
        spread = (gain * (x - loc).square()).sum(1, keepdim=True).sqrt()
        scale = torch.maximum(spread, smallest)
    best = (weight * _t_log_prob(x, loc, torch.log(scale), df)).sum(1).argmax(0)  # (D,)
    return scale[:, 0].gather(0, best[None])[0], df[best, 0, 0]


@dataclass(frozen=True)
class LogNormal(Likelihood):
    """log x_d ~ N(raw_d, noise_d^2), with one learned noise scale per column or one for all.

    Parameters
    ----------
    noise : {"per_column", "shared"}, default="per_column"
        Whether each column has a noise scale of its own or all share one.
    floor : float or None, default=None
        Smallest noise scale, of log x. None is 0.001.

    Notes
    -----
    Domain: positive numbers. Link: log of the median. log p = log N(log x; raw, s^2) - log x.
    By name, columns share a scale where the model's ``noise`` is "shared".

    Examples
    --------
    >>> import torch
    >>> from skvae.likelihoods import LogNormal
    >>> LogNormal().log_prob(torch.ones(1), torch.zeros(1)).item()  # log 1 / sqrt(2 pi)
    -0.9189...
    """

    noise: Noise = "per_column"
    floor: float | None = None

    support = Support(torch.finfo(torch.float32).tiny, math.inf, "positive numbers", "scale")
    log_scale: ClassVar[Tensor] = torch.zeros(1)

    def __post_init__(self) -> None:
        check_field(self, "noise", NOISE_RULE)
        check_field(self, "floor", FLOOR_RULE)

    @classmethod
    def named(cls, noise: str) -> Self:
        return cls("shared" if noise == "shared" else "per_column")

    def for_columns(self, n_levels: Sequence[int], rms: float) -> Self:
        return _floored(self, 1.0)  # a logarithm has no unit

    @property
    def of_log(self) -> Gaussian:
        """The likelihood of log x."""
        return Gaussian(self.noise, self.floor).with_values({"log_scale": self.log_scale})

    def parameters(self, n_columns: int) -> dict[str, Tensor]:
        return self.of_log.parameters(n_columns)

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        return self.of_log.limits

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        log_x = self.features(x)
        return normal_log_prob(log_x, raw, self.log_scale) - log_x

    def cdf(self, x: Tensor, raw: Tensor) -> Tensor:
        smallest = torch.finfo(x.dtype).tiny
        return self.of_log.cdf(self.features(x.clamp(min=smallest)), raw)

    def linear_form(self, x: Tensor, raw: Tensor) -> LinearForm:
        return self.of_log.linear_form(self.features(x), raw)

    def mean(self, raw: Tensor) -> Tensor:
        return torch.exp(raw + 0.5 * torch.exp(2.0 * self.log_scale))

    def mode(self, raw: Tensor) -> Tensor:
        return torch.exp(raw - torch.exp(2.0 * self.log_scale))

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        return torch.exp(self.of_log.sample(raw, generator))

    def information(self, raw: Tensor) -> Tensor:
        return self.of_log.information(raw)

    def features(self, x: Tensor) -> Tensor:
        return torch.log(x.clamp(min=self.support.lower))  # a missing value may be filled with 0

    def from_features(self, features: Tensor) -> Tensor:
        return torch.exp(features)

    def feature_mean(self, raw: Tensor) -> Tensor:
        return raw

    def from_linear_fit(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        return self.of_log.from_linear_fit(x, weight, fit)

    def noise_values(self, variance: Tensor, count: Tensor) -> dict[str, Tensor]:
        return self.of_log.noise_values(variance, count)


def _floor(likelihood: Gaussian | StudentT) -> float:
    return NOISE_FLOOR if likelihood.floor is None else likelihood.floor


def _floored(likelihood: L, rms: float) -> L:
    """Return the likelihood with the floor that it was given, else the usual one."""
    if likelihood.floor is not None:
        return likelihood
    return replace(likelihood, floor=NOISE_FLOOR * rms)


def check_field(likelihood: Likelihood, name: str, rule: Rule) -> None:
    """Raise a ValueError if the user's value of a field breaks its rule."""
    check_parameters(type(likelihood).__name__, {name: getattr(likelihood, name)}, {name: rule})
