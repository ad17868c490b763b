"""The missing cells of rows drawn, or expected, given the others. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._table.column import Array, check_finite, is_missing
from ._table.frames import Filling, completed, library_of, raw_column, where_missing
from ._table.holes import given_alone
from ._table.schema import Schema
from ._table.times import as_python
from ._table.unseen import refused

if TYPE_CHECKING:
    from ._fitted import Fitted

CELL_SAMPLES = 256  # of z for each row and column
MOVES = 20  # draws of the parameters
MOVED_BY = 1000  # rows that say how far parameters may be off
MOVED_CELLS = 2**24  # the same, times parameters: 128 MB


class How(NamedTuple):
    """How cells are drawn, or expected."""

    n_samples: int | str
    device: str
    seed: int | None  # None: their expectations


def filling(
    models: Sequence["Fitted"],
    X: Any,
    table: Any,
    rows: NDArray[np.intp],
    how: How,
    *,
    empty: Any = False,
) -> Filling:
    """Fill rows of X, which is read as ``table``: numbers of ``empty`` columns by 0.

    Draws are by the first model, expectations by all of them.
    """
    if not len(rows):
        return Filling(rows, None)
    model, *others = models
    if others and how.seed is None:
        cells = _averaged(models, table[rows], how)
    else:
        cells = model.conditional(table[rows], how.n_samples, how.seed, how.device)
    cells = cells[:, : X.shape[1]]
    numbers = np.array([column.kind != "category" for column in model.schema.columns])
    cells[:, empty & numbers] = 0.0
    for number, shape in model.columns.shapes.items():
        if model.schema.columns[number].moment and shape.step > 0.0:  # no date between two days
            cells[:, number] = shape.grid.nearest(cells[:, number])
    generator = None if how.seed is None else np.random.default_rng(how.seed)
    return Filling(rows, _schema_for(model.schema, X).write(cells, generator))


def _averaged(models: Sequence["Fitted"], table: Any, how: How) -> Array:  # (N, D)
    """Return the mean of what models with the same columns expect; levels by mean probabilities."""
    kinds = models[0].columns.kinds
    column = models[0].module().likelihood.column.numpy(force=True)
    levels = [place for place, number in enumerate(column) if kinds.n_levels[number]]
    parts = [model.expected(table, how.n_samples, levels, how.device) for model in models]
    cells, probabilities = (sum(each) / len(models) for each in zip(*parts, strict=True))
    of_level = column[levels]
    for number in np.unique(of_level):
        own = probabilities[:, of_level == number]
        if own.shape[1] > 1:  # what has one is a number, or as good as one
            cells[:, number] = own.argmax(axis=1)
    return cells


def parameter_moves(
    model: "Fitted", table: Any, weight: Array, seed: int, device: str
) -> tuple[Array, ...]:
    """Draw how far the parameters of a model may be off, by rows that it was fitted to."""
    import torch

    from ._inference.scores import noise_bank
    from ._inference.uncertainty import moved, scores_of_rows
    from ._resources import own_gradients

    vae = model.module(device)
    per_row = vae.n_features * (vae.n_components + 2)
    step = -(-table.shape[0] // min(MOVED_BY, max(MOVED_CELLS // per_row, 1)))
    some, counted = table[::step], weight[::step] * (weight.sum() / weight[::step].sum())
    with own_gradients():
        bank = noise_bank(MOVES, vae.n_components).to(vae.device)
    function = partial(scores_of_rows, vae, bank=bank, codebook=model.codebook(vae))
    (scores,) = model.by_chunks(function, some, vae, MOVES)
    with own_gradients():
        generator = torch.Generator().manual_seed(seed)
        draws = moved(torch.from_numpy(scores), torch.from_numpy(counted), MOVES, generator)
        return tuple(value.numpy() for value in draws)


def moved_model(model: "Fitted", moves: Sequence[Array], number: int) -> "Fitted":
    """Return the model with parameters of one draw."""
    import torch

    from ._fitted import shared, to_arrays
    from ._resources import own_gradients

    with own_gradients():
        vae = model.fresh_module(torch.device("cpu"))
        weight, bias, log_scale = (shared(each[number % MOVES]) for each in moves)
        vae.move_decoder(weight, bias, log_scale)
        return replace(model, weights=to_arrays(vae.state_dict()))


def _schema_for(schema: Schema, X: Any) -> Schema:
    """Return the fitted schema; for another kind of frame or array than it, one to write that."""
    library = library_of(X)
    if library == schema.library:
        return schema
    return replace(schema, library=library, template=None if library is None else X.head(0))


def check_drawn(model: "Fitted", *, is_given: bool, mode: bool, holes: bool) -> None:
    """Raise a ValueError where what is asked of draws has no meaning."""
    if is_given and mode:
        raise ValueError(
            "mode=True cannot be combined with given. VAEImputer.transform fills rows with what is "
            "expected of them."
        )
    if is_given and holes:
        raise ValueError(
            "holes=True cannot be combined with given: rows that are given come back without holes."
        )
    ignored = model.architecture["missing"] != "model" and model.columns.may_miss.any()
    if holes and not model.schema.holes and ignored:
        raise ValueError(
            "holes=True draws missing cells, but this model does not know how often cells are "
            "missing. Fit with missing='model'."
        )


def drawn_rows(model: "Fitted", X: Any, how: How) -> Any:
    """Draw what is missing in validated rows; all other cells are as they were."""
    missing = where_missing(X)
    rows, everything = np.flatnonzero(missing.any(axis=1)), np.arange(X.shape[1])
    table = model.read(X, "error")
    return completed(X, missing, filling([model], X, table, rows, how), everything, everything[:0])


def drawn_given(
    model: "Fitted", values: Mapping[Any, Any], labels: Sequence[Any], n_rows: int, how: How
) -> Any:
    """Draw rows in which these columns, by label, have these values."""
    labels, schema = list(labels), model.schema
    if unknown := [label for label in values if label not in labels]:
        raise ValueError(
            f"given names the columns {unknown}, which fit has not seen; it had {labels}."
        )
    held = {labels.index(label): v for label, v in values.items() if not is_missing(v)}
    row = np.full((1, len(labels)), np.nan)
    for number, value in held.items():
        row[0, number] = _cell(value, schema, number)
    row = given_alone(row, schema.holes)
    model.admitted(row, "error")
    table = np.repeat(row, n_rows, axis=0)
    cells = model.conditional(table, how.n_samples, how.seed, how.device)
    cells = np.where(np.isnan(table), cells, table)
    rare = {number: v for number, v in held.items() if v in schema.columns[number].rare}
    return schema.write(cells, np.random.default_rng(how.seed), rare)


def _cell(value: Any, schema: Schema, number: int) -> float:
    column, holder = schema.columns[number], np.empty(1, dtype=object)
    holder[0] = as_python(value)
    cells, new, held = column.encode(raw_column(holder, column.name))
    check_finite(cells, column.name)
    if len(new):
        raise ValueError(f"given: {refused(column.name, column.levels, new, held)}")
    return float(cells[0])


def cell_distributions(
    model: "Fitted", table: Any, shares: Sequence[float], device: str
) -> list[Array]:
    """Return of each column probabilities (N, L) of its levels, or quantiles (N, Q)."""
    from ._inference.conditional import Asked, conditional_distributions
    from ._inference.scores import noise_bank
    from ._resources import own_gradients

    vae, asked, result = model.module(device), [], []
    with own_gradients():
        bank = noise_bank(CELL_SAMPLES, vae.n_components).to(vae.device)
    for number, column in enumerate(model.schema.columns):
        n_levels = column.n_levels or 2 * (model.columns.kinds.names[number] == "bernoulli")
        groups = enumerate(model.schema.holes, start=len(model.schema.columns))
        beside = tuple(place for place, group in groups if number in group)
        asked.append(Asked(number, n_levels, tuple(shares), beside))
    codebook = model.codebook(vae)
    function = partial(conditional_distributions, vae, asked=asked, bank=bank, codebook=codebook)
    found = model.by_chunks(function, table, vae, CELL_SAMPLES)
    for one, column, cells in zip(asked, model.schema.columns, found, strict=True):
        if column.rare:  # its last place is theirs together
            cells = np.hstack([cells[:, :-1], cells[:, -1:] * np.array(column.shares)])
        result.append(cells if one.n_levels else _in_units(model, cells, one.column))
    return result


def levels_of(model: "Fitted", number: int) -> list[Any] | None:
    """Return what the probabilities of a column are of; None for numbers, which have quantiles."""
    column = model.schema.columns[number]
    if column.kind == "category":
        return [*column.levels, *column.rare]
    if model.columns.kinds.names[number] == "bernoulli":
        return [False, True] if column.kind == "boolean" else [0.0, 1.0]
    return None


def _in_units(model: "Fitted", cells: Array, number: int) -> Array:  # (N, Q)
    rows = np.zeros((cells.size, len(model.columns)))
    rows[:, number] = cells.ravel()
    return model.columns.decode(rows)[:, number].reshape(cells.shape)
