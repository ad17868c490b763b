"""Rows that are not in memory, or not in one piece: files, data sets, lazy frames, parts."""

import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from .frames import has_pandas, library_of
from .of_arrow import FORMATS, dataset_of, groups_of_dataset, parts_of_dataset, parts_of_table
from .of_polars import lazy_parts, lazy_rows, polars_of_arrow
from .statistics import CHUNK_CELLS

PART_CELLS = CHUNK_CELLS  # numbers of a part: 8 MB in float64
PART_ROWS = (1024, 65_536)  # of a part, at least and at most


@dataclass(frozen=True, eq=False)
class Source:
    """Rows that can be read part by part, from the first to the last, as often as need be.

    Attributes
    ----------
    what : str
        What messages call it.
    parts : callable
        Returns an iterator over frames or arrays.
    n_rows : callable
        Returns the number of rows.
    split : callable or None
        Returns sources of some of the rows each, which are read apart from the others. None: the
        parts are such.
    """

    what: str
    parts: Callable[[], Iterator[Any]]
    n_rows: Callable[[], int]
    split: Callable[[], "list[Source]"] | None = None

    def pieces(self) -> "list[Source]":
        """Return the sources of all rows, in order, that can be read apart."""
        if self.split is not None:
            return self.split()
        sizes = [len(part) for part in self.parts()]
        reader = _Reader(self.parts)
        return [
            Source(f"part {number} of {self.what}", partial(reader.at, number), partial(int, size))
            for number, size in enumerate(sizes)
        ]

    def changed(self, change: Callable[[Any], Any]) -> "Source":
        """Return a source whose parts are changed, each by itself, in its number of rows not."""
        return replace(self, parts=lambda: map(change, self.parts()))

    def numbered(self) -> Iterator[tuple[int, Any]]:
        """Yield the number of each part's first row, and the part."""
        first = 0
        for part in self.parts():
            yield first, part
            first += len(part)

    def some(self, n_rows: int) -> list[Any]:
        """Return every so many of the rows, at most ``n_rows`` of them, in pieces."""
        step = max(-(-self.n_rows() // n_rows), 1)
        pieces = ((part, -first % step) for first, part in self.numbered())
        return [part[begin::step] for part, begin in pieces if begin < len(part)]


@dataclass
class _Reader:
    """Parts by their numbers: what is asked for in order is read in one go."""

    parts: Callable[[], Iterator[Any]]
    place: int = 0  # the number of the next part
    rest: Iterator[Any] | None = None

    def at(self, number: int) -> Iterator[Any]:
        """Yield the part of a number, or nothing if there is none any more."""
        if self.rest is None or number < self.place:
            self.place, self.rest = 0, self.parts()
        skipped, self.place = number - self.place, number + 1
        yield from islice(self.rest, skipped, skipped + 1)


def source_of(X: Any) -> Source | None:
    """Return what X is a source of; None if it is an array or a frame, or nothing of the kind."""
    if isinstance(X, Source):
        return X
    if isinstance(X, np.ndarray) or library_of(X) is not None:
        return None
    if isinstance(X, str | os.PathLike):
        return _of_paths([os.fspath(X)], os.fspath(X))
    module, name = type(X).__module__.partition(".")[0], type(X).__name__
    if module == "pyarrow":
        return _of_arrow(X)
    if (module, name) == ("polars", "LazyFrame"):
        n_rows = _part_rows(len(X.collect_schema()))
        return Source("the LazyFrame", partial(lazy_parts, X, n_rows), cache(partial(lazy_rows, X)))
    if isinstance(X, Iterator):
        return _of_iterables("the iterator", _replayed(X))
    if isinstance(X, list | tuple) and X:
        return _of_list(X, f"the {name}")
    if callable(X) and not hasattr(X, "shape") and not isinstance(X, type):
        return _of_iterables("the function's parts", X)
    return None


@contextmanager
def located(what: str, first: int) -> Iterator[None]:
    """Say from which row on an error's rows are counted, in a note."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if first > 0:
            error.add_note(f"Rows are counted from row {first} of {what} on.")
        raise


def _part_rows(n_columns: int) -> int:
    return int(np.clip(PART_CELLS // max(n_columns, 1), *PART_ROWS))


def _of_list(X: Any, what: str) -> Source | None:
    """Return a list of frames, of matrices or of files as a source; None for one of other things.

    A list of texts is one of files if their names say so: else it may be some rows of a text.
    """
    if all(isinstance(part, str | os.PathLike) and Path(part).suffix in FORMATS for part in X):
        return _of_paths([os.fspath(part) for part in X], f"{what} of files")
    if all(_is_arrow(part) or library_of(part) is not None for part in X):
        return _of_iterables(f"{what} of frames", X)
    if all(isinstance(part, np.ndarray) and part.ndim == 2 for part in X):
        return _of_iterables(f"{what} of arrays", X)
    return None


def _of_paths(paths: list[str], what: str) -> Source:
    found = []
    for path in paths:
        one = Path(path).expanduser()
        own = [one]
        if not one.exists() and any(sign in path for sign in "*?["):
            own = sorted(Path(one.anchor).glob(str(one).removeprefix(one.anchor)))
        if not own or not own[0].exists():
            raise FileNotFoundError(
                f"X is the path {path!r}, and there is no such file or folder. Pass rows, or the "
                "path of a Parquet or Arrow file, of a folder of them, or a pattern: "
                "'rows/*.parquet'."
            )
        found += own
    return _of_dataset(dataset_of(found, what), what)


def _of_arrow(X: Any) -> Source | None:
    name = type(X).__name__
    if hasattr(X, "get_fragments"):
        return _of_dataset(X, f"the {name}")
    if _is_arrow(X):
        parts = partial(parts_of_table, X, _part_rows(X.num_columns))
        return Source(f"the {name}", lambda: map(_frame, parts()), lambda: X.num_rows)
    if name == "Scanner":
        return _of_iterables("the Scanner", X.to_batches)
    if name == "RecordBatchReader":
        return _of_iterables("the RecordBatchReader", _replayed(X))
    return None


def _is_arrow(X: Any) -> bool:
    is_of_arrow = type(X).__module__.partition(".")[0] == "pyarrow"
    return is_of_arrow and type(X).__name__ in ("Table", "RecordBatch")


def _of_dataset(data: Any, what: str) -> Source:
    n_rows = _part_rows(len(data.schema.names))

    def source(of: Any, name: str, count: Callable[[], int], split: Any = None) -> Source:
        return Source(
            name, lambda: map(_frame, parts_of_dataset(of, n_rows, data.schema)), count, split
        )

    def split() -> list[Source]:
        groups = enumerate(groups_of_dataset(data))
        return [
            source(one, f"piece {n} of {what}", partial(int, size)) for n, (one, size) in groups
        ]

    return source(data, what, cache(data.count_rows), split)


def in_slices(X: Any, n_rows: int) -> Source:
    """Return a source of the rows of a frame or an array, so many at a time."""
    begins = range(0, len(X), n_rows)
    return Source("X", lambda: (X[begin : begin + n_rows] for begin in begins), lambda: len(X))


def _frame(table: Any) -> Any:
    """Return an Arrow table as pandas has it, as read_parquet does; without pandas as polars."""
    return table.to_pandas(use_threads=False) if has_pandas() else polars_of_arrow(table)


def _of_iterables(what: str, parts: Callable[[], Iterable[Any]] | Iterable[Any]) -> Source:
    """Return a source of frames, or of arrays, that are there or made by a function."""

    def read() -> Iterator[Any]:
        found = parts() if callable(parts) else parts
        if not isinstance(found, Iterable):
            raise TypeError(
                "X is a function, which must return an iterable of frames or arrays. It returned "
                f"a {type(found).__name__}."
            )
        return map(_as_frame, found)

    def checked() -> Iterator[Any]:
        number, first = -1, ""
        for number, part in enumerate(read()):
            kind = f"{library_of(part) or ''} {type(part).__name__}".strip()
            is_array = isinstance(part, np.ndarray) and part.ndim == 2
            if not is_array and library_of(part) is None:
                raise TypeError(
                    f"The parts of X must be frames, or arrays of two dimensions. Part {number} of "
                    f"{what} is a {type(part).__name__}."
                )
            first = first or kind
            if kind != first:
                raise TypeError(
                    f"The parts of X must be of one kind. Part {number} of {what} is a {kind}, and "
                    f"part 0 a {first}."
                )
            if len(part):
                yield part
        if number < 0:
            raise ValueError(
                f"X must have rows, but nothing came from {what}. An iterator can be read once: "
                "make it anew, and let a function make a new one each time."
            )

    return Source(what, checked, cache(lambda: sum(map(len, checked()))))


def _as_frame(part: Any) -> Any:
    return _frame(part) if _is_arrow(part) else part


def _replayed(parts: Iterator[Any]) -> Callable[[], Iterator[Any]]:
    """Let an iterator's parts be read again: at the first time they are written to a file."""
    first = next(parts, None)
    if first is None:
        return lambda: iter(())
    file = tempfile.TemporaryFile(prefix="skvae-")  # noqa: SIM115  closed when nobody has it
    n_parts = 0
    for part in chain([first], parts):
        pickle.dump(part, file, protocol=pickle.HIGHEST_PROTOCOL)
        n_parts += 1

    def again() -> Iterator[Any]:
        place = 0
        for _ in range(n_parts):
            file.seek(place)  # another reader may have moved it
            part = pickle.load(file)  # our own file, which nobody else can open
            place = file.tell()
            yield part

    return again
