"""Encoder and decoder: each a linear map plus an MLP whose last layer starts at zero.

    loc(x) = A x + a + s f(x)        log_scale(x) = c + g(x)        raw(z) = W z + b + u h(z)

f, g and h are 0 at the start, so a network begins as the linear-Gaussian model that it is given.
They are in units of that model's standard deviations, s of a component given the row and u of a
feature given z: steps of training are of one size for all weights, and would else be tens of noise
scales long where a column is determined sharply. All random numbers come from the generator that
is passed in.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._parameters import CELL_LIMIT


def _gelu_slope(x: Tensor) -> Tensor:
    density = torch.exp(-0.5 * x.square()) / math.sqrt(2.0 * math.pi)
    return 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0))) + x * density


def _silu_slope(x: Tensor) -> Tensor:
    gate = torch.sigmoid(x)
    return gate * (1.0 + x * (1.0 - gate))


CODE_LIMIT = 4.0  # prior standard deviations of a component


class Activation(NamedTuple):
    """A function and its derivative."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


ACTIVATIONS = {
    "gelu": Activation(F.gelu, _gelu_slope),
    "relu": Activation(F.relu, lambda x: (x > 0.0).to(x.dtype)),
    "silu": Activation(F.silu, _silu_slope),
    "tanh": Activation(torch.tanh, lambda x: 1.0 - torch.tanh(x).square()),
}


def tame(x: Tensor, limit: float) -> Tensor:
    """Return x near 0, at most ``limit`` far out: a wild value must not throw an MLP off.

    Only the encoder's MLP sees tamed values. Its linear path sees x itself, or the start would not
    be exact; the decoder must be free to follow a wild row.
    """
    return x * torch.rsqrt(1.0 + (x / limit).square())


def tame_(x: Tensor, limit: float) -> Tensor:
    """Apply :func:`tame` in place, in fewer passes over the memory and without gradients."""
    return x.mul_(torch.addcmul(x.new_ones(()), x, x, value=1.0 / limit**2).rsqrt_())


class Dense(nn.Module):
    """x W^T + b, initialised from a generator (``nn.Linear`` would move torch's global one)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw weights as He et al. 2015; small uniform biases spread the units' kinks."""
        n_in = max(self.weight.shape[1], 1)
        self.weight.normal_(0.0, math.sqrt(2.0 / n_in), generator=generator)
        self.bias.uniform_(-1.0 / math.sqrt(n_in), 1.0 / math.sqrt(n_in), generator=generator)


class MLP(nn.Module):
    """Hidden layers and a last layer that stays at zero when the others are initialised."""

    def __init__(self, n_in: int, hidden: Sequence[int], n_out: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.first = Dense(n_in, hidden[0])
        self.middle = nn.ModuleList(Dense(i, o) for i, o in itertools.pairwise(hidden))
        self.last = Dense(hidden[-1], n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        """Evaluate the units of the last hidden layer."""
        activation = ACTIVATIONS[self.activation]
        for layer in (self.first, *self.middle):
            x = activation.value(layer(x))
        return x

    def jacobian(self, x: Tensor) -> Tensor:  # (N, K) -> (N, K, P)
        """Return the derivative of the output by each x_k, carried forward through the layers."""
        activation = ACTIVATIONS[self.activation]
        tangent = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)  # one row for each x_k
        for layer in (self.first, *self.middle):
            before = layer(x)
            slope = activation.slope(before)[:, None, :]
            tangent = F.linear(tangent, layer.weight)  # (K, H), then (N, K, H)
            tangent = tangent * slope if tangent.dim() == 2 else tangent.mul_(slope)
            x = activation.value(before)
        return F.linear(tangent, self.last.weight)

    def initialise(self, generator: torch.Generator) -> None:
        for layer in (self.first, *self.middle):
            layer.initialise(generator)

    @property
    def is_idle(self) -> bool:
        """Whether it says nothing, as at the start: the last weights are 0."""
        return not any(bool(parameter.any()) for parameter in self.last.parameters())


class Encoder(nn.Module):
    """q(z | x): the location and log scale of each component.

    Its linear part begins as the exact posterior of a linear-Gaussian model of the features, also
    where values are missing. That model is kept, as buffers, for what missing values need.

    Parameters
    ----------
    column : Tensor of shape (P,)
        The column that each feature belongs to.
    may_miss : Tensor of bool of shape (D,)
        Columns with missing values in training: the MLP is told where they are.
    """

    column: Tensor
    may_miss: Tensor
    center: Tensor
    spread: Tensor
    mean: Tensor
    loadings: Tensor
    variance: Tensor
    unit: Tensor

    def __init__(
        self,
        column: Tensor,
        may_miss: Tensor,
        hidden: Sequence[int],
        n_components: int,
        activation: str,
    ) -> None:
        super().__init__()
        n_features = len(column)
        n_in = n_features + int(may_miss.sum())
        self.linear = Dense(n_features, n_components)
        self.log_scale = nn.Parameter(torch.zeros(n_components))
        self.mlp = MLP(n_in, hidden, 2 * n_components, activation) if hidden else None
        self.register_buffer("column", column, persistent=False)
        self.register_buffer("may_miss", may_miss, persistent=False)
        self.register_buffer("center", torch.zeros(n_features))  # robust units, for the MLP
        self.register_buffer("spread", torch.ones(n_features))
        self.register_buffer("mean", torch.zeros(n_features))  # the linear-Gaussian model
        self.register_buffer("loadings", torch.zeros(n_features, n_components))
        self.register_buffer("variance", torch.ones(n_features))
        self.register_buffer("unit", torch.ones(n_components))

    def forward(  # (N, P), (N, D) -> (N, K), (N, K)
        self, features: Tensor, observed: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if observed is not None:
            seen = observed[:, self.column]
            features = torch.where(seen, features, self.mean)
        loc = self.linear(features)
        log_scale = self.log_scale.expand_as(loc)
        if observed is not None:
            fewer = self.fewer_columns(seen)
            loc = fewer.location(loc)
            log_scale = log_scale.index_add(0, fewer.rows, fewer.gain)
            # The MLP sees what the linear model expects instead of a missing value.
            features = torch.where(seen, features, self.mean + loc @ self.loadings.T)
        if self.mlp is None:
            return loc, log_scale
        robust = tame(self.in_robust_units(features), CELL_LIMIT)
        d_loc, d_log_scale = self.mlp(self.with_indicators(robust, observed)).chunk(2, dim=-1)
        return loc + self.unit * d_loc, log_scale + d_log_scale

    def in_robust_units(self, features: Tensor) -> Tensor:
        """Return the features less their centre, in units of their spread."""
        return (features - self.center) / self.spread

    def with_indicators(self, robust: Tensor, observed: Tensor | None) -> Tensor:
        """Return what the MLP sees: the features, and which of the columns that may miss do so."""
        if observed is None:
            return F.pad(robust, (0, int(self.may_miss.sum())))
        return torch.cat([robust, (~observed[:, self.may_miss]).to(robust.dtype)], 1)

    @torch.no_grad()
    def fewer_columns(self, seen: Tensor) -> "FewerColumns":
        """Return what the linear posterior becomes in rows that miss some of its features.

        With precision I + sum_d w_d w_d^T / psi_d over the columns that are seen, the posterior
        mean is that matrix's inverse times h = sum_d w_d (x_d - m_d) / psi_d. Over all columns the
        precision is diagonal, so A x + a (with m_d for what is missing) gives h. The best diagonal
        q has the inverse of the precision's diagonal as its variance.
        """
        rows = torch.nonzero(~seen.all(1))[:, 0]
        w = self.loadings.double()  # in float64: large precisions must not drown the prior's 1
        n_features, n_components = w.shape
        products = (w[:, :, None] * w[:, None, :]) / self.variance.double()[:, None, None]
        products = products.reshape(n_features, -1)
        size = (len(rows), n_components, n_components)
        identity = torch.eye(n_components, dtype=w.dtype, device=w.device)
        precision = (seen[rows].double() @ products).reshape(size) + identity
        of_all = products.sum(0).reshape(size[1:]) + identity
        correction = torch.linalg.solve(precision, of_all.expand(size))
        lost = torch.log(precision.diagonal(dim1=1, dim2=2) / of_all.diagonal())
        dtype = self.loadings.dtype
        return FewerColumns(rows, correction.to(dtype), (-0.5 * lost).to(dtype))


class FewerColumns(NamedTuple):
    """The linear posterior of the rows that miss something, by what it would be if they did not."""

    rows: Tensor  # (M,)
    correction: Tensor  # (M, K, K)  of the location
    gain: Tensor  # (M, K)           of the log scale

    def location(self, loc: Tensor) -> Tensor:  # (N, K) -> (N, K)
        corrected = (self.correction @ loc[self.rows, :, None])[..., 0]
        return loc.index_copy(0, self.rows, corrected)

    def pull(self, g: Tensor) -> Tensor:  # (N, K) -> (N, K)
        """Return the gradient by what ``location`` was given."""
        pulled = (self.correction.mT @ g[self.rows, :, None])[..., 0]
        return g.index_copy(0, self.rows, pulled)


class Decoder(nn.Module):
    """The raw parameters of p(x | z).

    Parameters
    ----------
    tamed : Tensor of bool of shape (P,)
        Raw parameters whose linear map sees tamed components: a logit must not run away with the
        code of a row whose numbers are wild.
    """

    tamed: Tensor
    unit: Tensor

    def __init__(
        self, n_components: int, hidden: Sequence[int], tamed: Tensor, activation: str
    ) -> None:
        super().__init__()
        self.linear = Dense(n_components, len(tamed))
        self.mlp = MLP(n_components, hidden, len(tamed), activation) if hidden else None
        self.register_buffer("tamed", tamed, persistent=False)
        self.register_buffer("unit", torch.ones(len(tamed)))
        self._kinds = (bool(tamed.any()), not bool(tamed.all()))  # tamed ones, others

    def forward(self, z: Tensor) -> Tensor:  # (..., N, K) -> (..., N, P)
        raw = self._linear(z)
        return raw if self.mlp is None else raw + self.unit * self.mlp(z)

    def _linear(self, z: Tensor) -> Tensor:
        if not self._kinds[0]:
            return self.linear(z)
        near = tame(z, CODE_LIMIT)
        if not self._kinds[1]:
            return self.linear(near)
        return torch.where(self.tamed, self.linear(near), self.linear(z))

    def jacobian(self, z: Tensor) -> Tensor:  # (N, K) -> (N, K, P)
        """Return d raw / d z_k for each row."""
        linear = self.linear.weight.T.expand(len(z), -1, -1)
        if self._kinds[0]:
            slope = (1.0 + (z / CODE_LIMIT).square()).pow(-1.5)  # of tame
            linear = torch.where(self.tamed, linear * slope[..., None], linear)
        return linear if self.mlp is None else linear + self.unit * self.mlp.jacobian(z)
