"""The likelihood of columns that were mapped to normal scores, with intervals for atoms."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from .._gaussian import (
    hidden_variance,
    log_normal_mass,
    normal_log_prob,
    standard_normal_like,
)
from .._parameters import NOISE_FLOOR
from .._table.support import Support
from ._likelihood import Likelihood, LinearFit, LinearForm, LinearStart
from ._real import FLOOR_RULE, check_field

FARTHEST = 1e6  # stands for the ends of the line
WIDEST = 16  # atoms of a column, whose width counts for the curvature
LEAST_NOISE = 0.01  # of the variance of a score with atoms, that is noise


@dataclass(frozen=True)
class NormalScores(Likelihood):
    """t_d ~ N(raw_d, noise_d^2), of which x_d = q_d(t_d) is seen: a Gaussian copula given z.

    q_d is a smooth quantile function that a model fits to its column. It leads from normal scores
    to values; a value that many rows hold has an interval of the scores. So draws are values as the
    column has them: on its side of zero, whole where it is whole, with its caps and spikes.

    Parameters
    ----------
    floor : float or None, default=None
        Smallest noise scale, in units of the normal scores. None is 0.001.
    edges : tuple of tuple of float, default=()
        Of each column the ends of the intervals of its values in turn; a model sets them.

    Notes
    -----
    Domain: numbers. Link: identity. With u = (t - raw) / s, the density of a score has log p =
    -1/2 u^2 - log s - 1/2 log 2 pi, and the probability of a value with the interval (a, b) is
    Phi((b - raw) / s) - Phi((a - raw) / s) (Hoff 2007; Zhao & Udell 2020). Each column has a noise
    scale of its own. Evaluated on its own, the scale is 1, and x is a score without intervals.

    Examples
    --------
    >>> import torch
    >>> from skvae.likelihoods import NormalScores
    >>> NormalScores().log_prob(torch.zeros(1), torch.zeros(1)).item()  # log 1 / sqrt(2 pi)
    -0.9189...
    """

    floor: float | None = None
    edges: tuple[tuple[float, ...], ...] = field(default=(), repr=False)  # (D, 2 A)

    support = Support(-math.inf, math.inf, "numbers as fit has seen them", "shape")
    noise = "per_column"
    log_scale: ClassVar[Tensor] = torch.zeros(1)

    def __post_init__(self) -> None:
        check_field(self, "floor", FLOOR_RULE)

    def for_columns(self, n_levels: Sequence[int], rms: float) -> Self:
        return replace(self, floor=self._floor, edges=())

    def with_edges(self, edges: Sequence[tuple[float, ...]]) -> Self:
        return replace(self, edges=tuple(edges))

    def parameters(self, n_columns: int) -> dict[str, Tensor]:
        return {"log_scale": torch.zeros(n_columns)}

    def constants(self) -> dict[str, Tensor]:
        return {"ends": self.ends, "wide": self.wide}

    # In a model these are the constants, on its device and in its precision.

    @cached_property
    def ends(self) -> Tensor:  # (D, 2 A + 1)
        """The ends of all intervals, in order, and then infinity."""
        own = [torch.tensor(one, dtype=torch.float64) for one in self.edges or ((),)]
        ends = nn.utils.rnn.pad_sequence(own, batch_first=True, padding_value=math.inf)
        finite = torch.where(ends.isinf(), FARTHEST * ends.sign(), ends)
        held = torch.arange(ends.shape[1]) < torch.tensor([len(one) for one in own])[:, None]
        ends = torch.where(held, finite, math.inf)
        return torch.cat([ends, torch.full((len(ends), 1), math.inf, dtype=ends.dtype)], 1)

    @cached_property
    def wide(self) -> Tensor:  # (D, W, 2)
        """The widest intervals of each column; empty ones where it has fewer."""
        pairs = self.ends[:, :-1].nan_to_num(posinf=FARTHEST).unflatten(1, (-1, 2))
        order = pairs.diff()[..., 0].argsort(dim=1, descending=True)[:, :WIDEST]
        return pairs.take_along_dim(order[..., None], 1)

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        return {"log_scale": (math.log(self._floor), math.inf)}

    @property
    def _floor(self) -> float:
        return NOISE_FLOOR if self.floor is None else self.floor

    @property
    def has_atoms(self) -> Tensor:  # (D,)
        return self.ends[:, 0].isfinite()

    def _interval(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # (..., D) each
        """Return the ends of each cell's interval, and whether it has one; else something near."""
        cells = x.reshape(-1, x.shape[-1]).T.to(self.ends.dtype).contiguous()
        number = torch.searchsorted(self.ends, cells)
        lower = self.ends.gather(1, (number - 1).clamp(min=0)).T.to(x.dtype).view_as(x)
        upper = self.ends.gather(1, number.clamp(max=self.ends.shape[1] - 1))
        upper = upper.T.to(x.dtype).view_as(x)
        inside = (number % 2 == 1).T.view_as(x)
        return torch.where(inside, lower, x - 1.0), torch.where(inside, upper, x + 1.0), inside

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        density = normal_log_prob(x, raw, self.log_scale)
        if self.ends.shape[1] < 2:
            return density
        lower, upper, inside = self._interval(x)
        unit = torch.exp(-self.log_scale)
        mass = log_normal_mass((lower - raw) * unit, (upper - raw) * unit)
        return torch.where(inside, mass, density)

    def linear_form(self, x: Tensor, raw: Tensor) -> LinearForm:
        # Nearly: the mean score of an interval stands for it, and its variance is noise, too.
        variance = torch.exp(2.0 * self.log_scale) + self._hidden_variance(x)
        statistic = torch.cat([x / variance, -0.5 / variance], 1)
        column = torch.arange(x.shape[1], device=x.device).repeat(2)
        parameter = torch.cat([raw, raw.square()], 1)
        return LinearForm(statistic, parameter, torch.zeros_like(raw), column)

    def _hidden_variance(self, x: Tensor) -> Tensor:  # (N, D)
        """Return that of a standard normal score, given the interval that each cell is."""
        if self.ends.shape[1] < 2:
            return torch.zeros_like(x)
        lower, upper, inside = self._interval(x)
        variance = hidden_variance(lower, upper) / torch.exp(log_normal_mass(lower, upper))
        return torch.where(inside, variance.clamp(0.0, 1.0), 0.0)

    def cdf(self, x: Tensor, raw: Tensor) -> Tensor:  # of the score: the map to values rises
        return torch.special.ndtr((x - raw) * torch.exp(-self.log_scale))

    def mean(self, raw: Tensor) -> Tensor:
        return raw

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        return raw + torch.exp(self.log_scale) * standard_normal_like(raw, generator)

    def information(self, raw: Tensor) -> Tensor:
        # That of the score, less what the intervals hide: E Var(u | interval) (Louis 1982).
        unit = torch.exp(-self.log_scale)
        left = torch.ones_like(raw)
        for lower, upper in self.wide.permute(1, 2, 0).to(raw.dtype):  # each (D,)
            left = left - hidden_variance((lower - raw) * unit, (upper - raw) * unit)
        return left.clamp(min=1e-6) * unit.square()

    def from_linear_fit(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        # The mean score of an atom stands for it, and has a variance v < 1. Of a copula its
        # loadings are v times those of the score itself, whose mean is 0 and variance is 1.
        seen = torch.where(x.isnan(), 0.0, weight.to(x.dtype)[:, None])
        share, noise = seen / seen.sum(0).clamp(min=1e-9), fit.noise.clamp(min=self._floor)
        shrunk = (share * x.nan_to_num().square()).sum(0).clamp(min=1e-3)
        explained = (shrunk - noise.square()).clamp(min=0.0) / shrunk.square()
        most = 1.0 - LEAST_NOISE
        slope = torch.where(explained > most, (most / explained.clamp(min=most)).sqrt(), 1.0)
        left = (1.0 - explained).clamp(min=LEAST_NOISE).sqrt()
        left_of_mean = shrunk - explained.clamp(max=most) * shrunk.square()
        has_atoms = self.has_atoms.to(noise.device)
        own = {"log_scale": torch.log(torch.where(has_atoms, left, noise))}
        return LinearStart(
            torch.where(has_atoms, slope / shrunk, 1.0),
            torch.where(has_atoms, 0.0, fit.mean),
            torch.where(has_atoms, left_of_mean, noise.square()),
            own,
        )

    def noise_values(self, variance: Tensor, count: Tensor) -> dict[str, Tensor]:
        log_scale = 0.5 * torch.log(variance.clamp(min=self._floor**2))
        return {"log_scale": torch.where(self.has_atoms, self.log_scale, log_scale)}

    def noise_variance(self, n_columns: int) -> Tensor:
        return torch.exp(2.0 * self.log_scale).expand(n_columns)
