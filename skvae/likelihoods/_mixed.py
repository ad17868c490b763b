"""A likelihood for each column: those of one kind are evaluated together, as one block."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._specification import Part
from ._likelihood import Likelihood, LinearFit, LinearStart, Noise, gradient_of_cells


class Given(NamedTuple):
    """Rows that are known, and where."""

    x: Tensor  # (N, D)
    observed: Tensor | None  # (N, D)  None: everything


class Block(Part[Likelihood]):
    """The columns of one likelihood, and what it has learned of them.

    Parameters
    ----------
    likelihood : Likelihood
        What the columns are distributed as.
    columns : sequence of int
        Their numbers.
    n_levels : sequence of int
        Number of levels of each, 0 for numbers.
    rms : float
        Root mean square of all columns' standard deviations.
    edges : sequence of tuple of float, default=()
        Ends of the intervals of normal scores of each.
    """

    def __init__(
        self,
        likelihood: Likelihood,
        columns: Sequence[int],
        n_levels: Sequence[int],
        rms: float,
        edges: Sequence[tuple[float, ...]] = (),
    ) -> None:
        own = likelihood.for_columns(n_levels, rms)
        own = own.with_edges(edges) if edges else own
        super().__init__(own, own.parameters(len(columns)), own.constants())
        self.columns = list(columns)
        self._index = torch.tensor(self.columns, dtype=torch.long)
        self.of_features = own.columns_of_features(len(columns))  # (P,)  among its own columns
        self.limits = dict(own.limits)

    @property
    def n_raw(self) -> int:
        return len(self.of_features)

    @property
    def has_scale(self) -> bool:
        """Whether its raw parameters are a location, on a scale without end."""
        return self.specification.support.units != "none"

    @property
    def has_scales(self) -> bool:
        """Whether each of its columns has a noise scale of its own."""
        scale = dict(self.named_parameters()).get("log_scale")
        return scale is not None and scale.shape == (self.n_raw,)

    def own(self, cells: Tensor) -> Tensor:
        """Return its columns of (..., D) cells."""
        if len(self.columns) == cells.shape[-1]:
            return cells
        return cells.index_select(-1, self._index.to(cells.device))

    def given(self, rows: Given) -> Likelihood:
        """Return its likelihood in these rows."""
        now = self.now
        if not now.is_joint:
            return now
        seen = None if rows.observed is None else self.own(rows.observed)
        return now.given(self.own(rows.x), seen)

    def from_linear_fit(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        start = self.now.from_linear_fit(x, weight, fit)
        self.assign(start.values)
        return start._replace(values={})

    def of_place(self, place: int) -> Likelihood:
        """Return the likelihood of one of its columns, which are elementwise, on its own."""
        one, two = (self.specification.parameters(n) for n in (1, 2))
        own = {name: value for name, value in one.items() if value.shape != two[name].shape}
        values = {**dict(self.named_buffers()), **dict(self.named_parameters())}
        own |= {name: values[name] for name in self.specification.constants()}
        return self.now.with_values({name: values[name][place, None] for name in own})

    def project(self) -> None:
        """Return to the admissible parameters after an optimiser step."""
        for name, (lower, upper) in self.limits.items():
            getattr(self, name).detach().clamp_(lower, upper)


class Alone(NamedTuple):
    """One column among those of its block, at some z."""

    now: Likelihood
    raw: Tensor  # (S, N, P) of the block
    place: int
    n_columns: int

    def log_prob(self, values: Tensor) -> Tensor:  # (N,) -> (S, N)
        """Return log p of these values of the column."""
        return self.now.log_prob(self._rows(values), self.raw)[..., self.place]

    def cdf(self, values: Tensor) -> Tensor:  # (N,) -> (S, N)
        """Return the probability of these values or less."""
        return self.now.cdf(self._rows(values), self.raw)[..., self.place]

    def mean(self) -> Tensor:  # (S, N)
        return self.now.mean(self.raw)[..., self.place]

    def _rows(self, values: Tensor) -> Tensor:  # (N,) -> (N, D)
        """Put values into rows of the block."""
        x = values.new_full((len(values), self.n_columns), self.now.support.filling)
        x[:, self.place] = values
        return x


class ColumnLikelihoods(nn.Module):
    """The likelihood of all columns.

    Parameters
    ----------
    likelihoods : sequence of Likelihood
        One for each column. Equal ones are one block.
    n_levels : sequence of int or None, default=None
        Number of levels of each column, 0 for numbers. None: all are numbers.
    rms : float, default=1.0
        Root mean square of the columns' standard deviations.
    edges : mapping of int to tuple of float, default={}
        Ends of the intervals of normal scores of columns that have such.

    Notes
    -----
    The raw parameters are ordered by blocks.
    """

    column: Tensor  # (P,)  the column of each raw parameter
    _back: Tensor  # (D,)   where each column stands in the blocks' order

    def __init__(
        self,
        likelihoods: Sequence[Likelihood],
        n_levels: Sequence[int] | None = None,
        rms: float = 1.0,
        edges: Mapping[int, tuple[float, ...]] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        levels = [0] * len(likelihoods) if n_levels is None else list(n_levels)
        blocks: dict[Likelihood, list[int]] = {}
        for number, likelihood in enumerate(likelihoods):
            blocks.setdefault(likelihood, []).append(number)
        parts = [
            Block(
                likelihood,
                columns,
                [levels[c] for c in columns],
                rms,
                [edges.get(c, ()) for c in columns],
            )
            for likelihood, columns in blocks.items()
        ]
        self.parts: Any = nn.ModuleList(parts)
        self.n_raw = [part.n_raw for part in parts]
        back = torch.tensor([c for part in parts for c in part.columns]).argsort()
        self._in_order = back.tolist() == list(range(len(likelihoods)))
        of_features = [torch.tensor(part.columns)[part.of_features] for part in parts]
        self.register_buffer("column", torch.cat(of_features), persistent=False)
        self.register_buffer("_back", back, persistent=False)
        # Factor analysis where no column's noise is shared, if any has a Gaussian one.
        kinds = {part.specification.noise for part in parts if part.has_scale}
        self.noise: Noise = "per_column" if kinds == {"per_column"} else "shared"

    @property
    def n_columns(self) -> int:
        return len(self._back)

    @property
    def is_location(self) -> Tensor:  # (P,)
        """Raw parameters that are a location, on a scale without end."""
        return torch.cat([torch.full((part.n_raw,), part.has_scale) for part in self.parts])

    @property
    def is_joint(self) -> Tensor:  # (P,)
        """Raw parameters of columns that share a row's total."""
        return torch.cat(
            [torch.full((part.n_raw,), part.specification.is_joint) for part in self.parts]
        )

    def _each(self, raw: Tensor, rows: Given | None = None) -> Iterator[tuple[Likelihood, Tensor]]:
        """Yield each block's likelihood, in these rows, with its own raw parameters."""
        for part, own in zip(self.parts, raw.split(self.n_raw, dim=-1), strict=True):
            yield part.now if rows is None else part.given(rows), own

    def _by_columns(
        self,
        function: Callable[[Likelihood, Tensor], Tensor],
        raw: Tensor,
        rows: Given | None = None,
    ) -> Tensor:
        return self._joined(
            [function(likelihood, own) for likelihood, own in self._each(raw, rows)]
        )

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """Return (..., D) from the blocks' own columns."""
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return joined if self._in_order else joined.index_select(-1, self._back)

    def kind_of(self, column: int) -> type[Likelihood]:
        """Return the class of a column's likelihood."""
        return next(type(part.specification) for part in self.parts if column in part.columns)

    def alone(self, column: int, raw: Tensor) -> "Alone":  # (..., P)
        """Return what a column alone needs, or the block of one that has many raw parameters."""
        for part, (now, own) in zip(self.parts, self._each(raw), strict=True):
            if column in part.columns:
                if now.is_joint:
                    raise ValueError(
                        f"The likelihood {type(now).__name__} shares a row's total among its "
                        "columns, so a cell alone has no distribution. Use "
                        "likelihood='poisson' to predict cells."
                    )
                place, n_columns = part.columns.index(column), len(part.columns)
                if part.n_raw > n_columns or part.specification.takes_levels:
                    return Alone(now, own, place, n_columns)
                return Alone(part.of_place(place), own[..., place, None], 0, 1)
        raise AssertionError(f"There is no column {column}.")

    # -- what a model asks of it, as of Likelihood ------------------------------------------------

    def log_prob(  # (N, D), (..., N, P) -> (..., N, D)
        self, x: Tensor, raw: Tensor, observed: Tensor | None = None
    ) -> Tensor:
        blocks = zip(self.parts, self._each(raw, Given(x, observed)), strict=True)
        return self._joined([now.log_prob(part.own(x), own) for part, (now, own) in blocks])

    def log_prob_at(self, x: Tensor, raw: Tensor, observed: Tensor | None) -> Tensor:  # (N, M)
        total = x.new_zeros((len(x), len(raw)))
        for part, (now, own) in zip(self.parts, self._each(raw), strict=True):
            seen = None if observed is None else part.own(observed)
            total += now.log_prob_at(part.own(x), own, seen)
        return total

    def gradient(
        self, x: Tensor, raw: Tensor, count: Tensor, aside: Sequence[dict[str, Tensor] | None]
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of count (N, D) log p(x | raw), and minus its gradient by raw.

        ``aside`` has a tensor for each parameter of each block, where that gradient is left. A
        block that has None there counts nothing.
        """
        g, total = torch.empty_like(raw), raw.new_zeros(())
        parts = zip(self.parts, self._each(raw), g.split(self.n_raw, -1), aside, strict=True)
        for part, (now, own), place, places in parts:
            if places is None:
                place.zero_()
                continue
            total += gradient_of_cells(now)(part.own(x), own, part.own(count), place, places)
        return total, g

    def slopes(self, raw: Tensor, rows: Given) -> tuple[Tensor, Tensor]:  # (..., P) each
        """Return d log p by raw, and by the log noise scale of each; 0 where there is none.

        What they are where a cell is missing means nothing.
        """
        by_raw, by_scale = [], []
        for part, (now, own) in zip(self.parts, self._each(raw, rows), strict=True):
            raw, scale = own.detach().requires_grad_(), torch.zeros_like(own)
            if part.has_scales:
                scale = part.log_scale.detach().expand_as(own).clone().requires_grad_()
                now = now.with_values({"log_scale": scale})
            by = [raw, scale] if part.has_scales else [raw]
            with torch.enable_grad():
                total = now.log_prob(part.own(rows.x), raw).sum()
                found = torch.autograd.grad(total, by, materialize_grads=True)
            by_raw.append(found[0])
            by_scale.append(found[1] if part.has_scales else scale)
        return torch.cat(by_raw, -1), torch.cat(by_scale, -1)

    @torch.no_grad()
    def move_scales(self, log_scale: Tensor) -> None:  # (P,)
        """Add to the log noise scale of each column that has one of its own."""
        for part, own in zip(self.parts, log_scale.split(self.n_raw), strict=True):
            if part.has_scales:
                part.log_scale.add_(own)

    @property
    def has_linear_form(self) -> bool:
        """Whether log p of many rows at many points is a matrix product."""
        return all(part.specification.has_linear_form for part in self.parts)

    def mean(self, raw: Tensor) -> Tensor:
        return self._by_columns(lambda likelihood, own: likelihood.mean(own), raw)

    def mode(self, raw: Tensor) -> Tensor:
        return self._by_columns(lambda likelihood, own: likelihood.mode(own), raw)

    def sample(self, raw: Tensor, generator: torch.Generator, rows: Given | None = None) -> Tensor:
        return self._by_columns(lambda kind, own: kind.sample(own, generator), raw, rows)

    def average(self, raw: Tensor, weight: Tensor, rows: Given | None = None) -> Tensor:
        return self._by_columns(lambda kind, own: kind.average(own, weight), raw, rows)

    def features(self, x: Tensor) -> Tensor:
        parts = [part.now.features(part.own(x)) for part in self.parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def from_features(self, features: Tensor, rows: Given | None = None) -> Tensor:
        return self._by_columns(
            lambda likelihood, own: likelihood.from_features(own), features, rows
        )

    def feature_mean(self, raw: Tensor) -> Tensor:
        return torch.cat([likelihood.feature_mean(own) for likelihood, own in self._each(raw)], -1)

    def information(self, raw: Tensor) -> Tensor:
        return torch.cat([likelihood.information(own) for likelihood, own in self._each(raw)], -1)

    def curvature(
        self, jacobian: Tensor, raw: Tensor, observed: Tensor | None, x: Tensor | None = None
    ) -> Tensor:
        rows = None if x is None else Given(x, observed)
        total = jacobian.new_zeros((*jacobian.shape[:-1], jacobian.shape[-2]))
        jacobians = jacobian.split(self.n_raw, dim=-1)
        for part, (now, own), j in zip(self.parts, self._each(raw, rows), jacobians, strict=True):
            seen = None if observed is None else part.own(observed)
            total = total + now.curvature(j, own, seen)
        return total

    def from_linear_fit(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        """Take over a linear fit, and say how the decoder begins as it."""
        fits = zip(*(value.split(self.n_raw) for value in fit), strict=True)
        starts = [
            part.from_linear_fit(part.own(x), weight, LinearFit(*own))
            for part, own in zip(self.parts, fits, strict=True)
        ]
        return LinearStart(
            torch.cat([start.weight_per_loading for start in starts]),
            torch.cat([start.bias for start in starts]),
            torch.cat([start.variance for start in starts]),
        )

    def set_noise(self, variance: Tensor, count: Tensor) -> None:
        """Take over the variance (P,) that the features' predictions leave on ``count`` (P,) rows.

        Nothing happens to likelihoods without a Gaussian noise scale.
        """
        variances, counts = variance.split(self.n_raw), count.split(self.n_raw)
        for part, own, n in zip(self.parts, variances, counts, strict=True):
            part.assign(part.now.noise_values(own, n))

    def noise_variance(self) -> Tensor:  # (D,)
        parts = [part.now.noise_variance(len(part.columns)) for part in self.parts]
        return self._joined(parts)

    def project(self) -> None:
        """Return to the admissible parameters after an optimiser step."""
        for part in self.parts:
            part.project()
