"""The interface of all likelihoods, and what they share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from .._specification import Specification
from .._table.support import UNITS, Nature, Support

Noise = Literal["per_column", "shared"]
POINTS = 32  # of z at which all rows are evaluated at once
MARGINAL_STEPS = 100  # of Fisher scoring, and then of L-BFGS
TAKEN = {"columns", "own", "now", "assign", "specification", "project", "n_raw", "has_scale"}
TAKEN |= {"of_features", "from_linear_fit", "_index", "_limits"}


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


class LinearForm(NamedTuple):
    """log p of N rows at M points, but for what only the rows decide: T eta' less A.

    Of an exponential family T are the statistics, eta its natural parameters, A its log normaliser.
    """

    statistic: Tensor  # (N, Q)           T
    parameter: Tensor  # (M, Q)           eta
    normaliser: Tensor  # (M, D)          A
    column: Tensor | None = None  # (Q,)  whose statistic each is; None: one for each column


class Likelihood(Specification, ABC):
    """Interface of all likelihoods: D columns, P raw parameters, over any leading axes.

    A likelihood is a frozen dataclass whose fields say what the user chose. What it learns beside
    the decoder is declared by ``parameters`` and read as attributes of the same names: a model
    makes a torch module of it when it knows the columns. All but ``Categorical`` have one raw
    parameter a column and are elementwise.

    The link should keep raw of the order of one: the linear start draws a decoder's weights to 0 as
    if they had a standard normal prior.

    A likelihood of one's own implements ``support``, ``log_prob``, ``mean``, ``sample`` and
    ``information``; the rest has defaults.
    """

    support: ClassVar[Support]
    automatic_for: ClassVar[Nature | None] = None  # columns for which "auto" takes it
    takes_levels: ClassVar[bool] = False  # x is the number of a level, not a number of its own
    is_joint: ClassVar[bool] = False  # log p of a cell hangs on the other cells of its row
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

    def with_edges(self, edges: Sequence[tuple[float, ...]]) -> Self:
        """Return the specification for columns with these ends of intervals of normal scores.

        Lower and upper end of each in turn; empty for a column without.
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

    def from_features(self, features: Tensor) -> Tensor:  # (..., P) -> (..., D)
        """Return the x that has these features; nan where a likelihood's own do not say."""
        own = type(self).features is not Likelihood.features
        return torch.full_like(features, math.nan) if own else features

    def feature_mean(self, raw: Tensor) -> Tensor:  # (..., P) -> (..., P)
        """Return about the features that raw stands for, to compare a reconstruction with."""
        return self.mean(raw)

    def average(self, raw: Tensor, weight: Tensor) -> Tensor:  # (S, N, P), (S, N) -> (N, D)
        """Return the mean under a mixture over S, whose weights add up to 1; a category's mode."""
        return (weight[..., None] * self.mean(raw)).sum(0)

    def columns_of_features(self, n_columns: int) -> Tensor:  # (P,)
        """Return which of the columns each feature belongs to."""
        return torch.arange(n_columns)

    def cdf(self, x: Tensor, raw: Tensor) -> Tensor:  # (N, D), (..., N, P) -> (..., N, D)
        """Return P(x_d or less | raw_d), of columns that are no levels: for quantiles."""
        raise NotImplementedError  # internal: asked for only where ``has_cdf``

    @property
    def has_cdf(self) -> bool:
        """Whether the class itself says so: who inherits one may have another density."""
        return "cdf" in vars(type(self))

    def given(self, x: Tensor, observed: Tensor | None) -> Self:  # (N, D), (N, D)
        """Return what it is in rows that hold x: a joint one knows their totals."""
        return self

    # -- many rows at many points -----------------------------------------------------------------

    def linear_form(self, x: Tensor, raw: Tensor) -> LinearForm | None:
        """Return log p(x | raw) for x (N, D) and raw (M, P) as one product, where it is one.

        Or nearly so: it only ranks points from which searches begin.
        """
        return None

    @property
    def has_linear_form(self) -> bool:
        """Whether the class itself says so: who inherits a form may have another density."""
        return "linear_form" in vars(type(self))

    def log_prob_at(self, x: Tensor, raw: Tensor, observed: Tensor | None) -> Tensor:
        """Return log p of rows x (N, D) at points raw (M, P), over the observed columns: (N, M).

        Up to what only the row decides: it ranks the points for each row.
        """
        form = self.linear_form(x, raw) if self.has_linear_form else None
        if form is None:
            parts = [self._log_prob_at(x, some, observed) for some in raw.split(POINTS)]
            return torch.cat(parts, 1)
        if observed is None:
            return form.statistic @ form.parameter.T - form.normaliser.sum(-1)
        seen = observed.to(x.dtype)
        counts = seen if form.column is None else seen[:, form.column]
        return (form.statistic * counts) @ form.parameter.T - seen @ form.normaliser.T

    def _log_prob_at(self, x: Tensor, raw: Tensor, observed: Tensor | None) -> Tensor:
        log_p = self.log_prob(x, raw[:, None].expand(-1, len(x), -1))  # (M, N, D)
        return (log_p if observed is None else torch.where(observed, log_p, 0.0)).sum(-1).T

    # -- how it starts, climbs and is curved ------------------------------------------------------

    def from_linear_fit(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        """Take over a linear-Gaussian fit of the features, and say how the decoder begins as it.

        ``x`` (N, D) are training rows, nan where a value is missing, and ``weight`` (N,) says how
        often each counts: for what the fit does not tell, such as a dispersion. Unless a likelihood
        knows better, the bias and its own parameters maximise the marginal likelihood of its
        column, and the slope is one step of Fisher scoring from there (McCullagh & Nelder 1989,
        section 2.5).
        """
        share = torch.where(x.isnan(), 0.0, weight.to(x.dtype)[:, None])
        share = share / share.sum(0).clamp(min=1e-9)
        x = self._filled(x)
        own = {k: v.to(x) for k, v in self.parameters(x.shape[1]).items()}
        bias = _marginal_bias(self.with_values(own), x, share)
        bias, own = _marginal_fit(self, x, share, bias, own)
        fitted = self.with_values(own)
        centred = self.features(x) - fit.mean
        response = share * centred * _working_response(fitted, x, bias)
        slope = response.sum(0) / (share * centred.square()).sum(0).clamp(min=1e-9)
        return LinearStart(slope, bias, fit.scale.square().clamp(min=1e-3), own)

    def _filled(self, x: Tensor) -> Tensor:
        """Put an admissible value, which never counts, where one is missing."""
        highest = x.nan_to_num(-math.inf).amax(0)
        filling = torch.where(highest.isinf(), self.support.filling, highest)
        return torch.where(x.isnan(), filling, x)

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


def _working_response(likelihood: Likelihood, x: Tensor, raw: Tensor) -> Tensor:
    """Return the score of each x over its information: the step that it asks of raw."""
    with torch.enable_grad():
        raw = raw.detach().expand(x.shape).clone().requires_grad_()
        (score,) = torch.autograd.grad(likelihood.log_prob(x, raw).sum(), raw)
    return score / likelihood.information(raw.detach()).clamp(min=1e-9)


@torch.no_grad()
def _marginal_bias(likelihood: Likelihood, x: Tensor, share: Tensor) -> Tensor:
    """Climb each column's marginal likelihood by Fisher scoring; a step too far is halved."""

    def value(bias: Tensor) -> Tensor:
        return (share * likelihood.log_prob(x, bias.expand(x.shape))).sum(0)

    bias = torch.zeros_like(x[0])
    best, scale = value(bias), torch.ones_like(bias)
    for _ in range(MARGINAL_STEPS):
        step = (share * _working_response(likelihood, x, bias)).sum(0)
        trial = value(bias + scale * step)
        better = trial > best
        bias = torch.where(better, bias + scale * step, bias)
        best = torch.where(better, trial, best)
        scale = torch.where(better, (2.0 * scale).clamp(max=1.0), 0.5 * scale)
    return bias


def _marginal_fit(
    likelihood: Likelihood, x: Tensor, share: Tensor, bias: Tensor, own: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Climb on, by the parameters of its own, too."""
    if not own:
        return bias, own
    moved = [value.clone().requires_grad_() for value in (bias, *own.values())]
    optimizer = torch.optim.LBFGS(moved, max_iter=MARGINAL_STEPS, line_search_fn="strong_wolfe")

    def bound(values: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        named = dict(zip(own, values[1:], strict=True))
        clamped = {name: named[name].clamp(*ends) for name, ends in likelihood.limits.items()}
        return values[0], named | clamped

    def closure() -> float:
        optimizer.zero_grad()
        loc, values = bound(moved)
        log_p = likelihood.with_values(values).log_prob(x, loc.expand(x.shape))
        (-(share * log_p).sum()).backward()
        return -float((share * log_p).sum().detach())

    with torch.enable_grad():
        optimizer.step(closure)
    found = bound([value.detach() for value in moved])
    finite = all(bool(v.isfinite().all()) for v in (found[0], *found[1].values()))
    return found if finite else (bias, own)


def check_kind(likelihood: Likelihood) -> None:
    """Raise a TypeError that says what a likelihood of the user's own lacks."""
    name = type(likelihood).__name__
    if not isinstance(getattr(likelihood, "support", None), Support):
        raise TypeError(
            f"The likelihood {name} needs an attribute 'support', a skvae.likelihoods.Support: "
            "which values it gives a density to."
        )
    if not hasattr(likelihood, "__dict__") or "__slots__" in vars(type(likelihood)):
        raise TypeError(f"The likelihood {name} cannot have slots: models make copies with values.")
    try:
        hash(likelihood)
    except TypeError:
        raise TypeError(
            f"The likelihood {name} must be hashable, so that equal ones are one: a frozen "
            "dataclass whose fields are hashable, tuples instead of lists."
        ) from None
    if likelihood.support.units not in UNITS:
        raise TypeError(
            f"The support of the likelihood {name} has units {likelihood.support.units!r}; they "
            f"must be one of {', '.join(map(repr, UNITS))}."
        )
    learned = set(likelihood.parameters(1)) | set(likelihood.constants())
    reserved = {*dir(nn.Module), *dir(Likelihood), *TAKEN}
    if taken := sorted(learned & reserved):
        raise TypeError(f"The likelihood {name} needs another name for its parameter {taken[0]!r}.")
    if unknown := sorted(set(likelihood.limits) - set(likelihood.parameters(1))):
        raise TypeError(
            f"The likelihood {name} has limits of {unknown[0]!r}, but no such parameter."
        )


def check_shapes(likelihood: Likelihood) -> None:
    """Raise a TypeError that names a method whose result has another shape than it should."""
    if type(likelihood).columns_of_features is not Likelihood.columns_of_features:
        return
    name, generator = type(likelihood).__name__, torch.Generator().manual_seed(0)
    now = likelihood.with_values(likelihood.parameters(3))
    x, raw = torch.full((2, 3), likelihood.support.filling), torch.zeros(2, 3)
    calls: dict[str, Callable[[], Tensor]] = {
        "log_prob(x, raw)": lambda: now.log_prob(x, raw),
        "mean(raw)": lambda: now.mean(raw),
        "sample(raw, generator)": lambda: now.sample(raw, generator),
        "information(raw)": lambda: now.information(raw),
        "features(x)": lambda: now.features(x),
    }
    for call, function in calls.items():
        try:
            found = function()
        except Exception as error:
            raise TypeError(f"The likelihood {name} fails in {call}: {error!r}") from error
        if found.shape != (2, 3):
            raise TypeError(
                f"{name}.{call} must return a value for each cell: the shape (2, 3) for x and raw "
                f"of that shape. It returned the shape {tuple(found.shape)}."
            )
    if bool((now.information(raw) < 0.0).any()):
        raise TypeError(f"{name}.information(raw) must not be negative.")


def gradient_of_cells(likelihood: Likelihood) -> Callable[..., Tensor]:
    """Return the gradient that its class writes, else autograd's.

    A class that inherits one may compute something else.
    """
    by_hand = "gradient" in vars(type(likelihood))
    return likelihood.gradient if by_hand else partial(Likelihood.gradient, likelihood)
