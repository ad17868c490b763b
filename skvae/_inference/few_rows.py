"""The encoder's location for a few rows of any columns, by NumPy: levels, counts, missing cells.

A server asks for one row at a time, and torch takes longer to load than it takes to answer. What
``VAE.encode`` says is the truth that tests hold this to.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._table.column import Array
from .._table.columns import Columns
from .codes import NUMPY_ACTIVATIONS, Weights, layers, numpy_linear, numpy_tame

MOST_NUMBERS = 2**22  # of the products of loadings, where cells are missing


class Rows(NamedTuple):
    """What the encoder sees of rows."""

    features: Array  # (N, P)
    seen: NDArray[np.bool_] | None  # (N, P)  None: all
    holes: NDArray[np.bool_]  # (N, M)  of the columns that may miss


def _logarithms(x: Array, columns: Columns, own: NDArray[np.intp]) -> Array:
    lowest = np.array([columns.kinds.supports[column].lower for column in own])
    return np.log(np.maximum(x, lowest))  # a missing value may be filled with 0


def _indicators(x: Array, columns: Columns, own: NDArray[np.intp]) -> Array:
    parts = [
        x[:, [place]] == np.arange(columns.kinds.n_levels[column])
        for place, column in enumerate(own)
    ]
    return np.hstack(parts).astype(np.float64)


def _directions(x: Array, columns: Columns, own: NDArray[np.intp]) -> Array:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x * (np.sqrt(x.shape[1]) / np.maximum(length, np.finfo(x.dtype).tiny))


def _themselves(x: Array, columns: Columns, own: NDArray[np.intp]) -> Array:
    return x


def _of_counts(x: Array, columns: Columns, own: NDArray[np.intp]) -> Array:
    return np.log1p(x)


# What the encoder sees of the columns of each likelihood that has a name.
FEATURES = {
    **dict.fromkeys(("gaussian", "student_t", "bernoulli", "ordinal"), _themselves),
    **dict.fromkeys(("normal_scores",), _themselves),
    **dict.fromkeys(("poisson", "negative_binomial"), _of_counts),
    "log_normal": _logarithms,
    "categorical": _indicators,
    "multinomial": _directions,
}


def few_codes(table: Any, weights: Weights, columns: Columns, activation: str) -> Array | None:
    """Return locations (N, K) of a table's rows; None: they are for ``VAE.encode``."""
    kinds = columns.kinds.likelihoods
    n_features, n_components = weights["encoder.loadings"].shape
    known = all(isinstance(name, str) and name in FEATURES for name in kinds)
    if not known or n_features * n_components**2 > MOST_NUMBERS:
        return None
    x, observed = columns.encode(table)
    own = {name: np.flatnonzero([kind == name for kind in kinds]) for name in dict.fromkeys(kinds)}
    features = np.hstack([FEATURES[name](x[:, at], columns, at) for name, at in own.items()])
    encoder = {name.removeprefix("encoder."): array for name, array in weights.items()}
    seen, holes = None, np.zeros((len(x), np.count_nonzero(columns.may_miss)), dtype=bool)
    if observed is not None:
        seen, holes = observed[:, _column_of_feature(own, columns)], ~observed[:, columns.may_miss]
    mlp = list(layers(weights))
    return _locations(Rows(features, seen, holes), encoder, mlp, NUMPY_ACTIVATIONS[activation])


def _column_of_feature(own: dict[str, NDArray[np.intp]], columns: Columns) -> NDArray[np.intp]:
    parts = [
        np.repeat(at, np.array(columns.kinds.n_levels)[at]) if name == "categorical" else at
        for name, at in own.items()
    ]
    return np.concatenate(parts)


def _locations(rows: Rows, encoder: Weights, mlp: Any, activation: Any) -> Array:
    """Return A f + a + s f(x), as ``Encoder.forward``."""
    (features, seen, holes), mean, loadings = rows, encoder["mean"], encoder["loadings"]
    features = features if seen is None else np.where(seen, features, mean)
    loc = numpy_linear(features, encoder["linear.weight"], encoder["linear.bias"])
    if seen is not None:
        loc = _of_fewer(loc, seen, loadings, encoder["variance"])
        features = np.where(seen, features, mean + loc @ loadings.T)
    if not mlp:
        return loc
    robust = numpy_tame((features - encoder["center"]) / encoder["spread"])
    hidden = np.hstack([robust, holes])
    for layer in mlp[:-1]:
        hidden = activation(numpy_linear(hidden, *layer))
    weight, bias = mlp[-1]  # the other half of its outputs are log scales
    n_components = loc.shape[1]
    return loc + encoder["unit"] * numpy_linear(hidden, weight[:n_components], bias[:n_components])


def _of_fewer(loc: Array, seen: NDArray[np.bool_], loadings: Array, variance: Array) -> Array:
    """Return the linear posterior's location in rows that miss something.

    As ``Encoder.fewer_columns``.
    """
    products = (loadings[:, :, None] * loadings[:, None, :]) / variance[:, None, None]
    identity = np.eye(loadings.shape[1])
    precision = np.tensordot(seen.astype(np.float64), products, 1) + identity  # (N, K, K)
    of_all = products.sum(0) + identity
    return np.linalg.solve(precision, (loc @ of_all)[:, :, None])[:, :, 0]
