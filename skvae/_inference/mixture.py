"""Mixtures of Gaussians, one for each row: what samples of z are proposed from."""

from typing import NamedTuple

import torch
from torch import Tensor

from .._gaussian import standard_normal_log_prob

WIDTH = 1.05  # of a proposal, relative to the posterior: its tails must cover the posterior's


class Mixture(NamedTuple):
    """For each row a mixture of C Gaussians N(loc, (L L^T)^-1)."""

    loc: Tensor  # (C, N, K)
    factor: Tensor  # (C, N, K, K)     L
    log_share: Tensor  # (C, N)

    def log_prob(self, z: Tensor) -> Tensor:  # (S, N, K) -> (S, N)
        log_probs = []
        for loc, factor, log_share in zip(*self, strict=True):
            standardised = torch.einsum("snk,nkj->snj", z - loc, factor)
            log_prob = standard_normal_log_prob(standardised).sum(-1) + log_det(factor)
            log_probs.append(log_prob + log_share)
        return log_probs[0] if len(log_probs) == 1 else torch.logsumexp(torch.stack(log_probs), 0)

    def sample(self, eps: Tensor) -> tuple[Tensor, Tensor]:  # (S, 1 or N, K) -> (S, N, K), (S, N)
        """Return samples and their log density.

        Each Gaussian gets its share of the noise, in turn: no draw, so always the same.
        """
        if len(self.loc) == 1:
            log_prob = standard_normal_log_prob(eps).sum(-1) + log_det(self.factor[0])
            return self._placed(0, eps), log_prob
        n_samples, n_rows = len(eps), self.loc.shape[1]
        position = (torch.arange(n_samples, device=eps.device) + 0.5) / n_samples
        ends = self.log_share.exp().cumsum(0)  # (C, N)
        chosen = (position[:, None, None] > ends[:-1].T).sum(-1)  # (S, N)
        z = torch.zeros((n_samples, n_rows, eps.shape[-1]), dtype=eps.dtype, device=eps.device)
        for number in range(len(self.loc)):
            z = torch.where((chosen == number)[..., None], self._placed(number, eps), z)
        return z, self.log_prob(z)

    def _placed(self, number: int, eps: Tensor) -> Tensor:  # (S, N, K)
        """Return samples of one of the Gaussians: loc + L^-T eps."""
        identity = torch.eye(eps.shape[-1], dtype=eps.dtype, device=eps.device)
        root = torch.linalg.solve_triangular(self.factor[number], identity, upper=False)
        if eps.shape[1] == 1:
            return self.loc[number] + torch.einsum("sk,nkj->snj", eps[:, 0], root)
        return self.loc[number] + torch.einsum("snk,nkj->snj", eps, root)

    def rows(self, index: Tensor) -> "Mixture":
        return Mixture(self.loc[:, index], self.factor[:, index], self.log_share[:, index])

    def widened(self) -> "Mixture":
        return self._replace(factor=self.factor / WIDTH)


def cholesky(matrix: Tensor) -> Tensor:  # (..., K, K)
    """Return Cholesky factors; where a matrix has none, as of a wild row, that of its diagonal.

    One row must not keep the others from being scored.
    """
    factor, failed = torch.linalg.cholesky_ex(matrix)
    bad = (failed > 0) | ~torch.isfinite(factor).all(-1).all(-1)
    if not bool(bad.any()):
        return factor
    limits = torch.finfo(matrix.dtype)
    diagonal = matrix.diagonal(dim1=-2, dim2=-1).nan_to_num(1.0, limits.max, 1.0)
    root = torch.sqrt(diagonal.clamp(min=limits.tiny))
    return torch.where(bad[..., None, None], torch.diag_embed(root), factor)


def log_det(factor: Tensor) -> Tensor:
    """Return that of triangular matrices."""
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
