"""Maps of columns to normal scores and back: ``_table/shape`` as a graph, all columns at once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._table.shape import CLOSEST, SAME, Piece, Shape
from .functions import look_up
from .loops import repeat

STEPS = 64  # of Newton's method, bisected where they leave: enough for all digits by halves alone


class Knots(NamedTuple):
    """The pieces of all columns: what a cell looks up by its piece, and by its stretch of it."""

    first: Tensor  # (A,)         the first of a piece's stretches
    n_before: Tensor  # (A,)      knots of pieces before it, in its column
    n_stretches: Tensor  # (A,)
    there: Tensor  # (A,)         whether it is a piece: the first one stands for none
    score: Tensor  # (A, 2)       of the ends
    value: Tensor  # (A, 2)
    tail: Tensor  # (A, 2)        slopes beyond the ends
    bound: Tensor  # (A, 2)
    stretch: Tensor  # (B, 6)     score, value and slope of its left end, then of its right one


class Shapes:
    """The shapes of some columns, as tables of constants."""

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self.shapes = shapes
        pieces = [_straight(), *(piece for shape in shapes for piece in shape.pieces.values())]
        self.knots = _knots(pieces, shapes)
        self.reach = _tensor([shape.reach for shape in shapes])  # (S, 2)
        self.step = torch.tensor([shape.step for shape in shapes], dtype=torch.float64)
        numbers = iter(range(1, len(pieces)))
        # A piece by the number of atoms on its left; an atom that no value is where there is none.
        self.piece_at = [_at_gaps(shape, [next(numbers) for _ in shape.pieces]) for shape in shapes]
        self.atoms = [_atoms(shape) for shape in shapes]

    def scores(self, values: Any) -> Any:  # (N, S)
        """Return the normal scores of values; nan where a value has no place."""
        missing = values.isnan()
        values = torch.where(missing, 0.0, values)
        near = self._atom(values, [torch.tensor(shape.middles) for shape in self.shapes])
        is_atom = (near[0] - values).abs() <= self._rounding(values.abs())
        piece = self._piece(values, 0)
        own = _Place(self.knots, piece, self._count(values, "value"))
        scores = own.score_of(values)
        ends = own.of(self.knots.bound)
        inside = own.of(self.knots.there) & (values > ends[..., 0]) & (values < ends[..., 1])
        inside = inside & (values > self.reach[:, 0]) & (values < self.reach[:, 1])
        found = torch.where(is_atom, near[3], torch.where(inside, scores, np.nan))
        return torch.where(missing, np.nan, found)

    def values(self, scores: Any) -> Any:  # (N, S)
        """Return the values that scores stand for."""
        near = self._atom(scores, [atoms[2] for atoms in self.atoms])
        is_atom = (near[1] <= scores) & (scores <= near[2])
        own = _Place(self.knots, self._piece(scores, 1), self._count(scores, "score"))
        value = self._on_grid(own.value_of(scores), own.of(self.knots.bound))
        return torch.where(is_atom, near[0], value)

    def log_jacobian(self, scores: Any) -> Any:  # (N, S)
        """Return log |d score / d value| at scores; 0 in an atom."""
        near = self._atom(scores, [atoms[2] for atoms in self.atoms])
        is_atom = (near[1] <= scores) & (scores <= near[2])
        own = _Place(self.knots, self._piece(scores, 1), self._count(scores, "score"))
        return torch.where(is_atom, 0.0, -own.log_slope_at(scores))

    def _rounding(self, size: Any) -> Any:
        """Return how far values of some size may be from an atom that they are."""
        own = SAME * size
        return torch.where(self.step == 0.0, own, torch.minimum(own, CLOSEST * self.step))

    def _atom(self, at: Any, ends: Sequence[Tensor]) -> list[Any]:
        """Return the value, both ends and the centre of the atom that may be each cell's.

        It is the one after the last of the ``ends`` of its column that are below the cell.
        """
        found = []
        for column, atoms in enumerate(self.atoms):
            place = _below(ends[column], at[:, [column]]).clamp(0, atoms.shape[1] - 1)
            found.append([look_up(part, place) for part in atoms])
        return [torch.cat(parts, 1) for parts in zip(*found, strict=True)]

    def _piece(self, at: Any, by: int) -> Any:
        """Return the number of each cell's piece, by the values of the atoms or their lower ends.

        There may be none; then it is 0.
        """
        own = [
            look_up(numbers, _below(atoms[by][: len(numbers) - 1], at[:, [column]]))
            for column, (atoms, numbers) in enumerate(zip(self.atoms, self.piece_at, strict=True))
        ]
        return torch.cat(own, 1)

    def _count(self, at: Any, what: str) -> Any:
        """Return how many knots of its column are below each cell."""
        counts = []
        for column, shape in enumerate(self.shapes):
            knots = [getattr(piece, what) for piece in shape.pieces.values()]
            counts.append(_below(_tensor(np.concatenate([*knots, [np.inf]])), at[:, [column]]))
        return torch.cat(counts, 1)

    def _on_grid(self, values: Any, bound: Any) -> Any:
        """Move values to the grid, but not onto what the piece never reaches."""
        grids = np.array([shape.grid for shape in self.shapes])
        times, parts = _tensor(np.where(grids[:, :1] == 0.0, 1.0, grids)).T
        rounded = (values * (parts / times)).round() * times / parts
        rounded = torch.where(rounded <= bound[..., 0], bound[..., 0] + self.step, rounded)
        rounded = torch.where(rounded >= bound[..., 1], bound[..., 1] - self.step, rounded)
        return torch.where(self.step == 0.0, values, rounded)


class _Place:
    """Where cells are among the knots."""

    def __init__(self, knots: Knots, piece: Any, count: Any) -> None:
        self.knots, self.piece = knots, piece
        after = count - self.of(knots.n_before)
        after = torch.minimum(after.clamp(min=1), self.of(knots.n_stretches))
        stretch = look_up(knots.stretch, self.of(knots.first) + after - 1)
        self.stretch = [stretch[..., number] for number in range(6)]

    def of(self, table: Tensor) -> Any:
        return look_up(table, self.piece)

    def score_of(self, values: Any) -> Any:
        """Return the scores of values: the inverse of ``value_of``."""
        ends = self.of(self.knots.value)
        first, last = ends[..., 0], ends[..., 1]
        inside = self._inverse(torch.minimum(torch.maximum(values, first), last))
        for end, beyond in ((0, values < first), (1, values > last)):
            by, slope, room = values - ends[..., end], *self._tail(end)
            bent = torch.log(torch.where(room.isinf(), 1.0, 1.0 + by / room)) * room / slope
            way = torch.where(room.isinf(), by / slope, bent)
            inside = torch.where(beyond, self.of(self.knots.score)[..., end] + way, inside)
        return inside

    def value_of(self, scores: Any) -> Any:
        ends, values = self.of(self.knots.score), self.of(self.knots.value)
        first, last = ends[..., 0], ends[..., 1]
        result = self._spline(torch.minimum(torch.maximum(scores, first), last))[0]
        for end, beyond in ((0, scores < first), (1, scores > last)):
            by, slope, room = scores - ends[..., end], *self._tail(end)
            finite = torch.where(room.isinf(), 1.0, room)
            bent = finite * (torch.exp(by * slope / finite) - 1.0)
            way = torch.where(room.isinf(), slope * by, bent)
            result = torch.where(beyond, values[..., end] + way, result)
        return result

    def log_slope_at(self, scores: Any) -> Any:
        """Return log d value / d score."""
        ends = self.of(self.knots.score)
        first, last = ends[..., 0], ends[..., 1]
        result = torch.log(self._spline(torch.minimum(torch.maximum(scores, first), last))[1])
        for end, beyond in ((0, scores < first), (1, scores > last)):
            slope, room = self._tail(end)
            bent = (scores - ends[..., end]) * slope / room  # 0 without a bound
            result = torch.where(beyond, slope.log() + bent, result)
        return result

    def _tail(self, end: int) -> tuple[Any, Any]:
        """Return the slope beyond an end, and how far that is from its bound, with a sign."""
        room = self.of(self.knots.value)[..., end] - self.of(self.knots.bound)[..., end]
        return self.of(self.knots.tail)[..., end], room

    def _spline(self, at: Any) -> tuple[Any, Any]:
        """Return the cubic on each cell's own stretch, and its slope."""
        left, low, m0, right, high, m1 = self.stretch
        width = right - left
        t = (at - left) / width
        m0, m1, rise = m0 * width, m1 * width, high - low
        a, b = m0 + m1 - 2.0 * rise, 3.0 * rise - 2.0 * m0 - m1
        return low + t * (m0 + t * (b + t * a)), (m0 + t * (2.0 * b + 3.0 * t * a)) / width

    def _inverse(self, values: Any) -> Any:
        """Find the score by Newton steps, bisected where they leave."""
        left, low, _, right, high, _ = self.stretch

        def step(number: Any, at: Any, low: Any, high: Any) -> tuple[Any, Any, Any]:
            value, slope = self._spline(at)
            over = value - values
            low, high = torch.where(over <= 0.0, at, low), torch.where(over >= 0.0, at, high)
            following = at - over / slope
            inside = (following >= low) & (following <= high)
            return torch.where(inside, following, 0.5 * (low + high)), low, high

        at = left + (values - low) / (high - low) * (right - left)
        return repeat(step, STEPS, at, left, right)[0]


# -- tables of constants --------------------------------------------------------------------------


def _tensor(array: Any) -> Tensor:
    return torch.tensor(np.asarray(array, dtype=np.float64))


def _straight() -> Piece:
    """Return the piece of cells that have none."""
    ends = np.array([0.0, 1.0])
    return Piece(ends, ends, np.ones(2), (1.0, 1.0))


def _below(knots: Tensor, at: Any) -> Any:  # (M,), (N, 1) -> (N, 1)
    return (knots < at).sum(1, keepdim=True)


def _atoms(shape: Shape) -> Tensor:  # (4, M)
    parts = [shape.atoms, shape.lower, shape.upper, shape.centre]
    nothing = [[np.inf], [np.inf], [-np.inf], [0.0]]
    return _tensor(parts if len(shape.atoms) else nothing)


def _at_gaps(shape: Shape, numbers: Sequence[int]) -> Tensor:  # (n_atoms + 1,)
    result = torch.zeros(len(shape.atoms) + 1, dtype=torch.int64)
    result[list(shape.pieces)] = torch.tensor(numbers, dtype=torch.int64)
    return result


def _knots(pieces: Sequence[Piece], shapes: Sequence[Shape]) -> Knots:
    n_stretches = np.array([len(piece.score) - 1 for piece in pieces])
    n_before = [0]
    for shape in shapes:
        sizes = [len(piece.score) for piece in shape.pieces.values()]
        n_before.extend(np.cumsum([0, *sizes])[: len(sizes)].tolist())
    ends = [np.stack([p.score, p.value, p.slope], 1) for p in pieces]
    return Knots(
        first=torch.tensor(np.cumsum(n_stretches) - n_stretches),
        n_before=torch.tensor(n_before),
        n_stretches=torch.tensor(n_stretches),
        there=torch.arange(len(pieces)) > 0,
        score=_tensor([p.score[[0, -1]] for p in pieces]),
        value=_tensor([p.value[[0, -1]] for p in pieces]),
        tail=_tensor([p.tail for p in pieces]),
        bound=_tensor([p.bound for p in pieces]),
        stretch=_tensor(np.concatenate([np.hstack([e[:-1], e[1:]]) for e in ends])),
    )
