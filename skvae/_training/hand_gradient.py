"""The gradient of the ELBO written out by hand: what autograd gives, with fewer and larger steps.

``VAE.forward`` and ``elbo`` say what is computed; this says it again for speed alone, for the
built-in networks, and is tested against them. With L = -bound, v_n = w_n / N:

    g_raw = -v / S d log p(x | z) / d raw
    g_z   = J^T g_raw,                       J of the decoder
    g_loc = sum_s g_z + beta v loc           g_log_scale = sum_s g_z eps s + beta v (s^2 - 1)
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._model.networks import (
    ACTIVATIONS,
    CODE_LIMIT,
    MLP,
    Decoder,
    Dense,
    Encoder,
    tame,
    tame_,
)
from .._model.products import NARROW, is_large, is_short, mkl_is_faster, onednn_linear
from .._model.vae import VAE
from .._parameters import CELL_LIMIT
from ..likelihoods._likelihood import Likelihood, gradient_of_cells
from ..likelihoods._mixed import ColumnLikelihoods
from ..priors import StandardNormal

# (x, raw, count, g) -> the sum of count log p; minus its gradient is left in g (S, N, P) and in the
# ``grad`` of the likelihood's own parameters. ``count`` is what a cell counts, (N, 1) or (N, D).
ColumnGradient = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class ColumnBlock(NamedTuple):
    """The columns of one likelihood, as a step needs them."""

    numbers: Tensor | None  # (D,)  of the columns; None: all of them, in order
    where: slice  # of the raw parameters
    features: Callable[[Tensor], Tensor]
    gradient: ColumnGradient

    def own(self, cells: Tensor) -> Tensor:
        """Return its columns of (N, D) cells; (N, 1) is the same for all."""
        if self.numbers is None or cells.shape[1] == 1:
            return cells
        return cells.index_select(1, self.numbers)


def blocks_of(likelihood: ColumnLikelihoods, device: torch.device) -> list[ColumnBlock]:
    """Look up what a step needs of each block, in the order of the raw parameters."""
    blocks, start = [], 0
    for part in likelihood.parts:
        where = slice(start, start := start + part.n_raw)
        in_order = part.columns == list(range(likelihood.n_columns))
        numbers = None if in_order else torch.tensor(part.columns, device=device)
        now = part.now  # its tensors change their values, not their place
        blocks.append(ColumnBlock(numbers, where, now.features, _gradient_of(now, part)))
    return blocks


def _gradient_of(likelihood: Likelihood, part: nn.Module) -> ColumnGradient:
    places = {name: gradient_place(parameter) for name, parameter in part.named_parameters()}
    return partial(gradient_of_cells(likelihood), places=places)


def gradient_place(parameter: nn.Parameter) -> Tensor:
    """Return where a parameter's gradient is written."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


MANY_UNITS = 40_000  # rows times units, from where oneDNN's GELU is faster than torch's own
SILENT = -9.0  # below, GELU and its slope are zero but for 1e-17


def _gelu(x: Tensor) -> Tensor:
    # Further down, its slope is so small that products of such numbers take three times as long.
    x = x.clamp_(min=SILENT)
    return F.gelu(x) if x.numel() > MANY_UNITS else F.gelu(x.T).T  # oneDNN takes no transposes


def _gelu_pull(g: Tensor, x: Tensor, f: Tensor) -> Tensor:
    pull = torch.ops.aten.gelu_backward.default
    return pull(g, x) if x.numel() > MANY_UNITS else pull(g.T, x.T).T


_VALUES = {name: activation.value for name, activation in ACTIVATIONS.items()} | {"gelu": _gelu}


# (g, x, f(x)) -> g f'(x), in one pass over the memory.
_PULLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "gelu": _gelu_pull,
    "relu": lambda g, x, f: torch.ops.aten.threshold_backward.default(g, x, 0.0),
    "silu": lambda g, x, f: torch.ops.aten.silu_backward.default(g, x),
    "tanh": lambda g, x, f: torch.ops.aten.tanh_backward.default(g, f),
}


def gradient_of(vae: VAE, objective: str, free_bits: float) -> "ElboByHand | None":
    """Return the gradient of ``vae`` by hand, or None where it is autograd's business.

    The tensors behind the parameters and their ``grad`` are taken as they are now: they may
    change their values, not their place.
    """
    if objective != "elbo" or free_bits > 0.0:
        return None
    # A subclass may compute something else.
    built_in = (type(vae), type(vae.encoder), type(vae.decoder)) == (VAE, Encoder, Decoder)
    if not built_in or type(vae.prior.specification) is not StandardNormal:
        return None
    return ElboByHand(vae)


class Layer:
    """x W^T + b, or some rows of W."""

    def __init__(self, dense: Dense, where: slice = slice(None)) -> None:
        self.weight, self.bias = dense.weight.detach()[where], dense.bias.detach()[where]
        self.weight_grad = gradient_place(dense.weight)[where]
        self.bias_grad = gradient_place(dense.bias)[where]
        self.transposed = self.weight.T
        self.is_large = self.is_short = False
        n_out, n_in = self.weight.shape
        self.is_tall = n_out >= 2 * n_in and n_in <= 2 * NARROW

    def expect(self, n_rows: int) -> None:
        self.is_large = is_large(n_rows, self.weight) and not mkl_is_faster()

    def forward(self, x: Tensor) -> Tensor:
        if self.is_short:  # bfloat16 factors, for the products of ``backward`` too
            self.short_x, self.short_weight = x.bfloat16(), self.weight.bfloat16()
            return self.bias + torch.mm(self.short_x, self.short_weight.T)
        if self.is_large:
            return onednn_linear(x, self.weight, self.bias)
        return torch.addmm(self.bias, x, self.transposed)

    def backward(self, g: Tensor, x: Tensor) -> None:
        """Write the gradients of W and b."""
        torch.sum(g, 0, out=self.bias_grad)
        place = self.weight_grad
        if self.is_short:
            self.short_g = g.bfloat16()
            place.copy_(torch.mm(self.short_g.T, self.short_x))
            return
        if self.is_tall:  # g^T x by its transpose; oneDNN is lost in slices of g
            place.T.copy_(torch.mm(x.T, g))
        elif self.is_large:
            place.copy_(onednn_linear(g.T, x.T))
        else:
            torch.mm(g.T, x, out=place)

    def input_gradient(self, g: Tensor) -> Tensor:
        """Return the gradient by x, after ``backward`` of the same g."""
        if self.is_short:
            return torch.mm(self.short_g, self.short_weight).float()
        return onednn_linear(g, self.transposed) if self.is_large else torch.mm(g, self.weight)

    def add_input_gradient(self, g: Tensor, total: Tensor) -> None:
        if self.is_large:
            total += onednn_linear(g, self.transposed)
        else:
            total.addmm_(g, self.weight)


class Layers:
    """An MLP; ``backward`` follows ``forward``."""

    def __init__(self, mlp: MLP) -> None:
        self.hidden = [Layer(layer) for layer in (mlp.first, *mlp.middle)]
        self.last = Layer(mlp.last)
        self.value, self.pull = _VALUES[mlp.activation], _PULLS[mlp.activation]

    def expect(self, n_rows: int) -> None:
        for layer in (*self.hidden, self.last):
            layer.expect(n_rows)
            layer.is_short = is_short(n_rows, layer.weight)  # the linear maps stay exact

    def forward(self, x: Tensor) -> Tensor:
        return self.last.forward(self.forward_hidden(x))

    def forward_hidden(self, x: Tensor) -> Tensor:
        """Return what the last hidden layer says."""
        self.inputs, self.before = [x], []
        for layer in self.hidden:
            before = layer.forward(self.inputs[-1])
            self.before.append(before)
            self.inputs.append(self.value(before))
        return self.inputs[-1]

    def backward(self, g: Tensor) -> Tensor:
        """Go from the gradient of the output to that of what the first layer gives, (N, H)."""
        self.last.backward(g, self.inputs[-1])
        return self.backward_hidden(self.last.input_gradient(g))

    def backward_hidden(self, g: Tensor) -> Tensor:
        """Go there from the gradient of what the last hidden layer says."""
        for number in reversed(range(len(self.hidden))):
            layer, before, value = self.hidden[number], self.before[number], self.inputs[number + 1]
            g = self.pull(g, before, value)
            layer.backward(g, self.inputs[number])
            if number:
                g = layer.input_gradient(g)
        return g


class EncoderByHand:
    """loc(x) = C (A x + a) + s f(x), log_scale(x) = c + gain + g(x).

    C and the gain are there where values are missing. Then x has the linear model's mean in their
    place, and the MLP sees what that model expects given the others.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.linear = Layer(encoder.linear)
        self.log_scale = encoder.log_scale.detach()
        self.log_scale_grad = gradient_place(encoder.log_scale)
        self.n_components = len(self.log_scale)
        self.slope, self.offset = 1.0 / encoder.spread, -encoder.center / encoder.spread
        self.unit = torch.cat([encoder.unit, torch.ones_like(encoder.unit)])
        self.mlp = None if encoder.mlp is None else Layers(encoder.mlp)
        self.any_may_miss = bool(encoder.may_miss.any())

    def expect(self, n_rows: int) -> None:
        self.linear.expect(n_rows)
        if self.mlp is not None:
            self.mlp.expect(n_rows)

    def forward(self, x: Tensor, observed: Tensor | None) -> Tensor:  # (N, P) -> (N, 2 K)
        """Return location, then log scale."""
        encoder, k = self.encoder, self.n_components
        self.seen: Tensor | None = None
        self.x = x
        if observed is not None:
            self.seen = observed.index_select(1, encoder.column)
            self.x = torch.where(self.seen, x, encoder.mean)
        loc = self.linear.forward(self.x)
        if self.seen is not None:
            self.fewer = encoder.fewer_columns(self.seen)
            loc = self.fewer.location(loc)
            x = torch.where(self.seen, x, torch.addmm(encoder.mean, loc, encoder.loadings.T))
        both = torch.cat([loc, self.log_scale.expand_as(loc)], 1)
        if self.mlp is not None:
            self.robust = tame_(torch.addcmul(self.offset, x, self.slope), CELL_LIMIT)
            sees = self.robust
            if self.any_may_miss:
                sees = encoder.with_indicators(sees, observed)
            both = both.addcmul_(self.mlp.forward(sees), self.unit)
        if self.seen is not None:
            both[:, k:].index_add_(0, self.fewer.rows, self.fewer.gain)
        return both

    def backward(self, g: Tensor) -> None:  # (N, 2 K)
        k = self.n_components
        g_loc = g[:, :k]
        torch.sum(g[:, k:], 0, out=self.log_scale_grad)
        if self.mlp is not None:
            g_hidden = self.mlp.backward(g * self.unit)
        if self.seen is not None:
            g_x = None if self.mlp is None else self.mlp.hidden[0].input_gradient(g_hidden)
            g_loc = self._through_missing(g_loc, g_x, self.seen)
        self.linear.backward(g_loc, self.x)

    def _through_missing(self, g_loc: Tensor, g_x: Tensor | None, seen: Tensor) -> Tensor:
        """Return the gradient of A x + a: also by what the MLP sees instead of missing values."""
        if g_x is not None:
            # The slope of tame, from its value, which may be rounded to just above the limit.
            slope = 1.0 - (self.robust / CELL_LIMIT).square()
            slope = slope.clamp_(min=0.0).pow_(1.5).mul_(self.slope)
            g_x = (g_x[:, : slope.shape[1]] * slope).masked_fill_(seen, 0.0)
            g_loc = torch.addmm(g_loc, g_x, self.encoder.loadings)
        return self.fewer.pull(g_loc)


class DecoderByHand:
    """raw(z) = W z + b + u h(z), with z tamed for some of raw."""

    def __init__(self, decoder: Decoder) -> None:
        self.linear = Layer(decoder.linear)
        self.parts = []  # (where, tamed, layer) for each run of raw parameters
        start = 0
        for tamed, run in groupby(decoder.tamed.tolist()):
            where = slice(start, start := start + len(list(run)))
            self.parts.append((where, tamed, Layer(decoder.linear, where)))
        self.any_tamed = any(tamed for _, tamed, _ in self.parts)
        self.unit = decoder.unit
        self.mlp = None if decoder.mlp is None else Layers(decoder.mlp)

    def expect(self, n_rows: int) -> None:
        if self.mlp is not None:
            self.mlp.expect(n_rows)
        for _, _, layer in self.parts:
            layer.expect(n_rows)

    def forward(self, z: Tensor) -> Tensor:  # (N, K) -> (N, P)
        self.z = z
        self.near = tame(z, CODE_LIMIT) if self.any_tamed else z
        if self.mlp is None:
            raw = self.linear.bias.repeat(len(z), 1)
        else:
            raw = torch.addcmul(self.linear.bias, self.mlp.forward(z), self.unit)
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
            layer.add_input_gradient(own, g_near if tamed else g_z)
        if self.any_tamed:  # d near / d z
            g_z += g_near * (1.0 + (self.z / CODE_LIMIT).square()).pow(-1.5)
        return g_z

    def _own(self, raw: Tensor, where: slice) -> Tensor:
        return raw if len(self.parts) == 1 else raw[:, where]


class ElboByHand:
    """A module's ELBO and its gradient.

    A call returns the bound, a mean over the rows. Minus its gradient is left in the parameters'
    ``grad``, and the mean KL divergence in ``kl``.
    """

    kl: Tensor

    def __init__(self, vae: VAE) -> None:
        self.blocks = blocks_of(vae.likelihood, vae.device)
        self.encoder = EncoderByHand(vae.encoder)
        self.decoder = DecoderByHand(vae.decoder)
        self.size = torch.Size((0, 0, 0))

    def at_work(self) -> AbstractContextManager[None]:
        """Hold what the calls of a pass need."""
        return nullcontext()

    @torch.inference_mode()  # no_grad, and a sixth of the time less: no views are tracked
    def __call__(
        self, x: Tensor, observed: Tensor | None, weight: Tensor, eps: Tensor, beta: float
    ) -> Tensor:
        n_samples, n_rows, k = self._expect(eps)
        share = (weight / (n_samples * n_rows))[:, None]  # (N, 1)
        cells = self._cells(x)
        both = self._encoded(cells, observed)
        loc, log_scale = both[:, :k], both[:, k:]
        scale = torch.exp(log_scale)
        z = torch.addcmul(loc, scale, eps)  # (S, N, K)
        log_px_z, g_z = self._decoded(cells, z, share if observed is None else share * observed)
        # KL = 1/2 (loc^2 + s^2 - 1) - log s, as in kl_to_standard_normal.
        excess = torch.expm1(2.0 * log_scale)
        pull = share * (n_samples * beta)
        share *= n_samples
        g_both = torch.empty_like(both)
        torch.addcmul(_total(g_z), loc, pull, out=g_both[:, :k])
        torch.addcmul(_total(g_z.mul_(eps)).mul_(scale), excess, pull, out=g_both[:, k:])
        self.encoder.backward(g_both)
        twice_kl = excess.addcmul_(loc, loc).sub_(log_scale, alpha=2.0)
        self.kl = 0.5 * twice_kl.mul_(share).sum()
        return log_px_z.sub(self.kl, alpha=beta)

    def _expect(self, eps: Tensor) -> torch.Size:
        """Choose how to multiply for batches of this size."""
        if eps.shape != self.size:
            self.size = eps.shape
            self.encoder.expect(self.size[1])
            self.decoder.expect(self.size[0] * self.size[1])
        return eps.shape

    def _cells(self, x: Tensor) -> Any:
        """Return the cells of x as the other parts take them."""
        return [block.own(x) for block in self.blocks]

    def _encoded(self, cells: Any, observed: Tensor | None) -> Tensor:  # (N, 2 K)
        parts = [block.features(x) for block, x in zip(self.blocks, cells, strict=True)]
        return self.encoder.forward(parts[0] if len(parts) == 1 else torch.cat(parts, 1), observed)

    def _decoded(self, cells: Any, z: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of count log p(x | z), and minus its gradient by z (S, N, K)."""
        k = z.shape[2]
        raw = self.decoder.forward(z.view(-1, k)).view(*z.shape[:2], -1)
        log_px_z, g = self._likelihood(cells, raw, count)
        return log_px_z, self.decoder.backward(g.view(-1, g.shape[2])).view_as(z)

    def _likelihood(self, own: list[Tensor], raw: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of count log p(x | z), and minus its gradient by raw."""
        g = torch.empty_like(raw)
        if len(self.blocks) == 1:
            block = self.blocks[0]
            return block.gradient(own[0], raw, block.own(count), g), g
        total = raw.new_zeros(())
        for block, x in zip(self.blocks, own, strict=True):
            where = block.where
            total += block.gradient(x, raw[..., where], block.own(count), g[..., where])
        return total, g


def _total(g: Tensor) -> Tensor:
    """Sum over the samples."""
    return g[0] if g.shape[0] == 1 else g.sum(0)
