"""The variational autoencoder: the only place that evaluates the joint density p(x, z)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ._bounds import LogTerms
from ._gaussian import normal_log_prob
from ._linear_start import Array, LinearGaussian, diagonalise
from ._networks import Decoder, Encoder
from .likelihoods import Likelihood
from .priors import Prior


class VAE(nn.Module):
    """Encoder, decoder, likelihood and prior, and the joint density that they define."""

    def __init__(
        self,
        n_columns: int,
        n_components: int,
        hidden_layer_sizes: Sequence[int],
        activation: str,
        likelihood: Likelihood,
        prior: Prior,
    ) -> None:
        super().__init__()
        reversed_sizes = list(hidden_layer_sizes)[::-1]
        self.encoder = Encoder(n_columns, hidden_layer_sizes, n_components, activation)
        self.decoder = Decoder(n_components, reversed_sizes, n_columns, activation)
        self.likelihood = likelihood
        self.prior = prior

    @property
    def n_components(self) -> int:
        return len(self.encoder.log_scale)

    @property
    def device(self) -> torch.device:
        return self.encoder.log_scale.device

    def forward(self, x: Tensor, eps: Tensor) -> LogTerms:  # (N, D), (S, N, K)
        """Evaluate the terms at z = loc + scale * eps (Kingma & Welling 2014, section 2.4)."""
        loc, log_scale = self.encoder(x)  # (N, K)
        z = loc + torch.exp(log_scale) * eps  # (S, N, K)
        log_px_z, log_pz = self.joint(x, z)
        log_qz_x = normal_log_prob(z, loc, log_scale).sum(-1)
        return LogTerms(log_px_z, log_pz, log_qz_x, self.prior.kl(loc, log_scale))

    def joint(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:  # (N, D), (..., N, K)
        """Log p(x | z) and log p(z), each (..., N)."""
        return self.log_px_z_by_column(x, z).sum(-1), self.prior.log_prob(z)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:  # (N, D), (..., N, K) -> (..., N)
        """Log p(x, z)."""
        log_px_z, log_pz = self.joint(x, z)
        return log_px_z + log_pz

    def log_px_z_by_column(self, x: Tensor, z: Tensor) -> Tensor:  # (..., N, D)
        return self.likelihood.log_prob(x, self.decoder(z))

    # -- the linear start ---------------------------------------------------------------------

    @torch.no_grad()
    def start_from(self, linear: LinearGaussian, center: Array, spread: Array) -> None:
        """Begin at the linear-Gaussian model: the bound equals its evidence."""
        as_tensor = torch.from_numpy
        start = self.likelihood.start(
            as_tensor(linear.mean),
            as_tensor(linear.scale),
            as_tensor(linear.noise),
        )
        variance = start.variance.numpy()
        loadings, information = diagonalise(linear.loadings, variance)
        per_loading = start.weight_per_loading.numpy()[:, None]
        posterior_variance = 1.0 / (1.0 + information)
        projection = posterior_variance[:, None] * (loadings / variance[:, None]).T  # (K, D)
        _assign(self.decoder.linear.weight, loadings * per_loading)
        _assign(self.decoder.linear.bias, start.bias.numpy())
        _assign(self.encoder.linear.weight, projection)
        _assign(self.encoder.linear.bias, -projection @ linear.mean)
        _assign(self.encoder.log_scale, 0.5 * np.log(posterior_variance))
        _assign(self.encoder.center, center)
        _assign(self.encoder.spread, spread)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the hidden layers; the last layers stay at zero."""
        for part in (self.encoder, self.decoder):
            if part.mlp is not None:
                part.mlp.initialise(generator)

    @torch.no_grad()
    def curvature(self, z: Tensor) -> Tensor:  # (N, K, K)
        """I + J^T F J: minus the Gauss-Newton Hessian of log p(x, z) in z."""
        jacobian = self.decoder.jacobian(z)  # (N, K, P)
        information = self.likelihood.information(self.decoder(z))  # (N, P)
        gram = (jacobian * information[:, None, :]) @ jacobian.mT  # (N, K, K)
        return gram + torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)


# Where the components stand in each parameter.
_COMPONENT_AXIS = {
    "encoder.linear.weight": 0,
    "encoder.linear.bias": 0,
    "encoder.log_scale": 0,
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
