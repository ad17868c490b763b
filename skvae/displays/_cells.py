"""The part of a plane that a map shows, and the cells of a grid in which it counts rows."""

from typing import Any, NamedTuple

import numpy as np

from .._table.column import Array

N_BINS = (240, 160, 110)  # along the longer side of a map of more rows: the first that shows
ROWS_A_CELL = 4.0  # so many rows in the mean of the cells that hold any
TAIL = 0.0005  # of the rows, at either end, that may be left out if they are far away
FAR = 0.25  # of the width without them: how far out they may lie
FLATTEST = 0.6  # height of a map, by its width, or the other way round


class Limits(NamedTuple):
    """The part of a plane, or of a line, that a map shows, and how many rows lie outside."""

    low: Array  # (2,) or (1,)
    high: Array  # (2,) or (1,)
    n_outside: int

    @classmethod
    def of(cls, codes: Array) -> "Limits":
        """Choose the part without rows so far away that all others would be a dot."""
        tails = np.quantile(codes, [TAIL, 1.0 - TAIL], axis=0)
        reach = np.maximum(FAR * np.ptp(tails, axis=0), 1e-9)
        low = np.maximum(codes.min(axis=0), tails[0] - reach)
        high = np.minimum(codes.max(axis=0), tails[1] + reach)
        outside = ((codes < low) | (codes > high)).any(axis=1)
        width = high - low
        widest = max(float(width.max()), 1e-9)
        margin = 0.5 * (np.maximum(width, FLATTEST * widest) - width) + 0.04 * widest
        return cls(low - margin, high + margin, int(outside.sum()))


class Cells(NamedTuple):
    """The cells of a grid, or of a line, that rows fall into; -1 for outside."""

    index: Any  # (N,)
    shape: tuple[int, int]  # rows from below, columns

    @classmethod
    def that_show(cls, codes: Array, limits: Limits) -> "Cells":
        """Make cells small enough for detail, and large enough to hold some rows each."""
        for n_bins in N_BINS:
            cells = cls.of(codes, limits, n_bins)
            inside = cells.index[cells.index >= 0]
            if len(inside) >= ROWS_A_CELL * len(np.unique(inside)):
                break
        return cells

    @classmethod
    def of(cls, codes: Array, limits: Limits, n_bins: int) -> "Cells":
        """Make square cells, so many along the longer side."""
        width = limits.high - limits.low
        number = np.maximum(np.rint(n_bins * width / width.max()), 1.0).astype(int)
        place = np.floor((codes - limits.low) / width * number)
        inside = ((place >= 0) & (place < number)).all(axis=1)
        x, *y = np.where(inside[:, None], place, 0.0).astype(int).T
        index = x + number[0] * y[0] if y else x
        return cls(np.where(inside, index, -1), (int(number[1]) if y else 1, int(number[0])))

    def total(self, weight: Array) -> Array:
        """Sum over the rows of each cell."""
        inside = self.index >= 0
        size = self.shape[0] * self.shape[1]
        total: Any = np.bincount(self.index[inside], weight[inside], size)
        return total.reshape(self.shape)

    def mean_of(self, colours: Array, count: Array) -> Array:  # (N, 4) -> (H, W, 4)
        """Return the mean colour of each cell's rows."""
        mixed = np.stack([self.total(part) for part in colours.T], axis=-1)
        return mixed / np.maximum(count, 1.0)[..., None]


def by_rank(count: Array) -> Array:
    """Return 0 to 1 by the rank of a count among those of the cells that hold rows."""
    values, index = np.unique(count[count > 0.0], return_inverse=True)
    shade = np.zeros_like(count)
    if len(values):
        cumulated = np.cumsum(np.bincount(index))
        shade[count > 0.0] = (cumulated / cumulated[-1])[index]
    return shade
