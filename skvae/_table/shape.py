"""The shape of a column: a monotone map of its values to normal scores. NumPy and SciPy only.

A value of many rows is an *atom*: an interval of the scores has its probability. Between atoms a
smooth quantile function leads from scores to values. Columns are what normal variables become on
their way through the map: the marginals of a Gaussian copula (Hoff 2007, Extending the rank
likelihood; Zhao & Udell 2020, Missing value imputation for mixed data via Gaussian copula).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicHermiteSpline, PchipInterpolator
from scipy.special import ndtri

from .column import Array
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
SAME = 1e-7  # relative difference of numbers that a grid takes for the same
CLOSEST = 0.02  # of steps, that this may be: cents of thousands in float32
SECONDS = 86_400.0  # of a day
FAR_FROM_ZERO = 5.0  # standard deviations, beyond which a Gaussian keeps its sign
GAIN = 0.01  # nats a row, from which on a column is not Gaussian enough
CLEARLY = 2.0  # standard errors that this must be
MOST = 3.0  # nats that one row says of it
BISECTIONS = 100


class Grid(NamedTuple):
    """Numbers that are multiples of ``times`` / ``parts``; none if ``times`` is 0."""

    times: float
    parts: float

    @property
    def step(self) -> float:
        return self.times / self.parts

    def places(self, values: Array) -> Array:
        return np.rint(values * (self.parts / self.times))

    def nearest(self, values: Array) -> Array:
        """Return the nearest numbers of the grid: 7 / 100, which 7 * 0.01 is not."""
        return self.places(values) * self.times / self.parts


NO_GRID = Grid(0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Piece:
    """A stretch without atoms: an increasing cubic spline through knots, straight beyond them.

    Where ``bound`` is finite, the stretch beyond the knots on that side approaches it instead, as
    the tail of a log-normal density.
    """

    score: Array  # (J,)
    value: Array  # (J,)
    slope: Array  # (J,)  of value by score
    tail: tuple[float, float]  # slope beyond each end
    bound: tuple[float, float] = (-math.inf, math.inf)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "spline"}

    @cached_property
    def spline(self) -> CubicHermiteSpline:
        return CubicHermiteSpline(self.score, self.value, self.slope)

    def values(self, scores: Array) -> Array:
        """Return the values at some scores."""
        result = self.spline(np.clip(scores, self.score[0], self.score[-1]))
        for end in (0, -1):
            beyond, by = self._beyond(scores, self.score, end)
            if beyond.any():
                result[beyond] = self._of_tail(by, end)
        return result

    def log_slopes(self, scores: Array) -> Array:
        """Return log d value / d score at some scores."""
        inside = np.clip(scores, self.score[0], self.score[-1])
        result = np.log(self.spline(inside, 1))
        for end in (0, -1):
            beyond, by = self._beyond(scores, self.score, end)
            if beyond.any():
                room = self._room(end)
                log_slope = math.log(self.tail[end])
                result[beyond] = log_slope if room is None else log_slope + self._bent(by, end)
        return result

    def scores(self, values: Array) -> Array:
        """Return the scores of some values: the inverse of ``values``."""
        inside = np.clip(values, self.value[0], self.value[-1])
        result = self._inverse(inside)
        for end in (0, -1):
            beyond, by = self._beyond(values, self.value, end)
            if beyond.any():
                room, slope = self._room(end), self.tail[end]
                way = by / slope
                if room is not None:
                    with np.errstate(divide="ignore"):
                        way = np.log1p(by / room) * room / slope
                result[beyond] = self.score[end] + way
        return result

    def _beyond(self, at: Array, knots: Array, end: int) -> tuple[NDArray[np.bool_], Array]:
        """Tell what is beyond an end of the knots, and by how much."""
        beyond = at < knots[0] if end == 0 else at > knots[-1]
        return beyond, at[beyond] - knots[end]

    def _room(self, end: int) -> float | None:
        """Return how far an end is from its bound, with a sign."""
        return float(self.value[end] - self.bound[end]) if np.isfinite(self.bound[end]) else None

    def _bent(self, by: Array, end: int) -> Array:
        room = self._room(end)
        assert room is not None
        return by * (self.tail[end] / room)

    def _of_tail(self, by: Array, end: int) -> Array:
        room = self._room(end)
        if room is None:
            return self.value[end] + self.tail[end] * by
        return self.value[end] + room * np.expm1(self._bent(by, end))

    def _inverse(self, values: Array) -> Array:
        """Find the score between two knots by Newton steps, bisected where they leave."""
        after = np.clip(np.searchsorted(self.value, values), 1, len(self.value) - 1)
        low, high = self.score[after - 1], self.score[after]
        share = (values - self.value[after - 1]) / (self.value[after] - self.value[after - 1])
        at = low + share * (high - low)
        for _ in range(BISECTIONS):
            left = self.spline(at) - values
            low, high = np.where(left <= 0.0, at, low), np.where(left >= 0.0, at, high)
            step = at - left / self.spline(at, 1)
            following = np.where((step >= low) & (step <= high), step, 0.5 * (low + high))
            if np.abs(following - at).max(initial=0.0) < 1e-14 * (1.0 + np.abs(at).max(initial=0)):
                break
            at = following
        return at


@dataclass(frozen=True, eq=False)
class Shape:
    """A monotone map between the values of a column and normal scores.

    Attributes
    ----------
    atoms : ndarray of shape (n_atoms,)
        Values that have a probability of their own, rising.
    lower, upper : ndarray of shape (n_atoms,)
        Ends of their intervals of the scores.
    centre : ndarray of shape (n_atoms,)
        The mean of a standard normal variable within each: what stands for the atom.
    pieces : dict of int to Piece
        The stretches between atoms, by the number of atoms on their left.
    grid : Grid
        What all values stand on.
    log_unseen : float
        Log-probability in nats of a value that has no place; of one beyond a bound, its density.
    """

    atoms: Array
    lower: Array
    upper: Array
    centre: Array
    pieces: dict[int, Piece]
    grid: Grid
    log_unseen: float

    @property
    def step(self) -> float:
        return self.grid.step

    @property
    def edges(self) -> tuple[float, ...]:
        """Lower and upper end of each atom's interval in turn: (2 n_atoms,)."""
        return tuple(np.stack([self.lower, self.upper], 1).ravel().tolist())

    @property
    def examples(self) -> tuple[float, ...]:
        """Values that have a place, for messages."""
        knots = [piece.value for piece in self.pieces.values()]
        return tuple(np.sort(np.concatenate([self.atoms, *knots])).tolist())

    def scores(self, values: Array) -> Array:
        """Return the normal scores of values (N,); nan where a value has no place."""
        result, atom = np.full(values.shape, np.nan), self._atom_at(values)
        result[atom >= 0] = self.centre[atom[atom >= 0]]
        for piece, own in self._stretches(self.atoms, values, atom):
            own &= (values > piece.bound[0]) & (values < piece.bound[1])
            result[own] = piece.scores(values[own])
        return result

    def outside(self, values: Array) -> NDArray[np.bool_]:
        """Tell the values (N,) that have no place: beyond a bound, or between atoms."""
        atom = self._atom_at(values)
        known = (atom >= 0) | np.isnan(values)
        for piece, own in self._stretches(self.atoms, values, atom):
            known |= own & (values > piece.bound[0]) & (values < piece.bound[1])
        return ~known

    def values(self, scores: Array) -> Array:
        """Return the values that scores (N,) stand for: medians go to medians."""
        result, atom = np.full(scores.shape, np.nan), self._atom_around(scores)
        result[atom >= 0] = self.atoms[atom[atom >= 0]]
        for piece, own in self._stretches(self.lower, scores, atom):
            result[own] = self._on_grid(piece.values(scores[own]), piece)
        return result

    def log_jacobian(self, scores: Array) -> Array:
        """Return log |d score / d value| (N,) at scores: 0 in an atom, which has no density."""
        result, atom = np.zeros(scores.shape), self._atom_around(scores)
        for piece, own in self._stretches(self.lower, scores, atom):
            result[own] = -piece.log_slopes(scores[own])
        return result

    def _atom_at(self, values: Array) -> NDArray[np.intp]:
        """Return which atom each value is, but for the rounding of float32; -1: none."""
        if not len(self.atoms):
            return np.full(values.shape, -1)
        place = np.searchsorted(self.middles, values)
        near = np.abs(self.atoms[place] - values) <= self.rounding(np.abs(values))
        return np.where(near, place, -1)

    @property
    def middles(self) -> Array:
        """What lies between two atoms each: (n_atoms - 1,)."""
        return 0.5 * self.atoms[:-1] + 0.5 * self.atoms[1:]

    def rounding(self, size: Array) -> Array:
        """Return how far values of some size may be from an atom that they are."""
        return np.minimum(SAME * size, CLOSEST * self.step) if self.step else SAME * size

    def _atom_around(self, scores: Array) -> NDArray[np.intp]:
        """Return whose interval each score is in; -1: no atom's."""
        if not len(self.atoms):
            return np.full(scores.shape, -1)
        place = np.searchsorted(self.upper, scores).clip(0, len(self.atoms) - 1)
        is_atom = (self.lower[place] <= scores) & (scores <= self.upper[place])
        return np.where(is_atom, place, -1)

    def _stretches(
        self, ends: Array, at: Array, atom: NDArray[np.intp]
    ) -> Iterator[tuple[Piece, NDArray[np.bool_]]]:
        """Yield each piece with what belongs to it; ``ends`` are those of the atoms."""
        n_before = np.searchsorted(ends, at)
        for number, piece in self.pieces.items():
            own = (n_before == number) & (atom < 0) & ~np.isnan(at)
            if own.any():
                yield piece, own

    def _on_grid(self, values: Array, piece: Piece) -> Array:
        """Move values to the grid, but not onto what the piece never reaches."""
        if self.step == 0.0:
            return values
        low, high = piece.bound
        rounded = self.grid.nearest(values)
        rounded = np.where(rounded <= low, low + self.step, rounded)
        return np.where(rounded >= high, high - self.step, rounded)


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
    shape = _shape_of(values, counts, grid)
    mean = float(np.average(values, weights=counts))
    scale = math.sqrt(np.average((values - mean) ** 2, weights=counts))
    has_sign = values[0] > 0.0 or values[-1] < 0.0
    near_zero = has_sign and abs(mean) < FAR_FROM_ZERO * scale
    if len(shape.atoms) or near_zero or _is_better(values, counts):
        return shape
    return None if grid == NO_GRID else replace(shape, pieces={0: _straight(mean, scale)})


def _merged(values: Array, counts: Array, grid: Grid) -> tuple[Array, Array]:
    """Merge values that differ by the rounding of floats alone into the most frequent of them."""
    if grid == NO_GRID:
        return values, counts
    _, number = np.unique(grid.places(values), return_inverse=True)
    order = np.lexsort((-counts, number))
    first = np.unique(number[order], return_index=True)[1]
    return values[order[first]], np.bincount(number, counts).astype(np.float64)


def _straight(mean: float, scale: float) -> Piece:
    """Return the map of a Gaussian column: its draws stand on the grid all the same."""
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
    log_unseen = log_mass_of_unseen(counts)
    if pieces:  # as dense as one more row, anywhere
        log_unseen = -math.log((counts.sum() + 1.0) * float(values[-1] - values[0]))
    return Shape(atoms, lower, upper, centre, pieces, grid, log_unseen)


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
        mean = np.average(own, weights=weight)
        scale = math.sqrt(np.average((own - mean) ** 2, weights=weight))
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
