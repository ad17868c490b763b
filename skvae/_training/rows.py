"""Where rows come from: encoded rows in memory, dense or sparse; split, ordered, in batches."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from scipy.sparse import issparse
from torch import Tensor

from .._table.columns import Columns
from .._table.spool import Spool, is_on_disk, spooled
from .._table.statistics import row_chunks

WINDOW_CELLS = 2**24  # numbers of rows that are shuffled together, where rows stand in a file
BLOCK_ROWS = 1024  # that stand beside each other in it
FEW = 100  # distinct rows: those that are equal stand there several times
MOST_REPEATED = 5000  # rows that they make then, about


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

    @property
    def window(self) -> int:
        """Return how many rows are shuffled together; 0: all."""

    @property
    def complete(self) -> bool:
        """Whether nothing is missing in any row, as far as is known without a look at them."""


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

    @property
    def window(self) -> int:
        return 0

    @property
    def complete(self) -> bool:
        return self.observed is None


@dataclass(frozen=True)
class StoredCells:
    """Encoded cells in a file, nan where one is missing, and what stands there instead."""

    x: Tensor  # (N, D)
    fill: Tensor | None  # (D,)  None: nothing is missing
    device: torch.device

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        index = index if isinstance(index, slice) else index.cpu()
        x = _gathered(self.x, index).to(self.device)
        if self.fill is None:
            return x, None
        missing = torch.isnan(x)
        return torch.where(missing, self.fill, x), ~missing

    def take(self, index: Tensor) -> "Cells":
        return TakenCells(self, index)

    @property
    def window(self) -> int:
        return window_of(self.x.shape[1])

    @property
    def complete(self) -> bool:
        return self.fill is None


def window_of(n_columns: int) -> int:
    """Return how many rows are shuffled together where they stand, or may stand, in a file."""
    return max(WINDOW_CELLS // max(n_columns, 1), 16 * BLOCK_ROWS)


def _gathered(rows: Tensor, index: Tensor | slice) -> Tensor:
    # index_select takes a third of the time of rows[index].
    return rows[index] if isinstance(index, slice) else rows.index_select(0, index)


@dataclass(frozen=True)
class SparseCells:
    """Sparse rows as the user has them: encoded, and filled with zeros, batch by batch."""

    table: Any  # (N, D) CSR
    columns: Columns
    dtype: torch.dtype
    device: torch.device
    filled: bool = True  # False: x is a sparse tensor

    def __len__(self) -> int:
        return int(self.table.shape[0])

    def __getitem__(self, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        rows = index if isinstance(index, slice) else index.cpu().numpy()
        if not self.filled:
            return self._stored(self.table[rows].tocoo()), None
        x, observed = self.columns.encode(self.table[rows])
        seen = None if observed is None else torch.from_numpy(observed).to(self.device)
        return torch.from_numpy(x).to(self.device, self.dtype), seen

    def _stored(self, table: Any) -> Tensor:
        cells = torch.from_numpy(self.columns.encode_stored(table)).to(self.dtype)
        where = torch.from_numpy(np.stack([table.row, table.col]).astype(np.int64))
        return torch.sparse_coo_tensor(
            where, cells, table.shape, check_invariants=False, is_coalesced=True
        )

    def take(self, index: Tensor) -> "Cells":
        return TakenCells(self, index)

    @property
    def window(self) -> int:
        return 0

    @property
    def complete(self) -> bool:
        return not self.columns.may_miss.any()

    @property
    def stored_share(self) -> float:
        """Share of the cells that are stored; 1 where the others are not 0, or some are missing."""
        n_cells = self.table.shape[0] * self.table.shape[1]
        if n_cells == 0 or not self.columns.keeps_zeros or np.isnan(self.table.data).any():
            return 1.0
        return float(self.table.nnz / n_cells)


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
        return TakenCells(self.cells, self.index.index_select(0, index))

    @property
    def window(self) -> int:
        return self.cells.window

    @property
    def complete(self) -> bool:
        return self.cells.complete


@dataclass(frozen=True)
class Rows:
    """Encoded rows, each with how often it counts (mean 1), and how many equal ones it is."""

    cells: Cells
    weight: Tensor  # (N,)
    copies: Tensor | None = None  # (N,)  None: each for itself

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        return Batch(*self.cells[index], _gathered(self.weight, index))

    def take(self, index: Tensor) -> "Rows":
        weight = self.weight.index_select(0, index)
        copies = None if self.copies is None else self.copies[index]
        return Rows(self.cells.take(index), weight.div_(weight.mean()), copies)

    @property
    def stored_share(self) -> float:
        """Share of the cells that are stored: 1 of dense rows."""
        cells = self.cells.cells if isinstance(self.cells, TakenCells) else self.cells
        return cells.stored_share if isinstance(cells, SparseCells) else 1.0

    def as_stored(self) -> "Rows":
        """Return sparse rows whose x is a sparse tensor."""
        if isinstance(self.cells, TakenCells):
            whole: Any = self.cells.cells
            return replace(self, cells=TakenCells(replace(whole, filled=False), self.cells.index))
        whole = self.cells
        return replace(self, cells=replace(whole, filled=False))

    def of_copies(self, copies: Tensor) -> "Rows":  # (N,)
        """Say how many equal rows each stands for; few rows stand there as often as that.

        Else an epoch over few rows would be one step with the noise of few draws, and a part that
        is held out would be judged by few.
        """
        n_rows, total = len(self), int(copies.sum())
        if n_rows > FEW:
            return Rows(self.cells, self.weight, copies)
        times = (copies * min(1.0, MOST_REPEATED / total)).round().long().clamp(min=1)
        again = torch.repeat_interleave(times)
        return Rows(self.cells, self.weight / times).take(again)

    def split(self, held_out: Tensor) -> tuple["Rows", "Rows"]:  # (N,)
        """Split every row's copies, so many of which are held out: (training, held-out) rows."""
        copies = self.copies
        if copies is None:
            sides = (held_out == 0, held_out > 0)
            kept, tested = (self.take(torch.nonzero(side)[:, 0].int()) for side in sides)
            return kept, tested
        parts = []
        for count in (copies - held_out, held_out):
            some = torch.nonzero(count)[:, 0]
            share = (count / copies).to(self.weight.dtype)
            parts.append(Rows(self.cells, self.weight * share, count).take(some))
        return parts[0], parts[1]

    def every(self, step: int) -> "Rows":
        """Take each ``step``-th row."""
        return self if step == 1 else self.take(torch.arange(0, len(self), step))

    def chunks(self, width: int) -> Iterator[Batch]:
        """Yield all rows in order, a cache-sized part at a time."""
        for chunk in row_chunks(len(self), width):
            yield self[chunk]


def encode_rows(
    X: Any, columns: Columns, dtype: torch.dtype, device: torch.device, overwrite: bool = False
) -> Cells:
    """Encode the rows chunk by chunk: no float64 copy of all of them. Sparse rows stay sparse.

    With ``overwrite`` their own memory is used where it fits. Those of a file go to a file.
    """
    if issparse(X):
        return SparseCells(X, columns, dtype, device)
    if is_on_disk(X):
        return _encoded_in_file(X, columns, dtype, device)
    x = torch.empty(0, dtype=dtype)
    fits = X.dtype == x.numpy().dtype and X.flags.c_contiguous and X.flags.writeable
    x = torch.from_numpy(X) if overwrite and fits else x.new_empty(X.shape)
    observed = torch.ones(X.shape, dtype=torch.bool) if columns.may_miss.any() else None
    for chunk, values, seen in columns.chunks(X, X.shape[1]):
        x[chunk] = torch.from_numpy(values)
        if seen is not None:
            if observed is None:  # going on with rows that miss more than the first ones
                observed = torch.ones(X.shape, dtype=torch.bool)
            observed[chunk] = torch.from_numpy(seen)
    return DenseCells(x.to(device), None if observed is None else observed.to(device))


def _encoded_in_file(
    X: Any, columns: Columns, dtype: torch.dtype, device: torch.device
) -> StoredCells:
    short = torch.empty(0, dtype=dtype).numpy().dtype
    # What is ours is overwritten, and never a file of the user's.
    file = X if isinstance(X, Spool) and X.dtype == short else spooled(X.shape, short)
    complete = True
    for chunk, values, seen in columns.chunks(X, X.shape[1]):
        file[chunk] = values if seen is None else np.where(seen, values, np.nan)
        complete &= seen is None
    fill = None if complete else torch.from_numpy(columns.fill).to(device, dtype)
    return StoredCells(torch.from_numpy(file), fill, device)


def mean_log_jacobian(columns: Columns, rows: Rows) -> float:
    """Return that of the change to original units, over what is observed; mean of the rows."""
    total = 0.0
    if columns.shapes:  # it depends on the cell
        for x, present, weight in rows.chunks(len(columns)):
            held = None if present is None else present.numpy(force=True)
            by_row = torch.from_numpy(columns.log_jacobian_of(x.numpy(force=True), held))
            total += float(weight.cpu().double() @ by_row)
        return total / float(rows.weight.double().sum())
    by_column = torch.from_numpy(columns.log_jacobian)
    if rows.cells.complete or not by_column.any():
        return float(by_column.sum())
    for _, observed, weight in rows.chunks(len(by_column)):
        seen = torch.ones(len(weight), len(by_column)) if observed is None else observed.cpu()
        total += float(weight.cpu().double() @ seen.double() @ by_column)
    return total / float(rows.weight.double().sum())


def some_copies(
    copies: Tensor | None, total: int, fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:  # (M,), (M,)
    """Draw a fraction of the copies of rows: numbers of rows, rising, and how many of each.

    At least one, and not all of the ``total``; ``copies`` (N,) None: one of each row.
    """
    order = torch.randperm(total, generator=generator, device=generator.device, dtype=torch.int32)
    drawn = order[: min(max(round(fraction * total), 1), total - 1)].long()
    if copies is not None:
        drawn = torch.repeat_interleave(copies)[drawn]  # the row that each copy is of
    chosen, number = drawn.unique(return_counts=True)
    return chosen, number if copies is None else number.to(copies.dtype)


def folds(copies: Tensor, n_folds: int, generator: torch.Generator) -> Iterator[Tensor]:  # (N,)
    """Yield how many copies of each row are held out in each of ``n_folds`` folds.

    The copies of a row are dealt out in turn, so that equal rows are in all parts alike.
    """
    order = torch.randperm(len(copies), generator=generator, device=generator.device)
    ends = copies[order].cumsum(0)
    begins = ends - copies[order]
    for fold in range(n_folds):
        # Of the positions from begin to end - 1, those that leave the rest ``fold``.
        dealt = (ends - fold + n_folds - 1) // n_folds - (begins - fold + n_folds - 1) // n_folds
        yield torch.zeros_like(dealt).index_copy(0, order, dealt)


def epoch_order(weight: Tensor, generator: torch.Generator, window: int = 0) -> Tensor:
    """Draw the row numbers of one epoch; a row stands there ``weight`` times on average.

    Of rows in a file so many are shuffled together, block by block: see ``shuffled``.
    """
    n_rows = len(weight)
    if bool((weight == weight[0]).all()):
        return shuffled(n_rows, window, generator)
    # Systematic resampling: floor(w) or ceil(w) times each.
    ends = torch.cumsum(weight.double(), 0)
    device = generator.device
    start = torch.rand((), generator=generator, dtype=torch.float64, device=device)
    points = (torch.arange(n_rows, device=device) + start) * (ends[-1] / n_rows)
    drawn = torch.searchsorted(ends, points, right=True).clamp(max=n_rows - 1)
    return drawn.index_select(0, shuffled(n_rows, window, generator))


def shuffled(n_rows: int, window: int, generator: torch.Generator) -> Tensor:  # (N,)
    """Draw an order of rows; with a window, one of blocks, and then of the rows within it.

    So a pass reads a file from place to place, and not from row to row.
    """
    small = torch.int32 if n_rows + BLOCK_ROWS < 2**31 else torch.int64  # there are many

    def permutation(size: int) -> Tensor:
        return torch.randperm(size, generator=generator, device=generator.device, dtype=small)

    if not 0 < window < n_rows:
        return permutation(n_rows)
    begins = BLOCK_ROWS * permutation(-(-n_rows // BLOCK_ROWS))
    within = torch.arange(BLOCK_ROWS, device=generator.device, dtype=small)
    order = (begins[:, None] + within).flatten()
    order = order[order < n_rows]
    return torch.cat([some[permutation(len(some))] for some in order.split(window)])


def batches(rows: Rows, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Yield one epoch: all rows at once where they fit into one batch, else drawn by weight."""
    if len(rows) <= batch_size:
        yield rows[:]
        return
    order = epoch_order(rows.weight, generator, rows.cells.window)
    once = torch.ones_like(rows.weight[:batch_size])
    for chosen in order.split(batch_size):
        yield Batch(*rows.cells[chosen], once[: chosen.shape[0]])
