"""What the linear-Gaussian model that an encoder keeps leaves of rows: columns that do not agree.

    x = m + W z + e    z ~ N(0, I), e ~ N(0, Psi)    (factor analysis: Rubin & Thayer 1982)

in units of the features. With V = Psi^-1/2 W and M = I + V^T V over the columns that are observed,
the residuals in units of the noise are r = (I - V M^-1 V^T) y for y = Psi^-1/2 (x - m). One cell
given the others has the mean x_d - psi_d^1/2 r_d / l_d and the variance psi_d / l_d, for the
leverages l = diag(I - V M^-1 V^T): leaving it out needs no second fit.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._model.vae import VAE


class Residuals(NamedTuple):
    """The linear-Gaussian model, with everything that no row changes."""

    mean: Tensor  # (P,)           of the features
    unit: Tensor  # (P,)           of the features: the metric
    noise: Tensor  # (P,)          standard deviation of e, in that unit
    loadings: Tensor  # (P, K)     V
    column: Tensor  # (P,)         whose feature it is

    @classmethod
    def of(cls, vae: VAE) -> "Residuals":
        """Take the model that an encoder keeps; indicators of levels in their standard deviations.

        A rare level is then as far from the others as a number that is as rare.
        """
        encoder, column = vae.encoder, vae.encoder.column
        implied = (encoder.loadings.square().sum(1) + encoder.variance).sqrt()
        unit = torch.where(column.bincount()[column] > 1, implied, vae.feature_scale)
        noise = encoder.variance.sqrt() / unit
        loadings = encoder.loadings / (noise * unit)[:, None]
        return cls(encoder.mean, unit, noise, loadings, encoder.column)

    def centred(self, features: Tensor) -> Tensor:  # (N, P)
        """Return features in their units, about their means; wild ones within what squares hold."""
        return ((features - self.mean) / self.unit).nan_to_num().clamp(-1e100, 1e100)

    def of_centred(self, centred: Tensor, seen: Tensor | None = None) -> Tensor:  # (N, P)
        """Return r; where nothing is observed and ``centred`` is 0, minus what is expected."""
        y = centred / self.noise
        return y - self._explained(y, seen) @ self.loadings.T

    def leverage(self, seen: Tensor | None) -> Tensor:  # (N or 1, P)
        """Return what a cell's own residual keeps of it: 1 where it says nothing of z."""
        weighted = self.loadings @ torch.linalg.inv(self.precision(seen))  # (N, P, K)
        return (1.0 - (weighted * self.loadings).sum(-1)).clamp(min=1e-12)

    def completed(self, centred: Tensor, seen: Tensor) -> Tensor:  # (N, P)
        """Put what the model expects where nothing is observed, and ``centred`` is 0."""
        expected = -self.noise * self.of_centred(centred, seen)
        return torch.where(seen > 0.0, centred, expected)

    def _explained(self, y: Tensor, seen: Tensor | None) -> Tensor:  # (N, K)
        """Return the posterior mean of z."""
        return torch.linalg.solve(self.precision(seen), (y @ self.loadings)[..., None])[..., 0]

    def directions(self, seen: Tensor) -> Tensor:  # (N, P) -> (N, P, K)
        """Return B for which ||r||^2 = ||y||^2 - ||B^T y||^2, over what is observed."""
        root = torch.linalg.cholesky(self.precision(seen))
        whitened = torch.linalg.solve_triangular(
            root, (seen[:, :, None] * self.loadings).mT, upper=False
        )
        identity = torch.eye(root.shape[-1]).to(root)
        inverse = torch.linalg.solve_triangular(root, identity.expand_as(root), upper=False)
        return whitened.mT @ torch.linalg.cholesky(identity + inverse @ inverse.mT)

    def precision(self, seen: Tensor | None) -> Tensor:  # (N or 1, K, K)
        """Return M, the posterior precision of the components."""
        gram = self._gram(torch.ones_like(self.noise)[None] if seen is None else seen)
        return gram + torch.eye(gram.shape[-1]).to(gram)

    def _gram(self, weight: Tensor) -> Tensor:  # (N, P) -> (N, K, K)
        """Return V^T diag(weight) V."""
        return (weight[:, :, None] * self.loadings).mT @ self.loadings

    def log_volume(self, seen: Tensor | None, varies: Tensor, c: float) -> Tensor:  # (N or 1,)
        """Return the log of how much larger volumes are among features x beside residuals c r.

        That is 1/2 log det A for A = I + c^2 Psi^-1 - c^2 Psi^-1/2 V (M^-1 + M^-2) V^T Psi^-1/2, by
        the determinant lemma; of the features (P,) that vary.
        """
        weight = varies[None] if seen is None else seen * varies
        gain = (c / self.noise).square()
        inverse = torch.linalg.inv(self.precision(seen))
        core = (inverse + inverse @ inverse) @ self._gram(weight * (gain / (1.0 + gain)))
        identity = torch.eye(core.shape[-1]).to(core)
        return 0.5 * (weight @ gain.log1p() + torch.linalg.slogdet(identity - core).logabsdet)
