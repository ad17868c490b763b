"""Where rows come from: encoded rows in memory, merged, split and ordered."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._columns import CHUNK_ROWS, Array, Columns, row_chunks


class Rows(NamedTuple):
    """Encoded rows on the training device, each with how often it counts (mean 1)."""

    x: Tensor  # (N, D)
    weight: Tensor  # (N,)

    def take(self, index: Tensor) -> "Rows":
        weight = self.weight[index]
        return Rows(self.x[index], weight / weight.mean())


def merge_duplicates(X: NDArray, weight: Array) -> tuple[NDArray[np.intp], Array]:
    """Merge equal rows, in an order that depends on their values alone.

    Returns the index of one row of each kind and the kinds' summed weights; rows of weight zero
    are dropped. So repeating rows, weighting them and shuffling them are the same thing, and no
    row can stand both in the training and in the held-out part.
    """
    kept = np.flatnonzero(weight > 0.0)
    key = _row_hash(X)[kept]
    order = np.argsort(key, kind="stable")
    kept, key = kept[order], key[order]
    new = np.ones(len(kept), dtype=bool)
    for start in range(1, len(kept), CHUNK_ROWS):
        chunk = slice(start, start + CHUNK_ROWS)
        candidates = start + np.flatnonzero(key[chunk] == key[start - 1 : -1][: len(key[chunk])])
        equal = (X[kept[candidates]] == X[kept[candidates - 1]]).all(axis=1)
        new[candidates[equal]] = False
    first = np.flatnonzero(new)
    return kept[first], np.add.reduceat(weight[kept], first)


def _row_hash(X: NDArray) -> NDArray[np.uint64]:
    """64 well-mixed bits for each row: equal rows give equal bits, whatever their dtype."""
    key = np.zeros(len(X), dtype=np.uint64)
    for column in range(X.shape[1]):
        values = X[:, column].astype(np.float64) + 0.0  # -0.0 becomes 0.0
        key ^= values.view(np.uint64)
        key *= np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(32)
    return key


def encode_rows(X: NDArray, columns: Columns, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Encode the rows chunk by chunk: no float64 copy of all of them."""
    x = torch.empty(X.shape, dtype=dtype)
    for chunk in row_chunks(len(X)):
        x[chunk] = torch.from_numpy(columns.encode(X[chunk]))
    return x.to(device)


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


def batches(rows: Rows, batch_size: int, generator: torch.Generator) -> Iterator[Rows]:
    """One epoch. All rows at once where they fit into one batch, weighted; else drawn by weight."""
    if len(rows.x) <= batch_size:
        yield rows
        return
    order = epoch_order(rows.weight, generator)
    for chosen in order.split(batch_size):
        x = rows.x[chosen]
        yield Rows(x, x.new_ones(len(x)))
