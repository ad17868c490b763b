"""The density that the fitted rows as a whole define: their codes, decoded, each a kernel.

    log p(x) = log 1/M sum_m N(f(x); f_m, h_m I)        f_m = E[f(x) | z = mu(x_m)]

f are the features of a row, all columns in one metric. A prior N(0, I) says where codes may be, the
aggregated posterior 1/M sum_m q(z | x_m) where they are (Hoffman & Johnson 2016; as the prior of
an exemplar VAE: Norouzi et al. 2020). So a row between two clusters is odd, whatever the decoder
makes of it; and a wild row among those fitted counts as what the model rebuilds it to.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._vae import VAE

NEIGHBOUR = 7  # whose distance says how dense the rows are around a kernel
SMALLEST_VARIANCE = 1e-3  # of a kernel: rows may repeat each other exactly
MOST_UNEVEN = 4.0  # variance of a kernel over the median, and the other way round
MAX_KERNELS = 2000
MAX_NUMBERS = 2**22  # in all kernels together: 32 MB


class Aggregate(NamedTuple):
    """M kernels in the space of the P features."""

    center: Tensor  # (M, P)
    variance: Tensor  # (M,)
    varies: Tensor  # (D,)     columns that are not constant: the dimensions of the density


def n_kernels(n_rows: int, n_features: int) -> int:
    return min(n_rows, MAX_KERNELS, max(MAX_NUMBERS // n_features, 1))


@torch.no_grad()
def aggregate_of(vae: VAE, x: Tensor, observed: Tensor | None, varies: Tensor) -> Aggregate:
    """A kernel for each row of ``x`` (M, D), as wide as the rows are far apart around it.

    The variance is the row's squared distance, by dimension, to its ``NEIGHBOUR``-th nearest kernel
    (Breiman, Meisel & Purcell 1977), kept near the median of all rows: a lone wild row must not get
    a kernel that covers everything.
    """
    loc, _ = vae.encode(x, observed)
    center = vae.likelihood.feature_mean(vae.decoder(loc)) / vae.feature_scale
    variance = torch.ones_like(center[:, 0])
    aggregate = Aggregate(center, variance, varies)
    if len(x) > 1:
        distance = []
        for rows in torch.arange(len(x), device=x.device).split(512):
            few = None if observed is None else observed[rows]
            squared, count = _squared_distances(vae, x[rows], few, aggregate)
            squared[torch.arange(len(rows)), rows] = math.inf  # not to itself
            nearest = squared.kthvalue(min(NEIGHBOUR, len(x) - 1), dim=1).values
            distance.append(nearest / count.clamp(min=1.0))
        own = torch.cat(distance) + SMALLEST_VARIANCE
        median = own.median()
        variance = own.clamp(median / MOST_UNEVEN, median * MOST_UNEVEN)
    return aggregate._replace(variance=variance)


def aggregate_log_density(
    vae: VAE, x: Tensor, observed: Tensor | None, aggregate: Aggregate
) -> tuple[Tensor]:  # (N,)
    """Log p(x) in nats, over the observed columns of each row."""
    squared, count = _squared_distances(vae, x, observed, aggregate)
    variance = aggregate.variance
    log_kernel = -0.5 * (squared / variance + count[:, None] * torch.log(2 * math.pi * variance))
    return (torch.logsumexp(log_kernel, 1) - math.log(len(variance)),)


def _squared_distances(
    vae: VAE, x: Tensor, observed: Tensor | None, aggregate: Aggregate
) -> tuple[Tensor, Tensor]:  # (N, M), (N,)
    """From each row to each kernel over the observed features, and the number of dimensions."""
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
