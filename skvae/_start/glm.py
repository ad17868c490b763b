"""The decoder of columns without Gaussian noise, as a generalised linear model of the codes."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, minimize
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
LEAST_OWN = 0.05  # curvature of a likelihood's own parameters
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

    What their likelihoods learn of each column, as the dispersion of counts, is fitted with them.
    Given that, the problem is convex; N(0, 1) priors on the weights (z has unit variance), and on
    how far all else moves, keep levels finite that are separated or that none of these rows has.
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

    found = _climbed(regression, full, place, start, n_rows)
    if found is not None:
        start = found
        _Own(vae.likelihood).take(regression.own.values)
    full[place] = start
    layer.weight.copy_(full[:, :-1])
    layer.bias.copy_(full[:, -1])


def _climbed(
    regression: "_Regression", full: Tensor, place: Tensor, start: Tensor, n_rows: float
) -> Tensor | None:
    """Return the ``place`` of ``full``, climbed to from ``start``; None where nothing is finite."""
    n_weights, own = start.numel(), regression.own.values
    # In units of their own curvature all columns take about as many steps.
    unit = (regression.curvature(full) + 1.0 / n_rows).rsqrt()
    units = torch.cat([unit[place, None].expand_as(start).flatten(), unit[len(full) :]])
    begin = torch.cat([start.flatten(), own])
    centre = begin.clone()
    centre[:n_weights].view_as(start)[:, :-1] = 0.0

    def moved(found: Array) -> tuple[Tensor, Tensor]:
        trial = units * torch.from_numpy(found).to(start)
        regression.own.take(trial[n_weights:])
        return trial, full.index_copy(0, place, trial[:n_weights].view_as(start))

    def objective(found: Array) -> tuple[float, Array]:
        trial, weight = moved(found)
        value, gradient, of_own = regression.value_and_gradient(weight)
        pull = trial - centre
        slope = pull / n_rows - torch.cat([gradient[place].flatten(), of_own])
        return float(0.5 * pull.square().sum() / n_rows - value), (units * slope).numpy(force=True)

    free = np.full(n_weights, np.inf)
    lower, upper = regression.own.limits / units[n_weights:].numpy(force=True)
    found = minimize(
        objective,
        (begin / units).numpy(force=True),
        jac=True,
        method="L-BFGS-B",
        bounds=Bounds(np.append(-free, lower), np.append(free, upper)) if len(own) else None,
        options={"maxiter": GLM_STEPS, "ftol": SETTLED, "gtol": 0.0},
    )
    weight = moved(found.x)[1][place]
    return weight if np.isfinite(found.x).all() and np.isfinite(found.fun) else None


class _Own:
    """What the likelihoods of columns without a location learn of them, as one vector (Q,)."""

    def __init__(self, likelihood: ColumnLikelihoods) -> None:
        self._none = likelihood.column.new_zeros(0, dtype=torch.float32)
        self._blocks = [None if part.has_scale else part for part in likelihood.parts]
        self._named = [
            (part, name, value)
            for part in self._blocks
            if part is not None
            for name, value in part.named_parameters()
        ]

    @property
    def values(self) -> Tensor:
        return self._vector([value for _, _, value in self._named])

    @property
    def limits(self) -> Array:  # (2, Q)
        """The lowest and the highest that each may be."""
        ends = [part.limits.get(name, (-np.inf, np.inf)) for part, name, _ in self._named]
        sizes = [value.numel() for _, _, value in self._named]
        return np.repeat(np.reshape(ends, (-1, 2)), sizes, axis=0).T

    def admissible(self, values: Tensor) -> Tensor:
        """Return values within the limits."""
        lower, upper = torch.from_numpy(self.limits).to(values)
        return torch.minimum(torch.maximum(values, lower), upper)

    def take(self, values: Tensor) -> None:
        sizes = [value.numel() for _, _, value in self._named]
        for (_, _, own), given in zip(self._named, values.split(sizes), strict=True):
            own.copy_(given.view_as(own))

    def places(self) -> list[dict[str, Tensor] | None]:
        """Return tensors for the gradient of each, None for a block that has a location."""
        return [
            None
            if part is None
            else {name: torch.zeros_like(value) for name, value in part.named_parameters()}
            for part in self._blocks
        ]

    def vector(self, places: list[dict[str, Tensor] | None]) -> Tensor:
        """Return those tensors as one."""
        return self._vector([value for part in places if part for value in part.values()])

    def _vector(self, values: list[Tensor]) -> Tensor:
        return torch.cat([self._none, *(value.detach().flatten() for value in values)])


class _Regression:
    """Columns x (N, D), each cell counted so often, on codes z (S, N, K)."""

    def __init__(self, likelihood: ColumnLikelihoods, x: Tensor, count: Tensor, z: Tensor) -> None:
        self.likelihood = copied(likelihood).float()
        self.x, self.count, z = x.float(), count.float(), z.float()
        self.z = torch.cat([z, torch.ones_like(z[..., :1])], -1)
        self.own = _Own(self.likelihood)

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

    def _gradient(self, rows: slice, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        places = self.own.places()
        value, minus = self.likelihood.gradient(self.x[rows], raw, self.count[rows], places)
        return value, minus, self.own.vector(places)

    def curvature(self, weight: Tensor) -> Tensor:  # (P, K + 1) -> (P + Q,)
        """Return the mean of -d2 log p(x | z) by each raw parameter, and by the likelihoods' own.

        By random signs (Bekas et al. 2007), all at once. Of their own it is at least LEAST_OWN:
        each is one number for all rows, so that signs average less.
        """
        own, chance = self.own.values, torch.Generator().manual_seed(0)
        of_raw, of_own = torch.zeros_like(weight[:, 0]), torch.zeros_like(own)
        for rows, raw in self._parts(weight):
            sign, sign_own = (_signs(like, chance) for like in (raw, own))
            ends = [self.own.admissible(own + end * sign_own) for end in (NEAR, -NEAR)]
            slopes = []
            for end, moved in zip((NEAR, -NEAR), ends, strict=True):
                self.own.take(moved)
                _, slope, slope_own = self._gradient(rows, raw + end * sign)
                of_raw += (slope * sign).sum((0, 1)) / (2.0 * end)
                slopes.append(slope_own)
            of_own += (slopes[0] - slopes[1]) / (ends[0] - ends[1])
        self.own.take(own)
        of_raw = torch.where(torch.isfinite(of_raw) & (of_raw > 0.0), of_raw, 0.0)
        least = of_own.nan_to_num(LEAST_OWN, posinf=LEAST_OWN).clamp(min=LEAST_OWN)
        return torch.cat([of_raw, least])

    def value_and_gradient(self, weight: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return the mean log p(x | z) of columns without a location, and its gradients."""
        total, slope, of_own = 0.0, torch.zeros_like(weight), torch.zeros_like(self.own.values)
        for rows, raw in self._parts(weight):
            value, minus, minus_own = self._gradient(rows, raw)
            slope -= minus.flatten(0, 1).T @ self.z[:, rows].flatten(0, 1)
            of_own -= minus_own
            total += float(value)
        return total, slope, of_own


def _signs(like: Tensor, chance: torch.Generator) -> Tensor:
    return torch.randint(2, like.shape, generator=chance).to(like).mul_(2.0).sub_(1.0)


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
