"""Whether the networks can gain anything over the linear start, before a step is taken.

If the linear model is true, columns and codes are normal, and the gradient by the networks' last
weights, which are 0 at the start, is noise of mean 0. Both are tested, as neither test sees what
the other does: clusters along a component have no such gradient, and a bent surface is nearly
normal.

The first test is that of the characteristic function, along many directions (Epps & Pulley 1983).
The second is the score test (Rao 1948) of the linear model. With G_1 ... G_m the gradients of m
blocks of rows, in units of their root mean square, the mean of <G_i, G_j> over all pairs estimates
the squared length of the mean gradient.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

# Of 3,000 rows, those of five clusters in 10 columns among 50 of noise have z = -0.1, although the
# networks gain 0.65 nats. Of 150,000 rows z is above 50 wherever the networks gain anything, and
# below 2 where they do not.
ENOUGH_ROWS = 100_000
ROWS = 2**17  # at most, whose gradients are looked at
BLOCKS = 64
FEWEST_BLOCKS = 8
SHARE = 10  # times as many rows the training must pass over, at least
CLEAR = 3.0  # z: no such gradient is noise
MOST_NUMBERS = 2**16  # of a gradient
FREQUENCIES = (1.0, 2.0, 3.0)  # by standard deviations: shape, then clusters and steps
DIRECTIONS = 64  # beside the axes
# The largest of about 1,000 z: of 5 normal tables it was 3.2 to 4.6, of 10 others at least 6.4.
NOT_NORMAL = 5.0
MOST_CELLS = 2**23  # of the columns


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
    largest = 0.0
    for some in directions.split(DIRECTIONS, dim=1):
        along = values @ some
        scale, mean = torch.std_mean(along, dim=0, correction=0)
        along = ((along - mean) / scale)[:, scale > 0.0]
        for t in FREQUENCIES:
            shrunk = math.exp(-t * t)  # the square of exp(-t^2 / 2)
            of_cos = 0.5 * (1.0 - shrunk) ** 2 - 0.5 * t**4 * shrunk
            of_sin = 0.5 * (1.0 - shrunk**2) - t * t * shrunk
            real = ((t * along).cos().mean(0) - math.sqrt(shrunk)).abs() / math.sqrt(of_cos)
            odd = (t * along).sin().mean(0).abs() / math.sqrt(of_sin)
            z = float(torch.cat([real, odd]).max()) * math.sqrt(n_rows) if len(real) else 0.0
            largest = max(largest, z)
    return largest


def signal_to_noise(gradients: Iterable[Tensor], batch_size: int) -> float:
    """Return z of the mean of gradients of batches: about N(0, 1) if it is 0; nan of too few."""
    blocks = torch.stack(list(_blocks(gradients, max(ROWS // (BLOCKS * batch_size), 1))))
    if len(blocks) < FEWEST_BLOCKS:
        return math.nan
    size = blocks.square().mean(0).sqrt()  # the standard deviation from 0: with it z has no bias
    units = blocks[:, size > 0.0] / size[size > 0.0]
    first, second = torch.triu_indices(len(blocks), len(blocks), 1)
    products = (units @ units.T)[first, second]  # uncorrelated, if the mean is 0
    return float(products.mean() / products.std() * math.sqrt(len(products)))


def _blocks(gradients: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yield sums of so many gradients, of some of their numbers."""
    total, n_seen = torch.zeros(()), 0
    for n_seen, gradient in enumerate(gradients, 1):
        total = total + gradient[:: -(-len(gradient) // MOST_NUMBERS)].double()
        if n_seen % size == 0:
            yield total
            if n_seen == BLOCKS * size:
                return
            total = torch.zeros(())
