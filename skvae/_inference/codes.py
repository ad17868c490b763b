"""The encoder's location alone, for complete rows of numbers: few rows by NumPy, many by torch.

    loc(x) = A x + a + s f(x)

A web service asks for one row at a time, and building a module takes longer than its answer; a
large table should cost what its matrix products cost. ``VAE.encode`` does all other tables, and
what it says is the truth that tests hold this to.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr

from .._parameters import CELL_LIMIT
from .._table.column import Array
from .._table.columns import FARTHEST, Columns
from .._table.statistics import row_chunks

Weights = Mapping[str, NDArray]


FEW_ROWS = 32
TOO_WILD = 1e12  # of a code: the squares of its row may be infinite in float32
CACHED_NUMBERS = 2**18  # in a temporary array: they stay in the cache of one core
ROWS_FOR_PRODUCTS = 256  # fewer would make the matrix products slower
NUMPY_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: x * ndtr(x),
    "relu": lambda x: np.maximum(x, 0.0),
    "silu": lambda x: x * expit(x),
    "tanh": np.tanh,
}


def complete_codes(
    X: Any,
    weights: Weights,
    columns: Columns,
    activation: str,
    for_each: Callable[..., None],
) -> Array | None:
    """Return locations (N, K); None: ``VAE.encode`` does it all.

    They are nan where cells are missing, and above ``TOO_WILD`` where something may have overflown:
    these rows it has to do.
    """
    numbers = isinstance(X, np.ndarray) and X.dtype.kind in "buif"
    as_they_are = columns.kinds.sees_numbers and not columns.shapes
    if not numbers or not as_they_are or columns.empty is not None:
        return None
    encoder = _encoder_of(weights, columns)
    if len(X) <= FEW_ROWS:
        return _few(X, encoder, columns, activation)
    n_products = len(X) * sum(weight.size for weight, _ in (encoder.linear, *encoder.mlp))
    return _many(X, encoder, columns, activation, partial(for_each, work=float(n_products)))


class _Encoder(NamedTuple):
    """Its parameters, arrays or tensors, with the inputs in the order of the columns."""

    linear: tuple[Any, Any]  # (K, D), (K,)
    center: Any  # (D,)
    spread: Any  # (D,)
    unit: Any  # (K,)
    mlp: tuple[tuple[Any, Any], ...]  # weights (n_out, n_in) and biases (n_out,)


class _Functions(NamedTuple):
    """What NumPy and torch call by different names."""

    linear: Callable[[Any, Any, Any], Any]
    tame: Callable[[Any], Any]
    activation: Callable[[Any], Any]


def _locations(x: Any, robust: Any, encoder: _Encoder, how: _Functions) -> Any:
    """Return the locations of columns (N, D), given the same in robust units, too."""
    loc = how.linear(x, *encoder.linear)
    if not encoder.mlp:
        return loc
    hidden = how.tame(robust)
    for layer in encoder.mlp[:-1]:
        hidden = how.activation(how.linear(hidden, *layer))
    return loc + encoder.unit * how.linear(hidden, *encoder.mlp[-1])


def _encoder_of(weights: Weights, columns: Columns) -> _Encoder:
    place = _place_among_features(columns)
    unit = weights["encoder.unit"]
    mlp = list(layers(weights))
    if mlp:
        # Nothing is missing here, so the first layer's inputs for that are left out. The last layer
        # also gives log scales, which are not needed.
        mlp[0] = (mlp[0][0][:, place], mlp[0][1])
        mlp[-1] = (mlp[-1][0][: len(unit)], mlp[-1][1][: len(unit)])
    return _Encoder(
        (weights["encoder.linear.weight"][:, place], weights["encoder.linear.bias"]),
        weights["encoder.center"][place],
        weights["encoder.spread"][place],
        unit,
        tuple(mlp),
    )


def _place_among_features(columns: Columns) -> Any:
    """Return where each column stands among the features: those of one likelihood are together."""
    names = columns.kinds.likelihoods
    kinds = list(dict.fromkeys(names))
    if len(kinds) == 1:
        return slice(len(names))
    return np.argsort([n for kind in kinds for n, name in enumerate(names) if name == kind])


def layers(weights: Weights) -> Iterator[tuple[NDArray, NDArray]]:
    middle = (f"middle.{number}" for number in itertools.count())
    for name in itertools.chain(["first"], middle):
        layer = f"encoder.mlp.{name}."
        if layer + "weight" not in weights:
            break
        yield weights[layer + "weight"], weights[layer + "bias"]
    if "encoder.mlp.last.weight" in weights:
        yield weights["encoder.mlp.last.weight"], weights["encoder.mlp.last.bias"]


def _few(X: NDArray, encoder: _Encoder, columns: Columns, activation: str) -> Array:
    """Compute them by NumPy, in float64."""
    how = _Functions(numpy_linear, numpy_tame, NUMPY_ACTIVATIONS[activation])
    with np.errstate(over="ignore"):
        x = _less(X, columns.shift) / columns.scale
    x = np.clip(x, -FARTHEST, FARTHEST)
    return _locations(x, (x - encoder.center) / encoder.spread, encoder, how)


def _less(X: NDArray, center: Array) -> Array:
    """Return X - center in the precision of ``center``, whatever numbers X holds."""
    return np.subtract(X, center, dtype=center.dtype, casting="same_kind")


def numpy_linear(x: Array, weight: Array, bias: Array) -> Array:
    return x @ weight.T + bias


def numpy_tame(x: Array) -> Array:
    return x / np.sqrt(1.0 + (x / CELL_LIMIT) ** 2)


def _many(
    X: NDArray,
    encoder: _Encoder,
    columns: Columns,
    activation: str,
    for_each: Callable[..., None],
) -> Array:
    """Compute them by torch in few passes: float32 rows in that precision, others in float64."""
    import torch

    from .._model.networks import ACTIVATIONS, tame_
    from .._model.products import linear

    dtype = np.float32 if X.dtype == np.float32 else np.float64
    center, slope, offset, encoder = _folded(encoder, columns, dtype)
    slope, offset, encoder = _tensors(slope), _tensors(offset), _tensors(encoder)
    how = _Functions(linear, lambda x: tame_(x, CELL_LIMIT), ACTIVATIONS[activation].value)
    widest = max(X.shape[1], *(len(bias) for _, bias in encoder.mlp), 1)
    result = np.empty((len(X), len(encoder.unit)), dtype)

    def encode(rows: slice) -> None:
        with torch.inference_mode(), np.errstate(over="ignore"):
            d = torch.from_numpy(_less(X[rows], center))
            robust = torch.addcmul(offset, d, slope)
            result[rows] = _locations(d, robust, encoder, how).numpy()

    between = (ROWS_FOR_PRODUCTS, CACHED_NUMBERS)
    for_each(encode, row_chunks(len(X), widest, CACHED_NUMBERS, between))
    return result


def _folded(
    encoder: _Encoder, columns: Columns, dtype: type[np.floating]
) -> tuple[Array, Array, Array, _Encoder]:
    """Fold shift, scale and robust units: d = X - center, slope d + offset, A d + a.

    What ``dtype`` rounds off the centre is made up for.
    """
    exact = columns.shift + columns.scale * encoder.center
    center = exact.astype(dtype)
    slope = 1.0 / (columns.scale * encoder.spread)
    weight, bias = encoder.linear
    weight = weight / columns.scale
    linear = weight, bias + weight @ (center - columns.shift)
    folded = _cast(encoder._replace(linear=linear), dtype)
    return center, _cast(slope, dtype), _cast(slope * (center - exact), dtype), folded


def _cast(part: Any, dtype: type[np.floating]) -> Any:
    return _each(part, lambda array: np.ascontiguousarray(array, dtype))


def _tensors(part: Any) -> Any:
    """Return tensors that share the arrays' memory; torch wants it to be writable."""
    import torch

    return _each(part, lambda a: torch.from_numpy(a if a.flags.writeable else a.copy()))


def _each(part: Any, function: Callable[[NDArray], Any]) -> Any:
    """Apply ``function`` to an array, or to each array in a tuple of tuples."""
    if isinstance(part, _Encoder):
        return _Encoder(*(_each(one, function) for one in part))
    if isinstance(part, tuple):
        return tuple(_each(one, function) for one in part)
    return function(part)
