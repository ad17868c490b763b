"""The fitted model and its parts as nodes, and what must go together in them. No torch.

Likelihoods and priors that are instances need torch; names of them do not.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from .._fitted import Fitted, hidden_layer_sizes
from .._parameters import ARCHITECTURE
from .._table.schema import Schema
from .._table.support import limits_of
from .nodes import Form, Reader, Writer, fields_of, record_of

FOLLOW = ("limits",)  # fields that others say


def _taken(writer: Writer, record: Any, where: str) -> dict[str, Any]:
    """Take a dataclass or a named tuple apart."""
    names = getattr(record, "_fields", None) or [one.name for one in fields(record) if one.init]
    kept = [name for name in names if name not in FOLLOW]
    return {name: writer.node(getattr(record, name), f"{where}.{name}") for name in kept}


def _built_columns(reader: Reader, parts: Mapping[str, Any], owner: type) -> Any:
    found = fields_of(reader, parts, owner)
    return owner(**found, limits=limits_of(found["kinds"].supports, found["shapes"]))


def _taken_schema(writer: Writer, schema: Schema, where: str) -> dict[str, Any]:
    from .._table.plain import NotPlainError

    try:
        return schema.parts()
    except NotPlainError as error:
        raise TypeError(
            f"skvae.save does not store {where}: {error}. Make such levels texts before fit, or "
            "use pickle for files that you trust."
        ) from None


def _built_schema(reader: Reader, parts: Mapping[str, Any], owner: Any) -> Any:
    return owner.of_parts(parts)


def _built_fitted(reader: Reader, parts: Mapping[str, Any], owner: type) -> Any:
    fitted = record_of(reader, parts, owner)
    check_together(fitted)
    return fitted


RECORDS = [
    ("_table.support", ["Kinds", "Support"]),
    ("_table.shape", ["Grid", "Piece", "Shape"]),
    ("_history", ["History"]),
    ("_detection", ["RowScore"]),
    ("_calibration", ["Calibration"]),
    ("likelihoods._real", ["Gaussian", "LogNormal", "StudentT"]),
    ("likelihoods._levels", ["Bernoulli", "Categorical", "Ordinal"]),
    ("likelihoods._counts", ["NegativeBinomial", "Poisson"]),
    ("likelihoods._multinomial", ["Multinomial"]),
    ("likelihoods._normal_scores", ["NormalScores"]),
    ("priors", ["Mixture", "StandardNormal"]),
]
FORMS = [Form(module, name, _taken, record_of) for module, names in RECORDS for name in names]
FORMS += [
    Form("_fitted", "Fitted", _taken, _built_fitted),
    Form("_table.columns", "Columns", _taken, _built_columns),
    Form("_table.schema", "Schema", _taken_schema, _built_schema),
]


# -- what goes together ---------------------------------------------------------------------------


def check_together(fitted: Fitted) -> None:
    """Raise a ValueError unless a model's parts fit each other.

    So no number that the file merely says, such as one of levels or units, makes a module large:
    all of it is there, in the arrays.
    """
    schema, columns, weights = fitted.schema, fitted.columns, fitted.weights
    n_columns = len(schema.columns) + len(schema.holes)
    for name in ("shift", "scale", "fill", "varies", "constant", "may_miss", "log_unseen", "empty"):
        _check_shape(f"columns.{name}", getattr(columns, name), (n_columns,))
    _check_shape("noise_variance", fitted.noise_variance, (n_columns,))
    kinds = columns.kinds
    if list(kinds.n_levels) != schema.n_levels:
        raise ValueError("the numbers of levels are not those of the schema")
    for each in (kinds.likelihoods, kinds.names, kinds.supports, kinds.automatic):
        if len(each) != n_columns:
            raise ValueError(f"a model of {n_columns} columns has likelihoods of {len(each)}")
    if any(not 0 <= column < n_columns for group in schema.holes for column in group):
        raise ValueError("holes stand in columns that are not there")
    if set(fitted.architecture) != set(ARCHITECTURE):
        raise ValueError("the parameters of its network are not those of this skvae")
    n_components, n_features = len(fitted.kl_per_component), len(weights["encoder.mean"])
    _check_shape("component_scale", fitted.component_scale, (n_components,))
    _check_network(fitted, n_components, n_features)
    _check_prior(fitted.architecture["prior"], weights, n_components)


def _check_network(fitted: Fitted, n_components: int, n_features: int) -> None:
    hidden = hidden_layer_sizes(fitted.architecture["hidden_layer_sizes"], n_features)
    expected: dict[str, tuple[int, ...]] = {
        "encoder.linear.weight": (n_components, n_features),
        "encoder.linear.bias": (n_components,),
        "encoder.log_scale": (n_components,),
        "encoder.unit": (n_components,),
        "encoder.loadings": (n_features, n_components),
        "decoder.linear.weight": (n_features, n_components),
        "decoder.linear.bias": (n_features,),
        "decoder.unit": (n_features,),
        "feature_scale": (n_features,),
    }
    expected |= {f"encoder.{n}": (n_features,) for n in ("center", "spread", "mean", "variance")}
    n_seen = n_features + int(np.count_nonzero(fitted.columns.may_miss))
    expected |= _of_layers("encoder.mlp", [n_seen, *hidden, 2 * n_components])
    expected |= _of_layers("decoder.mlp", [n_components, *hidden[::-1], n_features])
    for name, shape in expected.items():
        _check_shape(name, fitted.weights.get(name, np.zeros(())), shape)
    if fitted.codes is not None:
        _check_shape("codes", fitted.codes, (len(fitted.codes), n_components))


def _of_layers(mlp: str, sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's layers; without hidden ones there are none."""
    if len(sizes) == 2:
        return {}
    names = ["first", *(f"middle.{number}" for number in range(len(sizes) - 3)), "last"]
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (n_in, n_out) in zip(names, itertools.pairwise(sizes), strict=True):
        shapes |= {f"{mlp}.{name}.weight": (n_out, n_in), f"{mlp}.{name}.bias": (n_out,)}
    return shapes


def _check_prior(prior: Any, weights: Mapping[str, Any], n_components: int) -> None:
    """Check a mixture's number of Gaussians, which a module has room for before its weights."""
    most = getattr(prior, "most", None)
    if most is not None:
        _check_shape("prior.means", weights.get("prior.means", np.zeros(())), (most, n_components))


def _check_shape(name: str, array: Any, shape: tuple[int, ...]) -> None:
    if array is None:
        return
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "bf":
        raise ValueError(f"{name} is not an array of numbers")
    if array.shape != shape:
        raise ValueError(f"{name} has the shape {array.shape} instead of {shape}")
