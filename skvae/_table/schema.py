"""Tables as users have them to one matrix of numbers, and back. No torch.

A *table* here is a matrix with one number for each cell: the value itself, the number of a
category's level, or nan where the value is missing. pandas and polars are recognised, not needed.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse

from .column import Array, Column, Raw, Unknown, as_levels, as_numbers, check_finite
from .frames import (
    Library,
    columns_of,
    is_numbers,
    library_of,
    plain_cells,
    raw_column,
    with_missing,
)
from .guesses import Seen, look_among
from .holes import Holes, widened
from .of_pandas import to_pandas
from .of_polars import to_polars
from .unseen import Unseen, refused, warn_if_all


class LabelledRows(NamedTuple):
    """Validated rows of a fit, with what the user calls their columns."""

    X: Any
    weight: Array  # (N,)  how often each row counts
    labels: list[Any] | None  # of the columns, as parameters name them; None: their numbers
    names: list[str]  # of the columns, for messages


@dataclass(frozen=True, eq=False)
class Schema:
    """The columns of a table, and what it came as.

    Attributes
    ----------
    columns : tuple of Column
    library : {"pandas", "polars"} or None
        What kind of frame was fitted; None for arrays.
    template : frame or None
        The fitted frame without its rows: names and dtypes.
    plain : bool
        Whether it came as an array of numbers.
    holes : tuple of tuple of int
        Columns whose holes are modelled: tables have a further column for each set of them.
    numeric : bool
        Whether an array of numbers holds all.
    """

    columns: tuple[Column, ...]
    library: Library | None = None
    template: Any = None
    plain: bool = False
    holes: Holes = ()
    numeric: bool = field(init=False)

    @property
    def n_levels(self) -> list[int]:
        return [*(column.n_levels for column in self.columns), *(0 for _ in self.holes)]

    @property
    def names(self) -> list[str]:
        """Return what messages call the columns of a table."""
        groups = (", ".join(self.columns[column].name for column in group) for group in self.holes)
        return [*(column.name for column in self.columns), *(f"{g} (its holes)" for g in groups)]

    def __post_init__(self) -> None:
        object.__setattr__(self, "numeric", self.library is None and self._is_of_numbers)

    @property
    def _is_of_numbers(self) -> bool:
        return all(column.kind != "category" and column.moment is None for column in self.columns)

    def parts(self) -> dict[str, Any]:
        """Take the schema apart, as JSON can hold it, or raise a NotPlainError."""
        from .stored import column_parts, template_parts

        return {
            "columns": [column_parts(column) for column in self.columns],
            "library": self.library,
            "template": template_parts(self.template, self.library),
            "plain": self.plain,
            "holes": [list(group) for group in self.holes],
        }

    @classmethod
    def of_parts(cls, parts: Mapping[str, Any]) -> "Schema":
        """Build a schema again; whatever is wrong with its parts is raised."""
        from .stored import column_of, template_of

        library = parts["library"]
        return cls(
            tuple(column_of(column) for column in parts["columns"]),
            library,
            template_of(parts["template"], library),
            bool(parts["plain"]),
            tuple(tuple(map(int, group)) for group in parts["holes"]),
        )

    # In pickles it is its parts: a frame, even without rows, is more than they are, and skops knows
    # neither library's. Levels of classes of the user's own are left to pickle.

    def __getstate__(self) -> dict[str, Any]:
        from .plain import NotPlainError

        try:
            return {"parts": json.dumps(self.parts())}
        except NotPlainError:
            return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "parts" in state:
            state = vars(Schema.of_parts(json.loads(state["parts"])))
        self.__dict__.update(state)

    def read(self, X: Any, unknown: Unknown) -> tuple[Any, Unseen]:
        """Return the table of X: float64, or X itself where that already is one of numbers.

        Levels that are not the schema's are missing in it; where they stood is returned, too.
        """
        unseen = Unseen.nothing()
        if self.numeric and is_numbers(X):
            return widened(X, self.holes, unseen), unseen
        if issparse(X):
            raise ValueError(
                "X is sparse, but fit had a frame, or columns that are not numbers. Pass rows as "
                "fit had them: a frame, or a dense array."
            )
        cells = plain_cells(X) if self._is_of_numbers else None
        if cells is None or np.isinf(cells).any():  # an error says where
            cells, unseen = self._read_columns(X, unknown)
        return widened(cells, self.holes, unseen), unseen

    def _read_columns(self, X: Any, unknown: Unknown) -> tuple[Array, Unseen]:
        unseen = Unseen.nothing()
        cells, wrong = np.empty(X.shape, dtype=np.float64), []
        for number, (column, values) in enumerate(zip(self.columns, columns_of(X), strict=True)):
            raw = raw_column(values, column.name)
            cells[:, number], rows, held = column.encode(raw)
            check_finite(cells[:, number], column.name)
            if len(rows):
                unseen = unseen.with_more(rows, number)
            if column.rare:
                places, log_share = column.rare_cells(raw)
                unseen = unseen.with_more(places, number, log_share)
            if unknown == "error" and held:
                wrong.append(refused(column.name, column.levels, rows, held))
            elif held:
                n_present = int((~np.isnan(cells[:, number])).sum()) + len(held)
                warn_if_all(column.name, column.levels, n_present, held)
        if wrong:
            raise ValueError(
                f"{' '.join(wrong)} Correct it, or use handle_unknown='ignore', which treats it as "
                "missing."
            )
        return cells, unseen

    def write(
        self,
        table: Array,
        generator: np.random.Generator | None = None,
        known: Mapping[int, Any] = MappingProxyType({}),
    ) -> Any:
        """Turn numbers into what was fitted: the same kind of frame, names, order and dtypes.

        Columns that are ``known`` hold this level in all rows.
        """
        table = table[:, : len(self.columns)]
        if self.numeric:
            return table
        columns: list[Any] = [
            column.decode(cells, generator) if column.kind == "category" else cells
            for column, cells in zip(self.columns, table.T, strict=True)
        ]
        for number, level in known.items():
            columns[number] = [level] * len(table)
        if self.library == "pandas":
            return to_pandas(columns, self.columns, self.template)
        if self.library == "polars":
            return to_polars(columns, self.columns, self.template)
        if self.plain:  # its levels are numbers
            return np.array(columns, dtype=np.float64).T
        result = np.empty(table.shape, dtype=object)
        for number, (column, values) in enumerate(zip(self.columns, columns, strict=True)):
            result[:, number] = values if column.moment is None else column.as_objects(values)
        return result


def fit_schema(
    X: Any,
    weight: Array,
    categories: Sequence[bool | None],
    max_categories: int | None,
    names: Sequence[str],
) -> tuple[Schema, Any]:
    """Learn the columns of X, and return X as a table, too.

    ``categories`` says which columns are categories; None lets a column's dtype say. ``names`` are
    for messages.
    """
    library = library_of(X)
    if issparse(X) and any(categories):
        first = next(name for name, asked in zip(names, categories, strict=True) if asked)
        raise ValueError(
            f"Column {first} is to be a category, but X is sparse: categories "
            "need dense rows. Use X.toarray(), or a likelihood of numbers."
        )
    if is_numbers(X) and not any(categories):
        kind: Any = "boolean" if X.dtype.kind == "b" else "number"
        return Schema(tuple(Column(name, kind) for name in names)), X
    columns, table = [], np.empty(X.shape, dtype=np.float64)
    for number, values in enumerate(columns_of(X)):
        found = raw_column(values, names[number])
        asked = Asked(names[number], categories[number], max_categories)
        column, raw = asked.learned(found, weight)
        table[:, number], *_ = column.encode(raw)
        check_finite(table[:, number], column.name)
        columns.append(column)
    template = None if library is None else X.head(0)
    return Schema(tuple(columns), library, template, plain=is_numbers(X)), table


class Asked(NamedTuple):
    """What the user says of a column."""

    name: str
    is_category: bool | None  # None: let its cells or its dtype say
    max_categories: int | None

    def learned(self, found: Raw, weight: Array, cells: Array | None = None) -> tuple[Column, Raw]:
        """Learn a column, and return its cells as that takes them.

        ``cells`` says how many hold each level, where ``found`` has one row for each.
        """
        raw, seen = self._taken(found, cells)
        column = _fit_column(self.name, raw, weight, self.max_categories)
        written = raw.kind != "category" and any(isinstance(v, str) for v in found.levels)
        written &= not seen.strays
        return replace(column, strays=seen.strays, written=written, remark=seen.remark), raw

    def _taken(self, raw: Raw, cells: Array | None) -> tuple[Raw, Seen]:
        """Return the column as numbers or levels: as the user said, else by what its cells are."""
        if self.is_category is False and raw.kind == "category":
            numbers = as_numbers(raw, self.name, written=True)
            return raw._replace(kind="number", numbers=numbers), Seen()
        if self.is_category:
            return as_levels(raw), Seen()
        seen = look_among(raw, cells) if raw.guessed else Seen()
        if seen.strays:
            raw = Raw("number", as_numbers(raw, self.name, seen.strays))
        return raw, seen


def without_strays(X: Any, schema: Schema) -> Any:
    """Return X with cells missing that are strays among numbers."""
    strays = where_strays(X, schema)
    return with_missing(X, strays) if strays.any() else X


def where_strays(X: Any, schema: Schema) -> NDArray[np.bool_]:
    """Tell the cells that are strays among numbers."""
    missing = np.zeros(X.shape, dtype=bool)
    if not any(column.strays for column in schema.columns):
        return missing
    for number, (column, values) in enumerate(zip(schema.columns, columns_of(X), strict=True)):
        if column.strays:
            raw = as_levels(raw_column(values, column.name))
            assert raw.places is not None
            stray = np.array([*(level in column.strays for level in raw.levels), False])
            missing[:, number] = stray[raw.places]
    return missing


def _fit_column(name: str, raw: Raw, weight: Array, max_categories: int | None) -> Column:
    if raw.kind != "category":
        return Column(name, raw.kind, tuple(raw.levels), moment=raw.moment)
    assert raw.places is not None
    seen = raw.places >= 0
    counts = np.bincount(raw.places[seen], weight[seen], minlength=len(raw.levels))
    places = [place for place in _in_order(raw) if counts[place] > 0.0]
    rare: list[int] = []
    if max_categories is not None and len(places) > max_categories:
        by_count = sorted(places, key=lambda place: -counts[place])  # stable: ties in order
        rare = by_count[max_categories - 1 :]
        places = [place for place in places if place not in set(rare)]
    shares = counts[rare] / counts[rare].sum() if rare else np.zeros(0)
    return Column(
        name,
        "category",
        tuple(raw.levels[place] for place in places),
        tuple(raw.levels[place] for place in rare),
        tuple(shares.tolist()),
        raw.ordered,
        moment=raw.moment,
    )


def _in_order(raw: Raw) -> list[int]:
    """Return the places of the levels in an order that does not depend on the rows."""
    places = list(range(len(raw.levels)))
    if raw.ordered:
        return places
    try:
        return sorted(places, key=lambda place: raw.levels[place])
    except TypeError:  # of different types
        return sorted(places, key=lambda p: (type(raw.levels[p]).__name__, str(raw.levels[p])))
