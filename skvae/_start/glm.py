"""The decoder of columns without Gaussian noise, as a generalised linear model of the codes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from .._gaussian import normal_sample
from .._model.networks import CODE_LIMIT, tame
from .._model.vae import VAE
from .._specification import copied
from .._table.column import Array
from .._table.statistics import row_chunks
from ..likelihoods._mixed import ColumnLikelihoods

GLM_STEPS = 100  # of L-BFGS
SETTLED = 1e-6  # relative gain of a step
GLM_CELLS = 2**21  # rows times features that it is fitted to
GLM_ROWS = (100, 5000)  # at least, and at most
NEAR = 0.05  # of a raw parameter, from where its slope is looked at
CHUNK_NUMBERS = 2**17  # raw parameters at a time
ENOUGH_PAIRS = 2048  # of codes of all rows together
MOST_PAIRS = 64  # of each row's


def glm_rows(n_features: int) -> int:
    """Return how many rows the decoder is fitted to."""
    return int(np.clip(GLM_CELLS // n_features, *GLM_ROWS))


@torch.no_grad()
def fit_decoder(
    vae: VAE, fixed: NDArray[np.bool_], x: Array, observed: NDArray[np.bool_] | None, weight: Array
) -> None:
    """Fit the linear decoders of ``fixed`` features to the codes of rows x (N, D), in float32.

    The problem is convex; N(0, 1) priors on the weights (z has unit variance), and on how far a
    bias moves, keep levels finite that are separated or that none of these rows has.
    """
    cells = torch.from_numpy(x).to(vae.device)
    seen = None if observed is None else torch.from_numpy(observed).to(vae.device)
    z = _codes(vae, cells, seen)
    count = torch.from_numpy(weight / weight.sum()).to(vae.device)[:, None] / len(z)
    count = count.expand(cells.shape) if seen is None else count * seen
    regression = _Regression(vae.likelihood, cells, count, z)
    n_rows = max(float(weight.sum()), len(cells))  # weights that sum to less are shares
    layer = vae.decoder.linear
    full = torch.cat([layer.weight, layer.bias[:, None]], 1)
    place = torch.from_numpy(np.flatnonzero(fixed)).to(vae.device)
    start = full[place]
    # One Newton step from the marginal overshoots for rare levels: those begin at the marginal.
    at_marginal = full.clone()
    at_marginal[place, :-1] = 0.0
    is_worse = ~(regression.by_column(full) >= regression.by_column(at_marginal))  # nan, too
    start = torch.where(is_worse[vae.likelihood.column, None][place], at_marginal[place], start)

    # In units of their own curvature raw parameters of all columns take about as many steps.
    unit = (regression.curvature(full)[place, None] + 1.0 / n_rows).rsqrt()

    def objective(own: Array) -> tuple[float, Array]:
        trial = unit * torch.from_numpy(own).view(start.shape).to(vae.device)
        value, gradient = regression.value_and_gradient(full.index_copy(0, place, trial))
        pull = trial.clone()
        pull[:, -1] -= start[:, -1]
        loss = 0.5 * pull.square().sum() / n_rows - value
        slope = unit * (pull / n_rows - gradient[place])
        return float(loss), slope.flatten().numpy(force=True)

    options: Any = {"maxiter": GLM_STEPS, "ftol": SETTLED, "gtol": 0.0}
    begin = (start / unit).flatten().numpy(force=True)
    found = minimize(objective, begin, jac=True, method="L-BFGS-B", options=options)
    if np.isfinite(found.x).all() and np.isfinite(found.fun):
        start = unit * torch.from_numpy(found.x).view(start.shape).to(vae.device)
    full[place] = start
    layer.weight.copy_(full[:, :-1])
    layer.bias.copy_(full[:, -1])


class _Regression:
    """Columns x (N, D), each cell counted so often, on codes z (S, N, K)."""

    def __init__(self, likelihood: ColumnLikelihoods, x: Tensor, count: Tensor, z: Tensor) -> None:
        self.likelihood = copied(likelihood).float()
        self.x, self.count, z = x.float(), count.float(), z.float()
        self.z = torch.cat([z, torch.ones_like(z[..., :1])], -1)

    def _parts(self, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield some rows and their raw parameters: what fits no cache waits for its memory."""
        for rows in row_chunks(len(self.x), len(self.z) * len(weight), CHUNK_NUMBERS):
            yield rows, _raw(weight, self.z[:, rows])

    def by_column(self, weight: Tensor) -> Tensor:  # (P, K + 1) -> (D,)
        """Return the mean log p(x_d | z)."""
        total = weight.new_zeros(self.x.shape[1], dtype=torch.float32)
        for rows, raw in self._parts(weight):
            log_prob, count = self.likelihood.log_prob(self.x[rows], raw), self.count[rows]
            total += torch.where(count > 0.0, log_prob * count, 0.0).sum((0, 1))
        return total

    def _gradient(self, rows: slice, raw: Tensor) -> tuple[Tensor, Tensor]:
        x, count = self.x[rows], self.count[rows]
        return self.likelihood.gradient(x, raw, count, without_location=True)

    def curvature(self, weight: Tensor) -> Tensor:  # (P, K + 1) -> (P,)
        """Return the mean of -d2 log p(x | z) / d raw2 by random signs (Bekas et al. 2007)."""
        total, chance = torch.zeros_like(weight[:, 0]), torch.Generator().manual_seed(0)
        for rows, raw in self._parts(weight):
            sign = torch.randint(2, raw.shape, generator=chance).to(raw).mul_(2.0).sub_(1.0)
            slopes = [self._gradient(rows, raw + end * sign)[1] for end in (NEAR, -NEAR)]
            total += ((slopes[0] - slopes[1]) * sign).sum((0, 1)) / (2.0 * NEAR)
        return torch.where(torch.isfinite(total) & (total > 0.0), total, 0.0)

    def value_and_gradient(self, weight: Tensor) -> tuple[float, Tensor]:
        """Return the mean log p(x | z) of columns without a location, and its gradient."""
        total, slope = 0.0, torch.zeros_like(weight)
        for rows, raw in self._parts(weight):
            value, minus = self._gradient(rows, raw)
            slope -= minus.flatten(0, 1).T @ self.z[:, rows].flatten(0, 1)
            total += float(value)
        return total, slope


def _raw(weight: Tensor, z: Tensor) -> Tensor:  # (P, K + 1), (S, N, K + 1) -> (S, N, P)
    # A raw parameter's values stand beside each other: so sums over levels are the fastest.
    flat = weight.float() @ z.flatten(0, 1).T
    return flat.view(-1, *z.shape[:2]).movedim(0, -1)


def _codes(vae: VAE, x: Tensor, observed: Tensor | None) -> Tensor:  # (S, N, K)
    """Draw codes of each row's posterior as the decoder sees them, in pairs of opposite ones.

    Few kinds of row, each of which counts often, get more of them: else their noise decides.
    """
    loc, log_scale = vae.encode(x, observed)
    size = (int(np.clip(ENOUGH_PAIRS // len(x), 1, MOST_PAIRS)), *loc.shape)
    eps = torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=loc.dtype)
    eps = eps.to(loc.device)
    return tame(normal_sample(loc, log_scale, torch.cat([eps, -eps])), CODE_LIMIT)
