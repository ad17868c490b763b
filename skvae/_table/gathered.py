"""The rows of a source as a fit takes them: a schema and a table, in two passes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from .column import Array, as_numbers
from .frames import columns_of, is_numbers, library_of, raw_column, same_dtypes, take_rows
from .of_pandas import common_pandas
from .of_polars import common_polars
from .schema import Asked, Schema
from .sources import Source, located
from .spool import is_large, spooled
from .tally import Tally


@dataclass(frozen=True, eq=False)
class Gathered:
    """Rows of a source, checked part by part.

    Attributes
    ----------
    source : Source
    check : callable
        Checks a part as an estimator does its input, and returns it.
    row_weight : ndarray of shape (n_all_rows,) or None
        How often each row of the source counts; those of weight 0 are left out. None: once.
    shape : (int, int)
        How many rows count, and the number of columns.
    """

    source: Source
    check: Callable[[Any], Any]
    row_weight: Array | None
    shape: tuple[int, int]

    def parts(self) -> Iterator[tuple[int, Any, Array]]:
        """Yield the number of a part's first row, its rows that count, and how often they do."""
        n_rows = 0
        for first, part in self.source.numbered():
            with located(self.source.what, first):
                part = self.check(part)
                n_rows += part.shape[0]
                weight = np.ones(part.shape[0])
                if self.row_weight is not None:
                    weight = self.row_weight[first : first + part.shape[0]]
                    rows = np.flatnonzero(weight > 0.0)
                    part, weight = take_rows(part, rows), weight[rows]
            if len(weight):
                yield first, part, weight
        if n_rows != (self.shape[0] if self.row_weight is None else len(self.row_weight)):
            raise ValueError(
                f"The source X has changed while it was read: {self.source.what} had "
                f"{self.shape[0]} rows and has {n_rows} now."
            )

    def fitted(
        self, categories: Sequence[bool | None], max_categories: int | None, names: Sequence[str]
    ) -> tuple[Schema, Any]:
        """Learn the columns, and return the rows as a table; as ``fit_schema`` does of a frame."""
        asked = [Asked(*both, max_categories) for both in zip(names, categories, strict=True)]
        seen = self.seen(asked)
        schema = seen.schema(asked)
        return schema, self.table(lambda part: schema.read(part, "error")[0], seen.is_single)

    def seen(self, asked: Sequence[Asked]) -> "SeenColumns":
        """Count what the columns hold, part by part."""
        tallies = [Tally(one.name, bool(one.is_category)) for one in asked]
        heads: list[Any] = []
        for first, part, weight in self.parts():
            head = part[:0] if library_of(part) is None else part.head(0)
            if not heads or not same_dtypes(head, heads[-1]):
                heads.append(head)
            with located(self.source.what, first):
                for one, tally, values in zip(asked, tallies, columns_of(part), strict=True):
                    raw = raw_column(values, one.name)
                    if one.is_category is False and raw.kind == "category":
                        as_numbers(raw, one.name, written=True)  # or its error, which knows the row
                    tally.add(raw, weight)
        return SeenColumns(tallies, heads)

    def table(self, read: Callable[[Any], Any], single: bool = False) -> Any:
        """Read the parts into one table: a large one in a file, and in float32 if ``single``."""
        dtype: Any = np.float32 if single and is_large(self.shape) else np.float64
        make = spooled if is_large(self.shape) else np.empty
        table, place = None, 0
        for first, part, _ in self.parts():
            with located(self.source.what, first):
                cells = read(part)
            if table is None:
                table = make((self.shape[0], cells.shape[1]), dtype)
            table[place : place + len(cells)] = cells
            place += len(cells)
        assert table is not None
        return table

    def changed(self, change: Callable[[Any], Any]) -> "Gathered":
        """Return the same rows, with their parts changed."""
        return replace(self, source=self.source.changed(change))


class SeenColumns(NamedTuple):
    """What columns were seen to hold, in some parts or in all."""

    tallies: list[Tally]
    heads: list[Any]  # the parts without their rows

    def merge(self, other: "SeenColumns") -> None:
        """Add what was seen in other parts."""
        for tally, more in zip(self.tallies, other.tallies, strict=True):
            tally.merge(more)
        self.heads.extend(other.heads)

    @property
    def is_single(self) -> bool:
        """Whether all numbers are those of float32."""
        return all(tally.is_single for tally in self.tallies)

    def schema(self, asked: Sequence[Asked]) -> Schema:
        """Return the schema of all parts together."""
        columns = []
        for one, tally in zip(asked, self.tallies, strict=True):
            raw, weight, cells = tally.raw()
            column, _ = one.learned(raw, weight, cells)
            tally.check(column)
            columns.append(column)
        library = library_of(self.heads[0])
        common = {"pandas": common_pandas, "polars": common_polars}
        template = None if library is None else common[library](self.heads)
        return Schema(tuple(columns), library, template, plain=all(map(is_numbers, self.heads)))
