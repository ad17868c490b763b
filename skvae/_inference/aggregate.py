"""The density that the fitted rows as a whole define: a kernel at each row, in the model's metric.

    log p(x) = log sum_m w_m t(x; x_m, h_m)    sum_m w_m = 1

t is a multivariate t density of NU degrees of freedom whose distances are those of the features
beside the model's residuals in units of its noise: ||x - x'||^2 + C^2 ||r(x) - r(x')||^2. So it is
narrow across the model's surface, as in manifold Parzen windows (Vincent & Bengio 2003), and sees
both kinds of outlier: far from all rows, and off the surface. Heavy tails make what lies outside
all kernels differ by its nearest ones.

A kernel is as wide as its neighbourhood (Breiman, Meisel & Purcell 1977; with the exponent 1/2 of
Abramson 1982), and weighs the less the further it is from most rows: outliers that stand together
look dense to each other. That is trimming without a fraction to choose. A row that has a kernel is
scored by the others: else rows of fit would be denser than new ones of the same kind.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._model.vae import VAE
from .residuals import Residuals

NU = 3.0
C = 0.2  # of the residuals beside the features
NEIGHBOURS = 5  # whose mean distance says how dense rows are around a kernel
MOST = 0.25  # share of the rows, whose mean distance says how far a kernel is from most
WIDTH = 0.5  # of a kernel, in units of these distances
OWN, FAR = 0.25, 0.5  # powers of the two distances, by dimension, in a kernel's weight
SMALLEST_VARIANCE = 1e-3  # of a kernel: rows may repeat each other exactly
ROUNDING = 1e-10  # of squared distances, by dimension
MAX_KERNELS = 4000
MAX_FAR = 1000  # of them that say how far a kernel is from most
MAX_NUMBERS = 2**22  # in all kernels together: 32 MB
AT_ONCE_NUMBERS = 2**22  # the same for rows with holes
AT_ONCE = 512  # rows whose distances to all kernels are sorted


class Aggregate(NamedTuple):
    """M kernels at rows of P features."""

    center: Tensor  # (M, P)    features
    residual: Tensor  # (M, P)  of the features less ``middle``
    width: Tensor  # (M,)
    log_weight: Tensor  # (M,)
    copies: Tensor  # (M,)      how often the row counts that a kernel stands for
    pattern: Tensor  # (M,)     what that row observes, as a number; 0: all
    varies: Tensor  # (D,)      columns that are not constant: the dimensions of the density
    middle: Tensor  # (P,)      of the features


class Place(NamedTuple):
    """Where rows are among the kernels."""

    at: Tensor  # (N, P)        features; 0 where nothing is observed
    seen: Tensor | None  # (N, P)
    n_dimensions: Tensor  # (N,)
    log_volume: Tensor  # (N,)  of the metric, and of the features' units

    def some(self, rows: Tensor) -> "Place":
        seen = None if self.seen is None else self.seen[rows]
        return Place(self.at[rows], seen, self.n_dimensions[rows], self.log_volume[rows])


def n_kernels(n_rows: int, n_features: int) -> int:
    return min(n_rows, MAX_KERNELS, max(MAX_NUMBERS // n_features, 1))


@torch.no_grad()
def aggregate_of(
    vae: VAE, x: Tensor, observed: Tensor | None, varies: Tensor, count: Tensor, *, repeats: bool
) -> Aggregate:
    """Place kernels at rows ``x`` (M, D), each of which counts so often.

    No two are equal. Where rows repeat each other by chance (``repeats``), the other copies of a
    row are neighbours of it; else they are the row.
    """
    model, place = Residuals.of(vae), _place(vae, x, observed, varies)
    center = place.at if place.seen is None else model.completed(place.at, place.seen)
    middle = center.median(0).values
    residual = model.of_centred(center - middle)
    one, nothing = torch.ones_like(count), torch.zeros_like(count)
    raw = Aggregate(center, residual, one, nothing, count, _pattern(x, observed), varies, middle)
    if len(x) == 1:
        return raw
    near, far = _distances_to_others(model, place, raw, repeats)
    width = WIDTH * (near * _weighted_median(near, count)).sqrt()
    n_dimensions = varies.sum().clamp(min=1)
    log_weight = count.log() + n_dimensions * (OWN * near.log() - FAR * far.log())
    return raw._replace(width=width, log_weight=log_weight - log_weight.logsumexp(0))


def _distances_to_others(
    model: Residuals, place: Place, kernels: Aggregate, repeats: bool
) -> tuple[Tensor, Tensor]:
    """Return each kernel's mean distance, by dimension, to the nearest ones and to most of all."""
    near, far = [], []
    every = kernels.copies if repeats else torch.ones_like(kernels.copies)
    number, step = torch.arange(len(every)), -(-len(every) // MAX_FAR)
    n_nearest = NEIGHBOURS + 1 if bool((every >= 1.0).all()) else len(number)
    for rows in number.split(AT_ONCE):
        squared = _squared_distances(model, place.some(rows), kernels)
        squared /= place.n_dimensions[rows, None].clamp(min=1.0)
        copies = every.repeat(len(rows), 1)
        own = (torch.arange(len(rows)), rows)
        squared[own] = 0.0  # else a rounding error, whose root is large
        copies[own] -= 1.0
        squared[copies <= 0.0] = math.inf
        near.append(_mean_of_nearest(squared, copies, n_nearest, NEIGHBOURS))
        some, counts = squared[:, ::step], copies[:, ::step].clamp(min=0.0)
        most = MOST * float(counts[0].sum())
        far.append(_mean_of_nearest(some, counts, some.shape[1], max(most, 1.0)))
    return _blurred(torch.cat(near)), _blurred(torch.cat(far))


def _mean_of_nearest(
    squared: Tensor, copies: Tensor, n_nearest: int, amount: float
) -> Tensor:  # (N, M) -> (N,)
    """Return the mean distance of the nearest that together count ``amount`` times."""
    squared, order = squared.topk(min(n_nearest, squared.shape[1]), dim=1, largest=False)
    copies = copies.gather(1, order).clamp(min=0.0)
    before = copies.cumsum(1) - copies
    counted = torch.minimum(copies, (amount - before).clamp(min=0.0))
    distance = torch.where(counted > 0.0, squared, 0.0).sqrt()
    return (counted * distance).sum(1) / counted.sum(1).clamp(min=1e-30)


def _weighted_median(values: Tensor, weight: Tensor) -> Tensor:  # (N,), (N,) -> ()
    order = values.argsort()
    return values[order][torch.searchsorted(weight[order].cumsum(0), 0.5 * weight.sum())]


def _blurred(distance: Tensor) -> Tensor:
    return (distance.square() + SMALLEST_VARIANCE).sqrt()


def aggregate_log_density(
    vae: VAE,
    x: Tensor,
    observed: Tensor | None,
    aggregate: Aggregate,
    *,
    hidden: int | None = None,
    left_out: float = math.inf,
) -> tuple[Tensor]:  # (N,)
    """Return log p(x) in nats, over the observed columns of each row, by the kernels of others.

    A kernel at the very place of a row counts less often, by ``left_out`` of its copies. A column
    that is ``hidden`` does not count.
    """
    pattern = _pattern(x, observed)
    if hidden is not None:
        observed = torch.ones_like(x, dtype=torch.bool) if observed is None else observed.clone()
        observed[:, hidden] = False
    place = _place(vae, x, observed, aggregate.varies)
    d, width = place.n_dimensions[:, None], aggregate.width
    squared = _squared_distances(Residuals.of(vae), place, aggregate)
    near = squared <= ROUNDING * d  # also what was rounded, or written as text and read again
    if bool(aggregate.pattern.any()) or bool(pattern.any()):
        near &= pattern[:, None] == aggregate.pattern
    scaled = squared.div_(NU * width.square())
    log_kernel = scaled.log1p_().mul_(-0.5 * (NU + d)) + (aggregate.log_weight - d * width.log())
    log_normaliser = torch.lgamma(0.5 * (NU + d)) - math.lgamma(0.5 * NU)
    log_normaliser = (log_normaliser - 0.5 * d * math.log(NU * math.pi))[:, 0] + place.log_volume
    left = torch.zeros_like(place.n_dimensions)  # log of what the others weigh
    row, kernel = torch.nonzero(near, as_tuple=True)
    if left_out > 0.0 and len(row) and len(width) > 1:
        lost = (left_out / aggregate.copies[kernel]).clamp(max=1.0)
        log_kernel[row, kernel] += torch.log1p(-lost)
        weight = lost * aggregate.log_weight[kernel].exp()
        left = torch.log1p(-left.index_add(0, row, weight).clamp(max=1.0 - 1e-9))
    return (torch.logsumexp(log_kernel, 1) - left + log_normaliser,)


def _place(vae: VAE, x: Tensor, observed: Tensor | None, varies: Tensor) -> Place:
    model = Residuals.of(vae)
    features = model.centred(vae.likelihood.features(x))
    is_counted, seen = varies.expand(len(x), -1), None
    if observed is not None:
        is_counted = is_counted & observed
        seen = observed[:, model.column].to(x.dtype)
        features = torch.where(seen > 0.0, features, 0.0)
    counted = is_counted.to(x.dtype)
    log_volume = model.log_volume(seen, varies[model.column].to(x.dtype), C)
    log_unit = counted[:, model.column] @ model.unit.log()
    return Place(features, seen, counted.sum(1), log_volume - log_unit)


def _squared_distances(model: Residuals, place: Place, kernels: Aggregate) -> Tensor:  # (N, M)
    """Return squared distances of rows and kernels, over what is observed of the rows."""
    if place.seen is None:
        return _of_complete_rows(model, place.at, kernels)
    seen = place.seen
    squared = place.at.new_empty(len(place.at), len(kernels.width))
    complete = seen.all(1)
    squared[complete] = _of_complete_rows(model, place.at[complete], kernels)
    others = torch.nonzero(~complete)[:, 0]
    per_row = len(kernels.width) * model.loadings.shape[1] + model.loadings.numel()
    for rows in others.split(max(AT_ONCE_NUMBERS // per_row, 1)):
        squared[rows] = _of_rows_with_holes(model, place.at[rows], seen[rows], kernels)
    return squared


def _of_complete_rows(model: Residuals, features: Tensor, kernels: Aggregate) -> Tensor:
    # Distances are differences of squares: keep these small. Those of one row are waited for, so
    # nothing as large as all kernels is made but once.
    at, center = features - kernels.middle, kernels.center - kernels.middle
    residual = C * model.of_centred(at)
    squared = (_squares(at) + _squares(residual))[:, None] + _squares(center)
    squared += C**2 * _squares(kernels.residual)
    squared.addmm_(at, center.T, alpha=-2.0)
    return squared.addmm_(residual, kernels.residual.T, alpha=-2.0 * C).clamp_(min=0.0)


def _squares(vectors: Tensor) -> Tensor:  # (N, P) -> (N,)
    return torch.linalg.vector_norm(vectors, dim=1).square()


def _of_rows_with_holes(
    model: Residuals, features: Tensor, seen: Tensor, kernels: Aggregate
) -> Tensor:
    """Return the same under the model of the columns that are observed."""
    metric = (1.0 + (C / model.noise).square()).sqrt()
    middle = kernels.middle
    at, center = metric * (features - middle * seen), metric * (kernels.center - middle)
    squared = at.square().sum(1)[:, None] + seen @ center.square().T
    squared = squared.addmm_(at, center.T, alpha=-2.0)
    directions = C * model.directions(seen) / model.noise[:, None]
    explained = kernels.center @ directions - features[:, None] @ directions  # (N, M, K)
    return (squared - explained.square().sum(-1)).clamp_(min=0.0)


def _pattern(x: Tensor, observed: Tensor | None) -> Tensor:  # (N, D) -> (N,)
    """Return a number for what a row observes: 0 if that is everything."""
    if observed is None:
        return x.new_zeros(len(x), dtype=torch.int64)
    return (~observed * hole_keys(x.shape[1]).to(x.device)).sum(1)


def hole_keys(n_columns: int) -> Tensor:  # (D,)
    """Return a number for a hole in each column; those of a row add up, modulo 2^64."""
    return torch.randint(2**62, (n_columns,), generator=torch.Generator().manual_seed(0))
