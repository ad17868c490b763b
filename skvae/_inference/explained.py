"""Which cells of a row the others would not have led one to expect, and what they would.

By the linear-Gaussian model that the encoder keeps: see ``residuals``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._model.vae import VAE
from ..likelihoods._mixed import Given
from .aggregate import NU
from .residuals import Residuals

LIKELY = 0.9  # share of ordinary rows within an interval
TAME = 3.0  # standard deviations: a wilder cell says no more of the levels beside it
MEAN_SURPRISE = 0.4872  # of normal cells: E[(NU + 1) / 2 log(1 + z^2 / NU)]
LEAST_SHARE = 1e-3  # of a level, given the others; a linear model of indicators may go below 0


class Conditional(NamedTuple):
    """Each cell given the others of its row, and what a row's own cell differs from that."""

    expected: Tensor  # (N, P)   features; of a level, about its probability
    deviation: Tensor  # (N, P)  nan where the cell is missing
    z: Tensor  # (N, P)          the same in standard deviations


class Usual(NamedTuple):
    """Deviations of ordinary rows, of columns of numbers: 5% are lower, and 5% higher."""

    lower: Tensor  # (D,)
    upper: Tensor  # (D,)

    @classmethod
    def of(cls, deviation: Tensor) -> "Usual":
        # Of n rows and a new one, so many are lower: quantiles by (n + 1) q (Weibull).
        n_rows, tail = len(deviation), 0.5 - 0.5 * LIKELY
        level = max((n_rows + 1) * tail - 1.0, 0.0) / max(n_rows - 1, 1)
        ends = torch.tensor([level, 1.0 - level]).to(deviation)
        return cls(*deviation.nanquantile(ends, dim=0).nan_to_num(0.0))


def conditional(vae: VAE, x: Tensor, observed: Tensor | None) -> Conditional:
    """Return every cell given the others of its row, without a second look at them."""
    model = Residuals.of(vae)
    seen = None if observed is None else observed[:, model.column].to(x.dtype)
    features = model.centred(vae.likelihood.features(x))
    features = features if seen is None else torch.where(seen > 0.0, features, 0.0)
    r, left = model.of_centred(features, seen), model.leverage(seen)
    if seen is not None:
        left = torch.where(seen > 0.0, left, 1.0)  # a missing cell had no part in it
    expected = features - model.noise * r / left
    is_number = model.column.bincount()[model.column] == 1
    tame = torch.where(is_number, features.clamp(-TAME, TAME), features)
    for own in _levels(model.column):
        hidden = torch.ones_like(features[:1]) if seen is None else seen.clone()
        hidden[:, own] = 0.0
        expected[:, own] = model.completed(tame * hidden, hidden)[:, own]
    deviation, z = features - expected, r / left.sqrt()
    if seen is not None:
        deviation, z = (torch.where(seen > 0.0, part, torch.nan) for part in (deviation, z))
    return Conditional(expected * model.unit + model.mean, deviation * model.unit, z)


def surprise(vae: VAE, x: Tensor, found: Conditional) -> Tensor:  # (N, D)
    """Return how much less probable each cell is than cells of its column are, in nats.

    Given the others of its row: -log p less its mean, of a level (its entropy) and of a number.
    That is of a t distribution, as the kernels of the score are: a wild cell is as much of a
    surprise as it lowers a score. 0 where the cell is missing.

    No other units than the model's will do for deviations: a cell that is off moves what is
    expected of those tied to it, and by fewer of these than its own.
    """
    column = vae.encoder.column
    z = by_column_of_numbers(vae, found.z)
    by_column = 0.5 * (NU + 1.0) * (z.square() / NU).log1p() - MEAN_SURPRISE
    for own in _levels(column):
        share = probabilities(found.expected[:, own])
        hit = (vae.likelihood.features(x)[:, own] * share).sum(1)
        entropy = -(share * share.log()).sum(1)
        lost = found.deviation[:, own[0]].isnan()
        by_column[:, column[own[0]]] = torch.where(lost, torch.nan, -hit.log() - entropy)
    return by_column.nan_to_num(0.0)


def by_column_of_numbers(vae: VAE, features: Tensor) -> Tensor:  # (N, P) -> (N, D)
    """Return the one feature of each column that is a number; of a category, its first."""
    column = vae.encoder.column
    numbers = torch.arange(len(column), device=column.device)
    n_columns = int(column.max()) + 1
    return features[
        :,
        column.new_zeros(n_columns).scatter_reduce(0, column, numbers, "amin", include_self=False),
    ]


def interval(
    vae: VAE, found: Conditional, usual: Usual, rows: Given
) -> tuple[Tensor, Tensor, Tensor]:  # (N, D) each
    """Return the expected x, and between what most ordinary rows would lie; nan for levels."""
    likelihood = vae.likelihood
    column = vae.encoder.column
    expected = likelihood.from_features(found.expected, rows)
    lower, upper = (likelihood.from_features(found.expected + end[column], rows) for end in usual)
    for own in _levels(column):
        lower[:, column[own[0]]] = upper[:, column[own[0]]] = torch.nan
    return expected, lower, upper


def likely_levels(vae: VAE, found: Conditional, column: int) -> Tensor:  # (N, L)
    """Return which levels of a category are, together, as likely as an interval, most likely first.

    The first that does not count comes as -1.
    """
    share = probabilities(found.expected[:, vae.encoder.column == column])
    share, level = share.sort(1, descending=True)
    before = share.cumsum(1) - share
    return torch.where(before < LIKELY, level, -1)


def probabilities(expected: Tensor) -> Tensor:  # (N, L) -> (N, L)
    """Make probabilities of what a linear model expects of indicators."""
    share = expected.clamp(min=LEAST_SHARE)
    return share / share.sum(1, keepdim=True)


def _levels(column: Tensor) -> list[Tensor]:
    """Return the features of each column that has several: a category's levels."""
    own, count = column.unique(return_counts=True)
    return [torch.nonzero(column == one)[:, 0] for one in own[count > 1]]
