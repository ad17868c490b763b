"""Likelihoods of 0 and 1, and of levels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor, nn

from .._table.support import Support
from ._likelihood import Likelihood, LinearFit, LinearForm, LinearStart

FAR = 1e4  # a threshold that no raw parameter passes


@dataclass(frozen=True)
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
    automatic_for = "two_valued"

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        return x * raw - nn.functional.softplus(raw)

    def gradient(
        self, x: Tensor, raw: Tensor, count: Tensor, g: Tensor, places: Mapping[str, Tensor]
    ) -> Tensor:
        # log p = x raw - log(1 + e^raw);  -d log p / d raw = p - x.
        torch.sub(torch.sigmoid(raw), x, out=g)
        g *= count
        return ((x * raw - nn.functional.softplus(raw)) * count).sum()

    def linear_form(self, x: Tensor, raw: Tensor) -> LinearForm:
        return LinearForm(x, raw, nn.functional.softplus(raw))

    def mean(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(raw)

    def mode(self, raw: Tensor) -> Tensor:
        return (raw > 0).to(raw.dtype)

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        return torch.bernoulli(torch.sigmoid(raw), generator=generator)

    def information(self, raw: Tensor) -> Tensor:
        p = torch.sigmoid(raw)
        return p * (1.0 - p)

    def from_linear_fit(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        # One Newton step in the natural parameter from the marginal: b = logit(mean), W / Var(x).
        # A column that never varies gets a finite logit and no loadings.
        p = fit.mean.clamp(1e-3, 1.0 - 1e-3)
        variance = fit.scale.square().clamp(min=1e-3)
        return LinearStart(1.0 / variance, torch.logit(p), variance)


@dataclass(frozen=True)
class Categorical(Likelihood):
    """x_d ~ Categorical(softmax(raw of d's levels)); x_d is the number of its level, from 0.

    Parameters
    ----------
    n_levels : sequence of int, default=(2,)
        Number of levels of each column; in a model it is the columns' own. P is their sum, and the
        raw parameters of a column stand together.

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

    n_levels: Sequence[int] = (2,)

    support = Support(0.0, math.inf, "the number of a level", whole=True)
    automatic_for = "levels"
    takes_levels = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_levels", tuple(int(n) for n in self.n_levels))

    def for_columns(self, n_levels: Sequence[int], rms: float) -> Self:
        return replace(self, n_levels=n_levels)

    def constants(self) -> dict[str, Tensor]:
        return {"offset": self.offset, "column": self.column, "member": self.member}

    # In a model these are the constants, on its device and in its precision.

    @cached_property
    def offset(self) -> Tensor:  # (D,)
        """Where each column's levels begin."""
        sizes = torch.tensor(self.n_levels)
        return sizes.cumsum(0) - sizes

    @cached_property
    def column(self) -> Tensor:  # (P,)
        """The column of each level."""
        return torch.repeat_interleave(
            torch.arange(len(self.n_levels)), torch.tensor(self.n_levels)
        )

    @cached_property
    def member(self) -> Tensor:  # (P, D)
        """The same as indicators."""
        indicators = self.column[:, None] == torch.arange(len(self.n_levels))
        return indicators.to(torch.get_default_dtype())

    def log_softmax(self, raw: Tensor) -> Tensor:  # (..., P) -> (..., P)
        """Return log p of each level."""
        levels = raw.movedim(-1, 0).contiguous()  # sums over a first axis are the faster ones
        parts = [torch.log_softmax(part, 0) for part in levels.split(self.n_levels)]
        return torch.cat(parts).movedim(0, -1)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        index = x.long() + self.offset
        return self.log_softmax(raw).gather(-1, index.expand(*raw.shape[:-1], -1))

    def gradient(
        self, x: Tensor, raw: Tensor, count: Tensor, g: Tensor, places: Mapping[str, Tensor]
    ) -> Tensor:
        # log p = log p_x;  -d log p / d raw_l = p_l - [x = l].
        log_p = self.log_softmax(raw)
        index = (x.long() + self.offset).expand(len(raw), -1, -1)
        by_column = count.expand(index.shape)  # (S, N, D)
        log_p_x = log_p.gather(-1, index)
        # In the order of log_p in memory.
        of_levels = count if count.shape[1] == 1 else count.T.index_select(0, self.column).T
        torch.mul(log_p.exp_(), of_levels, out=g)
        g.scatter_add_(-1, index, -by_column)
        return (log_p_x * by_column).sum()

    def linear_form(self, x: Tensor, raw: Tensor) -> LinearForm:
        log_p = self.log_softmax(raw)
        nothing = log_p.new_zeros(len(raw), len(self.n_levels))
        return LinearForm(self.features(x), log_p, nothing, self.column)

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
        """Return the diagonal alone; ``curvature`` has all of diag(p) - p p^T."""
        p = torch.exp(self.log_softmax(raw))
        return p * (1.0 - p)

    def curvature(self, jacobian: Tensor, raw: Tensor, observed: Tensor | None) -> Tensor:
        p = torch.exp(self.log_softmax(raw))
        if observed is not None:
            p = p * observed[:, self.column]
        weighted = jacobian * p[:, None, :]  # (N, K, P)
        by_column = weighted @ self.member.to(raw.dtype)  # (N, K, D)
        return weighted @ jacobian.mT - by_column @ by_column.mT

    def features(self, x: Tensor) -> Tensor:
        indicators = x.new_zeros((*x.shape[:-1], len(self.column)))
        return indicators.scatter_(-1, x.long() + self.offset, 1.0)

    def from_features(self, features: Tensor) -> Tensor:
        return self.mode(features)

    def feature_mean(self, raw: Tensor) -> Tensor:
        return torch.exp(self.log_softmax(raw))

    def average(self, raw: Tensor, weight: Tensor) -> Tensor:
        return self.mode((weight[..., None] * self.feature_mean(raw)).sum(0))

    def columns_of_features(self, n_columns: int) -> Tensor:
        return self.column

    def from_linear_fit(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        # As for Bernoulli: the pseudo-inverse of diag(p) - p p^T is diag(1 / p), as the loadings of
        # a column's indicators add up to 0.
        p = fit.mean.clamp(min=1e-4)
        return LinearStart(1.0 / p, torch.log(p), p)


@dataclass(frozen=True)
class Ordinal(Likelihood):
    """P(x_d <= k) = sigmoid(tau_k - raw_d), with learned thresholds tau (McCullagh 1980).

    Parameters
    ----------
    n_levels : sequence of int, default=(3,)
        Number of levels of each column; in a model it is the columns' own. x_d is the number of
        its level, from 0.

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

    n_levels: Sequence[int] = (3,)

    support = Support(0.0, math.inf, "the number of a level", whole=True)
    takes_levels = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_levels", tuple(int(n) for n in self.n_levels))

    def for_columns(self, n_levels: Sequence[int], rms: float) -> Self:
        return replace(self, n_levels=n_levels)

    @property
    def _most(self) -> int:  # L
        return max(1, *self.n_levels)

    def parameters(self, n_columns: int) -> dict[str, Tensor]:
        return {
            "first": torch.zeros(n_columns),  # tau_0
            "log_gap": torch.zeros(n_columns, max(self._most - 2, 0)),  # of the further ones
        }

    def constants(self) -> dict[str, Tensor]:
        return {"inner": self.inner}

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        return {"log_gap": (math.log(1e-3), math.inf)}  # no level may vanish

    # In a model these are what it has learned, on its device and in its precision.

    @cached_property
    def first(self) -> Tensor:  # (D,)
        """The first threshold."""
        return self.parameters(len(self.n_levels))["first"]

    @cached_property
    def log_gap(self) -> Tensor:  # (D, L - 2)
        """How far the next ones are apart."""
        return self.parameters(len(self.n_levels))["log_gap"]

    @cached_property
    def inner(self) -> Tensor:  # (D, L - 1)
        """Whether a column has this threshold."""
        return torch.arange(1, self._most) < torch.tensor(self.n_levels)[:, None]

    def _edges(self) -> Tensor:  # (D, L + 1)
        """Return tau_{-1} to tau_{L-1}: FAR instead of infinity, whose gradients would be nan."""
        far = torch.full_like(self.first, FAR)[:, None]
        tau = torch.cat([self.first[:, None], torch.exp(self.log_gap)], 1).cumsum(1)
        return torch.cat(
            [-far, torch.where(self.inner, tau[:, : self.inner.shape[1]], far), far], 1
        )

    def _above(self, raw: Tensor) -> Tensor:  # (..., D, L + 1)
        """Return P(x > k) for k from -1 to L - 1."""
        # Beyond half of what stands for infinity, no level would be left.
        near = raw.clamp(-0.5 * FAR, 0.5 * FAR)[..., None]
        return torch.sigmoid(near - self._edges())

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - e^(a - b)) has digits in both tails.
        edges, level = self._edges().T, x.long().reshape(-1, x.shape[-1])
        lower = edges.gather(0, level).reshape(x.shape)
        upper = edges.gather(0, level + 1).reshape(x.shape)
        tails = nn.functional.logsigmoid(upper - raw) + nn.functional.logsigmoid(raw - lower)
        return tails + torch.log(-torch.expm1(lower - upper))

    def linear_form(self, x: Tensor, raw: Tensor) -> LinearForm:
        n_columns, levels = x.shape[1], torch.arange(self._most, device=x.device)
        each = levels.to(x.dtype)[:, None].expand(-1, n_columns)  # (L, D)
        log_p = self.log_prob(each, raw[:, None])  # (M, L, D): -inf beyond a column's own levels
        log_p = log_p.nan_to_num(neginf=0.0).flatten(1)
        indicators = (x[:, None] == each).to(x.dtype).flatten(1)
        nothing, column = log_p.new_zeros(len(raw), n_columns), torch.arange(n_columns)
        return LinearForm(indicators, log_p, nothing, column.repeat(len(levels)).to(x.device))

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
    def from_linear_fit(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        # The thresholds are such that raw = 0 is the marginal; the slope is one Newton step's.
        count = x.new_zeros((self.inner.shape[1] + 1, x.shape[1]))  # (L, D)
        count.scatter_add_(0, x.nan_to_num().long(), weight.to(x.dtype)[:, None] * ~x.isnan())
        share = (count / count.sum(0).clamp(min=torch.finfo(x.dtype).tiny)).T.clamp(min=1e-4)
        share = share * nn.functional.pad(self.inner, (1, 0), value=True)
        below = (share.cumsum(1) / share.sum(1, keepdim=True))[:, :-1].where(self.inner, 0.5)
        tau = torch.logit(below)
        log_gap = torch.log(tau.diff(dim=1).where(self.inner[:, 1:], 1.0))
        own = {"first": tau[:, :1].sum(1), "log_gap": log_gap}
        slope = (below * (1.0 - below) * self.inner).sum(1).clamp(min=1e-3)
        variance = fit.scale.square().clamp(min=1e-3)
        return LinearStart(1.0 / slope, torch.zeros_like(slope), variance, own)
