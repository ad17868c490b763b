"""A likelihood for each column: several kinds as one."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .likelihoods import Likelihood, LinearFit, LinearStart


class ColumnLikelihoods(Likelihood):
    """A likelihood for each column: those of one kind are evaluated together, as one block.

    Parameters
    ----------
    parts : sequence of (Likelihood, sequence of int)
        A likelihood and the columns that it is of; each column stands in exactly one part.

    Notes
    -----
    The raw parameters are ordered by parts.
    """

    column: Tensor  # (P,)  the column of each raw parameter
    _back: Tensor  # (D,)   where each column stands in the parts' order

    def __init__(self, parts: Sequence[tuple[Likelihood, Sequence[int]]]) -> None:
        super().__init__()
        self.parts: Any = nn.ModuleList(likelihood for likelihood, _ in parts)
        self._columns = [list(columns) for _, columns in parts]
        n_columns = sum(map(len, self._columns))
        of_features = [
            torch.tensor(columns)[likelihood.columns_of_features(len(columns))]
            for likelihood, columns in parts
        ]
        self.n_raw = [len(index) for index in of_features]
        back = torch.tensor([c for columns in self._columns for c in columns]).argsort()
        self._in_order = back.tolist() == list(range(n_columns))
        self.register_buffer("column", torch.cat(of_features), persistent=False)
        self.register_buffer("_back", back, persistent=False)
        # Factor analysis where no column's noise is shared, if any has a Gaussian one.
        kinds = {part.noise for part, _ in parts if part.support.units != "none"}
        self.noise: Literal["per_column", "shared"] = (
            "per_column" if kinds == {"per_column"} else "shared"
        )

    def blocks(self) -> Iterator[tuple[Likelihood, list[int], int]]:
        """Each part, its columns, and the number of its raw parameters."""
        return zip(self.parts, self._columns, self.n_raw, strict=True)

    def _zip(self, x: Tensor | None, raw: Tensor) -> Any:
        """Each part with its own columns of x and its own raw parameters."""
        raws = raw.split(self.n_raw, dim=-1)
        xs = [None if x is None else self._own(x, columns) for columns in self._columns]
        return zip(self.parts, xs, raws, strict=True)

    def _own(self, x: Tensor, columns: list[int]) -> Tensor:
        return x if len(columns) == x.shape[-1] else x[..., columns]

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """(..., D) from the parts' own columns."""
        joined = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return joined if self._in_order else joined.index_select(-1, self._back)

    def log_prob(self, x: Tensor, raw: Tensor) -> Tensor:
        return self._joined([part.log_prob(own, r) for part, own, r in self._zip(x, raw)])

    def mean(self, raw: Tensor) -> Tensor:
        return self._joined([part.mean(r) for part, _, r in self._zip(None, raw)])

    def mode(self, raw: Tensor) -> Tensor:
        return self._joined([part.mode(r) for part, _, r in self._zip(None, raw)])

    def sample(self, raw: Tensor, generator: torch.Generator) -> Tensor:
        return self._joined([part.sample(r, generator) for part, _, r in self._zip(None, raw)])

    def information(self, raw: Tensor) -> Tensor:
        return torch.cat([part.information(r) for part, _, r in self._zip(None, raw)], -1)

    def curvature(self, jacobian: Tensor, raw: Tensor, observed: Tensor | None) -> Tensor:
        jacobians = jacobian.split(self.n_raw, dim=-1)
        total = jacobian.new_zeros((*jacobian.shape[:-1], jacobian.shape[-2]))
        for (part, own, r), j in zip(self._zip(observed, raw), jacobians, strict=True):
            total = total + part.curvature(j, r, own)
        return total

    def features(self, x: Tensor) -> Tensor:
        parts = [
            part.features(self._own(x, columns))
            for part, columns in zip(self.parts, self._columns, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def feature_mean(self, raw: Tensor) -> Tensor:
        return torch.cat([part.feature_mean(r) for part, _, r in self._zip(None, raw)], -1)

    def average(self, raw: Tensor, weight: Tensor) -> Tensor:
        return self._joined([part.average(r, weight) for part, _, r in self._zip(None, raw)])

    def columns_of_features(self, n_columns: int) -> Tensor:
        return self.column

    def start(self, x: Tensor, weight: Tensor, fit: LinearFit) -> LinearStart:
        fits = zip(*(value.split(self.n_raw) for value in fit), strict=True)
        starts = [
            part.start(self._own(x, columns), weight, LinearFit(*own))
            for part, columns, own in zip(self.parts, self._columns, fits, strict=True)
        ]
        return LinearStart(*(torch.cat(values) for values in zip(*starts, strict=True)))

    def for_columns(self, n_levels: Sequence[int], floor: float) -> "ColumnLikelihoods":
        return ColumnLikelihoods(
            [
                (part.for_columns([n_levels[c] for c in columns], floor), columns)
                for part, columns in zip(self.parts, self._columns, strict=True)
            ]
        )

    def set_noise(self, variance: Tensor, count: Tensor) -> None:
        for part, own, n in zip(
            self.parts, variance.split(self.n_raw), count.split(self.n_raw), strict=True
        ):
            part.set_noise(own, n)

    def noise_variance(self, n_columns: int) -> Tensor:
        parts = zip(self.parts, self._columns, strict=True)
        return self._joined([part.noise_variance(len(columns)) for part, columns in parts])

    def project(self) -> None:
        for part in self.parts:
            part.project()


def locations(likelihood: Likelihood, n_columns: int) -> Tensor:  # (P,)
    """Raw parameters that are a location, on a scale without end."""
    parts = likelihood.parts if isinstance(likelihood, ColumnLikelihoods) else [likelihood]
    units = [part.support.units for part in parts]
    if isinstance(likelihood, ColumnLikelihoods):
        sizes = likelihood.n_raw
    else:
        sizes = [len(likelihood.columns_of_features(n_columns))]
    return torch.cat(
        [torch.full((n,), unit != "none") for n, unit in zip(sizes, units, strict=True)]
    )
