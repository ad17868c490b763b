"""The same gradient where rows are sparse and all columns Gaussian: by the stored cells alone.

No (N, D) array is made. The encoder's first layer sees tame(o + s x) = tame(o) + what stored cells
add, o and s its units. The decoder is linear in t = (h(z), z, 1), raw = V t, so that with w = 1 /
sigma^2, Q = V^T diag(w) V, M = sum share t t^T and E = X^T sum share t

    sum_d w_d (x_d - raw_d)^2 = sum_d w_d x_d^2 - 2 t^T V^T diag(w) x + t^T Q t
    g_t = share (Q t - V^T diag(w) x)        g_V = diag(w) (V M - E)

``hand_gradient`` says what is computed; this is tested against it.
"""

from typing import Any

import torch
from scipy.sparse import coo_array
from torch import Tensor

from .._gaussian import HALF_LOG_2PI
from .._model.networks import Dense, Encoder, tame
from .._model.vae import VAE
from .._parameters import CELL_LIMIT
from ..likelihoods._real import Gaussian
from .hand_gradient import DecoderByHand, ElboByHand, EncoderByHand, Layer, gradient_place

FULL = 0.05  # share of cells that are stored, from which dense products are faster
MANY = 500  # columns, below which they are, too
MOST_LOST = 1e3  # of float32's 7 digits three may cancel
BLOCK = 256  # columns that are transposed at once


def pays(vae: VAE, share: float, n_rows: int) -> bool:
    """Whether the gradient by stored cells is right, and faster than the dense one.

    ``share`` is that of the stored cells, and ``n_rows`` how many are multiplied at once. ``vae``
    has a gradient by hand.
    """
    parts = vae.likelihood.parts
    gaussian = len(parts) == 1 and type(parts[0].specification) is Gaussian
    if not gaussian or vae.encoder.may_miss.any() or vae.device.type != "cpu":
        return False
    hidden = vae.decoder.mlp.last.weight.shape[1] if vae.decoder.mlp is not None else 0
    faster = share <= FULL and vae.n_features >= MANY and hidden + vae.n_components < n_rows
    return faster and _lost_digits(vae) <= MOST_LOST


@torch.no_grad()
def _lost_digits(vae: VAE) -> float:
    """Return how large the terms of the square are beside their sum, of the worst column."""
    linear, log_scale = vae.decoder.linear, vae.likelihood.parts[0].log_scale
    size = linear.bias.square() + linear.weight.square().sum(1)
    if linear.bias.dtype == torch.float64:
        return 0.0
    return float((size * torch.exp(-2.0 * log_scale)).max())


class SparseElbo(ElboByHand):
    """A module's ELBO and its gradient; x is a sparse COO tensor (N, D) of cells that all count."""

    def __init__(self, vae: VAE) -> None:
        super().__init__(vae)
        self.encoder = _SparseEncoder(vae.encoder)
        self.decoder = self.density = _GaussianDecoder(vae)

    def _cells(self, x: Tensor) -> Any:  # (N, D) CSR
        where = tuple(x.indices().numpy())
        return coo_array((x.values().numpy(), where), shape=tuple(x.shape)).tocsr()

    def _decoded(self, cells: Any, z: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        return self.density.gradient(cells, z, count)

    def _encoded(self, cells: Any, observed: Tensor | None) -> Tensor:
        return self.encoder.forward(cells, observed)


class _SparseLayer(Layer):
    """(c + x) W^T + b of sparse x (N, P) and a constant c (P,)."""

    def __init__(self, dense: Dense, constant: Tensor) -> None:
        super().__init__(dense)
        self.constant = constant
        self.by_input = torch.empty_like(self.weight.T, memory_format=torch.contiguous_format)

    def expect(self, n_rows: int) -> None:
        """Choose nothing by the number of rows."""

    def forward(self, x: Any) -> Tensor:
        _transpose(self.weight, self.by_input)
        product = torch.from_numpy(x @ self.by_input.numpy())
        return product.add_(torch.addmv(self.bias, self.weight, self.constant))

    def backward(self, g: Tensor, x: Any) -> None:
        """Write the gradients of W and b."""
        torch.sum(g, 0, out=self.bias_grad)
        product = torch.from_numpy(x.T @ g.contiguous().numpy())  # (P, H)
        _transpose(product.addr_(self.constant, self.bias_grad), self.weight_grad)


def _transpose(values: Tensor, place: Tensor) -> None:
    """Write the transpose, block by block of the long axis: in half the time."""
    if len(values) < values.shape[1]:
        values, place = values.T, place.T
    for some, own in zip(values.split(BLOCK), place.T.split(BLOCK), strict=True):
        own.copy_(some)


class _SparseEncoder(EncoderByHand):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder)
        nothing = tame(self.offset, CELL_LIMIT)  # what the MLP sees of 0
        self.at_zero = nothing.numpy()
        self.linear = _SparseLayer(encoder.linear, torch.zeros_like(nothing))
        if self.mlp is not None and encoder.mlp is not None:
            self.mlp.hidden[0] = _SparseLayer(encoder.mlp.first, nothing)

    def forward(self, x: Any, observed: Tensor | None) -> Tensor:  # (N, P) CSR -> (N, 2 K)
        self.seen, self.x = None, x
        loc = self.linear.forward(x)
        both = torch.cat([loc, self.log_scale.expand_as(loc)], 1)
        if self.mlp is None:
            return both
        sees, column = x.copy(), torch.from_numpy(x.indices)
        cells = torch.addcmul(self.offset[column], torch.from_numpy(x.data), self.slope[column])
        sees.data = tame(cells, CELL_LIMIT).numpy() - self.at_zero[x.indices]
        return both.addcmul_(self.mlp.forward(sees), self.unit)


class _GaussianDecoder(DecoderByHand):
    """The decoder with Gaussian columns, and the gradient of both."""

    def __init__(self, vae: VAE) -> None:
        super().__init__(vae.decoder)
        self.of_raw = self.unit[:, None]
        self.log_scale = vae.likelihood.parts[0].log_scale
        self.noise_place = gradient_place(self.log_scale)

    def gradient(self, x: Any, z: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of count log p(x | z), and minus its gradient by z (S, N, K)."""
        n_samples, n_rows, _ = z.shape
        t, v = self._hidden(z), self._weights()  # (S, N, F), (P, F)
        log_scale = self.log_scale.detach().expand(len(v))
        w = torch.exp(-2.0 * log_scale)[:, None]
        weighted = w * v
        cross = torch.from_numpy(x @ weighted.numpy())  # (N, F)
        g_t = (t @ (v.T @ weighted)).sub_(cross).mul_(count)
        flat = t.view(n_samples * n_rows, -1)
        shared = (t * count).view_as(flat)
        by_model = v @ (shared.T @ flat)
        by_cells = torch.from_numpy(x.T @ (t * count).sum(0).numpy())
        # Of each column: the sum of count u^2, u = (raw - x) / sigma.
        own = torch.from_numpy(x.power(2).T @ count[:, 0].numpy()) * n_samples
        own -= torch.linalg.vecdot(v, by_cells)
        left = by_model.sub_(by_cells)
        square = own.add_(torch.linalg.vecdot(v, left)).mul_(w[:, 0])
        total = count.sum() * n_samples
        by_noise = total - square
        self.noise_place.copy_(by_noise if len(self.noise_place) > 1 else by_noise.sum())
        self._write(left, w)
        log_p = -(total * (log_scale + HALF_LOG_2PI)).sum() - 0.5 * square.sum()
        return log_p, self._pull(g_t)

    def _hidden(self, z: Tensor) -> Tensor:
        one = z.new_ones(*z.shape[:2], 1)
        if self.mlp is None:
            return torch.cat([z, one], 2)
        hidden = self.mlp.forward_hidden(z.view(-1, z.shape[2]))
        return torch.cat([hidden.view(*z.shape[:2], -1), z, one], 2)

    def _weights(self) -> Tensor:
        weight, bias = self.linear.weight, self.linear.bias[:, None]
        if self.mlp is None:
            return torch.cat([weight, bias], 1)
        last, k = self.mlp.last, weight.shape[1]
        both = weight.new_empty(len(weight), last.weight.shape[1] + k + 1)
        torch.mul(self.of_raw, last.weight, out=both[:, : -k - 1])
        both[:, -k - 1 : -1] = weight
        both[:, -1:] = torch.addcmul(bias, self.of_raw, last.bias[:, None])
        return both

    def _write(self, left: Tensor, w: Tensor) -> None:  # (P, F), (P, 1)
        k = self.linear.weight.shape[1]
        torch.mul(left[:, -k - 1 : -1], w, out=self.linear.weight_grad)
        torch.mul(left[:, -1], w[:, 0], out=self.linear.bias_grad)
        if self.mlp is not None:
            by_unit = w * self.of_raw
            torch.mul(left[:, : -k - 1], by_unit, out=self.mlp.last.weight_grad)
            torch.mul(left[:, -1], by_unit[:, 0], out=self.mlp.last.bias_grad)

    def _pull(self, g: Tensor) -> Tensor:  # (S, N, F) -> (S, N, K)
        k = self.linear.weight.shape[1]
        g_z = g[..., -k - 1 : -1]
        if self.mlp is None:
            return g_z.contiguous()
        hidden = g[..., : -k - 1].reshape(-1, g.shape[2] - k - 1)
        first = self.mlp.hidden[0]
        return g_z + first.input_gradient(self.mlp.backward_hidden(hidden)).view_as(g_z)
