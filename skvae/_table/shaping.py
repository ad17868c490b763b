"""How the shape of a column is learned from its values. NumPy and SciPy only."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from scipy.special import ndtri

from .column import Array
from .shape import CLOSEST, NO_GRID, SAME, Grid, Piece, Shape
from .statistics import wild_among
from .unseen import log_mass_of_unseen

MOST_ATOMS = 256
ROWS_A_VALUE = 20  # from which on, in the mean, a column is one of atoms alone
ATOM_SHARE, ATOM_ROWS = 0.01, 10  # what makes up an atom elsewhere
PIECE_VALUES = 8  # of fewer values beside each other, each is an atom
KNOTS = (4, 60)  # of a piece, at least and at most
ROWS_A_KNOT = 5
GENTLEST = 0.1  # slope at a knot, of the gentler secant beside it: a density stays finite
STEEPEST = 3.0  # the same: beyond it the map would not be monotone (Fritsch & Carlson 1980)
DECIMALS = 6  # after the point, that are looked for
SECONDS = 86_400.0  # of a day
FAR_FROM_ZERO = 5.0  # standard deviations, beyond which a Gaussian keeps its sign
BEYOND = 10.0  # times the range of a column's other values, on its side of wild ones
GAIN = 0.01  # nats a row, from which on a column is not Gaussian enough
CLEARLY = 2.0  # standard errors that this must be
MOST = 3.0  # nats that one row says of it


def fit_shape(values: Array, count: Array) -> Shape | None:
    """Learn the shape of a column; None where it is constant, or Gaussian and on no grid.

    ``values`` (N,), nan where one is missing, are held by ``count`` (N,) rows each.
    """
    seen = ~np.isnan(values) & (count > 0.0)
    values, number = np.unique(values[seen], return_inverse=True)
    if len(values) < 2:
        return None
    grid = grid_of(values)
    values, counts = _merged(values, np.bincount(number, count[seen]).astype(np.float64), grid)
    wild = wild_among(values, counts)
    shape = _shape_of(values[~wild], counts[~wild], grid)
    is_gaussian = _is_gaussian(shape, values[~wild], counts[~wild])
    if is_gaussian and grid == NO_GRID and not wild.any():
        return None
    if is_gaussian:
        shape = replace(shape, pieces={0: _straight(values[~wild], counts[~wild])})
    if wild.any():
        log_unseen = _log_unseen(shape, values, counts)
        shape = replace(shape, reach=_reach(values, wild), log_unseen=log_unseen)
    return shape


def _is_gaussian(shape: Shape, values: Array, counts: Array) -> bool:
    """Whether a column is Gaussian enough, and its sign not in doubt."""
    mean, scale = _mean_and_scale(values, counts)
    has_sign = values[0] > 0.0 or values[-1] < 0.0
    near_zero = has_sign and abs(mean) < FAR_FROM_ZERO * scale
    return not (len(shape.atoms) or near_zero or _is_better(values, counts))


def _mean_and_scale(values: Array, counts: Array) -> tuple[float, float]:
    mean = float(np.average(values, weights=counts))
    return mean, math.sqrt(np.average((values - mean) ** 2, weights=counts))


def _log_unseen(shape: Shape, values: Array, counts: Array) -> float:
    """Return the log-probability of a value that has no place; where there is a density, that."""
    if shape.pieces:  # as dense as one more row, anywhere
        return -math.log((counts.sum() + 1.0) * float(values[-1] - values[0]))
    return log_mass_of_unseen(counts)


def _reach(values: Array, wild: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the ends of what has a place: on a side with wild values, before these."""
    first, last = np.flatnonzero(~wild)[[0, -1]]
    way, low, high = BEYOND * (values[last] - values[first]), -math.inf, math.inf
    if first > 0:
        low = max(values[first] - way, 0.5 * (values[first - 1] + values[first]))
    if last + 1 < len(values):
        high = min(values[last] + way, 0.5 * (values[last] + values[last + 1]))
    return float(low), float(high)


def _merged(values: Array, counts: Array, grid: Grid) -> tuple[Array, Array]:
    """Merge values that differ by the rounding of floats alone into the most frequent of them."""
    if grid == NO_GRID:
        return values, counts
    _, number = np.unique(grid.places(values), return_inverse=True)
    order = np.lexsort((-counts, number))
    first = np.unique(number[order], return_index=True)[1]
    return values[order[first]], np.bincount(number, counts).astype(np.float64)


def _straight(values: Array, counts: Array) -> Piece:
    """Return the map of a Gaussian column: its draws stand on the grid all the same."""
    mean, scale = _mean_and_scale(values, counts)
    ends = np.array([-1.0, 1.0])
    return Piece(ends, mean + scale * ends, np.full(2, scale), (scale, scale))


def _shape_of(values: Array, counts: Array, grid: Grid = NO_GRID) -> Shape:
    is_atom = _atoms_among(values, counts)
    if is_atom.all():
        values, counts = _with_gaps(values, counts, grid)
        is_atom = np.ones(len(values), dtype=bool)
    share = counts / counts.sum()
    below = np.cumsum(share) - share
    lower, upper = ndtri(below[is_atom]), ndtri((below + share)[is_atom].clip(max=1.0))
    if is_atom[-1]:
        upper[-1] = np.inf
    upper[:-1] = np.minimum(upper[:-1], lower[1:])  # but for rounding they are in order
    density = [np.exp(-0.5 * end**2) / math.sqrt(2.0 * math.pi) for end in (lower, upper)]
    centre = np.clip((density[0] - density[1]) / share[is_atom], lower, upper)
    middle = ndtri(below + 0.5 * share)
    atoms, pieces = values[is_atom], {}
    before = np.cumsum(is_atom)  # atoms up to each value
    for gap in np.unique(before[~is_atom]).tolist():
        own = ~is_atom & (before == gap)
        ends = [(upper[gap - 1], atoms[gap - 1])] if gap > 0 else []
        ends += [(lower[gap], atoms[gap])] if gap < len(atoms) else []
        knots = _knots(middle[own], values[own], counts[own])
        score, value = np.array(sorted([*zip(*knots, strict=True), *ends])).T
        pieces[gap] = _piece(score, value, gap == 0, gap == len(atoms))
    shape = Shape(atoms, lower, upper, centre, pieces, grid, log_unseen=0.0)
    return replace(shape, log_unseen=_log_unseen(shape, values, counts))


def _atoms_among(values: Array, counts: Array) -> NDArray[np.bool_]:
    """Tell the values that have a probability of their own."""
    total = counts.sum()
    if len(values) <= MOST_ATOMS and total >= ROWS_A_VALUE * len(values):
        return np.ones(len(values), dtype=bool)
    is_atom = counts >= max(ATOM_ROWS, ATOM_SHARE * total)
    # What is never on the other side of zero ends there, and zero itself is no part of a density.
    is_atom[[0, -1]] |= values[[0, -1]] == 0.0
    starts = np.flatnonzero(np.diff(is_atom, prepend=~is_atom[0]))
    for start, stop in zip(starts, [*starts[1:], len(values)], strict=True):
        is_atom[start:stop] |= stop - start < PIECE_VALUES
    return is_atom


def _with_gaps(values: Array, counts: Array, grid: Grid) -> tuple[Array, Array]:
    """Add the values of the grid that no row holds, if they are fewer than those that come.

    Together they count as the mass of what no row holds (Good 1953).
    """
    place = np.arange(len(values)) if grid == NO_GRID else grid.places(values)
    n_places = place[-1] - place[0] + 1.0
    n_gaps = n_places - len(values)
    if n_places > MOST_ATOMS or n_gaps > len(values) or n_gaps < 0.5:
        return values, counts
    everywhere = np.arange(place[0], place[-1] + 1.0)
    unseen = math.exp(log_mass_of_unseen(counts)) * counts.sum() / n_gaps
    all_values = everywhere * grid.times / grid.parts
    all_counts, own = np.full(len(everywhere), unseen), (place - place[0]).astype(int)
    all_values[own], all_counts[own] = values, counts
    return all_values, all_counts


def grid_of(values: Array) -> Grid:
    """Return the coarsest grid that all values stand on.

    Whole numbers, such with up to six decimals, or whole seconds of numbers of days.
    """
    for parts in (*(10.0**decimals for decimals in range(DECIMALS + 1)), SECONDS):
        scaled = values * parts
        if np.abs(scaled).max() >= 2.0**53:
            continue
        whole = np.rint(scaled)
        if (np.abs(scaled - whole) <= np.minimum(SAME * np.abs(scaled), CLOSEST)).all():
            return Grid(float(np.gcd.reduce(whole.astype(np.int64))), parts)
    return NO_GRID


def _knots(scores: Array, values: Array, counts: Array) -> tuple[Array, Array]:
    """Choose knots of a piece, evenly over the scores where enough rows are; ends are kept."""
    total = counts.sum()
    n_knots = int(np.clip(2.0 * np.cbrt(total), *KNOTS))
    places = np.linspace(scores[0], scores[-1], n_knots)
    after = np.interp(places, scores, np.cumsum(counts))
    kept = [0]
    for number in range(1, n_knots - 1):
        if after[number] - after[kept[-1]] >= ROWS_A_KNOT:
            kept.append(number)
    kept.append(n_knots - 1)
    places = places[kept]
    return places, np.interp(places, scores, values)


def _piece(score: Array, value: Array, is_first: bool, is_last: bool) -> Piece:
    """Put a monotone spline through knots, and find how it goes on beyond them."""
    apart = np.append(True, (np.diff(score) > 1e-9) & (np.diff(value) > 0.0))
    score, value = score[apart], value[apart]
    secant = np.diff(value) / np.diff(score)
    around = np.stack([np.append(secant[0], secant), np.append(secant, secant[-1])])
    slope = PchipInterpolator(score, value).derivative()(score)
    slope = np.clip(slope, GENTLEST * around.min(0), STEEPEST * around.min(0))
    low = 0.0 if is_first and value[0] > 0.0 else -math.inf
    high = 0.0 if is_last and value[-1] < 0.0 else math.inf
    # Over the last unit of the score: the last knots alone say little.
    way = min(1.0, score[-1] - score[0])
    near = np.interp([score[0] + way, score[-1] - way], score, value)
    tails = [_tail(*ends, way) for ends in zip(value[[0, -1]], near, (low, high), strict=True)]
    return Piece(score, value, slope, (tails[0], tails[1]), (low, high))


def _tail(end: float, near: float, bound: float, way: float) -> float:
    """Return the slope beyond an end by a point ``way`` inside; of a log where there is a bound."""
    if np.isfinite(bound):
        return float(abs(end - bound) * np.log((near - bound) / (end - bound)) / way)
    return float(abs(near - end) / way)


def _is_better(values: Array, counts: Array) -> bool:
    """Whether the shape has clearly more log-density of held-out values than a Gaussian."""
    gains, weights = [], []
    for fold in (0, 1):
        fitted = np.arange(len(values)) % 2 == fold
        if fitted.sum() < 2 * PIECE_VALUES:
            return False
        own, weight, held = values[fitted], counts[fitted], values[~fitted]
        mean, scale = _mean_and_scale(own, weight)
        shape = _shape_of(own, weight)
        score = shape.scores(held)
        of_shape = shape.log_jacobian(score) - 0.5 * score**2
        of_normal = -math.log(scale) - 0.5 * ((held - mean) / scale) ** 2
        placed = ~np.isnan(score)
        gains.append(np.clip((of_shape - of_normal)[placed], -MOST, MOST))
        weights.append(counts[~fitted][placed])
    gain, weight = np.concatenate(gains), np.concatenate(weights)
    mean = np.average(gain, weights=weight)
    error = math.sqrt(np.average((gain - mean) ** 2, weights=weight) / weight.sum())
    return bool(mean > max(GAIN, CLEARLY * error))
