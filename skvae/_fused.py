"""The gradient of the ELBO written out by hand: what autograd gives, with fewer and larger steps.

``VAE.forward`` and ``elbo`` say what is computed; this says it again for speed alone, for the
built-in networks on complete rows, and is tested against them. With L = -bound, v_n = w_n / N:

    g_raw = -v / S d log p(x | z) / d raw
    g_z   = J^T g_raw,                       J of the decoder
    g_loc = sum_s g_z + beta v loc           g_log_scale = sum_s g_z eps s + beta v (s^2 - 1)
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._column_likelihoods import ColumnLikelihoods
from ._columns import CELL_LIMIT
from ._gaussian import HALF_LOG_2PI
from ._networks import ACTIVATIONS, CODE_LIMIT, MLP, Decoder, Dense, Encoder, tame, tame_
from ._products import is_large, linear, onednn_linear
from ._vae import VAE
from .likelihoods import Bernoulli, Gaussian, Likelihood
from .priors import StandardNormal

# (x, weight, eps, beta) -> the bound, a mean over the rows; minus its gradient is left in ``grad``.
Gradient = Callable[[Tensor, Tensor, Tensor, float], Tensor]

# (g, x, f(x)) -> g f'(x), in one pass over the memory.
_PULLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "gelu": lambda g, x, f: torch.ops.aten.gelu_backward.default(g, x),
    "relu": lambda g, x, f: torch.ops.aten.threshold_backward.default(g, x, 0.0),
    "silu": lambda g, x, f: torch.ops.aten.silu_backward.default(g, x),
    "tanh": lambda g, x, f: torch.ops.aten.tanh_backward.default(g, f),
}


def fused_gradient(vae: VAE, objective: str, free_bits: float) -> Gradient | None:
    """The gradient of ``vae`` by hand, or None where it is autograd's business.

    The tensors behind the parameters and their ``grad`` are taken as they are now: they may
    change their values, not their place.
    """
    if objective != "elbo" or free_bits > 0.0 or bool(vae.encoder.may_miss.any()):
        return None
    # Whoever inherits may compute something else.
    built_in = (type(vae), type(vae.encoder), type(vae.decoder)) == (VAE, Encoder, Decoder)
    if not built_in or type(vae.prior) is not StandardNormal:
        return None
    blocks = _blocks(vae.likelihood, vae.n_features)
    return None if blocks is None else _FusedElbo(vae, blocks)


class _Layer:
    """x W^T + b, or some rows of W."""

    def __init__(self, dense: Dense, where: slice = slice(None)) -> None:
        self.weight, self.bias = dense.weight.detach()[where], dense.bias.detach()[where]
        self.weight_grad, self.bias_grad = _grad(dense.weight)[where], _grad(dense.bias)[where]
        self.transposed = self.weight.T

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def backward(self, g: Tensor, x: Tensor) -> None:
        """The gradients of W and b."""
        if is_large(len(x), self.weight):
            self.weight_grad.copy_(onednn_linear(g.T, x.T))
        else:
            torch.mm(g.T, x, out=self.weight_grad)
        torch.sum(g, 0, out=self.bias_grad)

    def input_gradient(self, g: Tensor) -> Tensor:
        if is_large(len(g), self.weight):
            return onednn_linear(g, self.transposed)
        return g @ self.weight


class _Layers:
    """An MLP; ``backward`` follows ``forward``."""

    def __init__(self, mlp: MLP) -> None:
        self.hidden = [_Layer(layer) for layer in (mlp.first, *mlp.middle)]
        self.last = _Layer(mlp.last)
        self.value = ACTIVATIONS[mlp.activation].value
        self.pull = _PULLS[mlp.activation]

    def forward(self, x: Tensor) -> Tensor:
        """Up to the last layer, which is added to the linear map."""
        self.inputs, self.before = [x], []
        for layer in self.hidden:
            before = layer.forward(self.inputs[-1])
            self.before.append(before)
            self.inputs.append(self.value(before))
        return self.inputs[-1]

    def backward(self, g: Tensor) -> Tensor:
        """From the gradient of the output to that of what the first layer gives, (N, H)."""
        self.last.backward(g, self.inputs[-1])
        above = self.last
        for number in reversed(range(len(self.hidden))):
            before, value = self.before[number], self.inputs[number + 1]
            g = self.pull(above.input_gradient(g), before, value)
            above = self.hidden[number]
            above.backward(g, self.inputs[number])
        return g


class _FusedEncoder:
    """loc(x) = A x + a + s f(x), log_scale(x) = c + g(x)."""

    def __init__(self, encoder: Encoder) -> None:
        self.linear = _Layer(encoder.linear)
        self.log_scale, self.log_scale_grad = encoder.log_scale.detach(), _grad(encoder.log_scale)
        self.slope, self.offset = 1.0 / encoder.spread, -encoder.center / encoder.spread
        self.unit = torch.cat([encoder.unit, torch.ones_like(encoder.unit)])
        self.mlp = None if encoder.mlp is None else _Layers(encoder.mlp)

    def forward(self, x: Tensor) -> Tensor:  # (N, 2 K)
        """Location, then log scale."""
        self.x = x
        bias = torch.cat([self.linear.bias, self.log_scale])
        if self.mlp is None:
            both = bias.repeat(len(x), 1)
        else:
            robust = torch.addcmul(self.offset, x, self.slope)
            hidden = self.mlp.forward(tame_(robust, CELL_LIMIT))
            both = torch.addcmul(bias, self.mlp.last.forward(hidden), self.unit)
        both[:, : len(self.log_scale)].addmm_(x, self.linear.transposed)
        return both

    def backward(self, g: Tensor) -> None:  # (N, 2 K)
        n_components = len(self.log_scale)
        torch.mm(g[:, :n_components].T, self.x, out=self.linear.weight_grad)
        total = g.sum(0)
        self.linear.bias_grad.copy_(total[:n_components])
        self.log_scale_grad.copy_(total[n_components:])
        if self.mlp is not None:
            self.mlp.backward(g * self.unit)


class _FusedDecoder:
    """raw(z) = W z + b + u h(z), with z tamed for some blocks of raw."""

    def __init__(self, decoder: Decoder, blocks: list["_Block"]) -> None:
        tamed = decoder.tamed.tolist()
        self.linear = _Layer(decoder.linear)
        self.parts = [
            (block.where, tamed[block.where.start], _Layer(decoder.linear, block.where))
            for block in blocks
        ]
        self.any_tamed = any(tamed)
        self.unit = decoder.unit
        self.mlp = None if decoder.mlp is None else _Layers(decoder.mlp)

    def forward(self, z: Tensor) -> Tensor:  # (N, K) -> (N, P)
        self.z = z
        self.near = tame(z, CODE_LIMIT) if self.any_tamed else z
        if self.mlp is None:
            raw = self.linear.bias.repeat(len(z), 1)
        else:
            raw = self.mlp.last.forward(self.mlp.forward(z))
            raw = torch.addcmul(self.linear.bias, raw, self.unit)
        for where, tamed, layer in self.parts:
            self._own(raw, where).addmm_(self.near if tamed else z, layer.transposed)
        return raw

    def backward(self, g: Tensor) -> Tensor:  # (N, P) -> (N, K)
        if self.mlp is None:
            g_z = torch.zeros_like(self.z)
        else:
            g_z = self.mlp.hidden[0].input_gradient(self.mlp.backward(g * self.unit))
        g_near = torch.zeros_like(g_z) if self.any_tamed else g_z
        for where, tamed, layer in self.parts:
            own = self._own(g, where)
            layer.backward(own, self.near if tamed else self.z)
            (g_near if tamed else g_z).addmm_(own, layer.weight)
        if self.any_tamed:  # d near / d z
            g_z += g_near * (1.0 + (self.z / CODE_LIMIT).square()).pow(-1.5)
        return g_z

    def _own(self, raw: Tensor, where: slice) -> Tensor:
        return raw if len(self.parts) == 1 else raw[:, where]


class _Block(NamedTuple):
    """Raw parameters of one kind that stand together, and how their likelihood is differentiated.

    ``gradient(x, raw, share, g)`` writes -share d log p / d raw into g, and returns the sum of
    share log p; x (N, D), raw and g (S, N, D), share (N, 1).
    """

    where: slice
    gradient: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _blocks(likelihood: Likelihood, n_features: int) -> list[_Block] | None:
    """None if one of the likelihoods has no formula here."""
    if type(likelihood) is not ColumnLikelihoods:
        sized = [(likelihood, n_features)]
    else:
        sized = list(zip(likelihood.parts, likelihood.n_raw, strict=True))
    blocks, start = [], 0
    for part, size in sized:
        where = slice(start, start := start + size)
        if type(part) is Gaussian:
            blocks.append(_Block(where, _gaussian(part)))
        elif type(part) is Bernoulli:
            blocks.append(_Block(where, _bernoulli))
        else:
            return None
    return blocks


def _gaussian(likelihood: Gaussian) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    log_scale, log_scale_grad = likelihood.log_scale.detach(), _grad(likelihood.log_scale)
    shared = likelihood.noise == "shared"

    def gradient(x: Tensor, raw: Tensor, share: Tensor, g: Tensor) -> Tensor:
        # With u = (raw - x) / s: log p = -1/2 u^2 - log s - 1/2 log 2 pi,
        # -d log p / d raw = u / s, -d log p / d log s = 1 - u^2.
        left = torch.sub(raw, x)  # (S, N, D)
        torch.mul(left, torch.exp(-2.0 * log_scale), out=g)
        g *= share
        square = left.mul_(g).sum((0, 1))  # (D,), of share u^2
        total, n_columns = share.sum() * len(raw), len(square)
        quadratic = square.sum()
        if shared:
            torch.sub(n_columns * total, quadratic[None], out=log_scale_grad)
        else:
            torch.sub(total, square, out=log_scale_grad)
        log_volume = log_scale.sum() * (n_columns / len(log_scale)) + n_columns * HALF_LOG_2PI
        return -0.5 * quadratic - total * log_volume

    return gradient


def _bernoulli(x: Tensor, raw: Tensor, share: Tensor, g: Tensor) -> Tensor:
    # log p = x raw - log(1 + e^raw);  -d log p / d raw = p - x.
    torch.sub(torch.sigmoid(raw), x, out=g)
    g *= share
    return ((x * raw - F.softplus(raw)) * share).sum()


class _FusedElbo:
    """A module's ELBO and its gradient."""

    def __init__(self, vae: VAE, blocks: list[_Block]) -> None:
        self.features = vae.likelihood.features
        self.blocks = blocks
        self.encoder = _FusedEncoder(vae.encoder)
        self.decoder = _FusedDecoder(vae.decoder, blocks)

    @torch.inference_mode()  # no_grad, and a sixth of the time less: no views are tracked
    def __call__(self, x: Tensor, weight: Tensor, eps: Tensor, beta: float) -> Tensor:
        x = self.features(x)  # of these likelihoods the values themselves, in the order of raw
        n_samples, n_rows, n_components = eps.shape
        share = (weight / (n_samples * n_rows))[:, None]  # (N, 1)
        both = self.encoder.forward(x)
        loc, log_scale = both[:, :n_components], both[:, n_components:]
        scale = torch.exp(log_scale)
        z = torch.addcmul(loc, scale, eps)  # (S, N, K)
        raw = self.decoder.forward(z.flatten(0, 1))
        log_px_z, g = self._likelihood(x, raw.view(n_samples, n_rows, -1), share)
        g_z = self.decoder.backward(g.flatten(0, 1)).view_as(z)
        # KL = 1/2 (loc^2 + s^2 - 1) - log s, as in kl_to_standard_normal.
        excess = torch.expm1(2.0 * log_scale)
        share *= n_samples * beta
        kl = ((0.5 * (loc.square() + excess) - log_scale) * share).sum()  # times beta
        g_both = torch.empty_like(both)
        torch.addcmul(g_z.sum(0), loc, share, out=g_both[:, :n_components])
        g_log_scale = g_z.mul_(eps).sum(0).mul_(scale)
        torch.addcmul(g_log_scale, excess, share, out=g_both[:, n_components:])
        self.encoder.backward(g_both)
        return log_px_z - kl

    def _likelihood(self, x: Tensor, raw: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of share log p(x | z), and minus its gradient by raw."""
        g = torch.empty_like(raw)
        if len(self.blocks) == 1:
            return self.blocks[0].gradient(x, raw, share, g), g
        total = torch.zeros_like(share[0, 0])
        for where, gradient in self.blocks:
            total += gradient(x[:, where], raw[..., where], share, g[..., where])
        return total, g


def _grad(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
