"""The gradient of a batch in parts, each of one thread, where a step has much to multiply.

Threads that share every product wait for each other at each of a hundred operations, and where
another program has a core, that takes ten times as long as one thread alone. Parts wait once.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._model.vae import VAE
from .._resources import Together, one_after_the_other, together
from .._specification import copied
from .hand_gradient import ElboByHand, gradient_place

MUCH_WORK = 2e8  # multiplications of a step that has two parts; ten times as many have four
MOST_PARTS = 8
FEWEST_ROWS = 128  # of a part: with 64, one thread alone takes a quarter longer


def n_parts_of(work: float, n_rows: int) -> int:
    """Return how many parts a step has: the same on any machine, so that threads change no result.

    ``n_rows`` are those of a batch.
    """
    if work < MUCH_WORK:
        return 1
    wanted = 2 ** (1 + int(math.log10(work / MUCH_WORK)))
    return max(min(wanted, MOST_PARTS, n_rows // FEWEST_ROWS), 1)


class ElboInParts(ElboByHand):
    """A module's ELBO and its gradient: the sums of those of the parts of a batch."""

    def __init__(self, vae: VAE, n_parts: int) -> None:
        super().__init__(vae)
        twins = [_with_gradients_of_its_own(vae) for _ in range(n_parts - 1)]
        self._others = [ElboByHand(twin) for twin in twins]
        modules = (vae, *twins)
        self._gradients = [[gradient_place(p) for p in own.parameters()] for own in modules]
        self._together: Together = one_after_the_other

    @contextmanager
    def at_work(self) -> Iterator[None]:
        with together() as self._together:
            try:
                yield
            finally:
                self._together = one_after_the_other

    def __call__(
        self, x: Tensor, observed: Tensor | None, weight: Tensor, eps: Tensor, beta: float
    ) -> Tensor:
        hands: list[Callable[..., Tensor]] = [super().__call__, *self._others]
        size = max(-(-len(x) // len(hands)), 1)
        calls = []
        for hand, first in zip(hands, range(0, len(x), size), strict=False):
            own = slice(first, first + size)
            share = weight[own] * (len(x[own]) / len(x))  # each divides by its own number of rows
            seen = None if observed is None else observed[own]
            calls.append(partial(hand, x[own], seen, share, eps[:, own], beta))
        bounds = self._together(calls)
        used = self._others[: len(calls) - 1]
        with torch.inference_mode():
            for gradients, _ in zip(self._gradients[1:], used, strict=False):
                for whole, part in zip(self._gradients[0], gradients, strict=True):
                    whole.add_(part)
            self.kl = torch.stack([self.kl, *(other.kl for other in used)]).sum()
            return torch.stack(bounds).sum()


def _with_gradients_of_its_own(vae: VAE) -> VAE:
    """Return a module that has the same weights and buffers, in the same memory."""
    shared: dict[int, Any] = {id(b): b for b in vae.buffers()}
    shared |= {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in vae.parameters()}
    return copied(vae, shared)
