"""What the columns of a table look like: moments, tails, a common unit, robust units."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from .column import Array

Scaling = Literal["columns", "common", "none"]


CHUNK_ROWS = 4096
QUARTILES = (0.25, 0.5, 0.75)
ROUNDING = 8.0 * float(np.finfo(np.float64).eps)  # relative size of a difference that is none
SMALLEST_VARIANCE = float(np.finfo(np.float64).tiny)  # below it, floats lose their digits
CHUNK_CELLS = 2**20  # numbers in a chunk: 8 MB in float64
CACHE_CELLS = 2**16  # numbers in a block that stays in a core's own cache
LONG_ROW = 512  # numbers, from which on a loop over a row of them is fast
COVARIANCE_AT_ONCE = 300  # columns, up to which it is added up with the other moments
ROWS_FOR_STATISTICS = 10_000
BEYOND_ALL = 1e30  # a spread, and a number in float32
FEWEST_ROWS = 20  # of which a wild one can be told
WILD = 100.0  # times as far out as most cells
INNER = 0.99  # of them
LEAP = 10.0  # times as far out as any other
LOG_LEAP = 2.0  # the same in logarithms
HEAVY_ROWS = 100  # from which on a few wild values are evidence


class ColumnMoments(NamedTuple):
    """Moments of each column over what is observed; an empty one has mean 0 and variance 0."""

    mean: Array
    variance: Array
    scale: Array  # standard deviation, 1 for a column that is constant up to rounding
    varies: NDArray[np.bool_]  # by more than rounding, and squares that are floats
    is_rounding: NDArray[np.bool_]  # what it varies by
    is_tiny: NDArray[np.bool_]  # the same, so that its squares are no floats
    n_missing: Array
    lowest: Array | None = None
    highest: Array | None = None
    covariance: Array | None = None  # (D, D)  of few dense columns that miss nothing

    @property
    def from_zero_to_one(self) -> NDArray[np.bool_] | None:
        """Tell the columns whose extremes are 0 and 1."""
        if self.lowest is None or self.highest is None:
            return None
        return (self.lowest == 0.0) & (self.highest == 1.0)


def measure(X: Any, weight: Array, names: Sequence[str]) -> ColumnMoments:
    """Measure the moments of a table's columns, chunk by chunk.

    Whether a column varies is seen from its extremes: neither the number of rows nor the unit of
    their weights says anything about that.
    """
    sums = _sums_of_sparse(X, weight) if issparse(X) else _sums_of_dense(X, weight)
    n_missing, extremes = sums.n_missing, sums.extremes
    empty = n_missing == X.shape[0]
    mean = np.where(empty, 0.0, sums.mean)
    variance = np.where(empty, 0.0, np.maximum(sums.variance, 0.0))  # its rounding can fall below
    if not np.isfinite(variance).all():
        column = int(np.argmin(np.isfinite(variance)))
        largest = np.nanmax(np.abs(X[:, [column]].toarray() if issparse(X) else X[:, column]))
        raise ValueError(
            f"The values of column {names[column]} are too large: their variance is not a "
            f"finite number. Their largest is {largest:g}; use another unit."
        )
    differ, more = extremes.differ(0.0), extremes.differ(ROUNDING)
    varies = more & (variance > SMALLEST_VARIANCE)
    scale = np.sqrt(np.where(varies, variance, 1.0))
    tiny = more & ~varies
    ends = extremes.lowest, extremes.highest
    return ColumnMoments(
        mean, variance, scale, varies, differ & ~more, tiny, n_missing, *ends, sums.covariance
    )


class _Sums(NamedTuple):
    """What passes over all rows add up."""

    mean: Array
    variance: Array
    n_missing: Array
    extremes: "Extremes"
    covariance: Array | None


def _sums_of_sparse(X: Any, weight: Array) -> _Sums:
    from sklearn.preprocessing import StandardScaler  # of fits alone: a model is read without it

    scaler = StandardScaler(with_mean=False)
    mean_weight = weight.mean()
    n_missing, extremes = np.zeros(X.shape[1]), Extremes(X.shape[1])
    for rows in row_chunks(X.shape[0], -(-X.nnz // max(X.shape[0], 1))):
        chunk = X[rows].astype(np.float64, copy=False)
        n_missing += np.bincount(chunk.indices[np.isnan(chunk.data)], minlength=X.shape[1])
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # told above
            scaler.partial_fit(chunk, sample_weight=weight[rows] / mean_weight)
        extremes.see(chunk[weight[rows] > 0.0])
    return _Sums(scaler.mean_, scaler.var_, n_missing, extremes, None)


def _sums_of_dense(X: NDArray, weight: Array) -> _Sums:
    """Add up blocks that a cache holds, each centred at its own mean (Chan et al. 1983)."""
    n_columns = X.shape[1]
    n_missing, extremes = np.zeros(n_columns), Extremes(n_columns)
    total, mean = np.zeros(n_columns), np.zeros(n_columns)
    with_covariance = n_columns <= COVARIANCE_AT_ONCE
    second = np.zeros((n_columns, n_columns) if with_covariance else n_columns)
    share, alike = weight / weight.mean(), bool((weight == weight[0]).all())
    for rows in row_chunks(len(X), n_columns, CACHE_CELLS):
        cells, own = X[rows], share[rows]
        extremes.see(cells if alike else cells[own > 0.0])  # as they are: shorter numbers
        x = cells.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # told above
            centre, count, lost = _centre(x, own)
            n_missing += lost
            before, total = total, total + count
            part = count / np.where(total > 0.0, total, 1.0)
            moved = centre - mean
            mean = mean + part * moved
            root = np.sqrt(before * part) * moved
            if with_covariance:
                if not alike:
                    x *= np.sqrt(own)[:, None]
                second += x.T @ x
                second += np.outer(root, root)
            else:
                second += np.einsum("n,nd,nd->d", own, x, x) + root**2
    variance = (second.diagonal() if with_covariance else second) / np.where(total > 0, total, 1.0)
    covariance = second / total if with_covariance and not n_missing.any() else None
    # What a column's only value is, is its mean, whatever sums make of it.
    mean = np.where(extremes.lowest == extremes.highest, extremes.lowest, mean)
    return _Sums(mean, variance, n_missing, extremes, covariance)


def _centre(x: Array, share: Array) -> tuple[Array, Array, Any]:  # (D,) each
    """Move rows to have the mean 0, in place; return that mean, what it is of, and holes.

    Holes become 0.
    """
    first = share @ x
    if not np.isnan(first).any() or not (missing := np.isnan(x)).any():
        count = np.full(x.shape[1], share.sum())
        centre = first / np.where(count > 0.0, count, 1.0)
        x -= centre
        return centre, count, 0
    count = share @ ~missing
    x[missing] = 0.0
    centre = (share @ x) / np.where(count > 0.0, count, 1.0)
    x -= centre
    x[missing] = 0.0
    return centre, count, missing.sum(0)


class Extremes:
    """The lowest and highest values of columns."""

    def __init__(self, n_columns: int) -> None:
        self.lowest, self.highest = np.full(n_columns, np.inf), np.full(n_columns, -np.inf)

    def see(self, chunk: Any) -> None:
        """Take some rows into account."""
        if chunk.shape[0] == 0:
            return
        if issparse(chunk):
            low, high = (f(axis=0).toarray().ravel() for f in (chunk.nanmin, chunk.nanmax))
        else:
            low, high = _along_columns(np.fmin, chunk), _along_columns(np.fmax, chunk)
        self.lowest, self.highest = np.fmin(self.lowest, low), np.fmax(self.highest, high)

    def differ(self, relative: float) -> NDArray[np.bool_]:
        """Tell where they do, by more than so much of their size."""
        size = np.maximum(np.abs(self.lowest), np.abs(self.highest))
        with np.errstate(invalid="ignore", over="ignore"):  # of a column that is empty
            return self.highest - self.lowest > relative * size


def _along_columns(extreme: np.ufunc, rows: NDArray) -> NDArray:  # (N, D) -> (D,)
    """Return the extremes of columns, of several rows beside each other where they are short."""
    n_rows, n_columns = rows.shape
    beside = max(min(LONG_ROW // max(n_columns, 1), n_rows), 1)
    whole = n_rows - n_rows % beside
    found = extreme.reduce(rows[:whole].reshape(-1, beside * n_columns), axis=0)
    return extreme.reduce(np.concatenate([found.reshape(beside, -1), rows[whole:]]), axis=0)


def geometric_mean(cells: Any) -> float:
    cells = cells.toarray().ravel() if issparse(cells) else cells
    present = cells[~np.isnan(cells)]
    return float(np.exp(np.log(present).mean())) if len(present) else 1.0


def row_chunks(
    n_rows: int,
    width: int = 1,
    numbers: int | None = None,
    between: tuple[int, int] = (1, CHUNK_ROWS),
) -> Iterator[slice]:
    """Cut rows into slices that hold about so many ``numbers``, ``width`` of them a row.

    None is as many as fit a processor's cache.
    """
    fewest, most = between
    size = max(fewest, min(most, (numbers or CHUNK_CELLS) // max(width, 1)))
    for start in range(0, n_rows, size):
        yield slice(start, start + size)


def two_valued(X: Any, among: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Tell the columns that hold 0 and 1 alone, and both; ``among`` says which may."""
    if among is not None:
        result = among.copy()
        if among.any():
            result[among] = two_valued(X if among.all() else X[:, among])
        return result
    both = np.zeros((2, X.shape[1]), dtype=bool)
    others = np.zeros(X.shape[1], dtype=bool)
    for rows in row_chunks(*X.shape):
        chunk = X[rows].toarray() if issparse(X) else X[rows]
        zero, one = chunk == 0, chunk == 1
        both |= [zero.any(axis=0), one.any(axis=0)]
        others |= ~(zero | one | (chunk != chunk)).all(axis=0)
    return both.all(axis=0) & ~others


def heavy_tailed(X: NDArray) -> NDArray[np.bool_]:
    """Tell the columns with wild values that a normal distribution has no place for.

    Between 0.5 and 10 percent of the cells, and at least three, lie more than ten robust
    standard deviations (interquartile range / 1.349) from the median. Columns in which one value
    makes up a tenth of the cells are left alone: a heavy-tailed density would become a spike there.
    """
    X = some_rows(X).astype(np.float64, copy=False)
    result = np.zeros(X.shape[1], dtype=bool)
    for columns in row_chunks(X.shape[1], len(X)):  # so many that there is room for their cells
        cells = X[:, columns]
        holed = np.isnan(cells).any(axis=0)
        own = np.zeros(cells.shape[1], dtype=bool)
        own[~holed] = _have_tails(cells if not holed.any() else cells[:, ~holed])
        for column in np.flatnonzero(holed):
            present = cells[~np.isnan(cells[:, column]), column]
            own[column] = _have_tails(present[:, None])[0]
        result[columns] = own
    return result


def _have_tails(cells: Array) -> NDArray[np.bool_]:
    """Tell the same of columns (N, D) that miss nothing."""
    result = np.zeros(cells.shape[1], dtype=bool)
    if len(cells) < HEAVY_ROWS:
        return result
    low, center, high = quartiles(cells)
    far = (np.abs(cells - center) > 10.0 * (high - low) / 1.349).sum(axis=0)
    share = far / len(cells)
    for column in np.flatnonzero((high > low) & (far >= 3) & (share > 0.005) & (share < 0.1)):
        _, repeats = np.unique(cells[:, column], return_counts=True)
        result[column] = repeats.max() < 0.1 * len(cells)
    return result


def wild_among(values: Array, counts: Array) -> NDArray[np.bool_]:
    """Tell the wild ones of a column's values (M,), which rise and come so often.

    They are more than 100 times as far from the median as 99% of the cells that differ from it, and
    10 times as far as all others; a heavy tail has no such gap, and none in the logarithms.
    """
    wild = np.zeros(len(values), dtype=bool)
    total = counts.sum()
    if total < FEWEST_ROWS or len(values) < 2:
        return wild
    median = values[np.searchsorted(counts.cumsum(), 0.5 * total)]
    away = np.abs(values / 2.0 - median / 2.0)  # no overflow
    order = np.argsort(away, kind="stable")
    away, count = away[order], np.where(away[order] == 0.0, 0.0, counts[order])
    inner = np.searchsorted(count.cumsum(), INNER * (count.sum() - 1.0), side="right")
    unit = float(away[min(int(inner), len(away) - 1)])
    leaps = (away[1:] / WILD > unit) & (away[1:] / LEAP > away[:-1]) & (unit > 0.0)
    for last in np.flatnonzero(leaps).tolist():
        if _is_far_in_logs(float(values[order[last + 1]]), values[order[: last + 1]]):
            wild[order[last + 1 :]] = True
            break
    return wild


def _is_far_in_logs(value: float, others: Array) -> bool:
    """Whether its logarithm is twice as far out as those of all others of its sign."""
    alike = others[np.sign(others) == np.sign(value)]
    if not value or not len(alike):
        return True
    logs = np.log(np.abs(alike))
    middle = float(np.median(logs))
    way = float(np.log(np.abs(value))) - middle
    return abs(way) > LOG_LEAP * float((np.sign(way) * (logs - middle)).max())


def may_be_wild(moments: ColumnMoments, n_rows: float) -> NDArray[np.bool_]:  # (D,)
    """Tell the columns that can have wild cells, by their moments alone.

    These are at most a share p = 1/100 + 1/n of them. If the wildest is M from the median, the mean
    of the squares of all ways to it is at most (p + 1/100^2) M^2. So is the square of the standard
    deviation, and the mean is no farther from the median than that.
    """
    if moments.lowest is None or moments.highest is None:
        return np.zeros(len(moments.mean), dtype=bool)
    n_seen = np.maximum(n_rows - moments.n_missing, 1.0)
    most = np.sqrt(1.0 - INNER + 1.0 / n_seen + WILD**-2.0)
    with np.errstate(invalid="ignore", over="ignore"):  # of a column that is empty
        farthest = np.maximum(moments.highest - moments.mean, moments.mean - moments.lowest)
        return moments.varies & (farthest * most > 0.99 * (1.0 - most) * moments.scale)


def quartiles(cells: Array) -> Array:  # (N, D) -> (3, D)
    """Return what ``np.nanquantile`` does along the first axis; a sort takes a third as long."""
    if np.isnan(cells).any():
        return np.nanquantile(cells, QUARTILES, axis=0)
    ordered = np.sort(cells, axis=0)
    below, share = np.divmod((len(cells) - 1) * np.array(QUARTILES), 1.0)
    low = ordered[below.astype(int)]
    high = ordered[np.minimum(below.astype(int) + 1, len(cells) - 1)]
    step, share = high - low, share[:, None]
    return np.where(share < 0.5, low + step * share, high - step * (1.0 - share))


def share_one_unit(X: NDArray) -> bool:
    """Tell pixels, spectra and other signals from a table of different quantities.

    Columns share one unit if (a) at least half of them span half of the common range, and
    (b) neighbouring columns correlate clearly more (1.5 times) than any two do: order carries
    meaning in a signal, not in a table.
    """
    X = some_rows(X, X.shape[1]).astype(np.float64)
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
    standardised = standardised.astype(np.float32)  # means of thousands of numbers are compared
    correlation = np.abs(standardised.T @ standardised)
    n_columns = len(correlation)
    neighbours = np.diagonal(correlation, offset=1).mean()
    any_two = (correlation.sum() - correlation.trace()) / (n_columns * (n_columns - 1))
    return bool(neighbours > 1.5 * any_two)


def robust_units(
    features: Array, scaling: Scaling, varies: NDArray[np.bool_] | bool = True
) -> tuple[Array, Array]:
    """Find centre and spread of each feature (nan: missing), for the encoder's MLP.

    What does not vary has a spread beyond all values, which then say nothing. Else, median and
    interquartile range for columns that were scaled one by one; one spread for all where they share
    a unit (a pixel that is rarely lit must not be blown up).
    """
    empty = np.isnan(features).all(axis=0)
    if empty.any():
        features = np.where(empty, 0.0, features)
    if scaling != "columns":
        common = float(np.sqrt(np.nanvar(features, axis=0).mean()))
        spread = np.where(varies, common if common > 0.0 else 1.0, BEYOND_ALL)
        return np.nanmean(features, axis=0), spread
    low, center, high = quartiles(features)
    spread = (high - low) / 1.349  # of a normal distribution: its standard deviation
    standard = np.nanstd(features, axis=0)
    spread = np.where(spread > 0.0, spread, np.where(standard > 0.0, standard, 1.0))
    return center, np.where(varies, spread, BEYOND_ALL)


def some_rows(X: Any, width: int = 1) -> Any:
    """Take every so many of the rows: at most 10,000, fewer where a row is wide. Dense."""
    most = max(100, min(ROWS_FOR_STATISTICS, 4 * CHUNK_CELLS // max(width, 1)))
    X = X[:: max(-(-X.shape[0] // most), 1)]
    return X.toarray() if issparse(X) else X
