"""Whether the networks can gain anything over the linear start, before a step is taken.

At the start the networks' last weights are 0. If the linear model is true, the gradient by them is
noise of mean 0: that is the score test (Rao 1948) of the linear model, in many directions at once.
With G_1 ... G_m the gradients of m blocks of rows, in units of their root mean square, the mean of
<G_i, G_j> over all pairs estimates the squared length of the mean gradient.
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


def can_test(n_rows: int, max_epochs: int) -> bool:
    """Whether there are enough rows, and the test costs little beside the training."""
    return n_rows >= ENOUGH_ROWS and max_epochs * n_rows >= SHARE * ROWS


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
