"""Rows and parameters to what training begins with: columns, rows, a module at its start."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from ._fitted import Fitted, device_of, module_for
from ._model.vae import VAE
from ._parameters import (
    Parameters,
    architecture_of,
    categories_asked,
    check_same_architecture,
    per_column,
)
from ._resources import LITTLE, enough_threads
from ._specification import copied
from ._start.features import Counted
from ._start.linear_start import evidence_of_components, start_linear
from ._table.automatic import Look, look_at
from ._table.checks import Said, check_support
from ._table.column import Array
from ._table.columns import Columns, fit_columns
from ._table.duplicates import merged
from ._table.gathered import Gathered
from ._table.holes import holes_of, widened
from ._table.remarks import with_remarks
from ._table.schema import LabelledRows, Schema, fit_schema
from ._table.statistics import ColumnMoments
from ._table.support import limits_of
from ._training.rows import Rows, encode_rows
from .likelihoods._names import check_joint, is_open, kind_of, kinds_of, name_of, supports_of


class Begun(NamedTuple):
    """Modules in float64, and how the number of their components was chosen."""

    vae: VAE  # at its start
    launch: VAE  # where training begins: mostly the same
    optimism: float  # nats a row by which held-out rows flatter it
    evidence: Array | None  # (M, 3)  see Fitted


class Prepared(NamedTuple):
    """All that training begins with."""

    parameters: Parameters
    names: list[str]  # of the columns, for messages
    schema: Schema
    columns: Columns
    vae: VAE
    launch: VAE
    optimism: float
    rows: Rows
    evidence: Array | None


def prepare(
    parameters: Parameters, rows: LabelledRows, seed: int, before: Fitted | None
) -> Prepared:
    """Merge equal rows, encode them, and build the module at its start, in float64."""
    if before is None:
        schema, asked, table = fit_table(parameters, rows)
        return prepare_table(parameters, schema, asked, table, weight=rows.weight, seed=seed)
    check_same_architecture(before.architecture, parameters)
    table = before.read(rows.X, parameters["handle_unknown"])
    table, weight, copies = merged(table, rows.weight)
    vae = before.fresh_module(device_of(parameters["device"]))
    begun = Begun(vae, vae, 0.0, before.evidence)
    encoded = rows_for(parameters, before.columns, table, weight, copies=copies)
    return _prepared(parameters, before.schema, before.columns, begun, encoded)


def prepare_table(
    parameters: Parameters,
    schema: Schema,
    asked: list[Any],
    table: Any,
    *,
    weight: Array,
    seed: int,
) -> Prepared:
    """Begin with a table whose schema, and the likelihoods asked for, are known."""
    with enough_threads(LITTLE):
        table, weight, copies = merged(table, weight)
        number = np.broadcast_to(1.0 if copies is None else copies.astype(np.float64), weight.shape)
        schema, columns, table, moments = look_and_scale(
            parameters, schema, asked, table, weight=weight, number=number
        )
    counted = Counted(table, weight, number, moments)
    begun = module_at_start(parameters, columns, counted, seed)
    with enough_threads(LITTLE):
        encoded = rows_for(parameters, columns, table, weight, copies=copies)
    return _prepared(parameters, schema, columns, begun, encoded)


def _prepared(
    parameters: Parameters, schema: Schema, columns: Columns, begun: Begun, rows: Rows
) -> Prepared:
    return Prepared(parameters, schema.names, schema, columns, *begun[:3], rows, begun.evidence)


def look_and_scale(
    parameters: Parameters,
    schema: Schema,
    asked: list[Any],
    table: Any,
    *,
    weight: Array,
    number: Array,
) -> tuple[Schema, Columns, Any, ColumnMoments]:
    """Add holes that say something to a table, choose likelihoods, and learn to scale its columns.

    ``number`` (N,) is how many rows each row stands for, and ``weight`` how often it counts.
    """
    # Weights that sum to less than the rows are shares, not repetitions.
    share = number.sum() / weight.sum()
    count = weight * share if share > 1.0 else weight
    holes = holes_of(table, schema.n_levels, count, parameters["missing"])
    table = widened(table, holes)
    look = look_at(table, weight, schema.columns, number)
    schema = replace(schema, holes=holes)
    asked = [*asked, *("bernoulli" for _ in holes)]
    columns = columns_for(parameters, schema, asked, table, look, count=count)
    schema = with_remarks(schema, look.moments, columns, table, count)
    return schema, columns, table, look.moments


def fit_table(parameters: Parameters, rows: LabelledRows) -> tuple[Schema, list[Any], Any]:
    """Learn the columns of X; return the likelihood asked for of each, and X as a table."""
    categories, asked = asked_of(parameters, rows.labels, rows.names)
    asked_of_levels = categories, parameters["max_categories"], rows.names
    if isinstance(rows.X, Gathered):
        schema, table = rows.X.fitted(*asked_of_levels)
    else:
        schema, table = fit_schema(rows.X, rows.weight, *asked_of_levels)
    return schema, asked, admissible(table, asked, rows.names)


def asked_of(
    parameters: Parameters, labels: list[Any] | None, names: list[str]
) -> tuple[list[bool | None], list[Any]]:
    """Return which columns are to be categories (None: as they are), and their likelihoods."""
    categories = categories_asked(parameters["categorical_features"], labels, len(names))
    asked = per_column(parameters["likelihood"], labels, len(names))
    check_joint(asked, names)
    for number, one in enumerate(asked):
        if not is_open(one):
            categories[number] = kind_of(one).takes_levels
    return categories, asked


def admissible(table: Any, asked: list[Any], names: list[str]) -> Any:
    """Return the table, or raise if a likelihood that was asked for has no density for a cell."""
    supports = supports_of(asked)
    said = Said(names, list(map(name_of, asked)), [one.description for one in supports])
    strict = np.zeros(len(names), dtype=bool)
    return check_support(table, limits_of(supports), strict, said)[0]


def columns_for(
    parameters: Parameters,
    schema: Schema,
    asked: list[Any],
    table: Any,
    look: Look,
    *,
    count: Array | None = None,
) -> Columns:
    """Choose each column's likelihood where "auto" was asked for, then shift, scale and shape.

    ``count`` (N,) is how many rows each row stands for; None: one.
    """
    kinds = kinds_of(asked, look.natures, parameters["noise"], schema.n_levels)
    return fit_columns(table, look, kinds, parameters["scaling"], count)


def module_at_start(parameters: Parameters, columns: Columns, counted: Counted, seed: int) -> Begun:
    """Build a module at its start, and one where training begins."""
    n_components, evidence = _components(parameters, columns, counted.table, counted.weight)
    vae = module_for(architecture_of(parameters), columns, n_components)
    if n_components > vae.n_features:  # a linear model has no more of them
        vae = module_for(architecture_of(parameters), columns, vae.n_features)
    vae = vae.to(device_of(parameters["device"]))
    linear = vae.copied_without_idle_layers()  # which take long to say nothing
    with enough_threads(LITTLE):
        launch, optimism = start_linear(linear, columns, counted)
    begins = [vae] if launch is linear else [copied(vae), vae]
    for whole, start in zip(begins, (linear, launch), strict=False):
        whole.load_state_dict(start.state_dict(), strict=False)
        whole.initialise(torch.Generator().manual_seed(seed))  # the hidden layers
    return Begun(begins[0], begins[-1], optimism, evidence)


def _components(
    parameters: Parameters, columns: Columns, table: Any, weight: Array
) -> tuple[int, Array | None]:
    """Return how many components there are to be, and the evidence for that."""
    asked = parameters["n_components"]
    if not isinstance(asked, str):
        return int(asked), None
    if asked == "evidence":
        probe = module_for(architecture_of(parameters), columns, 1)
        with enough_threads(LITTLE):
            evidence = evidence_of_components(probe, columns, table, weight)
        if evidence is not None:
            return evidence.chosen, np.stack(evidence, axis=1)
    n_rows, n_columns = table.shape
    return min(10, -(-n_columns // 3), -(-n_rows // 3)), None


def rows_for(
    parameters: Parameters,
    columns: Columns,
    table: Any,
    weight: Array,
    *,
    copies: Any = None,
) -> Rows:
    """Encode the rows of a table for training, in its memory if they fit there.

    ``copies`` (N,) is how many equal rows each is; None: each is itself.
    """
    device, dtype = device_of(parameters["device"]), trainable_dtype(parameters)
    cells = encode_rows(table, columns, dtype, device, overwrite=True)
    own = torch.empty(len(weight), dtype=dtype)
    np.divide(weight, weight.mean(), out=own.numpy(), casting="same_kind")
    rows = Rows(cells, own.to(device))
    return rows if copies is None else rows.of_copies(torch.from_numpy(copies).to(device))


def trainable(parameters: Parameters, vae: VAE) -> VAE:
    """Copy a module in the precision that training uses."""
    return copied(vae).requires_grad_(True).to(trainable_dtype(parameters))


def generator_for(parameters: Parameters, seed: int) -> torch.Generator:
    """Make a seeded generator on the device of training."""
    return torch.Generator(device_of(parameters["device"])).manual_seed(seed)


def trainable_dtype(parameters: Parameters) -> torch.dtype:
    return torch.float64 if parameters["precision"] == "float64" else torch.float32
