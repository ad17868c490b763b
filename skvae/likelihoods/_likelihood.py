"""The interface of all likelihoods, and what they share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor

from .._specification import Specification
from .._table.support import Nature, Support

Noise = Literal["per_column", "shared"]
MARGINAL_STEPS = 50  # of Fisher scoring


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
    values: Mapping[str, Tensor] = {}  # of the likelihood's own parameters


class Likelihood(Specification, ABC):
    """Interface of all likelihoods: D columns, P raw parameters, over any leading axes.

    A likelihood is a frozen dataclass whose fields say what the user chose. What it learns beside
    the decoder is declared by ``parameters`` and read as attributes of the same names: a model
    makes a torch module of it when it knows the columns. All but ``Categorical`` have one raw
    parameter a column and are elementwise.

    A likelihood of one's own implements ``support``, ``log_prob``, ``mean``, ``sample`` and
    ``information``; the rest has defaults.
    """

    support: ClassVar[Support]
    automatic_for: ClassVar[Nature | None] = None  # columns for which "auto" takes it
    takes_levels: ClassVar[bool] = False  # x is the number of a level, not a number of its own
    noise: Noise = "shared"  # which linear fit it starts from

    @abstractmethod
    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:  # (N, D), (..., N, P) -> (..., N, D)
        """Return log p(x_d | raw_d) in nats."""

    @abstractmethod
    def mean(self, raw: Tensor) -> Tensor:  # (..., D)
        """Return E[x_d | raw_d]; for categories, which have none, the mode."""

    def mode(self, raw: Tensor) -> Tensor:  # (..., D)
        """Return the most probable x_d: the mean where nothing else is said."""
        return self.mean(raw)

    @abstractmethod
    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:  # (..., D)
        """Draw each x_d once."""

    @abstractmethod
    def information(self, raw: Tensor) -> Tensor:  # (..., P)
        """Return the Fisher information of raw_d in one x_d: the curvature for Gauss-Newton."""

    # -- what it sees and learns ------------------------------------------------------------------

    @classmethod
    def named(cls, noise: str) -> Self:
        """Return what the name of this likelihood stands for, given the model's ``noise``."""
        return cls()

    def for_columns(self, n_levels: Sequence[int], rms: float) -> Self:
        """Return the specification for columns of so many levels each; 0 for numbers.

        ``rms`` is the columns' root mean square standard deviation, 1 where they were scaled.
        """
        return self

    def parameters(self, n_columns: int) -> dict[str, Tensor]:
        """Return the start of what is learned beside the decoder, by name."""
        return {}

    def constants(self) -> dict[str, Tensor]:
        """Return what follows from the columns and is not learned, by name."""
        return {}

    @property
    def limits(self) -> dict[str, tuple[float, float]]:
        """The admissible values of the parameters, by name."""
        return {}

    def features(self, x: Tensor) -> Tensor:  # (..., D) -> (..., P)
        """Return what the encoder and the linear fit see of x: nothing that is learned."""
        return x

    def feature_mean(self, raw: Tensor) -> Tensor:  # (..., P) -> (..., P)
        """Return about the features that raw stands for, to compare a reconstruction with."""
        return self.mean(raw)

    def average(self, raw: Tensor, weight: Tensor) -> Tensor:  # (S, N, P), (S, N) -> (N, D)
        """Return the mean under a mixture over S, whose weights add up to 1; a category's mode."""
        return (weight[..., None] * self.mean(raw)).sum(0)

    def columns_of_features(self, n_columns: int) -> Tensor:  # (P,)
        """Return which of the columns each feature belongs to."""
        return torch.arange(n_columns)

    # -- how it starts, climbs and is curved ------------------------------------------------------

    def from_linear_fit(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        """Take over a linear-Gaussian fit of the features, and say how the decoder begins as it.

        ``x`` (N, D) are training rows, nan where a value is missing, and ``weight`` (N,) says how
        often each counts: for what the fit does not tell, such as a dispersion. Unless a likelihood
        knows better, the bias maximises the marginal likelihood of its column, and the slope is one
        step of Fisher scoring from there (McCullagh & Nelder 1989, section 2.5).
        """
        share = torch.where(x.isnan(), 0.0, weight.to(x.dtype)[:, None])
        highest = x.nan_to_num(-math.inf).amax(0)
        x = torch.where(x.isnan(), highest.nan_to_num(neginf=1.0), x)  # admissible, and not counted
        bias = torch.zeros_like(fit.mean)
        for _ in range(MARGINAL_STEPS):
            step = (share * self._working_response(x, bias)).sum(0) / share.sum(0).clamp(min=1e-9)
            bias = bias + step.clamp(-1.0, 1.0)
        centred = share * (self.features(x) - fit.mean)
        squares = (centred * (self.features(x) - fit.mean)).sum(0).clamp(min=1e-9)
        slope = (centred * self._working_response(x, bias)).sum(0) / squares
        return LinearStart(slope, bias, fit.scale.square().clamp(min=1e-3))

    def _working_response(self, x: Tensor, raw: Tensor) -> Tensor:
        """Return the score of each x over its information: the step that it asks of raw."""
        with torch.enable_grad():
            raw = raw.detach().expand(x.shape).clone().requires_grad_()
            (score,) = torch.autograd.grad(self.log_prob(x, raw).sum(), raw)
        return score / self.information(raw.detach()).clamp(min=1e-9)

    def gradient(
        self, x: Tensor, raw: Tensor, count: Tensor, g: Tensor, places: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the sum of count log p, and leave minus its gradient in ``g`` and ``places``.

        ``x`` is (N, D), ``raw`` and ``g`` (S, N, P), and ``count`` (N, 1) or (N, D) says what a
        cell counts in each sample; ``places`` has a tensor for each parameter. Here by autograd; a
        likelihood may write the formula out by hand, next to its ``log_prob``.
        """
        parameters = [getattr(self, name) for name in places]
        with torch.inference_mode(False), torch.enable_grad():
            # Copies: what was made in inference mode cannot be differentiated.
            x, count, by = x.clone(), count.clone(), raw.clone().requires_grad_()
            log_p = self.log_prob(x, by)  # of a cell that counts nothing it may be infinite
            total = (torch.where(count > 0.0, log_p, 0.0) * count).sum()
            found = torch.autograd.grad(total, [by, *parameters], materialize_grads=True)
        for place, own in zip([g, *places.values()], found, strict=True):
            torch.neg(own, out=place)
        return total.detach()

    def curvature(self, jacobian: Tensor, raw: Tensor, observed: Tensor | None) -> Tensor:
        """Return J^T F J over the observed columns.  (N, K, P), (N, P), (N, D) -> (N, K, K)."""
        information = self.information(raw)
        if observed is not None:
            information = information * observed
        return (jacobian * information[:, None, :]) @ jacobian.mT

    def noise_values(self, variance: Tensor, count: Tensor) -> dict[str, Tensor]:
        """Return parameters by the variance (P,) that predictions leave on ``count`` (P,) rows.

        There are none without a Gaussian noise scale.
        """
        return {}

    def noise_variance(self, n_columns: int) -> Tensor:  # (D,)
        """Return the variance of each column's Gaussian noise; nan where there is none."""
        return torch.full((n_columns,), math.nan)


def gradient_by_hand(likelihood: Likelihood) -> bool:
    """Whether the class writes its own gradient: who inherits one may compute something else."""
    return "gradient" in vars(type(likelihood))
