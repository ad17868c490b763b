"""The shape of a column: a monotone map of its values to normal scores. NumPy and SciPy only.

A value of many rows is an *atom*: an interval of the scores has its probability. Between atoms a
smooth quantile function leads from scores to values. Columns are what normal variables become on
their way through the map: the marginals of a Gaussian copula (Hoff 2007, Extending the rank
likelihood; Zhao & Udell 2020, Missing value imputation for mixed data via Gaussian copula).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicHermiteSpline

from .column import Array

SAME = 1e-7  # relative difference of numbers that a grid takes for the same
CLOSEST = 0.02  # of steps, that this may be: cents of thousands in float32
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
    reach : tuple of float, default=(-inf, inf)
        Values beyond it have no place: those of fit were wild.
    """

    atoms: Array
    lower: Array
    upper: Array
    centre: Array
    pieces: dict[int, Piece]
    grid: Grid
    log_unseen: float
    reach: tuple[float, float] = (-math.inf, math.inf)

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
            own &= self._has_place(values, piece)
            result[own] = piece.scores(values[own])
        return result

    def outside(self, values: Array) -> NDArray[np.bool_]:
        """Tell the values (N,) that have no place: beyond bound or reach, or between atoms."""
        atom = self._atom_at(values)
        known = (atom >= 0) | np.isnan(values)
        for piece, own in self._stretches(self.atoms, values, atom):
            known |= own & self._has_place(values, piece)
        return ~known

    def _has_place(self, values: Array, piece: Piece) -> NDArray[np.bool_]:
        low, high = max(self.reach[0], piece.bound[0]), min(self.reach[1], piece.bound[1])
        return (values > low) & (values < high)

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
