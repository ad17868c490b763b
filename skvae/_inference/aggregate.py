"""The density that the fitted rows as a whole define: their codes, decoded, each a kernel.

    log p(x) = log 1/M sum_m N(f(x); f_m, h_m I)    f_m = (f(x_m) + E[f(x) | z = mu(x_m)]) / 2

f are the features of a row, all columns in one metric. A prior N(0, I) says where codes may be, the
aggregated posterior 1/M sum_m q(z | x_m) where they are (Hoffman & Johnson 2016; as the prior of
an exemplar VAE: Norouzi et al. 2020). So a row between two clusters is odd, whatever the decoder
makes of it. A kernel stands half-way from the row to what the model rebuilds it as: at the row it
would keep what is wild among those fitted, at the other end it would lose what few components
leave out. Kernels that stand alone among the rows are left out. A row that has a kernel is scored
by the others: else rows of fit would be denser than new ones of the same kind.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._model.vae import VAE

NEIGHBOUR = 5  # whose distance says how dense the rows are around a kernel
SMALLEST_VARIANCE = 1e-3  # of a kernel: rows may repeat each other exactly
MOST_UNEVEN = 4.0  # variance of a kernel over the median, and the other way round
FENCE = 1.5  # Tukey's, of the kernels' log variances: those above stand alone
MAX_KERNELS = 2000
MAX_NUMBERS = 2**22  # in all kernels together: 32 MB


class Aggregate(NamedTuple):
    """M kernels in the space of the P features."""

    center: Tensor  # (M, P)
    variance: Tensor  # (M,)
    owner: Tensor  # (M,)      hash of the row that a kernel stands for
    varies: Tensor  # (D,)     columns that are not constant: the dimensions of the density


def n_kernels(n_rows: int, n_features: int) -> int:
    return min(n_rows, MAX_KERNELS, max(MAX_NUMBERS // n_features, 1))


@torch.no_grad()
def aggregate_of(
    vae: VAE, x: Tensor, observed: Tensor | None, varies: Tensor, support_fraction: float
) -> Aggregate:
    """Place kernels at rows ``x`` (N, D), except at most ``1 - support_fraction`` that stand alone.

    The variance is the row's squared distance, by dimension, to its ``NEIGHBOUR``-th nearest kernel
    (Breiman, Meisel & Purcell 1977), kept near the median of all: a lone row must not get a kernel
    that covers everything.
    """
    loc, _ = vae.encode(x, observed)
    rebuilt = vae.likelihood.feature_mean(vae.decoder(loc))
    features = vae.likelihood.features(x)
    if observed is not None:
        features = torch.where(observed[:, vae.encoder.column], features, rebuilt)
    center = 0.5 * (features + rebuilt) / vae.feature_scale
    aggregate = Aggregate(center, torch.ones_like(center[:, 0]), _hash(x, observed), varies)
    if len(x) == 1:
        return aggregate
    own = _neighbour_distance(vae, x, observed, aggregate) + SMALLEST_VARIANCE
    median = own.median()
    kept = own.argsort()[: _n_kept(own, support_fraction)].sort().values
    variance = own.clamp(median / MOST_UNEVEN, median * MOST_UNEVEN)
    return Aggregate(center[kept], variance[kept], aggregate.owner[kept], varies)


def _neighbour_distance(
    vae: VAE, x: Tensor, observed: Tensor | None, aggregate: Aggregate
) -> Tensor:  # (N,)
    """Return the squared distance by dimension of each row to the nearest kernels of others."""
    distance = []
    for rows in torch.arange(len(x), device=x.device).split(512):
        few = None if observed is None else observed[rows]
        squared, count = _squared_distances(vae, x[rows], few, aggregate)
        squared[torch.arange(len(rows)), rows] = math.inf  # not to itself
        nearest = squared.topk(min(NEIGHBOUR, len(x) - 1), dim=1, largest=False).values
        distance.append(nearest[:, -1] / count.clamp(min=1.0))
    return torch.cat(distance)


def _n_kept(variance: Tensor, support_fraction: float) -> int:
    """Return how many kernels, the narrowest first, do not stand alone."""
    log = variance.log()
    lower, upper = log.quantile(0.25), log.quantile(0.75)
    within = int((log <= upper + FENCE * (upper - lower)).sum())
    return max(within, math.ceil(support_fraction * len(variance)))


def aggregate_log_density(
    vae: VAE, x: Tensor, observed: Tensor | None, aggregate: Aggregate, hidden: int | None = None
) -> tuple[Tensor]:  # (N,)
    """Return log p(x) in nats, over the observed columns of each row, by the kernels of others.

    A column that is ``hidden`` does not count, but tells whose kernels are a row's own.
    """
    own = _hash(x, observed)
    if hidden is not None:
        observed = torch.ones_like(x, dtype=torch.bool) if observed is None else observed.clone()
        observed[:, hidden] = False
    squared, count = _squared_distances(vae, x, observed, aggregate)
    variance = aggregate.variance
    log_kernel = -0.5 * (squared / variance + count[:, None] * torch.log(2 * math.pi * variance))
    number = torch.full_like(count, len(variance))
    if len(variance) > 1:
        # Of equal rows' kernels, one is a row's own.
        is_own = own[:, None] == aggregate.owner
        has_own, which = is_own.any(1), is_own.to(torch.uint8).argmax(1)
        rows = torch.nonzero(has_own)[:, 0]
        log_kernel[rows, which[rows]] = -math.inf
        number = number - has_own.to(number)
    return (torch.logsumexp(log_kernel, 1) - number.log(),)


def _hash(x: Tensor, observed: Tensor | None) -> Tensor:  # (N, D) -> (N,)
    """Return a number for each row that equal rows have in common, and hardly any others."""
    cells = x if observed is None else torch.where(observed, x, math.nan)
    bits = (cells + 0.0).to(torch.float64).contiguous().view(torch.int64)  # -0 is 0
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(2**62, (x.shape[1],), generator=generator).to(bits) | 1
    mixed = (bits ^ (bits >> 29)) * factors
    return (mixed ^ (mixed >> 32)).sum(1)


def _squared_distances(
    vae: VAE, x: Tensor, observed: Tensor | None, aggregate: Aggregate
) -> tuple[Tensor, Tensor]:  # (N, M), (N,)
    """Return squared distances of rows and kernels over what is observed, and its dimensions."""
    features = vae.likelihood.features(x) / vae.feature_scale
    center = aggregate.center
    middle = center.median(0).values  # distances are differences of squares: keep these small
    features, center = features - middle, center - middle
    varies = aggregate.varies.to(features.dtype)
    if observed is None:
        squared_center = center.square().sum(1)
        count = varies.sum().expand(len(x))
    else:
        seen = observed[:, vae.encoder.column].to(features.dtype)
        features = torch.where(seen > 0.0, features, 0.0)
        squared_center = seen @ center.square().T
        count = observed.to(features.dtype) @ varies
    squared = features.square().sum(1)[:, None] - 2.0 * features @ center.T + squared_center
    return squared.clamp(min=0.0), count
