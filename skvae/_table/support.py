"""Which values a likelihood gives a density to. NumPy only."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .column import Array

# What a column looks like, for "auto" to choose its likelihood by.
Nature = Literal["levels", "two_valued", "heavy_tailed", "number"]


class Support(NamedTuple):
    """The values that a likelihood gives a density to."""

    lower: float
    upper: float
    description: str
    # What may be done to a column before it is modelled: moved and scaled, only scaled, nothing.
    units: Literal["location_scale", "scale", "none"] = "none"
    whole: bool = False  # integers only


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


@dataclass(frozen=True)
class Limits:
    """The values that the columns' likelihoods give a density to, as arrays."""

    lower: Array  # (D,)
    upper: Array  # (D,)
    whole: NDArray[np.bool_]  # (D,)

    @cached_property  # read by each call that sees rows
    def none(self) -> bool:
        """Whether all values are admissible."""
        return bool(np.isinf(self.lower).all() and np.isinf(self.upper).all())

    def outside(self, cells: Any) -> NDArray[np.bool_]:
        """Tell the cells (N, D) that are not between the limits, or not whole; nan is inside."""
        with np.errstate(invalid="ignore"):
            wrong = np.less(cells, self.lower) | np.greater(cells, self.upper)
            if self.whole.any():
                wrong |= self.whole & (np.rint(cells) != cells) & ~np.isnan(cells)
        return wrong


def limits_of(supports: Sequence[Support]) -> Limits:
    """Gather the limits of all columns."""
    return Limits(
        np.array([support.lower for support in supports]),
        np.array([support.upper for support in supports]),
        np.array([support.whole for support in supports]),
    )
