"""The levels of a column, counted part by part: what a schema is learned from."""

from typing import Any

import numpy as np

from .column import Array, Column, Raw, as_levels, no_dates, some_of

MOST_LEVELS = 1_000_000  # of a column, that are counted


class Tally:
    """What the parts of a column hold; ``wanted`` is whether its levels are to be counted."""

    def __init__(self, name: str, wanted: bool) -> None:
        self.name = name
        self.wanted = wanted
        self.is_single = True  # all numbers are those of float32
        self._kinds: set[str] = set()
        self._blank: set[str] = set()  # kinds of parts without a value
        self._moments: dict[Any, None] = {}
        self._n_numbers = 0
        self._counted: dict[Any, list[float]] = {}  # level: [weight, cells]
        self._order: tuple[Any, ...] | None = None  # of ordered levels
        self._guessed = False

    def add(self, raw: Raw, weight: Array) -> None:
        """Count a part of the column, whose rows count so often."""
        if raw.kind != "category":
            self._see_numbers(raw)
            if not self.wanted:
                return
        self._guessed |= raw.guessed
        levels = as_levels(raw)
        assert levels.places is not None
        seen = levels.places >= 0
        size = len(levels.levels)
        (self._kinds if seen.any() else self._blank).add(raw.kind)
        weights = np.bincount(levels.places[seen], weight[seen], minlength=size)
        cells = np.bincount(levels.places[seen], minlength=size)
        for level, own, count in zip(levels.levels, weights.tolist(), cells.tolist(), strict=True):
            counted = self._counted.setdefault(level, [0.0, 0])
            counted[0] += own
            counted[1] += count
        if len(self._counted) > MOST_LEVELS:
            raise ValueError(
                f"Column {self.name} has more than {MOST_LEVELS:,} levels, so it says nothing "
                "about other columns. Drop it if it holds ids; turn texts into numbers first."
            )
        if raw.kind == "category" and raw.ordered:
            self._keep_order(tuple(raw.levels))

    def _see_numbers(self, raw: Raw) -> None:
        assert raw.numbers is not None
        present = raw.numbers[~np.isnan(raw.numbers)]
        (self._kinds if len(present) else self._blank).add(raw.kind)
        self._n_numbers += len(present)
        if len(present):
            self._moments[raw.moment] = None
        if len(self._moments) > 1:
            kinds = {"other values" if one is None else one.what for one in self._moments}
            raise no_dates(self.name, kinds)
        if self.is_single:
            with np.errstate(over="ignore"):
                self.is_single = bool((present.astype(np.float32) == present).all())

    def _keep_order(self, levels: tuple[Any, ...]) -> None:
        if self._order is not None and self._order != levels:
            raise ValueError(
                f"The parts of X have other ordered levels in column {self.name}: "
                f"{list(self._order)} and {list(levels)}. Give all parts the same."
            )
        self._order = levels

    def check(self, column: Column) -> None:
        """Raise a ValueError if parts hold numbers and others levels that are no strays."""
        if column.kind == "category" and len(self._kinds) > 1 and not self.wanted:
            raise ValueError(
                f"Column {self.name} holds numbers in some parts of X and levels in others "
                f"({some_of(list(self._counted), 3)}). Make all parts numbers or texts, or name "
                "the column in categorical_features."
            )

    def raw(self) -> tuple[Raw, Array, Array]:
        """Return the column as if each level stood in one row; these rows' weights, and cells."""
        weight, cells = np.array(list(self._counted.values()), dtype=np.float64).reshape(-1, 2).T
        levels = list(self._counted)
        kinds = self._kinds or self._blank
        if "category" not in kinds and not self.wanted:
            kind: Any = "boolean" if kinds == {"boolean"} else "number"
            moment = next(iter(self._moments), None)
            return Raw(kind, np.zeros(0), moment=moment), weight, cells
        mixed = len(kinds) > 1 and not self.wanted
        if mixed:  # numbers and stray texts, it may be: one level stands for all numbers
            levels, cells = [*levels, 0.0], np.append(cells, self._n_numbers)
            weight = np.append(weight, 0.0)
        ordered = self._order is not None
        if "category" not in kinds:  # numbers, or truth values, that are asked for as levels
            order = np.argsort(np.array(levels, dtype=np.float64), kind="stable")
            levels, weight, cells = [levels[n] for n in order], weight[order], cells[order]
            ordered = True
        elif self._order is not None:
            place = {level: n for n, level in enumerate(self._counted)}
            order = np.array([place[level] for level in self._order], dtype=np.intp)
            levels, weight, cells = list(self._order), weight[order], cells[order]
        places = np.arange(len(levels))
        moment = next(iter(self._moments), None)
        return (
            Raw("category", None, places, levels, ordered, self._guessed or mixed, moment),
            weight,
            cells,
        )
