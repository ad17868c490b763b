"""Whether the networks can gain anything over the linear start, before a step is taken.

If the linear model is true, columns and codes are normal, and what it leaves of the columns has
nothing to do with any function of the codes. Both are tested, as neither test sees what the other
does: clusters along a component lie on a plane, and a bent surface can be nearly normal.

The first test is that of the characteristic function, along many directions (Epps & Pulley 1983).
The second regresses what the linear decoder leaves of each column on the units of its last hidden
layer, beyond what is linear in the codes: N R^2 is about chi^2 with as many degrees of freedom as
there are units (a score test: Rao 1948, Ramsey 1969).
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .._model.vae import VAE

ENOUGH_ROWS = 100_000
ROWS = 2**17  # at most, that are looked at
SHARE = 10  # times as many rows the training must pass over, at least
MOST_COLUMNS = 1000  # that are regressed
FREQUENCIES = (1.0, 2.0, 3.0)  # by standard deviations: shape, then clusters and steps
DIRECTIONS = 64  # beside the axes
AT_ONCE = 8  # of them: what is made of all rows along 64 takes 150 MB
# The largest of about 1,000 z: of 5 normal tables it was 3.2 to 4.6, of 10 others at least 6.4.
NOT_NORMAL = 5.0
MOST_CELLS = 2**23  # of the columns
CLEAR = 6.0  # z of N R^2, the largest of all columns
SMALLEST = 1e-6  # share of the largest variance, below which a direction of the units is rounding


def can_test(n_rows: int, max_epochs: int) -> bool:
    """Whether there are enough rows, and the test costs little beside the training."""
    return n_rows >= ENOUGH_ROWS and max_epochs * n_rows >= SHARE * ROWS


@torch.no_grad()
def departure_from_normal(values: Tensor) -> float:
    """Return the largest z of the characteristic function of (N, K) numbers from a normal one's.

    It is looked at along the axes and along random directions, of which the mean and the variance
    are estimated: Epps & Pulley (1983), whose variances of the two parts these are.
    """
    n_rows, n_columns = values.shape
    chance = torch.Generator().manual_seed(0)
    drawn = torch.randn(n_columns, DIRECTIONS, generator=chance).to(values)
    directions = torch.cat([torch.eye(n_columns).to(values), drawn], dim=1)
    largest = [0.0]
    for some in directions.split(AT_ONCE, dim=1):
        along = values @ some
        scale, mean = torch.std_mean(along, dim=0, correction=0)
        along = ((along - mean) / scale)[:, scale > 0.0]
        for t in FREQUENCIES:
            shrunk = math.exp(-t * t)  # the square of exp(-t^2 / 2)
            of_cos = 0.5 * (1.0 - shrunk) ** 2 - 0.5 * t**4 * shrunk
            of_sin = 0.5 * (1.0 - shrunk**2) - t * t * shrunk
            real = ((t * along).cos().mean(0) - math.sqrt(shrunk)).abs() / math.sqrt(of_cos)
            odd = (t * along).sin().mean(0).abs() / math.sqrt(of_sin)
            if len(real):
                largest.append(float(torch.cat([real, odd]).max()) * math.sqrt(n_rows))
    return math.inf if any(map(math.isnan, largest)) else max(largest)


@torch.no_grad()
def unexplained(vae: VAE, features: Iterable[Tensor]) -> float:
    """Return the largest z, over the columns, of what hidden units explain and codes do not.

    ``features`` are batches (N, P) of complete rows at the linear start.
    """
    mlp, gram, n_rows = vae.decoder.mlp, torch.zeros(()), 0
    if mlp is None:
        return 0.0
    for x in features:
        z = vae.encoder(x, None)[0]
        left = x - vae.decoder.linear(z)
        both = torch.cat([torch.ones_like(z[:, :1]), z, mlp.hidden(z), left], 1).double()
        gram = gram + both.T @ both
        n_rows += len(x)
    n_linear = 1 + vae.n_components
    n_known = n_linear + mlp.last.weight.shape[1]
    linear = torch.linalg.pinv(gram[:n_linear, :n_linear], hermitian=True)
    across = gram[:n_linear, n_linear:]
    rest = gram[n_linear:, n_linear:] - across.T @ linear @ across  # beyond the linear part
    n_units = n_known - n_linear
    size, directions = torch.linalg.eigh(rest[:n_units, :n_units])
    kept = size > SMALLEST * gram.diagonal()[n_linear:n_known].sum()
    along = (directions[:, kept].T @ rest[:n_units, n_units:]).square() / size[kept][:, None]
    total = rest.diagonal()[n_units:]
    varies = total > SMALLEST * total.max()
    n_kept = max(int(kept.sum()), 1)
    explained = n_rows * (along.sum(0) / total)[varies]
    return float((explained.max() - n_kept) / math.sqrt(2.0 * n_kept)) if varies.any() else 0.0
