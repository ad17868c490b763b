"""p(x_d | z): the distribution of a column given the decoder's raw output.

A likelihood says what values it takes, how the decoder's raw output parameterises it, and how a
linear-Gaussian fit becomes its start. To add one: one final class here, one row in
``LIKELIHOODS``, one row in the table of ``tests/test_likelihoods.py``.

A *feature* is what the encoder and the linear fit see of a column: the value itself, its logarithm,
or one indicator for each level of a category. There are as many features as raw parameters.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from operator import attrgetter
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ._gaussian import normal_log_prob


class Support(NamedTuple):
    """The values that a likelihood gives a density to."""

    lower: float
    upper: float
    description: str
    # What may be done to a column before it is modelled: moved and scaled, only scaled, nothing.
    units: Literal["location_scale", "scale", "none"] = "none"
    whole: bool = False  # integers only


class LinearFit(NamedTuple):
    """A linear-Gaussian fit of a likelihood's features, in their own units."""

    mean: Tensor  # (P,)
    scale: Tensor  # (P,)    marginal standard deviation
    noise: Tensor  # (P,)    standard deviation that the fit leaves


class LinearStart(NamedTuple):
    """How a linear-Gaussian fit of the features, W z + mean, becomes raw(z) = diag(r) W z + b."""

    weight_per_loading: Tensor  # (P,)  r: the derivative of raw by the feature at the marginal
    bias: Tensor  # (P,)                b
    variance: Tensor  # (P,)            of the feature given z: what the encoder needs


class Likelihood(nn.Module, ABC):
    """Interface of all likelihoods: D columns, P raw parameters, over any leading axes.

    All but ``Categorical`` have one raw parameter a column and are elementwise.
    """

    support: Support
    noise: Literal["per_column", "shared"] = "shared"  # which linear fit it starts from
    limits: tuple[tuple[str, float, float], ...] = ()  # of parameters, by name

    @abstractmethod
    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:  # (N, D), (..., N, P) -> (..., N, D)
        """Log p(x_d | raw_d) in nats."""

    @abstractmethod
    def mean(self, raw: Tensor) -> Tensor:  # (..., D)
        """E[x_d | raw_d]; for categories, which have none, the mode."""

    def mode(self, raw: Tensor) -> Tensor:  # (..., D)
        """The most probable x_d: the mean where nothing else is said."""
        return self.mean(raw)

    @abstractmethod
    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:  # (..., D)
        """One draw of x_d."""

    @abstractmethod
    def information(self, raw: Tensor) -> Tensor:  # (..., P)
        """Fisher information of raw_d in one x_d: the curvature for Gauss-Newton steps."""

    @abstractmethod
    def start(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        """Take over a linear-Gaussian fit of the features, and say how the decoder begins as it.

        ``x`` (N, D) are training rows, nan where a value is missing, and ``weight`` (N,) says how
        often each counts: for what the fit does not tell, such as a dispersion.
        """

    def for_columns(self, n_levels: Sequence[int], floor: float) -> "Likelihood":
        """A fresh likelihood of this kind for columns with so many levels, and this noise floor.

        ``n_levels`` has one number for each column: 0 for a column of numbers. The constructor is
        given what it has a parameter for: ``n_columns``, ``n_levels``, ``noise``, ``floor``.
        """
        known = {"n_columns": len(n_levels), "n_levels": n_levels}
        known |= {"noise": self.noise, "floor": floor}
        asked = inspect.signature(type(self)).parameters
        return type(self)(**{name: value for name, value in known.items() if name in asked})

    def features(self, x: Tensor) -> Tensor:  # (..., D) -> (..., P)
        """What the encoder and the linear fit see of x: nothing that is learned."""
        return x

    def feature_mean(self, raw: Tensor) -> Tensor:  # (..., P) -> (..., P)
        """About the features that raw stands for: what a reconstruction is compared with."""
        return self.mean(raw)

    def average(self, raw: Tensor, weight: Tensor) -> Tensor:  # (S, N, P), (S, N) -> (N, D)
        """The mean under a mixture over S, whose weights add up to 1; a category's mode."""
        return (weight[..., None] * self.mean(raw)).sum(0)

    def columns_of_features(self, n_columns: int) -> Tensor:  # (P,)
        """Which of the columns each feature belongs to."""
        return torch.arange(n_columns)

    def curvature(self, jacobian: Tensor, raw: Tensor, observed: Tensor | None) -> Tensor:
        """J^T F J over the observed columns.  (N, K, P), (N, P), (N, D) -> (N, K, K)."""
        information = self.information(raw)
        if observed is not None:
            information = information * observed
        return (jacobian * information[:, None, :]) @ jacobian.mT

    def set_noise(self, variance: Tensor, count: Tensor) -> None:
        """Take over the variance (P,) that the features' predictions leave on ``count`` (P,) rows.

        Nothing to do without a Gaussian noise scale.
        """
        return

    def noise_variance(self, n_columns: int) -> Tensor:  # (D,)
        """Variance of the Gaussian noise of each column; nan where there is none."""
        return torch.full((n_columns,), math.nan)

    def project(self) -> None:
        """Return to the admissible parameters, ``limits``, after an optimiser step."""
        for name, lower, upper in self.limits:
            attrgetter(name)(self).detach().clamp_(lower, upper)


class Gaussian(Likelihood):
    """x_d ~ N(raw_d, noise_d^2), with one learned noise scale per column or one for all.

    Parameters
    ----------
    noise : {"per_column", "shared"}, default="per_column"
        Whether each column has a noise scale of its own (as factor analysis) or all share one
        (as probabilistic PCA).
    n_columns : int, default=1
        Number of columns D.
    floor : float, default=1e-3
        Smallest noise scale, in the units of x. Without a floor the density of a column that the
        decoder reproduces exactly would grow without bound.

    Notes
    -----
    Domain: all real numbers. Link: identity. log p = -1/2 ((x - raw) / s)^2 - log s - 1/2 log 2 pi.
    Evaluated on its own, the scale starts at 1.

    Examples
    --------
    >>> import torch
    >>> from skvae.likelihoods import Gaussian
    >>> Gaussian().log_prob(torch.zeros(1), torch.zeros(1)).item()  # log 1 / sqrt(2 pi)
    -0.9189...
    """

    support = Support(-math.inf, math.inf, "finite numbers", "location_scale")

    def __init__(
        self,
        noise: Literal["per_column", "shared"] = "per_column",
        n_columns: int = 1,
        floor: float = 1e-3,
    ) -> None:
        super().__init__()
        self.noise: Literal["per_column", "shared"] = noise
        self.floor = floor
        size = 1 if noise == "shared" else n_columns
        self.log_scale = nn.Parameter(torch.zeros(size))
        self.limits = (("log_scale", math.log(floor), math.inf),)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        return normal_log_prob(x, raw, self.log_scale)

    def mean(self, raw: Tensor) -> Tensor:
        return raw

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        eps = torch.randn(raw.shape, generator=generator, dtype=raw.dtype, device=raw.device)
        return raw + torch.exp(self.log_scale) * eps

    def information(self, raw: Tensor) -> Tensor:
        return torch.exp(-2.0 * self.log_scale).expand_as(raw)

    def start(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        noise = fit.noise.clamp(min=self.floor)
        with torch.no_grad():
            self.log_scale.copy_(torch.log(noise if self.noise == "per_column" else noise[:1]))
        return LinearStart(torch.ones_like(noise), fit.mean, noise.square())

    def set_noise(self, variance: Tensor, count: Tensor) -> None:
        if self.noise == "shared":
            variance = ((variance * count).sum() / count.sum().clamp(min=1.0))[None]
        with torch.no_grad():
            self.log_scale.copy_(0.5 * torch.log(variance.clamp(min=self.floor**2)))

    def noise_variance(self, n_columns: int) -> Tensor:
        return torch.exp(2.0 * self.log_scale).expand(n_columns)

    def extra_repr(self) -> str:
        return f"noise={self.noise!r}"


class Bernoulli(Likelihood):
    """x_d ~ Bernoulli(sigmoid(raw_d)).

    Grey values in [0, 1] are taken as probabilities, so the cross-entropy is what is evaluated;
    on {0, 1} it is the log-probability.

    Notes
    -----
    Domain: [0, 1]. Link: logit. log p = x raw - log(1 + e^raw).

    Examples
    --------
    >>> import torch
    >>> from skvae.likelihoods import Bernoulli
    >>> Bernoulli().log_prob(torch.ones(1), torch.zeros(1)).exp().item()
    0.5
    """

    support = Support(0.0, 1.0, "0 and 1, or probabilities between them")

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        return x * raw - nn.functional.softplus(raw)

    def mean(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(raw)

    def mode(self, raw: Tensor) -> Tensor:
        return (raw > 0).to(raw.dtype)

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        return torch.bernoulli(torch.sigmoid(raw), generator=generator)

    def information(self, raw: Tensor) -> Tensor:
        p = torch.sigmoid(raw)
        return p * (1.0 - p)

    def start(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        # One Newton step in the natural parameter from the marginal: b = logit(mean), W / Var(x).
        # A column that never varies gets a finite logit and no loadings.
        p = fit.mean.clamp(1e-3, 1.0 - 1e-3)
        variance = fit.scale.square().clamp(min=1e-3)
        return LinearStart(1.0 / variance, torch.logit(p), variance)


class Categorical(Likelihood):
    """x_d ~ Categorical(softmax(raw of d's levels)); x_d is the number of its level, from 0.

    Parameters
    ----------
    n_levels : sequence of int, default=(2,)
        Number of levels of each column. P is their sum, and the raw parameters of a column stand
        together.

    Notes
    -----
    Domain: {0, ..., n_levels - 1}. Link: log, up to a constant. log p = raw_x - log sum_l e^raw_l.

    Examples
    --------
    >>> import torch
    >>> from skvae.likelihoods import Categorical
    >>> Categorical([4]).log_prob(torch.tensor([2.0]), torch.zeros(4)).exp().item()
    0.25
    """

    support = Support(0.0, math.inf, "the number of a level", whole=True)
    offset: Tensor  # (D,)      where each column's levels begin
    column: Tensor  # (P,)      the column of each level
    member: Tensor  # (P, D)    the same as indicators

    def __init__(self, n_levels: Sequence[int] = (2,)) -> None:
        super().__init__()
        self.n_levels = tuple(int(n) for n in n_levels)
        sizes = torch.tensor(self.n_levels)
        self.register_buffer("offset", sizes.cumsum(0) - sizes, persistent=False)
        column = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        self.register_buffer("column", column, persistent=False)
        member = (column[:, None] == torch.arange(len(sizes))).to(torch.get_default_dtype())
        self.register_buffer("member", member, persistent=False)

    def log_softmax(self, raw: Tensor) -> Tensor:  # (..., P) -> (..., P)
        """Log p of each level."""
        levels = raw.movedim(-1, 0).contiguous()  # sums over a first axis are the faster ones
        parts = [torch.log_softmax(part, 0) for part in levels.split(self.n_levels)]
        return torch.cat(parts).movedim(0, -1)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        index = x.long() + self.offset
        return self.log_softmax(raw).gather(-1, index.expand(*raw.shape[:-1], -1))

    def mean(self, raw: Tensor) -> Tensor:
        return self.mode(raw)

    def mode(self, raw: Tensor) -> Tensor:
        parts = raw.split(self.n_levels, dim=-1)
        return torch.stack([part.argmax(-1) for part in parts], -1).to(raw.dtype)

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        # The largest of log p + Gumbel noise is a draw (Gumbel 1954).
        uniform = torch.rand(raw.shape, generator=generator, dtype=raw.dtype, device=raw.device)
        tiny = torch.finfo(raw.dtype).tiny
        exponential = (-torch.log(uniform.clamp(min=tiny))).clamp(min=tiny)
        return self.mode(raw - torch.log(exponential))

    def information(self, raw: Tensor) -> Tensor:
        """Only its diagonal; ``curvature`` has all of diag(p) - p p^T."""
        p = torch.exp(self.log_softmax(raw))
        return p * (1.0 - p)

    def curvature(self, jacobian: Tensor, raw: Tensor, observed: Tensor | None) -> Tensor:
        p = torch.exp(self.log_softmax(raw))
        if observed is not None:
            p = p * observed[:, self.column]
        weighted = jacobian * p[:, None, :]  # (N, K, P)
        by_column = weighted @ self.member  # (N, K, D)
        return weighted @ jacobian.mT - by_column @ by_column.mT

    def features(self, x: Tensor) -> Tensor:
        indicators = x.new_zeros((*x.shape[:-1], len(self.column)))
        return indicators.scatter_(-1, x.long() + self.offset, 1.0)

    def feature_mean(self, raw: Tensor) -> Tensor:
        return torch.exp(self.log_softmax(raw))

    def average(self, raw: Tensor, weight: Tensor) -> Tensor:
        return self.mode((weight[..., None] * self.feature_mean(raw)).sum(0))

    def columns_of_features(self, n_columns: int) -> Tensor:
        return self.column

    def start(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        # As for Bernoulli: the pseudo-inverse of diag(p) - p p^T is diag(1 / p), as the loadings of
        # a column's indicators add up to 0.
        p = fit.mean.clamp(min=1e-4)
        return LinearStart(1.0 / p, torch.log(p), p)


class StudentT(Likelihood):
    """x_d ~ raw_d + scale_d t(df_d): as Gaussian, but wild values hardly move the fit.

    Parameters
    ----------
    n_columns : int, default=1
        Number of columns D. Each has a scale and degrees of freedom of its own.
    floor : float, default=1e-3
        Smallest scale, in the units of x.

    Notes
    -----
    Domain: all real numbers. Link: identity. With u = (x - raw) / s, log p =
    log G((df + 1) / 2) - log G(df / 2) - 1/2 log(pi df) - log s - (df + 1) / 2 log(1 + u^2 / df).
    1 < df <= 100: the mean always exists; the variance, s^2 df / (df - 2), only for df > 2.

    Examples
    --------
    >>> import torch
    >>> from skvae.likelihoods import StudentT
    >>> StudentT().log_prob(torch.zeros(1), torch.zeros(1)).exp().item()  # df = 5
    0.3796...
    """

    support = Support(-math.inf, math.inf, "finite numbers", "location_scale")

    def __init__(self, n_columns: int = 1, floor: float = 1e-3) -> None:
        super().__init__()
        self.floor = floor
        self.log_scale = nn.Parameter(torch.zeros(n_columns))
        self.log_excess = nn.Parameter(torch.full((n_columns,), math.log(4.0)))  # of df over 1
        self.limits = (
            ("log_scale", math.log(floor), math.inf),
            ("log_excess", math.log(0.1), math.log(99.0)),
        )

    def _df(self) -> Tensor:
        return 1.0 + torch.exp(self.log_excess)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        return _t_log_prob(x, raw, self.log_scale, self._df())

    def mean(self, raw: Tensor) -> Tensor:
        return raw

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        eps = torch.randn(raw.shape, generator=generator, dtype=raw.dtype, device=raw.device)
        half = (0.5 * self._df()).to(raw.dtype).expand_as(raw)
        precision = torch._standard_gamma(half, generator=generator) / half
        return raw + torch.exp(self.log_scale) * eps * precision.rsqrt()

    def information(self, raw: Tensor) -> Tensor:
        df = self._df()
        return ((df + 1.0) / (df + 3.0) * torch.exp(-2.0 * self.log_scale)).expand_as(raw)

    @torch.no_grad()
    def start(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        # The fit's noise has the wild values in it: only its share of the spread is taken over.
        share = (fit.noise / fit.scale.clamp(min=self.floor)).clamp(max=1.0)
        scale, df = _marginal_t(x, weight, fit, self.floor)
        scale = (scale * share).clamp(min=self.floor)
        self.log_scale.copy_(torch.log(scale))
        self.log_excess.copy_(torch.log(df - 1.0))
        return LinearStart(torch.ones_like(scale), fit.mean, (df + 3) / (df + 1) * scale.square())

    def noise_variance(self, n_columns: int) -> Tensor:
        df = self._df()
        variance = torch.exp(2.0 * self.log_scale) * df / (df - 2.0)
        return torch.where(df > 2.0, variance, math.nan).expand(n_columns)


def _t_log_prob(x: Tensor, loc: Tensor, log_scale: Tensor, df: Tensor) -> Tensor:
    squared = ((x - loc) * torch.exp(-log_scale)).square()
    constant = torch.lgamma(0.5 * (df + 1.0)) - torch.lgamma(0.5 * df) - log_scale
    return constant - 0.5 * torch.log(math.pi * df) - 0.5 * (df + 1.0) * torch.log1p(squared / df)


def _marginal_t(x: Tensor, weight: Tensor, fit: LinearFit, floor: float) -> tuple[Tensor, Tensor]:
    """Scale (D,) and degrees of freedom (D,) of each column on its own, by maximum likelihood.

    EM (Kent, Tyler & Vardi 1994) for each df of a grid, on up to 500 rows: it is but a start.
    """
    stride = math.ceil(len(x) / 500)
    weight = weight.to(x.dtype)[::stride, None] * ~x[::stride].isnan()
    x = x[::stride].nan_to_num()
    smallest = (0.01 * fit.scale).clamp(min=floor)  # equal values would draw it to 0
    loc, scale = fit.mean, torch.maximum(fit.scale, smallest)
    df = x.new_tensor([100.0, 30.0, 12.0, 6.0, 4.0, 3.0, 2.0, 1.5, 1.2])[:, None, None]  # (G, 1, 1)
    for _ in range(25):
        gain = weight / (df + ((x - loc) / scale).square())  # (G, N, D)
        gain = gain / gain.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        loc = (gain * x).sum(1, keepdim=True)
        spread = (gain * (x - loc).square()).sum(1, keepdim=True).sqrt()
        scale = torch.maximum(spread, smallest)
    best = (weight * _t_log_prob(x, loc, torch.log(scale), df)).sum(1).argmax(0)  # (D,)
    return scale[:, 0].gather(0, best[None])[0], df[best, 0, 0]


class LogNormal(Likelihood):
    """log x_d ~ N(raw_d, noise_d^2), with one learned noise scale per column or one for all.

    Parameters
    ----------
    noise : {"per_column", "shared"}, default="per_column"
        Whether each column has a noise scale of its own or all share one.
    n_columns : int, default=1
        Number of columns D.
    floor : float, default=1e-3
        Smallest noise scale, of log x.

    Notes
    -----
    Domain: positive numbers. Link: log of the median. log p = log N(log x; raw, s^2) - log x.

    Examples
    --------
    >>> import torch
    >>> from skvae.likelihoods import LogNormal
    >>> LogNormal().log_prob(torch.ones(1), torch.zeros(1)).item()  # log 1 / sqrt(2 pi)
    -0.9189...
    """

    support = Support(torch.finfo(torch.float32).tiny, math.inf, "positive numbers", "scale")

    def __init__(
        self,
        noise: Literal["per_column", "shared"] = "per_column",
        n_columns: int = 1,
        floor: float = 1e-3,
    ) -> None:
        super().__init__()
        self.noise: Literal["per_column", "shared"] = noise
        self.of_log = Gaussian(noise, n_columns, floor)
        self.limits = (("of_log.log_scale", math.log(floor), math.inf),)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        log_x = self.features(x)
        return self.of_log.log_prob(log_x, raw) - log_x

    def mean(self, raw: Tensor) -> Tensor:
        return torch.exp(raw + 0.5 * torch.exp(2.0 * self.of_log.log_scale))

    def mode(self, raw: Tensor) -> Tensor:
        return torch.exp(raw - torch.exp(2.0 * self.of_log.log_scale))

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        return torch.exp(self.of_log.sample(raw, generator))

    def information(self, raw: Tensor) -> Tensor:
        return self.of_log.information(raw)

    def features(self, x: Tensor) -> Tensor:
        return torch.log(x.clamp(min=self.support.lower))  # a missing value may be filled with 0

    def feature_mean(self, raw: Tensor) -> Tensor:
        return raw

    def start(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        return self.of_log.start(x, weight, fit)

    def set_noise(self, variance: Tensor, count: Tensor) -> None:
        self.of_log.set_noise(variance, count)


class Ordinal(Likelihood):
    """P(x_d <= k) = sigmoid(tau_k - raw_d), with learned thresholds tau (McCullagh 1980).

    Parameters
    ----------
    n_levels : sequence of int, default=(3,)
        Number of levels of each column. x_d is the number of its level, from 0.

    Notes
    -----
    Domain: {0, ..., n_levels - 1}. Link: cumulative logit. log p = log(sigmoid(b) - sigmoid(a)),
    b = tau_x - raw (infinite for the last level), a = tau_{x-1} - raw (-infinite for the first).

    Examples
    --------
    >>> import torch
    >>> from skvae.likelihoods import Ordinal
    >>> Ordinal([2]).log_prob(torch.ones(1), torch.zeros(1)).exp().item()  # tau_0 = 0
    0.5
    """

    support = Support(0.0, math.inf, "the number of a level", whole=True)
    limits = (("log_gap", math.log(1e-3), math.inf),)  # no level may vanish
    inner: Tensor  # (D, L - 1)  whether a column has this threshold; L is the most levels

    def __init__(self, n_levels: Sequence[int] = (3,)) -> None:
        super().__init__()
        self.n_levels = tuple(int(n) for n in n_levels)
        most = max(1, *self.n_levels)
        inner = torch.arange(1, most) < torch.tensor(self.n_levels)[:, None]
        self.register_buffer("inner", inner, persistent=False)
        self.first = nn.Parameter(torch.zeros(len(self.n_levels)))
        self.log_gap = nn.Parameter(torch.zeros(len(self.n_levels), max(most - 2, 0)))

    def _edges(self) -> Tensor:  # (D, L + 1)
        """tau_{-1} to tau_{L-1}: 1e4 stands for infinity, whose gradients would be nan."""
        far = torch.full_like(self.first, 1e4)[:, None]
        tau = torch.cat([self.first[:, None], torch.exp(self.log_gap)], 1).cumsum(1)
        return torch.cat(
            [-far, torch.where(self.inner, tau[:, : self.inner.shape[1]], far), far], 1
        )

    def _above(self, raw: Tensor) -> Tensor:  # (..., D, L + 1)
        """P(x > k) for k from -1 to L - 1."""
        return torch.sigmoid(raw[..., None] - self._edges())

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^(a - b)) has digits in both tails.
        edges, level = self._edges().T, x.long().reshape(-1, x.shape[-1])
        lower = edges.gather(0, level).reshape(x.shape)
        upper = edges.gather(0, level + 1).reshape(x.shape)
        tails = nn.functional.logsigmoid(upper - raw) + nn.functional.logsigmoid(raw - lower)
        return tails + torch.log(-torch.expm1(lower - upper))

    def mean(self, raw: Tensor) -> Tensor:
        return self._above(raw)[..., 1:].sum(-1)

    def mode(self, raw: Tensor) -> Tensor:
        return self._above(raw).diff(dim=-1).argmin(-1).to(raw.dtype)

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(raw.shape, generator=generator, dtype=raw.dtype, device=raw.device)
        return (uniform[..., None] < self._above(raw)[..., 1:]).sum(-1).to(raw.dtype)

    def information(self, raw: Tensor) -> Tensor:
        above = self._above(raw)
        # d log p_k / d raw = 1 - P(x > k) - P(x > k - 1).
        score = 1.0 - above[..., 1:] - above[..., :-1]
        return -(above.diff(dim=-1) * score.square()).sum(-1)

    @torch.no_grad()
    def start(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        # The thresholds are such that raw = 0 is the marginal; the slope is one Newton step's.
        count = x.new_zeros((self.inner.shape[1] + 1, x.shape[1]))  # (L, D)
        count.scatter_add_(0, x.nan_to_num().long(), weight.to(x.dtype)[:, None] * ~x.isnan())
        share = (count / count.sum(0).clamp(min=torch.finfo(x.dtype).tiny)).T.clamp(min=1e-4)
        share = share * nn.functional.pad(self.inner, (1, 0), value=True)
        below = (share.cumsum(1) / share.sum(1, keepdim=True))[:, :-1].where(self.inner, 0.5)
        tau = torch.logit(below)
        self.first.copy_(tau[:, :1].sum(1))
        self.log_gap.copy_(torch.log(tau.diff(dim=1).where(self.inner[:, 1:], 1.0)))
        slope = (below * (1.0 - below) * self.inner).sum(1).clamp(min=1e-3)
        return LinearStart(1.0 / slope, torch.zeros_like(slope), fit.scale.square().clamp(min=1e-3))


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

    def feature_mean(self, raw: Tensor) -> Tensor:
        return torch.log1p(self.mean(raw))

    def start(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        return _count_start(x, weight, fit)[0]


class NegativeBinomial(Likelihood):
    """x_d ~ Poisson(e^raw_d g) with g ~ Gamma(r_d, r_d): counts that vary more than Poisson's.

    Parameters
    ----------
    n_columns : int, default=1
        Number of columns D. Each has a dispersion r of its own.

    Notes
    -----
    Domain: non-negative integers. Link: as of ``Poisson``. With m = e^raw, log p =
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
    limits = (("log_dispersion", math.log(0.01), math.log(1e4)),)

    def __init__(self, n_columns: int = 1) -> None:
        super().__init__()
        self.log_dispersion = nn.Parameter(torch.zeros(n_columns))

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        log_rate, count = _log_rate(raw.double()), x.double()  # the terms of large counts cancel
        log_r = self.log_dispersion.double()
        r = torch.exp(log_r)
        choices = torch.lgamma(count + r) - torch.lgamma(r) - torch.lgamma(count + 1.0)
        log_sum = torch.logaddexp(log_r, log_rate)
        return (choices + r * (log_r - log_sum) + count * (log_rate - log_sum)).to(raw.dtype)

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

    def feature_mean(self, raw: Tensor) -> Tensor:
        return torch.log1p(self.mean(raw))

    @torch.no_grad()
    def start(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        start, inverse_r = _count_start(x, weight, fit)
        self.log_dispersion.copy_(-torch.log(inverse_r.clamp(1e-4, 20.0)))
        return start


def _log_rate(raw: Tensor) -> Tensor:
    return raw.clamp(max=20.0) + torch.log1p((raw - 20.0).clamp(min=0.0))


def _rate_information(raw: Tensor) -> Tensor:
    return torch.exp(2.0 * raw.clamp(max=20.0) - _log_rate(raw))  # (d rate / d raw)^2 / rate


def _count_start(x: Tensor, weight: Tensor, fit: LinearFit) -> tuple[LinearStart, Tensor]:
    """The start, and the variance of the counts beyond it, relative to mean^2: 1 / r."""
    share = weight.to(x.dtype)[:, None] * ~x.isnan()
    share = share / share.sum(0).clamp(min=torch.finfo(x.dtype).tiny)
    mean = (share * x.nan_to_num()).sum(0).clamp(min=1e-2)
    variance = (share * (x.nan_to_num() - mean).square()).sum(0)
    # A linear log rate makes the rate log-normal over z: its log's mean is below log(mean) by half
    # the variance v, and not below the mean of the counts' own logs.
    log_mean, total = torch.log(mean), fit.scale.square()
    v = (1.0 + 1.0 / mean).square() * (total - fit.noise.square()).clamp(min=0.0)
    lowest = torch.log(torch.expm1(fit.mean).clamp(min=1e-2))
    bias = torch.maximum(log_mean - 0.5 * v, torch.minimum(lowest, log_mean))
    # Var x = mean + mean^2 ((1 + 1 / r) e^v - 1).
    beyond = (1.0 + (variance - mean) / mean.square()) * torch.exp(2.0 * (bias - log_mean)) - 1.0
    # The slope of raw by log(1 + e^raw), which stands for the feature.
    return LinearStart(1.0 + torch.exp(-bias), bias, total.clamp(min=1e-3)), beyond


LIKELIHOODS = {
    "gaussian": Gaussian,
    "bernoulli": Bernoulli,
    "categorical": Categorical,
    "student_t": StudentT,
    "log_normal": LogNormal,
    "ordinal": Ordinal,
    "poisson": Poisson,
    "negative_binomial": NegativeBinomial,
}
