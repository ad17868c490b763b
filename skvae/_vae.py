"""The variational autoencoder: the only place that evaluates the joint density p(x, z)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ._bounds import LogTerms
from ._column_likelihoods import locations
from ._gaussian import normal_log_prob
from ._linear_start import Array, LinearGaussian, diagonalise
from ._networks import Decoder, Encoder
from .likelihoods import Likelihood, LinearFit
from .priors import Prior


class VAE(nn.Module):
    """Encoder, decoder, likelihood and prior, and the joint density that they define.

    ``observed`` (N, D) says which values of ``x`` are there; None: all are. What stands in ``x``
    where a value is missing is admissible to the likelihood and never counts.
    """

    feature_scale: Tensor

    def __init__(
        self,
        may_miss: Sequence[bool],
        n_components: int,
        hidden_layer_sizes: Sequence[int],
        activation: str,
        likelihood: Likelihood,
        prior: Prior,
    ) -> None:
        super().__init__()
        reversed_sizes = list(hidden_layer_sizes)[::-1]
        column = likelihood.columns_of_features(len(may_miss))
        missing = torch.tensor(may_miss)
        self.encoder = Encoder(column, missing, hidden_layer_sizes, n_components, activation)
        tamed = ~locations(likelihood, len(may_miss))
        self.decoder = Decoder(n_components, reversed_sizes, tamed, activation)
        self.likelihood = likelihood
        self.prior = prior
        self.register_buffer("feature_scale", torch.ones(len(column)))

    @property
    def n_components(self) -> int:
        return len(self.encoder.log_scale)

    @property
    def n_features(self) -> int:
        return len(self.feature_scale)

    @property
    def device(self) -> torch.device:
        return self.encoder.log_scale.device

    def encode(self, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Location and log scale of q(z | x), each (N, K)."""
        return self.encoder(self.likelihood.features(x), observed)

    def forward(self, x: Tensor, observed: Tensor | None, eps: Tensor) -> LogTerms:
        """Evaluate the terms at z = loc + scale * eps (Kingma & Welling 2014, section 2.4).

        ``x`` and ``observed`` are (N, D), ``eps`` (S, N, K).
        """
        loc, log_scale = self.encode(x, observed)  # (N, K)
        z = loc + torch.exp(log_scale) * eps  # (S, N, K)
        log_px_z, log_pz = self.joint(x, observed, z)
        log_qz_x = normal_log_prob(z, loc, log_scale).sum(-1)
        return LogTerms(log_px_z, log_pz, log_qz_x, self.prior.kl(loc, log_scale))

    def joint(self, x: Tensor, observed: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log p(x | z) over the observed columns, and log p(z), each (..., N)."""
        return self.log_px_z_by_column(x, observed, z).sum(-1), self.prior.log_prob(z)

    def log_joint(self, x: Tensor, observed: Tensor | None, z: Tensor) -> Tensor:  # (..., N)
        """Log p(x, z)."""
        log_px_z, log_pz = self.joint(x, observed, z)
        return log_px_z + log_pz

    def log_px_z_by_column(self, x: Tensor, observed: Tensor | None, z: Tensor) -> Tensor:
        """Log p(x_d | z) (..., N, D); 0 where x_d is missing, which marginalises it."""
        log_prob = self.likelihood.log_prob(x, self.decoder(z))
        return log_prob if observed is None else torch.where(observed, log_prob, 0.0)

    # -- the linear start ---------------------------------------------------------------------

    @torch.no_grad()
    def start_from(
        self,
        linear: LinearGaussian,
        feature_scale: Array,
        robust: tuple[Array, Array],
        x: Tensor,
        weight: Tensor,
    ) -> None:
        """Begin at a linear-Gaussian model of the features: the bound equals its evidence.

        ``linear`` is in units of ``feature_scale``; ``robust`` are the centre and spread of the
        features for the encoder's MLP; ``x`` and ``weight`` are rows, nan where values are missing.
        """
        moments = (linear.mean, linear.scale, linear.noise)
        fit = LinearFit(*(torch.from_numpy(value * feature_scale) for value in moments))
        start = self.likelihood.start(x, weight, fit)
        variance = start.variance.numpy()
        loadings, information = diagonalise(linear.loadings * feature_scale[:, None], variance)
        per_loading = start.weight_per_loading.numpy()[:, None]
        posterior_variance = 1.0 / (1.0 + information)
        projection = posterior_variance[:, None] * (loadings / variance[:, None]).T  # (K, P)
        mean = fit.mean.numpy()
        _assign(self.feature_scale, feature_scale)
        _assign(self.decoder.linear.weight, loadings * per_loading)
        _assign(self.decoder.linear.bias, start.bias.numpy())
        _assign(self.encoder.linear.weight, projection)
        _assign(self.encoder.linear.bias, -projection @ mean)
        _assign(self.encoder.log_scale, 0.5 * np.log(posterior_variance))
        _assign(self.encoder.center, robust[0])
        _assign(self.encoder.spread, robust[1])
        _assign(self.encoder.mean, mean)
        _assign(self.encoder.loadings, loadings)
        _assign(self.encoder.variance, variance)
        _assign(self.encoder.unit, np.sqrt(posterior_variance))
        _assign(self.decoder.unit, np.where(self.decoder.tamed.cpu(), 1.0, np.sqrt(variance)))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the hidden layers; the last layers stay at zero."""
        for part in (self.encoder, self.decoder):
            if part.mlp is not None:
                part.mlp.initialise(generator)

    @torch.no_grad()
    def curvature(self, z: Tensor, observed: Tensor | None) -> Tensor:  # (N, K, K)
        """I + J^T F J: minus the Gauss-Newton Hessian of log p(x, z) in z."""
        raw, jacobian = self.decoder(z), self.decoder.jacobian(z)  # (N, P), (N, K, P)
        gram = self.likelihood.curvature(jacobian, raw, observed)
        return gram + torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)


# Where the components stand in each parameter.
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


def reordered(state: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """Renumber the components in a module's state: ``order[i]`` becomes component i.

    A name may carry more after a colon: the optimiser's memory of that parameter.
    """
    both = torch.cat([order, len(order) + order])
    result = dict(state)
    for name, value in state.items():
        parameter = name.partition(":")[0]
        axis = _COMPONENT_AXIS.get(parameter)
        if axis is not None and value.dim() > axis:
            index = both if parameter.startswith("encoder.mlp") else order
            result[name] = value.index_select(axis, index)
    return result


def _assign(parameter: Tensor, value: Array) -> None:
    parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
