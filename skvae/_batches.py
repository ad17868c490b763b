"""Where rows come from: encoded rows in memory, dense or sparse; merged, split and ordered."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse
from torch import Tensor

from ._columns import CHUNK_ROWS, Array, Columns, row_chunks


class Batch(NamedTuple):
    """Rows that the module can evaluate."""

    x: Tensor  # (N, D)
    observed: Tensor | None  # (N, D)  None: everything
    weight: Tensor  # (N,)


class Cells(Protocol):
    """Where the encoded cells are kept; indexing gives x and what of it is observed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor | slice) -> tuple[Tensor, Tensor | None]: ...

    def take(self, index: Tensor) -> "Cells": ...


@dataclass(frozen=True)
class DenseCells:
    """Encoded cells in memory, on the training device."""

    x: Tensor
    observed: Tensor | None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        observed = None if self.observed is None else _gathered(self.observed, index)
        return _gathered(self.x, index), observed

    def take(self, index: Tensor) -> "Cells":
        return TakenCells(self, index.to(self.x.device))


def _gathered(rows: Tensor, index: Tensor | slice) -> Tensor:
    # A third of the time of rows[index].
    return rows[index] if isinstance(index, slice) else rows.index_select(0, index)


@dataclass(frozen=True)
class SparseCells:
    """Sparse rows as the user has them: encoded, and filled with zeros, batch by batch."""

    table: Any  # (N, D) CSR
    columns: Columns
    dtype: torch.dtype
    device: torch.device

    def __len__(self) -> int:
        return int(self.table.shape[0])

    def __getitem__(self, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        rows = index if isinstance(index, slice) else index.cpu().numpy()
        x, observed = self.columns.encode(self.table[rows])
        seen = None if observed is None else torch.from_numpy(observed).to(self.device)
        return torch.from_numpy(x).to(self.device, self.dtype), seen

    def take(self, index: Tensor) -> "Cells":
        return TakenCells(self, index)


@dataclass(frozen=True)
class TakenCells:
    """Some rows of others, by their numbers: no copy."""

    cells: Cells
    index: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        return self.cells[_gathered(self.index, index)]

    def take(self, index: Tensor) -> "Cells":
        return TakenCells(self.cells, self.index[index])


@dataclass(frozen=True)
class Rows:
    """Encoded rows, each with how often it counts (mean 1)."""

    cells: Cells
    weight: Tensor  # (N,)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        return Batch(*self.cells[index], self.weight[index])

    def take(self, index: Tensor) -> "Rows":
        weight = self.weight[index]
        return Rows(self.cells.take(index), weight / weight.mean())

    def every(self, step: int) -> "Rows":
        """Each ``step``-th row."""
        return self if step == 1 else self.take(torch.arange(0, len(self), step))

    def chunks(self, width: int) -> Iterator[Batch]:
        """All rows in order, a cache-sized part at a time."""
        for chunk in row_chunks(len(self), width):
            yield self[chunk]


def merge_duplicates(X: Any, weight: Array) -> tuple[NDArray[np.intp], Array]:
    """Merge equal rows, in an order that depends on their values alone.

    Returns the index of one row of each kind and the kinds' summed weights; rows of weight zero
    are dropped. So repeating rows, weighting them and shuffling them are the same thing, and no
    row can stand both in the training and in the held-out part.
    """
    kept = np.flatnonzero(weight > 0.0)
    key = (_sparse_row_hash(X) if issparse(X) else _row_hash(X))[kept]
    order = np.argsort(key, kind="stable")
    kept, key = kept[order], key[order]
    new = np.ones(len(kept), dtype=bool)
    for start in range(1, len(kept), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        candidates = start + np.flatnonzero(key[chunk] == key[start - 1 : -1][: len(key[chunk])])
        equal = _equal_rows(X[kept[candidates]], X[kept[candidates - 1]])
        new[candidates[equal]] = False
    first = np.flatnonzero(new)
    return kept[first], np.add.reduceat(weight[kept], first)


def _equal_rows(A: Any, B: Any) -> NDArray[np.bool_]:
    if issparse(A):
        A, B = A.toarray(), B.toarray()
    both_missing = np.isnan(A) & np.isnan(B) if A.dtype.kind == "f" else False
    return ((A == B) | both_missing).all(axis=1)


def _row_hash(X: NDArray) -> NDArray[np.uint64]:
    """64 well-mixed bits for each row: equal rows give equal bits, whatever their dtype."""
    key = np.zeros(len(X), dtype=np.uint64)
    column = np.arange(X.shape[1], dtype=np.uint64)
    for rows in row_chunks(*X.shape):
        key[rows] = _cell_hash(X[rows], column).sum(1, dtype=np.uint64)
    return key


def _sparse_row_hash(X: Any) -> NDArray[np.uint64]:
    """The same bits as for the dense rows."""
    key = np.zeros(X.shape[0], dtype=np.uint64)
    row = np.repeat(np.arange(X.shape[0]), np.diff(X.indptr))
    np.add.at(key, row, _cell_hash(X.data, X.indices.astype(np.uint64)))
    return key


def _cell_hash(values: NDArray, column: Any) -> NDArray[np.uint64]:
    """SplitMix64 (Steele et al. 2014) of a value's bits and its column; 0 for the value 0."""
    values = values.astype(np.float64) + 0.0  # -0.0 becomes 0.0
    values[np.isnan(values)] = np.nan  # one of the many bit patterns of nan
    with np.errstate(over="ignore"):
        bits = values.view(np.uint64) + (column + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.where(values == 0.0, np.uint64(0), bits ^ (bits >> np.uint64(31)))


def encode_rows(
    X: Any, columns: Columns, dtype: torch.dtype, device: torch.device, overwrite: bool = False
) -> Cells:
    """Encode the rows chunk by chunk: no float64 copy of all of them. Sparse rows stay sparse.

    With ``overwrite`` their own memory is used where it fits.
    """
    if issparse(X):
        return SparseCells(X, columns, dtype, device)
    x = torch.empty(0, dtype=dtype)
    fits = X.dtype == x.numpy().dtype and X.flags.c_contiguous and X.flags.writeable
    x = torch.from_numpy(X) if overwrite and fits else x.new_empty(X.shape)
    observed = torch.ones(X.shape, dtype=torch.bool) if columns.may_miss.any() else None
    for chunk in row_chunks(*X.shape):
        values, seen = columns.encode(X[chunk])
        x[chunk] = torch.from_numpy(values)
        if seen is not None:
            if observed is None:  # going on with rows that miss more than the first ones
                observed = torch.ones(X.shape, dtype=torch.bool)
            observed[chunk] = torch.from_numpy(seen)
    return DenseCells(x.to(device), None if observed is None else observed.to(device))


def hold_out(n_rows: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random (training, held-out) row numbers; at least one row in each."""
    order = torch.randperm(n_rows, generator=generator, device=generator.device)
    n_held_out = min(max(round(fraction * n_rows), 1), n_rows - 1)
    return order[n_held_out:], order[:n_held_out]


def folds(n_rows: int, n_folds: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """The (training, held-out) row numbers of each of ``n_folds`` folds."""
    order = torch.randperm(n_rows, generator=generator, device=generator.device)
    position = torch.arange(n_rows, device=order.device)
    for fold in range(n_folds):
        held_out = position % n_folds == fold
        yield order[~held_out], order[held_out]


def epoch_order(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Row numbers of one epoch in random order; a row stands there ``weight`` times on average."""
    n_rows = len(weight)
    if bool((weight == weight[0]).all()):
        return torch.randperm(n_rows, generator=generator, device=generator.device)
    # Systematic resampling: floor(w) or ceil(w) times each.
    ends = torch.cumsum(weight.double(), 0)
    device = generator.device
    start = torch.rand((), generator=generator, dtype=torch.float64, device=device)
    points = (torch.arange(n_rows, device=device) + start) * (ends[-1] / n_rows)
    drawn = torch.searchsorted(ends, points, right=True).clamp(max=n_rows - 1)
    return drawn[torch.randperm(n_rows, generator=generator, device=generator.device)]


def batches(rows: Rows, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """One epoch. All rows at once where they fit into one batch, weighted; else drawn by weight."""
    if len(rows) <= batch_size:
        yield rows[:]
        return
    order = epoch_order(rows.weight, generator)
    once = torch.ones_like(rows.weight[:batch_size])
    for chosen in order.split(batch_size):
        yield Batch(*rows.cells[chosen], once[: chosen.shape[0]])
