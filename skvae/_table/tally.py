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
        self.kinds: set[str] = set()
        self.blank: set[str] = set()  # kinds of parts without a value
        self.moments: dict[Any, None] = {}
        self.n_numbers = 0
        self.counted: dict[Any, list[float]] = {}  # level: [weight, cells]
        self.order: tuple[Any, ...] | None = None  # of ordered levels
        self.guessed = False

    def add(self, raw: Raw, weight: Array) -> None:
        """Count a part of the column, whose rows count so often."""
        if raw.kind != "category":
            self._see_numbers(raw)
            if not self.wanted:
                return
        self.guessed |= raw.guessed
        levels = as_levels(raw)
        assert levels.places is not None
        seen = levels.places >= 0
        size = len(levels.levels)
        (self.kinds if seen.any() else self.blank).add(raw.kind)
        weights = np.bincount(levels.places[seen], weight[seen], minlength=size)
        cells = np.bincount(levels.places[seen], minlength=size)
        for level, own, count in zip(levels.levels, weights.tolist(), cells.tolist(), strict=True):
            counted = self.counted.setdefault(level, [0.0, 0])
            counted[0] += own
            counted[1] += count
        if len(self.counted) > MOST_LEVELS:
            raise ValueError(
                f"Column {self.name} has more than {MOST_LEVELS:,} levels, so it says nothing "
                "about other columns. Drop it if it holds ids; turn texts into numbers first."
            )
        if raw.kind == "category" and raw.ordered:
            self._keep_order(tuple(raw.levels))

    def merge(self, other: "Tally") -> None:
        """Count what another tally of the column has counted, too."""
        self.is_single &= other.is_single
        self.kinds |= other.kinds
        self.blank |= other.blank
        self.n_numbers += other.n_numbers
        self.guessed |= other.guessed
        self._see_moments(other.moments)
        for level, (weight, cells) in other.counted.items():
            counted = self.counted.setdefault(level, [0.0, 0])
            counted[0] += weight
            counted[1] += cells
        if other.order is not None:
            self._keep_order(other.order)

    def _see_moments(self, moments: dict[Any, None]) -> None:
        self.moments |= moments
        if len(self.moments) > 1:
            kinds = {"other values" if one is None else one.what for one in self.moments}
            raise no_dates(self.name, kinds)

    def _see_numbers(self, raw: Raw) -> None:
        assert raw.numbers is not None
        present = raw.numbers[~np.isnan(raw.numbers)]
        (self.kinds if len(present) else self.blank).add(raw.kind)
        self.n_numbers += len(present)
        if len(present):
            self._see_moments({raw.moment: None})
        if self.is_single:
            with np.errstate(over="ignore"):
                self.is_single = bool((present.astype(np.float32) == present).all())

    def _keep_order(self, levels: tuple[Any, ...]) -> None:
        if self.order is not None and self.order != levels:
            raise ValueError(
                f"The parts of X have other ordered levels in column {self.name}: "
                f"{list(self.order)} and {list(levels)}. Give all parts the same."
            )
        self.order = levels

    def check(self, column: Column) -> None:
        """Raise a ValueError if parts hold numbers and others levels that are no strays."""
        if column.kind == "category" and len(self.kinds) > 1 and not self.wanted:
            raise ValueError(
                f"Column {self.name} holds numbers in some parts of X and levels in others "
                f"({some_of(list(self.counted), 3)}). Make all parts numbers or texts, or name "
                "the column in categorical_features."
            )

    def raw(self) -> tuple[Raw, Array, Array]:
        """Return the column as if each level stood in one row; these rows' weights, and cells."""
        weight, cells = np.array(list(self.counted.values()), dtype=np.float64).reshape(-1, 2).T
        levels = list(self.counted)
        kinds = self.kinds or self.blank
        if "category" not in kinds and not self.wanted:
            kind: Any = "boolean" if kinds == {"boolean"} else "number"
            moment = next(iter(self.moments), None)
            return Raw(kind, np.zeros(0), moment=moment), weight, cells
        mixed = len(kinds) > 1 and not self.wanted
        if mixed:  # numbers and stray texts, it may be: one level stands for all numbers
            levels, cells = [*levels, 0.0], np.append(cells, self.n_numbers)
            weight = np.append(weight, 0.0)
        ordered = self.order is not None
        if "category" not in kinds:  # numbers, or truth values, that are asked for as levels
            order = np.argsort(np.array(levels, dtype=np.float64), kind="stable")
            levels, weight, cells = [levels[n] for n in order], weight[order], cells[order]
            ordered = True
        elif self.order is not None:
            place = {level: n for n, level in enumerate(self.counted)}
            order = np.array([place[level] for level in self.order], dtype=np.intp)
            levels, weight, cells = list(self.order), weight[order], cells[order]
        places = np.arange(len(levels))
        moment = next(iter(self.moments), None)
        return (
            Raw("category", None, places, levels, ordered, self.guessed or mixed, moment),
            weight,
            cells,
        )
