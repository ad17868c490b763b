"""The density among the rows of fit as a graph: ``_inference/aggregate`` for new rows.

Complete rows are compared with all kernels by one matrix product for each block of rows; a row with
holes by the model of the columns that are observed in it.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._detection import RowScore
from .._inference.aggregate import NU, ROUNDING, Aggregate, C, hole_keys
from .._inference.residuals import Residuals
from .._model.vae import VAE
from .functions import where_true
from .inputs import Encoded
from .loops import by_blocks, for_each, gram_of, whitening_of
from .traced import constant

BLOCK = 256  # rows whose distances to all kernels are in memory at once
HOLES_BLOCK = 64  # rows with holes, whose posteriors are


class _Place(NamedTuple):
    """Where rows are among the kernels."""

    at: Any  # (N, P)         features, centred; 0 where nothing is observed
    seen: Any  # (N, P)       0 or 1
    n_dimensions: Any  # (N,)
    log_unit: Any  # (N,)     of the features' units
    pattern: Any  # (N, 2)    what is missing, as a number in two parts

    def some(self, rows: Any) -> "_Place":
        return _Place(*(part[rows] for part in self))


def log_density_of(vae: VAE, rows: Encoded, how: RowScore) -> tuple[Any, Any]:  # (N,) each
    """Return log p(x) over the observed columns of each row, by the kernels of others.

    And what a row of fit is known to score in the end; minus infinity for others.
    """
    assert how.kernels is not None
    kernels = _Kernels(vae, Aggregate(*map(torch.tensor, how.kernels)), how)
    place, observed = kernels.place(rows.x, rows.observed), rows.observed
    complete, others = where_true(observed.all(1)), where_true(~observed.all(1))
    found = place.n_dimensions.new_zeros((len(rows.x), 2))
    found = found.index_copy(0, complete, kernels.of_complete(place.some(complete)))
    found = found.index_copy(0, others, kernels.of_others(place.some(others)))
    return found[:, 0], found[:, 1]


class _Kernels:
    """Kernels, and the model that is their metric."""

    def __init__(self, vae: VAE, kernels: Aggregate, how: RowScore) -> None:
        self.vae, self.model, self.kernels = vae, Residuals.of(vae), kernels
        left_out = 0.0 if how.ambiguous else 1.0 if how.repeats else math.inf
        self.lost = (left_out / kernels.copies).clamp(max=1.0)  # of each kernel, to its own row
        self.counts_others = left_out > 0.0 and len(kernels.width) > 1
        self.pattern = _parts(kernels.pattern)
        known = how.known_at_kernels
        self.known = None if known is None else torch.tensor(known).nan_to_num(-math.inf)

    def place(self, x: Any, observed: Any) -> _Place:
        model = self.model
        seen = observed[:, model.column].double()
        at = torch.where(seen > 0.0, model.centred(self.vae.likelihood.features(x)), 0.0)
        counted = (observed & self.kernels.varies).double()
        log_unit = (counted[:, model.column] * model.unit.log()).sum(1)
        return _Place(at, seen, counted.sum(1), log_unit, _pattern(observed))

    # -- complete rows ----------------------------------------------------------------------------

    def of_complete(self, rows: _Place) -> Any:  # (N, 2)
        model, kernels = self.model, self.kernels
        center = self._with_residuals(constant(rows.at, kernels.center))
        squares, turned = center.square().sum(1), center.T
        varies = kernels.varies[model.column].to(model.noise)
        log_volume = float(model.log_volume(None, varies, C))

        def block(*parts: Any) -> Any:
            place = _Place(*parts)
            own = self._with_residuals(place.at)
            squared = own.square().sum(1)[:, None] + squares - 2.0 * (own @ turned)
            return self._scores(squared.clamp(min=0.0), place, log_volume)

        return by_blocks(block, BLOCK, *rows)

    def _with_residuals(self, features: Any) -> Any:  # (N, P) -> (N, 2 P)
        """Return features less the middle, and beside them C times what the model leaves of it."""
        model, moved = self.model, features - self.kernels.middle
        back = torch.linalg.solve(model.precision(None)[0], model.loadings.T)  # (K, P)
        y = moved / model.noise
        return torch.cat([moved, C * (y - (y @ model.loadings) @ back)], 1)

    # -- rows with holes --------------------------------------------------------------------------

    def of_others(self, rows: _Place) -> Any:  # (N, 2)
        model, kernels = self.model, self.kernels
        metric = (1.0 + (C / model.noise).square()).sqrt()
        middle, centers = kernels.middle, constant(rows.at, kernels.center)
        center = metric * (centers - middle)
        squares = center.square()
        loading = C * model.loadings / model.noise[:, None]

        def explained(at: Any, seen: Any, explaining: Any) -> Any:  # (M,)
            directions = seen[:, None] * (loading @ explaining)  # (P, 2 K)
            return (centers @ directions - at @ directions).square().sum(1)

        def block(*parts: Any) -> Any:
            place = _Place(*parts)
            at, seen = place.at, place.seen
            moved = metric * (at - middle * seen)
            squared = moved.square().sum(1)[:, None] + seen @ squares.T - 2.0 * (moved @ center.T)
            explaining, log_volume = self._of_patterns(seen)
            squared = squared - for_each(explained, at, seen, explaining)
            return self._scores(squared.clamp(min=0.0), place, log_volume)

        return by_blocks(block, HOLES_BLOCK, *rows)

    def _of_patterns(self, seen: Any) -> tuple[Any, Any]:  # (B, K, 2 K), (B,)
        """Return B for which ||B^T V^T y||^2 is explained of ||y||^2, and ``Residuals.log_volume``.

        With M = L L^T, B is L^-T beside M^-1. With G = V^T diag(weight gain / (1 + gain)) V, the
        determinant of I - (M^-1 + M^-2) G there is that of (M + I) M^-2 (M - I + (M + I)^-1 - G),
        and all of these are positive definite.
        """
        model = self.model
        identity = torch.eye(model.loadings.shape[1]).to(model.loadings)
        gain = (C / model.noise).square()
        weight = seen * self.kernels.varies[model.column].to(model.noise)
        gram = gram_of(seen, model.loadings)
        own, log_det = whitening_of(gram + identity)
        wider, log_det_wider = whitening_of(gram + 2.0 * identity)
        kept = gram_of(seen - weight * (gain / (1.0 + gain)), model.loadings)
        _, log_det_kept = whitening_of(kept + wider.mT @ wider)
        log_volume = 0.5 * (weight * gain.log1p()).sum(1)
        log_volume = log_volume + 0.5 * (log_det_wider - 2.0 * log_det + log_det_kept)
        return torch.cat([own.mT, own.mT @ own], 2), log_volume

    # -- both -------------------------------------------------------------------------------------

    def _scores(self, squared: Any, rows: _Place, log_volume: Any) -> Any:  # (N, M) -> (N, 2)
        """Return log p(x) by squared distances to all kernels, and what is known of the row."""
        kernels, width, d = self.kernels, self.kernels.width, rows.n_dimensions[:, None]
        alike = (rows.pattern[:, :1] == self.pattern[0]) & (rows.pattern[:, 1:] == self.pattern[1])
        near = (squared <= ROUNDING * d) & alike
        log_kernel = -0.5 * (NU + d) * torch.log1p(squared / (NU * width.square()))
        log_kernel = log_kernel + (kernels.log_weight - d * width.log())
        log_normaliser = torch.lgamma(0.5 * (NU + d)) - math.lgamma(0.5 * NU)
        log_normaliser = (log_normaliser - 0.5 * d * math.log(NU * math.pi))[:, 0]
        log_normaliser = log_normaliser + log_volume - rows.log_unit
        if self.counts_others:
            log_kernel = torch.where(near, log_kernel + torch.log1p(-self.lost), log_kernel)
            weight = (near * (self.lost * kernels.log_weight.exp())).sum(1)
            log_normaliser = log_normaliser - torch.log1p(-weight.clamp(max=1.0 - 1e-9))
        density = torch.logsumexp(log_kernel, 1) + log_normaliser
        if self.known is None:
            return torch.stack([density, torch.full_like(density, -math.inf)], 1)
        return torch.stack([density, torch.where(near, self.known, -math.inf).amax(1)], 1)


LOW, HIGH = 2**31, 2**33  # of 64 bits: runtimes add up integers as floats, which hold 53


def _parts(number: Tensor) -> Tensor:  # (M,) -> (2, M)
    """Return the low and the high bits of integers, as floats."""
    return torch.stack([number % LOW, number // LOW % HIGH]).double()


def _pattern(observed: Any) -> Any:  # (N, D) -> (N, 2)
    """Return a number for what each row misses, as ``_inference/aggregate`` has it."""
    total = (~observed).double() @ _parts(hole_keys(observed.shape[1])).T
    carry = (total[:, :1] / LOW).floor()
    low, high = total[:, :1] - LOW * carry, total[:, 1:] + carry
    return torch.cat([low, high - HIGH * (high / HIGH).floor()], 1)
