"""p(x_d | z): the distribution of a column given the decoder's raw output.

A likelihood says what values it takes (``support``), how the decoder's raw output parameterises
it, and how a linear-Gaussian fit of the columns becomes its start. To add one: one final class
here, one row in ``LIKELIHOODS``, one row in the table of ``tests/test_likelihoods.py``.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ._gaussian import normal_log_prob


class Support(NamedTuple):
    """The values that a likelihood gives a density to."""

    lower: float
    upper: float
    description: str
    standardised: bool  # whether the column may be shifted and scaled before it is modelled


class LinearStart(NamedTuple):
    """How a linear-Gaussian fit x = W z + mean + noise becomes raw(z) = diag(r) W z + b."""

    weight_per_loading: Tensor  # (D,)  r: the derivative of raw by x at the marginal
    bias: Tensor  # (D,)                b
    variance: Tensor  # (D,)            of x given z, in the columns' units: what the encoder needs


class Likelihood(nn.Module, ABC):
    """Interface of all likelihoods. Every method is elementwise over (..., N, D)."""

    support: Support
    noise: Literal["per_column", "shared"] = "shared"  # which linear fit it starts from

    @abstractmethod
    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        """Log p(x_d | raw_d) in nats."""

    @abstractmethod
    def mean(self, raw: Tensor) -> Tensor:
        """E[x_d | raw_d]."""

    @abstractmethod
    def mode(self, raw: Tensor) -> Tensor:
        """The most probable x_d."""

    @abstractmethod
    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of x_d."""

    @abstractmethod
    def information(self, raw: Tensor) -> Tensor:
        """Fisher information of raw_d in one x_d: the curvature for Gauss-Newton steps."""

    @abstractmethod
    def start(self, mean: Tensor, scale: Tensor, noise: Tensor) -> LinearStart:
        """Take over a linear-Gaussian fit of the columns, and say how the decoder begins as it.

        ``mean`` and ``scale`` (D,) are the columns' marginal moments, ``noise`` (D,) the standard
        deviation that the linear fit leaves, all in the columns' units.
        """

    @abstractmethod
    def for_columns(self, n_columns: int, floor: float) -> "Likelihood":
        """A fresh likelihood of this kind for so many columns and this noise floor."""

    def set_noise(self, variance: Tensor) -> None:
        """Take over the variance (D,) that the means leave. Nothing to do without a noise scale."""
        return

    def project(self) -> None:
        """Return to the admissible parameters after an optimiser step. Nothing to do for most."""
        return


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

    support = Support(-math.inf, math.inf, "finite numbers", standardised=True)

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

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        return normal_log_prob(x, raw, self.log_scale)

    def mean(self, raw: Tensor) -> Tensor:
        return raw

    def mode(self, raw: Tensor) -> Tensor:
        return raw

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        eps = torch.randn(raw.shape, generator=generator, dtype=raw.dtype, device=raw.device)
        return raw + torch.exp(self.log_scale) * eps

    def information(self, raw: Tensor) -> Tensor:
        return torch.exp(-2.0 * self.log_scale).expand_as(raw)

    def start(self, mean: Tensor, scale: Tensor, noise: Tensor) -> LinearStart:
        noise = noise.clamp(min=self.floor)
        with torch.no_grad():
            self.log_scale.copy_(torch.log(noise if self.noise == "per_column" else noise[:1]))
        return LinearStart(torch.ones_like(mean), mean, noise.square())

    def set_noise(self, variance: Tensor) -> None:
        if self.noise == "shared":
            variance = variance.mean(0, keepdim=True)
        with torch.no_grad():
            self.log_scale.copy_(0.5 * torch.log(variance.clamp(min=self.floor**2)))

    def for_columns(self, n_columns: int, floor: float) -> "Gaussian":
        return Gaussian(self.noise, n_columns, floor)

    def project(self) -> None:
        with torch.no_grad():
            self.log_scale.clamp_(min=math.log(self.floor))

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

    support = Support(0.0, 1.0, "0 and 1, or probabilities between them", standardised=False)

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

    def start(self, mean: Tensor, scale: Tensor, noise: Tensor) -> LinearStart:
        # One Newton step in the natural parameter from the marginal: b = logit(mean), W / Var(x).
        # A column that never varies gets a finite logit and no loadings.
        p = mean.clamp(1e-3, 1.0 - 1e-3)
        variance = scale.square().clamp(min=1e-3)
        return LinearStart(1.0 / variance, torch.logit(p), variance)

    def for_columns(self, n_columns: int, floor: float) -> "Bernoulli":
        return Bernoulli()


LIKELIHOODS = {"gaussian": Gaussian, "bernoulli": Bernoulli}
