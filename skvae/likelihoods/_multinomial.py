"""The likelihood of counts that share their row's total, such as what users chose among items."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from .._table.support import Support
from ._likelihood import Likelihood, LinearFit, LinearForm, LinearStart

NEVER = -1e30  # raw of a column that takes no part: its share is 0, and 0 counts times it are 0
SMALLEST_PART = 1e-6  # of a row's total, that is taken to lie in what is observed of it
LARGEST_SHARE = 1.0 - 1e-6  # that a linear model may expect one count to have of a row
PRIOR_COUNT = 0.5  # of each column: one without counts has a share above 0


@dataclass(frozen=True)
class Multinomial(Likelihood):
    """x ~ Multinomial(n, softmax(raw)): how the columns share the total n of their row.

    All columns that have this likelihood are one multinomial, in the order of the table. It is the
    likelihood of Mult-VAE (Liang et al. 2018, eq. 2), for what users chose among many items.

    Notes
    -----
    Domain: non-negative integers. Link: log, up to a constant. Given n = sum_d x_d,
    log p = log n! + sum_d (x_d log p_d - log x_d!) with p = softmax(raw), in nats. So the
    probabilities of all rows of the total n add up to 1, and a row of zeros has log p = 0. Of
    log n!, each cell's log p has the share x_d / n.

    Where cells are missing, n is the total of the observed ones, and p adds up to 1 over these: a
    missing cell says nothing, but one that is 0 does. A missing cell is expected to hold what its
    share asks for, given that total.

    To rank items for users, compare the cells of ``inverse_transform(transform(X))`` that are 0 in
    X. In a frame of integers these come back rounded: use floats.

    The total itself is not modelled. ``mean`` is that of a row with the mean total of fit.
    ``sample`` draws a log-normal total with the mean and the variance of those of fit, rounded.

    Feature: x_d D^1/2 / ||x||, which does not depend on n.

    Examples
    --------
    >>> import torch
    >>> from skvae.likelihoods import Multinomial
    >>> x = torch.tensor([2.0, 0.0, 1.0, 0.0])  # 3 of 4 items, all as likely: 3 / 4^3
    >>> round(Multinomial().log_prob(x, torch.zeros(4)).sum().exp().item(), 6)
    0.046875
    """

    support = Support(0.0, math.inf, "non-negative integers", whole=True)
    is_joint = True
    # What the start learns of the totals. No gradient ever moves it.
    total: ClassVar[Tensor] = torch.ones(1)
    spread: ClassVar[Tensor] = torch.zeros(1)  # standard deviation of the log of a total
    # What rows that are given hold.
    count: ClassVar[Tensor | None] = None  # (N, 1)  their total, over what is observed
    seen: ClassVar[Tensor | None] = None  # (N, D)   None: everything
    cells: ClassVar[Tensor | None] = None  # (N, D)  0 where it is missing

    def parameters(self, n_columns: int) -> dict[str, Tensor]:
        return {"total": torch.ones(1), "spread": torch.zeros(1)}

    def given(self, x: Tensor, observed: Tensor | None) -> Self:
        counted = x if observed is None else torch.where(observed, x, 0.0)
        count = counted.sum(-1, keepdim=True)
        return self.with_values({"count": count, "seen": observed, "cells": counted})

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        x, near = x.double(), raw.double()  # the terms of large counts cancel
        if self.seen is not None:
            x, near = torch.where(self.seen, x, 0.0), torch.where(self.seen, near, NEVER)
        n = x.sum(-1, keepdim=True)
        orders = torch.lgamma(n + 1.0) / n.clamp(min=1.0)  # log n!, for each count of the row
        log_p = x * (torch.log_softmax(near, -1) + orders) - torch.lgamma(x + 1.0)
        return log_p.to(raw.dtype)

    def gradient(
        self, x: Tensor, raw: Tensor, count: Tensor, g: Tensor, places: Mapping[str, Tensor]
    ) -> Tensor:
        # log p = log n! + sum x raw - n log sum e^raw - sum log x!;  -d log p / d raw = n p - x.
        if count.shape[-1] > 1:  # cells may be missing
            seen = count > 0.0
            x, raw = torch.where(seen, x, 0.0), torch.where(seen, raw, NEVER)
        of_row = count.amax(-1, keepdim=True)  # what each cell counts that is observed
        n, counted = x.sum(-1, keepdim=True), x * of_row
        torch.softmax(raw, -1, out=g)
        log_sum = raw.amax(-1, keepdim=True) - g.amax(-1, keepdim=True).log()  # no second pass
        g.mul_(n * of_row).sub_(counted)
        orders = torch.lgamma(n + 1.0) - torch.lgamma(x + 1.0).sum(-1, keepdim=True)
        log_p = (raw.sum(0) * counted).sum() - (log_sum * (n * of_row)).sum()
        return log_p + len(raw) * (orders * of_row).sum()

    def linear_form(self, x: Tensor, raw: Tensor) -> LinearForm:
        return LinearForm(x, torch.log_softmax(raw, -1), torch.zeros_like(raw))

    def log_prob_at(self, x: Tensor, raw: Tensor, observed: Tensor | None) -> Tensor:
        log_p = torch.log_softmax(raw, -1)
        if observed is None:
            return x @ log_p.T
        counted = torch.where(observed, x, 0.0)
        part = observed.to(x.dtype) @ torch.exp(log_p).T  # (N, M)
        log_part = torch.log(part.clamp(min=torch.finfo(x.dtype).tiny))
        return counted @ log_p.T - counted.sum(-1, keepdim=True) * log_part

    def _total(self, p: Tensor) -> Tensor:  # (..., N, D) -> (..., N, 1)
        """Return the total of a row of shares p: its own if it is given, and complete."""
        usual = self.total.to(p.dtype).expand(*p.shape[:-1], 1)
        if self.count is None:
            return usual
        if self.seen is None:
            return self.count.expand_as(usual)
        part = (p * self.seen).sum(-1, keepdim=True).clamp(min=SMALLEST_PART)
        return torch.where(self.seen.any(-1, keepdim=True), self.count / part, usual)

    def _expected_total(self, p: Tensor) -> Tensor:  # (..., N, D) -> (..., N, 1)
        """Return the total whose shares missing cells have.

        A row's own total is between what its seen part calls for and the usual one, as log-normal
        totals and binomial parts weigh them; what of it is not seen is left for missing cells.
        """
        if self.count is None or self.seen is None:
            return self._total(p)
        part = (p * self.seen).sum(-1, keepdim=True).clamp(max=1.0 - SMALLEST_PART)
        variance, count = self.spread.to(p.dtype).square(), self.count.to(p.dtype)
        known = variance * count / (1.0 - part)  # of log n, by the part, over what is known before
        log_seen = torch.log(count.clamp(min=1.0) / part.clamp(min=SMALLEST_PART))
        total = torch.exp((torch.log(self.total.to(p.dtype)) + known * log_seen) / (1.0 + known))
        left = (total - count).clamp(min=0.0) / (1.0 - part)
        return torch.where(self.seen.all(-1, keepdim=True), count, left)

    def mean(self, raw: Tensor) -> Tensor:
        p = torch.softmax(raw, -1)
        return self._expected_total(p) * p

    def mode(self, raw: Tensor) -> Tensor:
        p = torch.softmax(raw, -1)  # a cell alone is binomial
        n = self._expected_total(p).round()
        return torch.minimum(torch.floor((n + 1.0) * p), n)

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        p = torch.softmax(raw, -1)
        total = self._expected_total(p)
        if self.count is None:
            size: tuple[int, ...] = tuple(total.shape)
            eps = torch.randn(size, generator=generator, dtype=p.dtype, device=p.device)
            spread = self.spread.to(p.dtype)
            total = total * torch.exp(spread * eps - 0.5 * spread.square())
        return _shared_out(total.round(), p, generator)

    def information(self, raw: Tensor) -> Tensor:
        """Return the diagonal alone; ``curvature`` has all of n (diag(p) - p p^T)."""
        p = torch.softmax(raw, -1)
        return self._total(p) * p * (1.0 - p)

    def curvature(self, jacobian: Tensor, raw: Tensor, observed: Tensor | None) -> Tensor:
        p = torch.softmax(raw, -1)
        mean = self._total(p) * p
        mean = mean if observed is None else mean * observed
        weighted = jacobian * mean[:, None, :]  # (N, K, D)
        total = mean.sum(-1).clamp(min=torch.finfo(mean.dtype).tiny)[:, None]
        whole = weighted.sum(-1)  # (N, K)
        return weighted @ jacobian.mT - whole[:, :, None] * (whole / total)[:, None, :]

    def features(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x * (math.sqrt(x.shape[-1]) / length.clamp(min=torch.finfo(x.dtype).tiny))

    def from_features(self, features: Tensor) -> Tensor:
        """Return each count that has its feature beside the other counts of its row."""
        if self.cells is None:
            return super().from_features(features)
        squares = self.cells.square()
        others = squares.sum(-1, keepdim=True) - squares
        share = features.clamp(min=0.0).square() / features.shape[-1]  # of the row's squares
        share = share.clamp(max=LARGEST_SHARE)
        return torch.sqrt(share / (1.0 - share) * others)

    def feature_mean(self, raw: Tensor) -> Tensor:
        return self.features(torch.softmax(raw, -1))

    def from_linear_fit(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        # At the marginal d log p_d = d p_d / p_d, and a feature is about in proportion to p_d.
        counts = x.nan_to_num()
        seen = weight.to(x.dtype)[:, None] * ~x.isnan()
        number = seen.sum(0).clamp(min=torch.finfo(x.dtype).tiny)
        total = ((seen * counts).sum(0) / number).sum()
        mean = ((seen * counts).sum(0) + PRIOR_COUNT) / (number + 1.0)
        share = seen.amax(1) / seen.amax(1).sum().clamp(min=torch.finfo(x.dtype).tiny)
        part = (~x.isnan()).to(x.dtype) @ (mean / mean.sum())  # of a row's total, that is seen
        share = share * part / (share * part).sum().clamp(min=torch.finfo(x.dtype).tiny)
        n = counts.sum(1) / part.clamp(min=SMALLEST_PART)
        middle = (share * n).sum()
        variance = (share * (n - middle).square()).sum() / middle.square().clamp(min=1.0)
        own = {"total": total[None], "spread": variance.log1p().sqrt()[None]}
        least = torch.finfo(x.dtype).eps + 1e-3 * torch.stack([fit.mean, fit.scale]).mean(1)
        slope = 1.0 / fit.mean.clamp(min=float(least[0]))
        noise = fit.scale.clamp(min=float(least[1])).square()
        return LinearStart(slope, torch.log(mean / mean.sum()), noise, own)


def _shared_out(total: Tensor, p: Tensor, generator: torch.Generator) -> Tensor:
    """Draw counts that add up to ``total`` (..., 1): of halves of the columns, then of theirs."""
    n_columns = p.shape[-1]
    sums = [nn.functional.pad(p, (0, 2 ** math.ceil(math.log2(n_columns)) - n_columns))]
    while sums[-1].shape[-1] > 1:
        sums.append(sums[-1].unflatten(-1, (-1, 2)).sum(-1))
    counts = total
    for parts in reversed(sums[:-1]):
        pairs = parts.unflatten(-1, (-1, 2))
        first = pairs[..., 0] / pairs.sum(-1).clamp(min=torch.finfo(p.dtype).tiny)
        left = torch.binomial(counts, first.clamp(max=1.0), generator=generator)
        counts = torch.stack([left, counts - left], -1).flatten(-2)
    return counts[..., :n_columns]
