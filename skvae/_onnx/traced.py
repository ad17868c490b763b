"""Tensors that stand for values of an ONNX graph: torch functions on them write its nodes.

So the formulas of likelihoods, priors and networks are written once, for torch, and a graph is what
they write when they are called with traced tensors. Of such a tensor the dtype and the shape are
known, by the same functions on torch's device "meta", but no number.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from .graph import Graph

ELEMENTS = {
    torch.float64: TensorProto.DOUBLE,
    torch.float32: TensorProto.FLOAT,
    torch.int64: TensorProto.INT64,
    torch.int32: TensorProto.INT32,
    torch.bool: TensorProto.BOOL,
}
SYMBOLS = ("add", "sub", "mul", "truediv", "pow", "mod", "matmul")
COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne", "and", "or")
Writer = Callable[..., Any]
PRIMITIVES: dict[str, Writer] = {}  # of a graph and the result's meta tensor: they name values
METAS: dict[str, Callable[..., Tensor]] = {}  # shortcuts to results' metas, of operands' metas
COMPOSED: dict[str, Writer] = {}  # of tensors alone: they call others


class UntranslatedError(ValueError):
    """A formula asks for what cannot be written as a graph."""


def primitive(*names: str) -> Callable[[Writer], Writer]:
    """Say what writes the torch functions of these names."""

    def register(writer: Writer) -> Writer:
        PRIMITIVES.update(dict.fromkeys(names, writer))
        return writer

    return register


def composed(*names: str) -> Callable[[Writer], Writer]:
    """Say which other functions make up the torch functions of these names."""

    def register(writer: Writer) -> Writer:
        COMPOSED.update(dict.fromkeys(names, writer))
        return writer

    return register


class Traced:
    """A tensor in a graph; ``meta`` has its dtype and shape."""

    def __init__(self, graph: Graph, name: str, meta: Tensor) -> None:
        self.graph, self.name, self.meta = graph, name, meta

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return call(function.__name__, function, args, kwargs or {})

    def __getattr__(self, name: str) -> Any:
        """Return the method of that name."""
        if name.startswith("__"):
            raise AttributeError(name)  # internal: Python asks for what is not there

        def of_meta(meta: Tensor, *args: Any, **kwargs: Any) -> Any:
            return getattr(meta, name)(*args, **kwargs)

        return lambda *args, **kwargs: call(name, of_meta, (self, *args), kwargs)

    @property
    def shape(self) -> torch.Size:
        return self.meta.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.meta.dtype

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")  # where constants are made

    @property
    def T(self) -> Any:
        return self.transpose(-1, -2)

    @property
    def mT(self) -> Any:
        return self.transpose(-1, -2)

    def dim(self) -> int:
        return self.meta.dim()

    def __len__(self) -> int:
        return len(self.meta)

    def __bool__(self) -> bool:
        raise UntranslatedError("It asks for a number that only the running graph knows.")

    def __float__(self) -> float:
        return float(bool(self))

    def __getitem__(self, index: Any) -> Any:
        each = index if isinstance(index, tuple) else (index,)
        return call("getitem", operator.getitem, (self, tuple(map(_places, each))), {})

    def __neg__(self) -> Any:
        return call("neg", torch.neg, (self,), {})

    def __invert__(self) -> Any:
        return call("logical_not", torch.logical_not, (self,), {})

    __hash__ = object.__hash__


def _places(index: Any) -> Any:
    """Return a list of truth values as the places of what is true."""
    is_truth = isinstance(index, Tensor) and index.dtype == torch.bool
    return index.nonzero()[:, 0] if is_truth else index


def _binary(symbol: str, turned: bool = False) -> Callable[[Any, Any], Any]:
    function = getattr(operator, f"__{symbol}__")
    if turned:
        return lambda own, other: call(symbol, function, (other, own), {})
    return lambda own, other: call(symbol, function, (own, other), {})


for _symbol in (*SYMBOLS, *COMPARISONS):
    setattr(Traced, f"__{_symbol}__", _binary(_symbol))
for _symbol in SYMBOLS:
    setattr(Traced, f"__r{_symbol}__", _binary(_symbol, turned=True))


def call(name: str, function: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Call a torch function of some traced tensors: write the nodes of its result."""
    name = name.strip("_")  # in place or not: nobody else holds the value
    if name in COMPOSED:
        return COMPOSED[name](*args, **kwargs)
    if name not in PRIMITIVES:
        raise UntranslatedError(f"It calls {name!r} of torch, which has no translation here.")
    graph = next(_traced_in((args, kwargs))).graph
    meta = METAS.get(name, function)(*_metas(args), **_metas(kwargs))
    found = PRIMITIVES[name](graph, meta, *args, **kwargs)
    if isinstance(meta, Tensor):
        return Traced(graph, found, meta)
    return tuple(Traced(graph, *pair) for pair in zip(found, meta, strict=True))


def meta_of(dtype: torch.dtype, *operands: Any) -> Tensor:
    """Return the meta tensor of an elementwise function, faster than torch does."""
    shapes = [operand.shape for operand in operands if isinstance(operand, Tensor)]
    n_axes = max(map(len, shapes))
    padded = [(1,) * (n_axes - len(shape)) + tuple(shape) for shape in shapes]
    sizes = [max(each) if min(each) > 0 else 0 for each in zip(*padded, strict=True)]
    return torch.empty(sizes, dtype=dtype, device="meta")


def _traced_in(values: Any) -> Iterator[Traced]:
    if isinstance(values, Traced):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _traced_in(value)
    elif isinstance(values, dict):
        yield from _traced_in(list(values.values()))


def _metas(values: Any) -> Any:
    if isinstance(values, Traced):
        return values.meta
    if isinstance(values, Tensor):
        return values.detach().to("meta")
    if isinstance(values, dict):
        return {name: _metas(value) for name, value in values.items()}
    if type(values) in (tuple, list):
        return type(values)(map(_metas, values))
    return values


def named(graph: Graph, value: Any, dtype: torch.dtype | None = None) -> str:
    """Return the name of a tensor or a number in the graph, in some dtype."""
    if isinstance(value, Traced):
        if dtype in (None, value.dtype):
            return value.name
        return graph.node("Cast", [value.name], to=ELEMENTS[dtype])[0]
    if not isinstance(value, Tensor):
        value = torch.tensor(value, dtype=dtype)
    value = value.detach().to("cpu", dtype or value.dtype)
    for axis, (size, stride) in enumerate(zip(value.shape, value.stride(), strict=True)):
        if graph.is_open(size):
            if stride != 0:
                raise UntranslatedError("It makes a constant with a place for each row.")
            value = value.narrow(axis, 0, 1)  # the same for all: it is broadcast again
    return graph.constant(value.numpy())


def constant(like: Traced, value: Any) -> Any:
    """Return an array or a tensor as a value of the same graph."""
    value = torch.tensor(value) if isinstance(value, np.ndarray) else value
    return Traced(like.graph, named(like.graph, value), value.to("meta"))


def given(graph: Graph, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Traced:
    """Return a value that another graph makes, or the user."""
    return Traced(graph, graph.give(name), torch.empty(shape, dtype=dtype, device="meta"))
