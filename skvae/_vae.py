"""The variational autoencoder: the only place that evaluates the joint density p(x, z)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ._bounds import LogTerms
from ._gaussian import normal_log_prob, standard_normal_log_prob
from ._linear_start import Array, LinearGaussian, diagonalise
from ._networks import Decoder, Encoder
from .likelihoods import Likelihood
from .priors import Prior

# The Laplace proposal is this much wider than the posterior's curvature says, so that its tails
# cover the posterior's.
PROPOSAL_WIDTH = 1.1


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

    def forward(self, x: Tensor, eps: Tensor) -> LogTerms:  # (N, D), (S, N, K)
        """Evaluate the terms at z = loc + scale * eps (Kingma & Welling 2014, section 2.4)."""
        loc, log_scale = self.encoder(x)  # (N, K)
        z = loc + torch.exp(log_scale) * eps  # (S, N, K)
        log_px_z, log_pz = self.joint(x, z)
        log_qz_x = normal_log_prob(z, loc, log_scale).sum(-1)
        return LogTerms(log_px_z, log_pz, log_qz_x, self.prior.kl(loc, log_scale))

    def joint(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:  # (N, D), (..., N, K)
        """log p(x | z) and log p(z), each (..., N)."""
        return self.log_px_z_by_column(x, z).sum(-1), self.prior.log_prob(z)

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
    def reorder(self, order: Tensor) -> None:
        """Renumber the components: component ``order[i]`` becomes component i."""
        both = torch.cat([order, len(order) + order])  # the MLP puts out loc, then log_scale
        for parameter, dim, index in [
            (self.encoder.linear.weight, 0, order),
            (self.encoder.linear.bias, 0, order),
            (self.encoder.log_scale, 0, order),
            (self.decoder.linear.weight, 1, order),
        ]:
            parameter.copy_(parameter.index_select(dim, index))
        if self.encoder.mlp is not None and self.decoder.mlp is not None:
            last, first = self.encoder.mlp.last, self.decoder.mlp.first
            last.weight.copy_(last.weight[both])
            last.bias.copy_(last.bias[both])
            first.weight.copy_(first.weight[:, order])

    # -- refined importance sampling ------------------------------------------------------------

    def posterior_mode(self, x: Tensor, z: Tensor, max_steps: int = 50) -> Tensor:  # (N, K)
        """Climb log p(x, z) from ``z`` by damped Gauss-Newton steps, each row on its own.

        A step is kept only where it climbs; otherwise that row's damping grows (Levenberg 1944).
        Rows that have settled drop out.
        """
        z = z.clone()
        active = torch.arange(len(z), device=z.device)
        damping = z.new_full((len(z),), 1e-3)
        for _ in range(max_steps):
            if len(active) == 0:
                break
            x_a, z_a = x[active], z[active]
            value, step, slope = self._gauss_newton_step(x_a, z_a, damping[active])
            with torch.no_grad():
                climbed = sum(self.joint(x_a, z_a + step)) - value  # (N,)
            better = climbed > 0.0
            z[active] = torch.where(better[:, None], z_a + step, z_a)
            damping[active] *= torch.where(better, 0.2, 8.0)
            settled = (slope < 1e-10) | (damping[active] > 1e12)
            active = active[~settled]
        return z

    def _gauss_newton_step(
        self, x: Tensor, z: Tensor, damping: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log p(x, z) (N,), the damped step (N, K), and the rise that it promises (N,)."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            value = sum(self.joint(x, z))
            (gradient,) = torch.autograd.grad(value.sum(), z)
        hessian = self.curvature(z.detach())
        diagonal = hessian.diagonal(dim1=-2, dim2=-1)
        damped = hessian + torch.diag_embed(damping[:, None] * diagonal)
        step = torch.cholesky_solve(gradient[..., None], torch.linalg.cholesky(damped))[..., 0]
        return value.detach(), step, (gradient * step).sum(-1)

    @torch.no_grad()
    def curvature(self, z: Tensor) -> Tensor:  # (N, K, K)
        """I + J^T F J: minus the Gauss-Newton Hessian of log p(x, z) in z."""
        jacobian = self.decoder.jacobian(z)  # (K, N, P)
        information = self.likelihood.information(self.decoder(z))  # (N, P)
        weighted = (jacobian * information).transpose(0, 1)  # (N, K, P)
        gram = weighted @ jacobian.permute(1, 2, 0)  # (N, K, K)
        return gram + torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)

    @torch.no_grad()
    def refined_log_weights(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Importance weights under N(z*, 1.1^2 H^-1), and what they would be were p(z|x) N(z*, H^-1).

        Returns ``log_w`` and ``log_w_laplace``, both (S, N). The second averages to 1 over the
        proposal, so ``logsumexp(log_w) - logsumexp(log_w_laplace)`` estimates log p(x) and is exact
        for a linear decoder from the first sample on.
        """
        z_star = self.posterior_mode(x, self.encoder(x)[0])
        factor = torch.linalg.cholesky(self.curvature(z_star))  # (N, K, K), H = L L^T
        wide = PROPOSAL_WIDTH * eps  # (S, N, K), standardised by the Laplace posterior
        offset = torch.linalg.solve_triangular(factor.mT, wide[..., None], upper=True)[..., 0]
        log_px_z, log_pz = self.joint(x, z_star + offset)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (N,)
        log_laplace = standard_normal_log_prob(wide).sum(-1)
        n_components = eps.shape[-1]
        log_proposal = standard_normal_log_prob(eps).sum(-1) - n_components * np.log(PROPOSAL_WIDTH)
        return log_px_z + log_pz - (log_proposal + log_det), log_laplace - log_proposal


def _assign(parameter: Tensor, value: Array) -> None:
    parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
