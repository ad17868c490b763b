"""Tables to standardised columns, and back to the user's units. NumPy only."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from .automatic import Look
from .column import Array
from .shape import Shape
from .shaping import fit_shape
from .statistics import Scaling, geometric_mean, row_chunks
from .support import Kinds, Limits, limits_of

FARTHEST = 1e100  # units of the model


class EncodedChunk(NamedTuple):
    """Some rows of a table as the model sees them."""

    rows: slice
    x: Array  # (N, D)
    observed: NDArray[np.bool_] | None  # (N, D)  None: everything


@dataclass(frozen=True, eq=False)
class Columns:
    """How the columns of a table become the model's: x = (X - shift) / scale.

    Those that have a shape become normal scores instead.

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
    kinds : Kinds
        What was decided about the columns' likelihoods.
    limits : Limits
        The values that these give a density to.
    log_unseen : ndarray of shape (n_columns,) or None
        Log-probability of a level, or of a value beside 0 and 1, that no row of fit holds.
    empty : ndarray of bool of shape (n_columns,) or None
        Columns that held nothing in fit; None if there are none. Later values there say nothing.
    shapes : dict of int to Shape
        The maps to normal scores of the columns that have one.
    """

    scaling: Scaling
    shift: Array
    scale: Array
    fill: Array
    varies: NDArray[np.bool_]
    constant: NDArray[np.bool_]
    may_miss: NDArray[np.bool_]
    rms: float
    kinds: Kinds
    limits: Limits
    log_unseen: Array | None = None
    empty: NDArray[np.bool_] | None = None
    shapes: Mapping[int, Shape] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.shift)

    def encode(self, X: Any) -> tuple[Array, NDArray[np.bool_] | None]:
        """Turn rows of a table into x and what of it is observed (None: all); sparse are filled.

        What is further out than any square could be finite counts as ``FARTHEST``.
        """
        X = X.toarray() if issparse(X) else X
        with np.errstate(over="ignore"):
            x = X.astype(np.float64)
            x -= self.shift
            x /= self.scale
        for column, shape in self.shapes.items():
            x[:, column] = shape.scores(X[:, column].astype(np.float64, copy=False))
        if self.empty is None and max(x.max(initial=0.0), -x.min(initial=0.0)) <= FARTHEST:
            return x, None  # no nan is less than anything
        np.clip(x, -FARTHEST, FARTHEST, out=x)  # nan stays
        if self.empty is not None:
            x[:, self.empty] = np.nan
        missing = np.isnan(x)
        if not missing.any():
            return x, None
        return np.where(missing, self.fill, x), ~missing

    @property
    def keeps_zeros(self) -> bool:
        """Whether 0 stays 0, so that ``encode_stored`` says everything of sparse rows."""
        moved = self.shift.any() or self.shapes or self.empty is not None
        return not moved and not self.may_miss.any()

    def encode_stored(self, table: Any) -> Array:
        """Turn the stored cells of a COO table, none of which misses, into those of x."""
        with np.errstate(over="ignore"):
            x = table.data.astype(np.float64) / self.scale[table.col]
        return np.clip(x, -FARTHEST, FARTHEST)

    def chunks(self, table: Any, width: int, numbers: int | None = None) -> Iterator[EncodedChunk]:
        """Encode a table in order, some rows of ``width`` numbers each at a time."""
        for rows in row_chunks(table.shape[0], width, numbers):
            yield EncodedChunk(rows, *self.encode(table[rows]))

    def decode(self, x: Array) -> Array:
        """Turn x into the user's units; what is beyond all floats becomes the last of them."""
        limits = np.finfo(np.float64)
        with np.errstate(over="ignore"):
            cells = np.where(self.constant, 0.0, x) * self.scale + self.shift
        for column, shape in self.shapes.items():
            cells[:, column] = shape.values(x[:, column].astype(np.float64, copy=False))
        return np.clip(cells, limits.min, limits.max)

    @property
    def log_jacobian(self) -> Array:
        """Log |dx / dX| per column, in nats: what turns a density of x into one of X.

        0 where a column has a shape: there it depends on the cell.
        """
        return -np.log(self.scale)

    def log_jacobian_at(self, x: Array) -> Array:  # (N, D), or (D,) where it is the same for all
        """Return that of every cell of x (N, D)."""
        if not self.shapes:
            return self.log_jacobian
        result = np.tile(self.log_jacobian, (len(x), 1))
        for column, shape in self.shapes.items():
            result[:, column] = shape.log_jacobian(x[:, column].astype(np.float64, copy=False))
        return result

    def log_jacobian_of(self, x: Array, observed: NDArray[np.bool_] | None) -> Any:
        """Sum it over what each row has observed: (N,), or a number that is the same for all."""
        cells = self.log_jacobian_at(x)
        if cells.ndim == 2:
            return (cells if observed is None else np.where(observed, cells, 0.0)).sum(axis=1)
        total = cells.sum()
        if observed is None or not cells.any():
            return total
        return total - (~observed).astype(np.float64) @ cells


def fit_columns(
    X: Any, look: Look, kinds: Kinds, scaling: str | None, count: Array | None = None
) -> Columns:
    """Choose shift, scale and shape of the columns of a table, by what they look like.

    ``count`` (N,) is how many rows each row stands for; None: one.
    """
    moments, shapes = look.moments, _fit_shapes(X, look, kinds, count)
    moved, ratio = kinds.with_units("location_scale"), kinds.with_units("scale")
    moved |= kinds.with_units("shape")  # of those that are Gaussian enough
    moved[list(shapes)] = False
    log_unseen = np.zeros(len(moved)) if look.log_unseen is None else look.log_unseen.copy()
    log_unseen[list(shapes)] = [shape.log_unseen for shape in shapes.values()]
    common = float(np.sqrt(moments.variance[moved].mean())) if moved.any() else 0.0
    common = common or 1.0
    chosen = _chosen_scaling(scaling, look.one_unit)
    scales: dict[Scaling, Any] = {"columns": moments.scale, "common": common, "none": 1.0}
    # Positive columns are divided by their geometric mean, so that their logarithm is centred.
    scale = np.where(moved, scales[chosen], 1.0)
    scale[ratio] = [geometric_mean(X[:, [column]]) for column in np.flatnonzero(ratio)]
    return Columns(
        scaling=chosen,
        # Sparse rows stay sparse: the decoder's bias can hold a mean as well.
        shift=np.zeros(len(moved)) if issparse(X) else np.where(moved, moments.mean, 0.0),
        scale=scale,
        fill=np.array([support.filling for support in kinds.supports]),
        varies=moments.varies,
        constant=moved & ~moments.varies & (not issparse(X)),
        may_miss=moments.n_missing > 0,
        rms=common if chosen == "none" else 1.0,
        kinds=kinds,
        limits=limits_of(kinds.supports, shapes),
        log_unseen=log_unseen,
        empty=empty if (empty := moments.n_missing == X.shape[0]).any() else None,
        shapes=shapes,
    )


def _fit_shapes(X: Any, look: Look, kinds: Kinds, count: Array | None) -> dict[int, Shape]:
    """Learn the shapes of the columns that are to have one."""
    count, shapes = np.ones(X.shape[0]) if count is None else count, {}
    for column in np.flatnonzero(kinds.with_units("shape") & look.moments.varies).tolist():
        cells = X[:, [column]].toarray()[:, 0] if issparse(X) else X[:, column]
        shape = fit_shape(cells.astype(np.float64, copy=False), count)
        if shape is not None:
            shapes[column] = shape
    return shapes


def _chosen_scaling(scaling: str | None, one_unit: bool) -> Scaling:
    automatic: Scaling = "common" if one_unit else "columns"
    asked: dict[str | None, Scaling] = {"columns": "columns", "common": "common", None: "none"}
    return asked.get(scaling, automatic)
