"""The variational autoencoder: the only place that evaluates the joint density p(x, z)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._gaussian import normal_log_prob, normal_sample
from .._specification import Part, copied
from ..likelihoods._mixed import ColumnLikelihoods
from ..priors import Prior
from .bounds import LogTerms
from .networks import MLP, Decoder, Encoder

State = dict[str, Tensor]
AT_ONCE = 2**18  # numbers of a Jacobian: what fits a processor's cache


class Passed(NamedTuple):
    """What the networks say of rows, at z = loc + scale * eps."""

    loc: Tensor  # (N, K)
    log_scale: Tensor  # (N, K)
    z: Tensor  # (S, N, K)
    raw: Tensor  # (S, N, P)


class Points(NamedTuple):
    """Points of z, decoded once, with all of log p(x, z) that no row changes."""

    z: Tensor  # (M, K)
    raw: Tensor  # (M, P)
    jacobian: Tensor  # (M, K, P)   of raw by z
    log_prior: Tensor  # (M,)
    slope: Tensor  # (M, K)         of the log prior

    def chosen(self, index: Tensor) -> "Points":
        return Points(*(value[index] for value in self))


class VAE(nn.Module):
    """Encoder, decoder, likelihood and prior, and the joint density that they define.

    ``observed`` (N, D) says which values of ``x`` are there; None: all are. What stands in ``x``
    where a value is missing is admissible to the likelihood and never counts.

    Parameters
    ----------
    likelihood : ColumnLikelihoods
        p(x | z).
    prior : Prior
        p(z).
    n_components : int
        Number of components K.
    hidden_layer_sizes : sequence of int
        Widths of the encoder's hidden layers; the decoder has them in reverse.
    activation : str, default="gelu"
        Activation of the hidden layers.
    may_miss : sequence of bool or None, default=None
        Columns with missing values in training; None: none.
    """

    feature_scale: Tensor

    def __init__(
        self,
        likelihood: ColumnLikelihoods,
        prior: Prior,
        *,
        n_components: int,
        hidden_layer_sizes: Sequence[int],
        activation: str = "gelu",
        may_miss: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        reversed_sizes = list(hidden_layer_sizes)[::-1]
        missing = torch.tensor(may_miss or likelihood.n_columns * [False])
        column = likelihood.column
        self.encoder = Encoder(column, missing, hidden_layer_sizes, n_components, activation)
        self.decoder = Decoder(n_components, reversed_sizes, ~likelihood.is_location, activation)
        self.likelihood = likelihood
        self.prior = Part(prior, prior.parameters(n_components), {})
        self.register_buffer("feature_scale", torch.ones(len(column)))

    @property
    def n_components(self) -> int:
        return len(self.encoder.log_scale)

    @property
    def n_features(self) -> int:
        return len(self.feature_scale)

    @property
    def widest(self) -> int:
        """Most numbers that one evaluation of a row holds at a time."""
        return max(parameter.shape[0] for parameter in self.parameters())

    @property
    def device(self) -> torch.device:
        return self.encoder.log_scale.device

    def encode(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return location and log scale of q(z | x), each (N, K)."""
        return self.encoder(self.likelihood.features(x), observed)

    def forward(self, x: Tensor, observed: Tensor | None, eps: Tensor) -> LogTerms:
        """Evaluate the terms at z = loc + scale * eps (Kingma & Welling 2014, section 2.4).

        ``x`` and ``observed`` are (N, D), ``eps`` (S, N, K).
        """
        return self.terms(x, observed, self.passed(x, observed, eps))

    def passed(self, x: Tensor, observed: Tensor | None, eps: Tensor) -> Passed:
        """Pass rows through both networks."""
        loc, log_scale = self.encode(x, observed)
        z = normal_sample(loc, log_scale, eps)
        return Passed(loc, log_scale, z, self.decoder(z))

    def terms(self, x: Tensor, observed: Tensor | None, passed: Passed) -> LogTerms:
        """Evaluate the terms of rows that have passed the networks."""
        loc, log_scale, z, raw = passed
        log_px_z, log_pz = self._joint(x, observed, z, raw)
        log_qz_x = normal_log_prob(z, loc, log_scale).sum(-1)
        kl = self.prior.now.closed_kl(loc, log_scale)
        if kl is None:  # no closed form: the mean over the samples, of all components together
            kl = (log_qz_x - log_pz).mean(0)[:, None]
        return LogTerms(log_px_z, log_pz, log_qz_x, kl)

    def joint(self, x: Tensor, observed: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x | z) over the observed columns, and log p(z), each (..., N)."""
        return self.decoded(x, observed, z)[1:]

    def decoded(
        self, x: Tensor, observed: Tensor | None, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:  # (..., N, P), (..., N), (..., N)
        """Return the decoder's raw output at z, and the two terms of ``joint``."""
        raw = self.decoder(z)
        return raw, *self._joint(x, observed, z, raw)

    def _joint(
        self, x: Tensor, observed: Tensor | None, z: Tensor, raw: Tensor
    ) -> tuple[Tensor, Tensor]:  # (..., N) each
        return self._by_column(x, observed, raw).sum(-1), self.prior.now.log_prob(z)

    def log_joint(self, x: Tensor, observed: Tensor | None, z: Tensor) -> Tensor:  # (..., N)
        """Return log p(x, z)."""
        log_px_z, log_pz = self.joint(x, observed, z)
        return log_px_z + log_pz

    def log_px_z_by_column(self, x: Tensor, observed: Tensor | None, z: Tensor) -> Tensor:
        """Return log p(x_d | z) (..., N, D); 0 where x_d is missing, which marginalises it."""
        return self._by_column(x, observed, self.decoder(z))

    def _by_column(self, x: Tensor, observed: Tensor | None, raw: Tensor) -> Tensor:
        log_prob = self.likelihood.log_prob(x, raw, observed)
        return log_prob if observed is None else torch.where(observed, log_prob, 0.0)

    def log_joint_and_gradient(
        self, x: Tensor, observed: Tensor | None, z: Tensor
    ) -> tuple[Tensor, Tensor]:  # (N,), (N, K)
        """Return log p(x, z) and its gradient by z."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = self.log_joint(x, observed, z)
            (gradient,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), gradient

    def log_px_z_of_draws(self, z: Tensor, generator: torch.Generator) -> Tensor:  # (N, D)
        """Return log p(x_d | z) of one x drawn at each z."""
        raw = self.decoder(z)
        return self.likelihood.log_prob(self.likelihood.sample(raw, generator), raw)

    # -- many rows at the same points -------------------------------------------------------------

    def points(self, z: Tensor) -> Points:  # (M, K)
        """Decode points of z."""
        with torch.enable_grad():
            at = z.detach().requires_grad_()
            log_prior = self.prior.now.log_prob(at)
            (slope,) = torch.autograd.grad(log_prior.sum(), at)
        return Points(z, self.decoder(z), self.decoder.jacobian(z), log_prior.detach(), slope)

    def log_joint_at(self, x: Tensor, observed: Tensor | None, points: Points) -> Tensor:  # (N, M)
        """Return log p(x, z) of every row at every point, up to what only the row decides."""
        return self.likelihood.log_prob_at(x, points.raw, observed) + points.log_prior

    def log_joint_and_slope(
        self, x: Tensor, observed: Tensor | None, points: Points
    ) -> tuple[Tensor, Tensor, Tensor]:  # (N,), (N, K), (N, K, K)
        """Return log p(x, z), its gradient and curvature, each row's at its own point of N."""
        with torch.enable_grad():
            raw = points.raw.detach().requires_grad_()
            log_p = self.likelihood.log_prob(x, raw, observed)
            log_p = (log_p if observed is None else torch.where(observed, log_p, 0.0)).sum(-1)
            (score,) = torch.autograd.grad(log_p.sum(), raw)
        gradient = (points.jacobian @ score[..., None])[..., 0] + points.slope
        gram = self.likelihood.curvature(points.jacobian, points.raw, observed, x)
        curvature = gram + self.prior.now.precision(points.z)
        return log_p.detach() + points.log_prior, gradient, curvature

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the hidden layers; the last layers stay at zero."""
        for part in (self.encoder, self.decoder):
            if part.mlp is not None:
                part.mlp.initialise(generator)

    @torch.no_grad()
    def curvature(  # (N, K), (N, D), (N, D) -> (N, K, K)
        self, z: Tensor, x: Tensor, observed: Tensor | None
    ) -> Tensor:
        """Return P + J^T F J: minus the Gauss-Newton Hessian of log p(x, z) in z.

        P is the prior's precision, F the Fisher information of the decoder's raw output.
        """
        n_rows = max(AT_ONCE // (self.n_components * self.widest), 1)
        grams = []
        for number, some in enumerate(z.split(n_rows)):
            raw, jacobian = self.decoder(some), self.decoder.jacobian(some)  # (N, P), (N, K, P)
            rows = slice(number * n_rows, (number + 1) * n_rows)
            seen = None if observed is None else observed[rows]
            grams.append(self.likelihood.curvature(jacobian, raw, seen, x[rows]))
        return torch.cat(grams) + self.prior.now.precision(z)

    @torch.no_grad()
    def move_decoder(self, weight: Tensor, bias: Tensor, log_scale: Tensor) -> None:
        """Add to the decoder's linear layer (P, K), (P,), and to its log noise scales (P,)."""
        self.decoder.linear.weight.add_(weight)
        self.decoder.linear.bias.add_(bias)
        self.likelihood.move_scales(log_scale)

    @property
    def hidden_layers(self) -> list[MLP]:
        """The encoder's and the decoder's, if they have any."""
        return [part.mlp for part in (self.encoder, self.decoder) if part.mlp is not None]

    def without_idle_layers(self) -> "VAE":
        """Let go of hidden layers whose last weights are 0, as at the start; return the rest."""
        for part in (self.encoder, self.decoder):
            if part.mlp is not None and part.mlp.is_idle:
                part.mlp = None
        return self

    def copied_without_idle_layers(self) -> "VAE":
        """Copy the module without these: of many columns they are most of it."""
        idle = {id(mlp): None for mlp in self.hidden_layers if mlp.is_idle}
        return copied(self, idle)

    def reordered(self, state: Mapping[str, Tensor], order: Tensor) -> State:
        """Renumber the components in a state of this module: ``order[i]`` becomes component i.

        A name may carry more after a colon: the optimiser's memory of that parameter.
        """
        both = torch.cat([order, len(order) + order])
        own = self.prior.specification.component_axis
        axes = _COMPONENT_AXIS | {f"prior.{name}": axis for name, axis in own.items()}
        result = dict(state)
        for name, value in state.items():
            parameter = name.partition(":")[0]
            axis = axes.get(parameter)
            if axis is not None and value.dim() > axis:
                index = both if parameter.startswith("encoder.mlp") else order
                result[name] = value.index_select(axis, index)
        return result


# Where the components stand in each parameter of the networks.
_COMPONENT_AXIS = {
    "encoder.linear.weight": 0,
    "encoder.linear.bias": 0,
    "encoder.log_scale": 0,
    "encoder.loadings": 1,
    "encoder.unit": 0,
    "encoder.mlp.last.weight": 0,  # twice: loc, then log_scale
    "encoder.mlp.last.bias": 0,
    "decoder.linear.weight": 1,
    "decoder.mlp.first.weight": 1,
}
