"""What is made of a column of objects or text whose dtype does not say what it holds."""

from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from .column import Array, Raw, some_of

MOST_STRAYS = 0.05  # of the cells, up to which a column of numbers may hold something else
MOSTLY = 0.95  # of the cells
ENOUGH_ROWS = 50  # from which on it shows that nearly all cells differ


class Seen(NamedTuple):
    """What was found in the cells of a column."""

    strays: tuple[Any, ...] = ()  # among numbers: taken as missing
    remark: str = ""  # for a warning


def look_among(raw: Raw, cells: Array | None = None) -> Seen:
    """Tell numbers with a few stray texts, numbers written as text, and ids, from categories.

    ``cells`` says how many hold each level, where ``raw`` does not.
    """
    assert raw.places is not None
    counts: Any = cells
    if cells is None:
        counts = np.bincount(raw.places[raw.places >= 0], minlength=len(raw.levels))
    numbers = np.array([_is_number(level) for level in raw.levels])
    n_cells, n_numbers = int(counts.sum()), int(counts[numbers].sum())
    others = [level for level, number in zip(raw.levels, numbers, strict=True) if not number]
    if n_numbers:
        return _numbers_among(n_cells - n_numbers, n_cells, others)
    as_text = np.array([_is_number_as_text(level) for level in raw.levels])
    examples = some_of(others, 3)
    if n_cells and counts[as_text].sum() >= MOSTLY * n_cells:
        return Seen(
            remark=f"holds numbers written as text ({examples}) and is taken as a category. "
            "Convert it to numbers first, if that is what it holds."
        )
    if n_cells >= ENOUGH_ROWS and len(raw.levels) >= MOSTLY * n_cells:
        return Seen(
            remark=f"holds another level in nearly every row ({examples}), so it says nothing "
            "about other columns. Drop it if it holds ids; turn texts into numbers first."
        )
    return Seen()


def _numbers_among(n_strays: int, n_cells: int, others: list[Any]) -> Seen:
    said = f"{n_strays} of its {n_cells} values are not numbers ({some_of(others, 3)})"
    if n_strays <= MOST_STRAYS * n_cells:
        return Seen(
            tuple(others),
            f"holds numbers, but {said}: these are taken as missing. Correct them, or name the "
            "column in categorical_features.",
        )
    return Seen(
        remark=f"holds numbers, but {said}, so it is taken as a category. Correct them if the "
        "column is to be numeric."
    )


def _is_number(level: Any) -> bool:
    return isinstance(level, Real) and not isinstance(level, bool | np.bool_)


def _is_number_as_text(level: Any) -> bool:
    try:
        float(str(level).replace(",", "").strip())
    except ValueError:
        return False
    return isinstance(level, str)
