"""Arrays to standardised columns, and back to the user's units. NumPy only."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

Array = NDArray[np.floating]
Scaling = Literal["columns", "common", "none"]

CHUNK_ROWS = 4096
_ROWS_FOR_STATISTICS = 10_000


@dataclass(frozen=True)
class Columns:
    """How the user's columns become the model's: x = (X - shift) / scale.

    Attributes
    ----------
    scaling : {"columns", "common", "none"}
        Each column by its own standard deviation, all by one, or none at all.
    shift, scale : ndarray of shape (n_columns,)
    varies : ndarray of bool of shape (n_columns,)
        False for a constant column.
    rms : float
        Root mean square of the encoded columns' standard deviations: 1 where they were scaled.
    """

    scaling: Scaling
    shift: Array
    scale: Array
    varies: NDArray[np.bool_]
    rms: float

    def encode(self, X: NDArray) -> Array:
        return (X.astype(np.float64, copy=False) - self.shift) / self.scale

    def decode(self, x: Array) -> Array:
        return x * self.scale + self.shift

    @property
    def log_jacobian(self) -> Array:
        """Log |dx / dX| per column, in nats: what turns a density of x into one of X."""
        return -np.log(self.scale)


def fit_columns(
    X: NDArray,
    weight: Array,
    scaling: str | None,
    standardised: bool,
    column_name: Callable[[int], str] = str,
) -> Columns:
    """Choose shift and scale. A likelihood that is not ``standardised`` keeps the columns as is."""
    n_columns = X.shape[1]
    scaler = StandardScaler()
    with np.errstate(over="ignore", invalid="ignore"):  # told below, with the column
        for rows in row_chunks(len(X)):
            scaler.partial_fit(X[rows].astype(np.float64, copy=False), sample_weight=weight[rows])
    if not np.isfinite(scaler.var_).all():
        column = int(np.argmin(np.isfinite(scaler.var_)))
        raise ValueError(
            f"The values of column {column_name(column)} are too large: their variance is not a "
            f"finite number. Their largest is {np.abs(X[:, column]).max():g}; use another unit."
        )
    common = float(np.sqrt(scaler.var_.mean())) or 1.0
    # StandardScaler's scale is 1 for a column that is constant up to rounding.
    varies = (scaler.scale_ == np.sqrt(scaler.var_)) & (scaler.var_ > 0.0)
    if not standardised:
        return Columns("none", np.zeros(n_columns), np.ones(n_columns), varies, common)
    if scaling == "auto":
        scaling = "common" if share_one_unit(X) else "columns"
    if scaling == "columns":
        return Columns("columns", scaler.mean_, scaler.scale_, varies, 1.0)
    if scaling == "common":
        return Columns("common", scaler.mean_, np.full(n_columns, common), varies, 1.0)
    return Columns("none", scaler.mean_, np.ones(n_columns), varies, common)


def row_chunks(n_rows: int) -> Iterator[slice]:
    for start in range(0, n_rows, CHUNK_ROWS):
        yield slice(start, start + CHUNK_ROWS)


def check_numbers(X: NDArray) -> None:
    if X.dtype.kind not in "buif":
        raise ValueError(
            f"X must hold numbers; its dtype is {X.dtype}. Turn such columns into numbers first, "
            "for example dates into days since the first."
        )


def first_outside(X: NDArray, lower: float, upper: float) -> tuple[int, int] | None:
    """Row and column of the first cell that is not between the limits."""
    for rows in row_chunks(len(X)):
        cells = np.argwhere(~((X[rows] >= lower) & (X[rows] <= upper)))
        if len(cells):
            return rows.start + int(cells[0, 0]), int(cells[0, 1])
    return None


def share_one_unit(X: NDArray) -> bool:
    """Tell pixels, spectra and other signals from a table of different quantities.

    Columns share one unit if (a) at least half of them span half of the common range, and
    (b) neighbouring columns correlate clearly more (1.5 times) than any two do: order carries
    meaning in a signal, not in a table.
    """
    X = _some_rows(X).astype(np.float64, copy=False)
    spans = np.ptp(X, axis=0)
    varies = spans > 0.0
    if varies.sum() < 8 or len(X) < 3:
        return False
    X, spans = X[:, varies], spans[varies]
    if np.median(spans) < 0.5 * np.ptp(X):
        return False
    standardised = X - X.mean(0)
    norms = np.linalg.norm(standardised, axis=0)
    standardised /= np.where(norms > 0.0, norms, 1.0)
    correlation = np.abs(standardised.T @ standardised)
    n_columns = len(correlation)
    neighbours = np.diagonal(correlation, offset=1).mean()
    any_two = (correlation.sum() - correlation.trace()) / (n_columns * (n_columns - 1))
    return bool(neighbours > 1.5 * any_two)


def robust_units(x: Array, scaling: Scaling) -> tuple[Array, Array]:
    """Centre and spread of each encoded column, for the input of the encoder's MLP.

    Median and interquartile range for columns that were scaled one by one; one spread for all
    where they share a unit (a pixel that is rarely lit must not be blown up).
    """
    x = _some_rows(x).astype(np.float64, copy=False)
    if scaling != "columns":
        common = float(np.sqrt(x.var(axis=0).mean()))
        return x.mean(0), np.full(x.shape[1], common if common > 0.0 else 1.0)
    low, center, high = np.quantile(x, [0.25, 0.5, 0.75], axis=0)
    spread = (high - low) / 1.349  # of a normal distribution: its standard deviation
    standard = x.std(axis=0)
    spread = np.where(spread > 0.0, spread, np.where(standard > 0.0, standard, 1.0))
    return center, spread


def _some_rows(X: NDArray) -> NDArray:
    step = max(len(X) // _ROWS_FOR_STATISTICS, 1)
    return X[::step]
