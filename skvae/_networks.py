"""Encoder and decoder: each a linear map plus an MLP whose last layer starts at zero.

    loc(x) = A x + a + f(x)        log_scale(x) = c + g(x)        raw(z) = W z + b + h(z)

f, g and h are 0 at the start, so a network begins as the linear-Gaussian model that it is given.
All random numbers come from the generator that is passed in.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class Dense(nn.Module):
    """x W^T + b, initialised from a generator (``nn.Linear`` would move torch's global one)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_out, n_in))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """He et al. 2015 for the weights; small uniform biases spread the units' kinks."""
        n_in = max(self.weight.shape[1], 1)
        self.weight.normal_(0.0, math.sqrt(2.0 / n_in), generator=generator)
        self.bias.uniform_(-1.0 / math.sqrt(n_in), 1.0 / math.sqrt(n_in), generator=generator)


class MLP(nn.Module):
    """Hidden layers and a last layer that stays at zero when the others are initialised."""

    def __init__(self, n_in: int, hidden: Sequence[int], n_out: int, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.first = Dense(n_in, hidden[0])
        self.middle = nn.ModuleList(
            Dense(i, o) for i, o in zip(hidden[:-1], hidden[1:], strict=True)
        )
        self.last = Dense(hidden[-1], n_out)

    def forward(self, x: Tensor) -> Tensor:
        activate = ACTIVATIONS[self.activation]
        for layer in (self.first, *self.middle):
            x = activate(layer(x))
        return self.last(x)

    def initialise(self, generator: torch.Generator) -> None:
        for layer in (self.first, *self.middle):
            layer.initialise(generator)


class Encoder(nn.Module):
    """q(z | x): the location and log scale of each component."""

    center: Tensor
    spread: Tensor

    def __init__(
        self, n_columns: int, hidden: Sequence[int], n_components: int, activation: str
    ) -> None:
        super().__init__()
        self.linear = Dense(n_columns, n_components)
        self.log_scale = nn.Parameter(torch.zeros(n_components))
        self.mlp = MLP(n_columns, hidden, 2 * n_components, activation) if hidden else None
        self.register_buffer("center", torch.zeros(n_columns))
        self.register_buffer("spread", torch.ones(n_columns))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (N, D) -> (N, K), (N, K)
        loc = self.linear(x)
        if self.mlp is None:
            return loc, self.log_scale.expand_as(loc)
        d_loc, d_log_scale = self.mlp(self._tamed(x)).chunk(2, dim=-1)
        return loc + d_loc, self.log_scale + d_log_scale

    def _tamed(self, x: Tensor) -> Tensor:
        # A wild cell must not throw the MLP off; the linear path still sees x itself, or the
        # start would no longer be exact.
        u = (x - self.center) / self.spread
        return u * torch.rsqrt(1.0 + (u / 3.0).square())


class Decoder(nn.Module):
    """The raw parameters of p(x | z)."""

    def __init__(
        self, n_components: int, hidden: Sequence[int], n_raw: int, activation: str
    ) -> None:
        super().__init__()
        self.linear = Dense(n_components, n_raw)
        self.mlp = MLP(n_components, hidden, n_raw, activation) if hidden else None

    def forward(self, z: Tensor) -> Tensor:  # (..., N, K) -> (..., N, P)
        raw = self.linear(z)
        return raw if self.mlp is None else raw + self.mlp(z)

    def jacobian(self, z: Tensor) -> Tensor:  # (N, K) -> (K, N, P)
        """d raw / d z_k, by one forward-mode product for each component."""
        directions = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)

        def along(direction: Tensor) -> Tensor:
            return torch.func.jvp(self.forward, (z,), (direction.expand_as(z),))[1]

        return torch.func.vmap(along)(directions)
