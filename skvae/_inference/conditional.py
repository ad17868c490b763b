"""The missing cells of a row given its observed ones: their expectation, or a draw."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .._model.vae import VAE
from .._table.columns import Columns
from ..likelihoods._mixed import Alone, Given
from .codebook import Codebook
from .importance import posterior_draws

ROWS_TOGETHER = 64  # of all columns that are asked: few rows cost what each call costs
DOUBLINGS = 100
BISECTIONS = 45  # 1e-13 of the first interval


def conditional_means(
    vae: VAE,
    x: Tensor,
    observed: Tensor | None,
    *,
    bank: Tensor,
    codebook: Codebook,
    columns: Columns,
    levels: list[int],
) -> tuple[Tensor, Tensor]:  # (N, D), (N, L)
    """Estimate E[x_d | observed x], in original units, by self-normalised importance sampling.

    Mattei & Frellsen 2019, eq. 12. For a category it is the most probable level. The second result
    is the expectation of some features, ``levels`` (L,): indicators of levels have probabilities.
    """
    _, raw, log_w = posterior_draws(vae, x, observed, bank, codebook)
    weight = torch.softmax(log_w, 0)
    mean = vae.likelihood.average(raw, weight, Given(x, observed))
    share = vae.likelihood.feature_mean(raw)[..., levels] if levels else raw[..., :0]
    probabilities = (weight[..., None] * share).sum(0)
    cells = columns.decode(mean.numpy(force=True))
    if columns.shapes:
        scores, scale = vae.likelihood.mean(raw), torch.sqrt(vae.likelihood.noise_variance())
        noise = _stratified(len(scores), len(columns)).to(scores)
        missing = torch.zeros_like(x, dtype=torch.bool) if observed is None else ~observed
        for column, shape in columns.shapes.items():
            rows = missing[:, column]
            drawn = scores[:, rows, column] + scale[column] * noise[:, column, None]
            values = shape.values(drawn.ravel().numpy(force=True)).reshape(drawn.shape)
            cells[rows.numpy(force=True), column] = (
                values * weight[:, rows].numpy(force=True)
            ).sum(0)
    return torch.from_numpy(cells), probabilities


@lru_cache(maxsize=8)
def _stratified(n_samples: int, n_columns: int) -> Tensor:  # (S, D)
    """Return quantiles of N(0, 1) in another order for each column, the same for every row."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand((n_samples, n_columns), generator=generator).argsort(0)
    return torch.special.ndtri((order.double() + 0.5) / n_samples)


def conditional_draws(
    vae: VAE,
    x: Tensor,
    observed: Tensor | None,
    *,
    n_samples: int,
    generator: torch.Generator,
    codebook: Codebook,
) -> tuple[Tensor]:  # (N, D)
    """Draw each row once given its observed cells, by sampling importance resampling."""
    # Fresh noise, a row's own: draws that share theirs are not independent.
    size = (n_samples, len(x), vae.n_components)
    eps = torch.randn(size, generator=generator, dtype=x.dtype, device=x.device)
    _, raw, log_w = posterior_draws(vae, x, observed, eps, codebook)
    chosen = torch.multinomial(torch.softmax(log_w, 0).T, 1, generator=generator)[:, 0]  # (N,)
    raw = raw[chosen, torch.arange(len(x), device=x.device)]
    return (vae.likelihood.sample(raw, generator, Given(x, observed)),)


class Asked(NamedTuple):
    """What of a column's distribution: probabilities of its levels, or quantiles."""

    column: int
    n_levels: int  # 0 for numbers
    shares: tuple[float, ...]  # of the quantiles
    beside: tuple[int, ...] = ()  # columns that tell of the cell itself: whether it is missing


def conditional_distributions(
    vae: VAE,
    x: Tensor,
    observed: Tensor | None,
    *,
    asked: Sequence[Asked],
    bank: Tensor,
    codebook: Codebook,
) -> tuple[Tensor, ...]:  # (N, L) or (N, Q) each
    """Return the distributions of columns given all other cells of each row.

    They are mixtures of p(x_d | z) over samples of z, by self-normalised importance sampling.
    """
    known = torch.ones_like(x, dtype=torch.bool) if observed is None else observed
    at_once, found = max(ROWS_TOGETHER // len(x), 1), []
    for start in range(0, len(asked), at_once):
        some = asked[start : start + at_once]
        seen = known.repeat(len(some), 1, 1)
        for own, one in zip(seen, some, strict=True):
            own[:, [one.column, *one.beside]] = False
        rows = x.repeat(len(some), 1)
        draws = posterior_draws(vae, rows, seen.flatten(0, 1), bank, codebook)
        weight = torch.softmax(draws.log_weight, 0).split(len(x), 1)
        raw = draws.raw.split(len(x), 1)
        for one, *own in zip(some, weight, raw, strict=True):
            found.append(_distribution(vae, one, *own))
    return tuple(found)


def _distribution(vae: VAE, asked: Asked, weight: Tensor, raw: Tensor) -> Tensor:
    cells = _Cells(weight, vae.likelihood.alone(asked.column, raw))
    if asked.n_levels:
        return cells.probabilities(asked.n_levels)
    shares = weight.new_tensor(asked.shares).repeat(weight.shape[1])
    return cells.repeated(len(asked.shares)).quantiles(shares).view(-1, len(asked.shares))


class _Cells(NamedTuple):
    """One column of rows, as a mixture over samples of z."""

    weight: Tensor  # (S, N)
    of: Alone

    def probabilities(self, n_levels: int) -> Tensor:  # (N, L)
        """Return the probability of each level."""
        levels = [torch.full_like(self.weight[0], float(level)) for level in range(n_levels)]
        p = torch.stack([self._mean(self.of.log_prob(level).exp()) for level in levels], 1)
        return p / p.sum(1, keepdim=True)

    def repeated(self, times: int) -> "_Cells":
        """Return each row so many times."""
        of = self.of._replace(raw=self.of.raw.repeat_interleave(times, 1))
        return _Cells(self.weight.repeat_interleave(times, 1), of)

    def quantiles(self, share: Tensor) -> Tensor:  # (N,) -> (N,)
        """Find a quantile of each row by bisection, between ends that are far enough out."""
        if not self.of.now.has_cdf:
            raise ValueError(
                f"The likelihood {type(self.of.now).__name__} has no quantiles. Give it a method "
                "cdf(x, raw), the probability of x or less."
            )
        middle = self._mean(self.of.mean())
        low, high = middle - 1.0, middle + 1.0
        for _ in range(DOUBLINGS):
            below, above = self._below(low) >= share, self._below(high) < share
            if not bool((below | above).any()):
                break
            width = high - low
            low, high = torch.where(below, low - width, low), torch.where(above, high + width, high)
        for _ in range(BISECTIONS):
            half = 0.5 * (low + high)
            enough = self._below(half) >= share
            low, high = torch.where(enough, low, half), torch.where(enough, half, high)
        return high.floor() if self.of.now.support.whole else high

    def _below(self, values: Tensor) -> Tensor:  # (N,)
        return self._mean(self.of.cdf(values))

    def _mean(self, of_samples: Tensor) -> Tensor:  # (S, N) -> (N,)
        return (self.weight * of_samples).sum(0)
