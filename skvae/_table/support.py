"""Which values a likelihood gives a density to. NumPy only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .column import Array

if TYPE_CHECKING:
    from .shape import Shape  # which loads SciPy

# What a column looks like, for "auto" to choose its likelihood by.
Nature = Literal["levels", "two_valued", "heavy_tailed", "number"]


UNITS = ("location_scale", "scale", "shape", "none")


class Support(NamedTuple):
    """The values that a likelihood gives a density to.

    Parameters
    ----------
    lower, upper : float
        The smallest and the largest value, both included.
    description : str
        The values in words, for messages: "non-negative integers".
    units : {"location_scale", "scale", "shape", "none"}, default="none"
        What may be done to a column before it is modelled. "location_scale": it is moved and
        divided, so any shift and unit of x is as good. "scale": it is divided by its geometric
        mean, so all values must be positive and any unit is as good. "shape": it is mapped to
        normal scores by a monotone function that fit learns. "none": nothing is done.
    whole : bool, default=False
        Whether only integers have a density.
    """

    lower: float
    upper: float
    description: str
    units: Literal["location_scale", "scale", "shape", "none"] = "none"
    whole: bool = False

    @property
    def filling(self) -> float:
        """A value that stands where one is missing, and never counts."""
        usual = 1.0 if self.units == "scale" else 0.0
        if self.lower <= usual <= self.upper:
            return usual
        ends = [end for end in (self.lower, self.upper) if np.isfinite(end)]
        inside = sum(ends) / 2 if len(ends) == 2 else ends[0] + np.sign(usual - ends[0]) * -1.0
        return float(np.rint(inside) if self.whole else inside)


class Kinds(NamedTuple):
    """What was decided about each column's likelihood, as plain values."""

    likelihoods: tuple[Any, ...]  # names, or the user's own
    names: tuple[str, ...]
    supports: tuple[Support, ...]
    automatic: NDArray[np.bool_]  # "auto" chose it
    sees_numbers: bool  # the encoder sees the numbers of all columns as they are
    n_levels: tuple[int, ...]  # 0 for numbers

    def with_units(self, units: str) -> NDArray[np.bool_]:
        """Tell the columns that may be moved and scaled, only scaled, or left alone."""
        return np.array([support.units == units for support in self.supports])


@dataclass(frozen=True, eq=False)
class Limits:
    """The values that the columns' likelihoods give a density to, as arrays."""

    lower: Array  # (D,)
    upper: Array  # (D,)
    whole: NDArray[np.bool_]  # (D,)
    shapes: "Mapping[int, Shape]" = field(default_factory=dict)  # of columns that have one
    none: bool = field(init=False)  # all values are admissible; each call with rows asks

    def __post_init__(self) -> None:
        infinite = np.isinf(self.lower).all() and np.isinf(self.upper).all()
        none = bool(infinite and not self.whole.any() and not self.shapes)
        object.__setattr__(self, "none", none)

    def outside(self, cells: Any) -> NDArray[np.bool_]:
        """Tell the cells (N, D) that have no density; nan is inside."""
        with np.errstate(invalid="ignore"):
            wrong = np.less(cells, self.lower) | np.greater(cells, self.upper)
            if self.whole.any():
                wrong |= self.whole & (np.rint(cells) != cells) & ~np.isnan(cells)
        for column, shape in self.shapes.items():
            wrong[:, column] |= shape.outside(cells[:, column].astype(np.float64, copy=False))
        return wrong


def limits_of(supports: Sequence[Support], shapes: "Mapping[int, Shape] | None" = None) -> Limits:
    """Gather the limits of all columns, some of which have a shape."""
    return Limits(
        np.array([support.lower for support in supports]),
        np.array([support.upper for support in supports]),
        np.array([support.whole for support in supports]),
        shapes or {},
    )
