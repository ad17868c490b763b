"""The gradient of log p(x | z) by the decoder's raw output and the likelihood's own parameters.

Written by hand for the likelihoods that most tables are made of. The others are left to autograd,
which then has one formula to differentiate, not the networks before it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._column_likelihoods import ColumnLikelihoods
from ._gaussian import HALF_LOG_2PI
from .likelihoods import Bernoulli, Categorical, Gaussian, Likelihood

# (x, raw, count, g) -> the sum of count log p. It writes -count d log p / d raw into g, and the
# same of the likelihood's parameters into their ``grad``. x (N, D), raw and g (S, N, P), and count,
# what a cell counts in each sample, (N, 1) or (N, D).
BlockGradient = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Block(NamedTuple):
    """The columns of one likelihood."""

    numbers: Tensor | None  # (D,)  of the columns; None: all of them, in order
    where: slice  # of the raw parameters
    features: Callable[[Tensor], Tensor]
    gradient: BlockGradient

    def own(self, cells: Tensor) -> Tensor:
        """Its columns of (N, D) cells; (N, 1) is the same for all."""
        if self.numbers is None or cells.shape[1] == 1:
            return cells
        return cells.index_select(1, self.numbers)


def blocks_of(likelihood: Likelihood, device: torch.device) -> list[Block]:
    """One block for each kind of column, in the order of the raw parameters."""
    if type(likelihood) is not ColumnLikelihoods:
        return [Block(None, slice(None), likelihood.features, _gradient_of(likelihood))]
    blocks, start = [], 0
    for part, columns, size in likelihood.blocks():
        where = slice(start, start := start + size)
        in_order = size == len(likelihood.column) and columns == list(range(len(columns)))
        numbers = None if in_order else torch.tensor(columns, device=device)
        blocks.append(Block(numbers, where, part.features, _gradient_of(part)))
    return blocks


def gradient_place(parameter: nn.Parameter) -> Tensor:
    """Where a parameter's gradient is written."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _gradient_of(likelihood: Likelihood) -> BlockGradient:
    # Whoever inherits may compute something else.
    known: dict[type, Callable[[Any], BlockGradient]]
    known = {Gaussian: _gaussian, Bernoulli: _bernoulli, Categorical: _categorical}
    return known.get(type(likelihood), _by_autograd)(likelihood)


def _gaussian(likelihood: Gaussian) -> BlockGradient:
    log_scale, place = likelihood.log_scale.detach(), gradient_place(likelihood.log_scale)
    shared = likelihood.noise == "shared"

    def gradient(x: Tensor, raw: Tensor, count: Tensor, g: Tensor) -> Tensor:
        # With u = (raw - x) / s: log p = -1/2 u^2 - log s - 1/2 log 2 pi,
        # -d log p / d raw = u / s, -d log p / d log s = 1 - u^2.
        n_samples, _, n_columns = raw.shape
        left = torch.sub(raw, x)
        torch.mul(left, torch.exp(-2.0 * log_scale), out=g)
        g *= count
        if shared:
            square = left.mul_(g).sum()  # of count u^2
            total = count.sum() * (n_samples * n_columns // count.shape[1])
        else:
            square = left.mul_(g).sum((0, 1))
            total = (count.sum(0) * n_samples).expand_as(square)
        torch.sub(total, square, out=place[0] if shared else place)
        return -(total * (log_scale + HALF_LOG_2PI)).sum() - 0.5 * square.sum()

    return gradient


def _bernoulli(likelihood: Bernoulli) -> BlockGradient:
    def gradient(x: Tensor, raw: Tensor, count: Tensor, g: Tensor) -> Tensor:
        # log p = x raw - log(1 + e^raw);  -d log p / d raw = p - x.
        torch.sub(torch.sigmoid(raw), x, out=g)
        g *= count
        return ((x * raw - F.softplus(raw)) * count).sum()

    return gradient


def _categorical(likelihood: Categorical) -> BlockGradient:
    def gradient(x: Tensor, raw: Tensor, count: Tensor, g: Tensor) -> Tensor:
        # log p = log p_x;  -d log p / d raw_l = p_l - [x = l].
        log_p = likelihood.log_softmax(raw)
        index = (x.long() + likelihood.offset).expand(len(raw), -1, -1)
        by_column = count.expand(index.shape)  # (S, N, D)
        log_p_x = log_p.gather(-1, index)
        of_levels = count if count.shape[1] == 1 else count.index_select(1, likelihood.column)
        torch.mul(log_p.exp_(), of_levels, out=g)
        g.scatter_add_(-1, index, -by_column)
        return (log_p_x * by_column).sum()

    return gradient


def _by_autograd(likelihood: Likelihood) -> BlockGradient:
    parameters = [p for p in likelihood.parameters() if p.requires_grad]
    places = [gradient_place(parameter) for parameter in parameters]

    def gradient(x: Tensor, raw: Tensor, count: Tensor, g: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            # Copies: what was made in inference mode cannot be differentiated.
            x, count, by = x.clone(), count.clone(), raw.clone().requires_grad_()
            log_p = likelihood.log_prob(x, by)  # of a cell that counts nothing it may be infinite
            total = (torch.where(count > 0.0, log_p, 0.0) * count).sum()
            found = torch.autograd.grad(total, [by, *parameters], materialize_grads=True)
        for place, own in zip([g, *places], found, strict=True):
            torch.neg(own, out=place)
        return total.detach()

    return gradient
