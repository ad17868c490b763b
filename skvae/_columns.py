"""Tables to standardised columns, and back to the user's units. NumPy only."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.preprocessing import StandardScaler

Array = NDArray[np.floating]
Scaling = Literal["columns", "common", "none"]

CHUNK_ROWS = 4096
CHUNK_CELLS = 2**20  # numbers in a chunk: 8 MB in float64
ROWS_FOR_STATISTICS = 10_000
CELL_LIMIT = 3.0  # robust standard deviations of a column: no MLP sees values further out
HEAVY_ROWS = 100  # from which on a few wild values are evidence


class Limits(NamedTuple):
    """What a column's likelihood gives a density to."""

    lower: Array  # (D,)
    upper: Array  # (D,)
    whole: NDArray[np.bool_]  # (D,)

    @property
    def none(self) -> bool:
        return bool(np.isinf(self.lower).all() and np.isinf(self.upper).all())


@dataclass(frozen=True)
class Columns:
    """How the columns of a table become the model's: x = (X - shift) / scale.

    Attributes
    ----------
    scaling : {"columns", "common", "none"}
        Each column by its own standard deviation, all by one, or none at all.
    shift, scale : ndarray of shape (n_columns,)
    fill : ndarray of shape (n_columns,)
        What stands in x for a missing value: admissible to the column's likelihood.
    varies : ndarray of bool of shape (n_columns,)
        False for a constant column.
    constant : ndarray of bool of shape (n_columns,)
        Columns that are nothing but their shift, also in what is drawn.
    may_miss : ndarray of bool of shape (n_columns,)
        Columns with missing values in training.
    rms : float
        Root mean square of the encoded columns' standard deviations: 1 where they were scaled.
    likelihoods : tuple of (str or Likelihood)
        Of each column.
    n_levels : tuple of int
        Of each column; 0 for numbers.
    limits : Limits
    """

    scaling: Scaling
    shift: Array
    scale: Array
    fill: Array
    varies: NDArray[np.bool_]
    constant: NDArray[np.bool_]
    may_miss: NDArray[np.bool_]
    rms: float
    likelihoods: tuple[Any, ...]
    n_levels: tuple[int, ...]
    limits: Limits

    def encode(self, X: Any) -> tuple[Array, NDArray[np.bool_] | None]:
        """Rows of a table to x and what of it is observed (None: all); sparse rows are filled."""
        X = X.toarray() if issparse(X) else X
        x = (X.astype(np.float64, copy=False) - self.shift) / self.scale
        missing = np.isnan(x)
        if not missing.any():
            return x, None
        return np.where(missing, self.fill, x), ~missing

    def decode(self, x: Array) -> Array:
        return np.where(self.constant, 0.0, x) * self.scale + self.shift

    @property
    def log_jacobian(self) -> Array:
        """Log |dx / dX| per column, in nats: what turns a density of x into one of X."""
        return -np.log(self.scale)

    def log_jacobian_of(self, X: Any) -> Array:
        """Of each row of a table: the sum over its observed columns."""
        result = np.full(X.shape[0], self.log_jacobian.sum())
        if self.log_jacobian.any():
            for rows in row_chunks(*X.shape):
                result[rows] -= missing_cells(X[rows]) @ self.log_jacobian
        return result


class Moments(NamedTuple):
    """Of each column, over what is observed; an empty column has mean 0 and variance 0."""

    mean: Array
    variance: Array
    scale: Array  # standard deviation, 1 for a column that is constant up to rounding
    n_missing: Array


def measure(X: Any, weight: Array, column_name: Callable[[int], str]) -> Moments:
    """Moments of a table's columns, chunk by chunk."""
    scaler = StandardScaler(with_mean=not issparse(X))
    n_missing = np.zeros(X.shape[1])
    for rows in row_chunks(*X.shape):
        chunk = X[rows].astype(np.float64, copy=False)
        cells = chunk.data if issparse(chunk) else chunk
        if cells.dtype.kind == "f" and np.isnan(cells).any():
            n_missing += np.isnan(chunk.toarray() if issparse(chunk) else chunk).sum(0)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # told below
            scaler.partial_fit(chunk, sample_weight=weight[rows])
    empty = n_missing == X.shape[0]
    mean = np.where(empty, 0.0, scaler.mean_)
    variance = np.where(empty, 0.0, scaler.var_)
    if not np.isfinite(variance).all():
        column = int(np.argmin(np.isfinite(variance)))
        largest = np.nanmax(np.abs(X[:, [column]].toarray() if issparse(X) else X[:, column]))
        raise ValueError(
            f"The values of column {column_name(column)} are too large: their variance is not a "
            f"finite number. Their largest is {largest:g}; use another unit."
        )
    scale = np.where(empty | (variance == 0.0), 1.0, scaler.scale_)
    return Moments(mean, variance, scale, n_missing)


def fit_columns(
    X: Any,
    moments: Moments,
    likelihoods: Sequence[Any],
    units: Sequence[str],
    n_levels: Sequence[int],
    scaling: str | None,
    shared_unit: bool,
    limits: Limits,
) -> Columns:
    """Choose shift and scale.

    ``units`` say of each column's likelihood what may be done: "location_scale", "scale" or "none".
    """
    moved = np.array([unit == "location_scale" for unit in units])
    ratio = np.array([unit == "scale" for unit in units])
    varies = (moments.scale == np.sqrt(moments.variance)) & (moments.variance > 0.0)
    common = float(np.sqrt(moments.variance[moved].mean())) if moved.any() else 0.0
    common = common or 1.0
    chosen: Scaling
    if scaling == "auto":
        chosen = "common" if shared_unit else "columns"
    else:
        chosen = cast(Scaling, scaling or "none")
    if chosen == "columns":
        scale, rms = moments.scale, 1.0
    elif chosen == "common":
        scale, rms = np.full(len(units), common), 1.0
    else:
        scale, rms = np.ones(len(units)), common
    # Positive columns are divided by their geometric mean, so that their logarithm is centred.
    scale = np.where(moved, scale, 1.0)
    scale[ratio] = [_geometric_mean(X[:, [column]]) for column in np.flatnonzero(ratio)]
    # Sparse rows stay sparse: the decoder's bias can hold a mean as well.
    shift = np.zeros(len(units)) if issparse(X) else np.where(moved, moments.mean, 0.0)
    fill = np.where(ratio, 1.0, 0.0)
    may_miss = moments.n_missing > 0
    constant = moved & ~varies & (not issparse(X))
    return Columns(
        chosen,
        shift,
        scale,
        fill,
        varies,
        constant,
        may_miss,
        rms,
        tuple(likelihoods),
        tuple(n_levels),
        limits,
    )


def _geometric_mean(cells: Any) -> float:
    cells = cells.toarray().ravel() if issparse(cells) else cells
    present = cells[~np.isnan(cells)]
    return float(np.exp(np.log(present).mean())) if len(present) else 1.0


def row_chunks(n_rows: int, width: int = 1) -> Iterator[slice]:
    """Slices of at most CHUNK_ROWS rows, fewer where a row is wide."""
    size = max(1, min(CHUNK_ROWS, CHUNK_CELLS // max(width, 1)))
    for start in range(0, n_rows, size):
        yield slice(start, start + size)


def outside(X: Any, limits: Limits) -> NDArray[np.bool_]:
    """Which cells are not between their column's limits, or not whole; nan is inside."""
    lower, upper, whole = limits
    with np.errstate(invalid="ignore"):
        wrong = np.less(X, lower) | np.greater(X, upper)
        if whole.any():
            wrong |= whole & (np.rint(X) != X) & ~np.isnan(X)
    return wrong


def missing_cells(X: Any) -> Any:
    """Cells of a table that are missing, as numbers; sparse where the table is."""
    if not issparse(X):
        return np.isnan(X).astype(np.float64) if X.dtype.kind == "f" else np.zeros(X.shape)
    missing = X.astype(np.float64)
    missing.data = np.isnan(missing.data).astype(np.float64)
    return missing


def two_valued(X: Any) -> NDArray[np.bool_]:
    """Columns that hold 0 and 1 alone, and both."""
    both = np.zeros((2, X.shape[1]), dtype=bool)
    others = np.zeros(X.shape[1], dtype=bool)
    for rows in row_chunks(*X.shape):
        chunk = X[rows].toarray() if issparse(X) else X[rows]
        zero, one = chunk == 0, chunk == 1
        both |= [zero.any(axis=0), one.any(axis=0)]
        others |= ~(zero | one | (chunk != chunk)).all(axis=0)
    return both.all(axis=0) & ~others


def heavy_tailed(X: NDArray) -> NDArray[np.bool_]:
    """Columns with wild values that a normal distribution has no place for.

    Between 0.5 and 10 percent of the cells, and at least three, lie more than ten robust
    standard deviations (interquartile range / 1.349) from the median. Columns in which one value
    makes up a tenth of the cells are left alone: a heavy-tailed density would become a spike there.
    """
    X = some_rows(X).astype(np.float64, copy=False)
    result = np.zeros(X.shape[1], dtype=bool)
    for column, cells in enumerate(X.T):
        present = np.sort(cells[~np.isnan(cells)])
        if len(present) < HEAVY_ROWS:
            continue
        low, center, high = np.quantile(present, [0.25, 0.5, 0.75])
        far = int((np.abs(present - center) > 10.0 * (high - low) / 1.349).sum())
        repeats = np.diff(np.flatnonzero(np.diff(present, prepend=np.nan, append=np.nan) != 0))
        share = far / len(present)
        is_tail = far >= 3 and 0.005 < share < 0.1
        result[column] = high > low and is_tail and repeats.max() < 0.1 * len(present)
    return result


def share_one_unit(X: NDArray) -> bool:
    """Tell pixels, spectra and other signals from a table of different quantities.

    Columns share one unit if (a) at least half of them span half of the common range, and
    (b) neighbouring columns correlate clearly more (1.5 times) than any two do: order carries
    meaning in a signal, not in a table.
    """
    X = some_rows(X).astype(np.float64)
    missing = np.isnan(X)
    if missing.any():
        X[missing] = np.broadcast_to(np.nansum(X, 0) / np.maximum((~missing).sum(0), 1), X.shape)[
            missing
        ]
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


def robust_units(features: Array, scaling: Scaling) -> tuple[Array, Array]:
    """Centre and spread of each feature (nan: missing), for the input of the encoder's MLP.

    Median and interquartile range for columns that were scaled one by one; one spread for all
    where they share a unit (a pixel that is rarely lit must not be blown up).
    """
    empty = np.isnan(features).all(axis=0)
    features = np.where(empty, 0.0, features)
    if scaling != "columns":
        common = float(np.sqrt(np.nanvar(features, axis=0).mean()))
        size = features.shape[1]
        return np.nanmean(features, axis=0), np.full(size, common if common > 0.0 else 1.0)
    quantile = np.nanquantile if np.isnan(features).any() else np.quantile
    low, center, high = quantile(features, [0.25, 0.5, 0.75], axis=0)
    spread = (high - low) / 1.349  # of a normal distribution: its standard deviation
    standard = np.nanstd(features, axis=0)
    spread = np.where(spread > 0.0, spread, np.where(standard > 0.0, standard, 1.0))
    return center, spread


def some_rows(X: Any, width: int = 1) -> Any:
    """Every so many of the rows: at most 10,000, fewer where a row is wide. Dense."""
    most = max(100, min(ROWS_FOR_STATISTICS, 4 * CHUNK_CELLS // max(width, 1)))
    X = X[:: max(-(-X.shape[0] // most), 1)]
    return X.toarray() if issparse(X) else X
