"""What one node of a graph does, or a few: how torch's functions are written."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .graph import Graph
from .traced import METAS, Traced, UntranslatedError, meta_of, named, primitive

UNARY = {
    "exp": "Exp",
    "log": "Log",
    "sqrt": "Sqrt",
    "reciprocal": "Reciprocal",
    "abs": "Abs",
    "neg": "Neg",
    "sign": "Sign",
    "floor": "Floor",
    "round": "Round",
    "tanh": "Tanh",
    "softplus": "Softplus",
    "relu": "Relu",
    "isnan": "IsNaN",
    "isinf": "IsInf",
    "logical_not": "Not",
}
BINARY = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "truediv": "Div",
    "pow": "Pow",
    "maximum": "Max",
    "minimum": "Min",
    "mod_of_integers": "Mod",
    "and": "And",
    "logical_and": "And",
    "or": "Or",
    "logical_or": "Or",
}
COMPARISONS = {
    "lt": "Less",
    "le": "LessOrEqual",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "eq": "Equal",
    "less": "Less",
    "greater": "Greater",
}
REDUCTIONS = {"sum": "ReduceSum", "mean": "ReduceMean", "amax": "ReduceMax", "amin": "ReduceMin"}


def _write_unary(name: str, op: str) -> None:
    @primitive(name)
    def write(graph: Graph, meta: Tensor, x: Traced, **_: Any) -> str:
        return graph.node(op, [x.name])[0]

    is_truth = op in ("IsNaN", "IsInf", "Not")
    METAS[name] = lambda x, **_: meta_of(torch.bool if is_truth else x.dtype, x)


def _write_binary(name: str, op: str) -> None:
    @primitive(name)
    def write(graph: Graph, meta: Tensor, a: Any, b: Any, **_: Any) -> str:
        return graph.node(op, [named(graph, a, meta.dtype), named(graph, b, meta.dtype)])[0]

    METAS[name] = lambda a, b, **_: meta_of(torch.result_type(a, b), a, b)


def _write_comparison(name: str, op: str) -> None:
    @primitive(name)
    def write(graph: Graph, meta: Tensor, a: Any, b: Any) -> str:
        dtype = torch.result_type(_sample(a), _sample(b))
        return graph.node(op, [named(graph, a, dtype), named(graph, b, dtype)])[0]

    METAS[name] = lambda a, b: meta_of(torch.bool, a, b)


def _float_type(a: Any, b: Any) -> torch.dtype:
    return torch.promote_types(torch.result_type(a, b), torch.float32)


def _sample(value: Any) -> Any:
    return value.meta if isinstance(value, Traced) else value


def _write_reduction(name: str, op: str) -> None:
    @primitive(name)
    def write(
        graph: Graph, meta: Tensor, x: Traced, dim: Any = None, keepdim: bool = False, **_: Any
    ) -> str:
        inputs = [named(graph, x, meta.dtype)]
        if dim is not None:
            axes = [dim] if isinstance(dim, int) else list(dim)
            inputs.append(graph.constant(np.array(axes, dtype=np.int64)))
        return graph.node(op, inputs, keepdims=int(keepdim))[0]


for _name, _op in UNARY.items():
    _write_unary(_name, _op)
for _name, _op in BINARY.items():
    _write_binary(_name, _op)
for _name, _op in COMPARISONS.items():
    _write_comparison(_name, _op)
for _name, _op in REDUCTIONS.items():
    _write_reduction(_name, _op)
for _name in ("div", "truediv"):  # it makes floats of integers
    METAS[_name] = lambda a, b: meta_of(_float_type(a, b), a, b)
METAS["clamp"] = lambda x, *_, **__: x
METAS["where"] = lambda which, a, b: meta_of(torch.result_type(a, b), which, a, b)


@primitive("matmul")
def _write_matmul(graph: Graph, meta: Tensor, a: Any, b: Any) -> str:
    return graph.node("MatMul", [named(graph, a, meta.dtype), named(graph, b, meta.dtype)])[0]


@primitive("argmax")
def _write_argmax(graph: Graph, meta: Tensor, x: Traced, dim: int = -1) -> str:
    return graph.node("ArgMax", [x.name], axis=dim % x.dim(), keepdims=0)[0]


@primitive("log_softmax")
def _write_log_softmax(graph: Graph, meta: Tensor, x: Traced, dim: int, **_: Any) -> str:
    return graph.node("LogSoftmax", [x.name], axis=dim % x.dim())[0]


@primitive("softmax")
def _write_softmax(graph: Graph, meta: Tensor, x: Traced, dim: int, **_: Any) -> str:
    return graph.node("Softmax", [x.name], axis=dim % x.dim())[0]


@primitive("short_erf")
def _write_short_erf(graph: Graph, meta: Tensor, x: Traced) -> str:
    return graph.node("Erf", [x.name])[0]


@primitive("where")
def _write_where(graph: Graph, meta: Tensor, which: Any, a: Any, b: Any) -> str:
    values = [named(graph, a, meta.dtype), named(graph, b, meta.dtype)]
    return graph.node("Where", [named(graph, which), *values])[0]


@primitive("clamp")
def _write_clamp(graph: Graph, meta: Tensor, x: Traced, min: Any = None, max: Any = None) -> str:
    name = named(graph, x, meta.dtype)
    for op, end in (("Max", min), ("Min", max)):
        if end is not None:
            (name,) = graph.node(op, [name, named(graph, end, meta.dtype)])
    return name


@primitive("to", "type", "double", "float", "long", "bool")
def _write_cast(graph: Graph, meta: Tensor, x: Traced, *_: Any, **__: Any) -> str:
    return named(graph, x, meta.dtype)


@primitive("contiguous", "detach", "clone")
def _write_nothing(graph: Graph, meta: Tensor, x: Traced, *_: Any) -> str:
    return x.name


@primitive("linear")
def _write_linear(graph: Graph, meta: Tensor, x: Traced, weight: Any, bias: Any = None) -> str:
    (product,) = graph.node("MatMul", [x.name, named(graph, weight.T, x.dtype)])
    return product if bias is None else graph.node("Add", [product, named(graph, bias, x.dtype)])[0]


@primitive("einsum")
def _write_einsum(graph: Graph, meta: Tensor, equation: str, *operands: Any) -> str:
    names = [named(graph, operand, meta.dtype) for operand in operands]
    return graph.node("Einsum", names, equation=equation)[0]


# -- shapes ---------------------------------------------------------------------------------------


@primitive("reshape", "view", "view_as", "flatten", "unflatten", "unsqueeze", "squeeze")
def _write_reshape(graph: Graph, meta: Tensor, x: Traced, *_: Any, **__: Any) -> str:
    return _reshaped(graph, x.name, meta.shape)


def _reshaped(graph: Graph, name: str, shape: Sequence[int]) -> str:
    is_open = [graph.is_open(size) for size in shape]
    if sum(is_open) == 1:
        sizes = [-1 if unknown else size for size, unknown in zip(shape, is_open, strict=True)]
        target = graph.constant(np.array(sizes, dtype=np.int64))
        return graph.node("Reshape", [name, target])[0]
    return graph.node("Reshape", [name, graph.shape(shape)])[0]


@primitive("expand", "expand_as", "broadcast_to")
def _write_expand(graph: Graph, meta: Tensor, x: Any, *_: Any) -> str:
    return _expanded(graph, x, meta)


def _expanded(graph: Graph, x: Any, meta: Tensor) -> str:
    name = named(graph, x, meta.dtype)
    if isinstance(x, Traced) and x.shape == meta.shape:
        return name
    return graph.node("Expand", [name, graph.shape(meta.shape)])[0]


@primitive("zeros_like", "new_zeros")
def _write_zeros(graph: Graph, meta: Tensor, *_: Any, **__: Any) -> str:
    return _expanded(graph, 0, meta)


@primitive("ones_like", "new_ones")
def _write_ones(graph: Graph, meta: Tensor, *_: Any, **__: Any) -> str:
    return _expanded(graph, 1, meta)


@primitive("full_like", "new_full")
def _write_full(graph: Graph, meta: Tensor, x: Traced, *args: Any) -> str:
    return _expanded(graph, args[-1], meta)


@primitive("transpose")
def _write_transpose(graph: Graph, meta: Tensor, x: Traced, a: int, b: int) -> str:
    order = list(range(x.dim()))
    order[a], order[b] = order[b], order[a]
    return graph.node("Transpose", [x.name], perm=order)[0]


@primitive("movedim")
def _write_movedim(graph: Graph, meta: Tensor, x: Traced, source: int, target: int) -> str:
    order = [axis for axis in range(x.dim()) if axis != source % x.dim()]
    order.insert(target % x.dim(), source % x.dim())
    return graph.node("Transpose", [x.name], perm=order)[0]


@primitive("permute")
def _write_permute(graph: Graph, meta: Tensor, x: Traced, *order: int) -> str:
    return graph.node("Transpose", [x.name], perm=list(order))[0]


@primitive("cat", "concat")
def _write_cat(graph: Graph, meta: Tensor, parts: Sequence[Any], dim: int = 0) -> str:
    names = [_whole(graph, part, meta.dtype) for part in parts if part.shape[dim] > 0]
    return names[0] if len(names) == 1 else graph.node("Concat", names, axis=dim % meta.dim())[0]


def _whole(graph: Graph, part: Any, dtype: torch.dtype) -> str:
    name = named(graph, part, dtype)
    if isinstance(part, Tensor) and any(map(graph.is_open, part.shape)):
        return graph.node("Expand", [name, graph.shape(part.shape)])[0]
    return name


@primitive("stack")
def _write_stack(graph: Graph, meta: Tensor, parts: Sequence[Any], dim: int = 0) -> str:
    axis = graph.constant(np.array([dim % meta.dim()], dtype=np.int64))
    names = [_whole(graph, part, meta.dtype) for part in parts]
    apart = [graph.node("Unsqueeze", [name, axis])[0] for name in names]
    return apart[0] if len(apart) == 1 else graph.node("Concat", apart, axis=dim % meta.dim())[0]


@primitive("split", "chunk", "split_with_sizes")
def _write_split(
    graph: Graph, meta: Sequence[Tensor], x: Traced, sizes: Any, dim: int = 0
) -> Sequence[str]:
    if len(meta) == 1:
        return [x.name]
    lengths = np.array([part.shape[dim] for part in meta], dtype=np.int64)
    inputs = [x.name, graph.constant(lengths)]
    return graph.node("Split", inputs, len(meta), axis=dim % x.dim())


# -- places ---------------------------------------------------------------------------------------


@primitive("getitem")
def _write_getitem(graph: Graph, meta: Tensor, x: Any, index: Any) -> str:
    name, axis = named(graph, x), 0
    n_own = sum(one is not None and one is not Ellipsis for one in index)
    for one in index:
        if one is Ellipsis:
            axis += x.dim() - n_own
        elif one is not None:
            name, kept = _part(graph, name, axis, one)
            axis += kept
    widened = any(one is None for one in index)
    return _reshaped(graph, name, meta.shape) if widened else name


def _part(graph: Graph, name: str, axis: int, one: Any) -> tuple[str, bool]:
    """Return a part along one axis, and whether the axis stays."""
    if isinstance(one, slice):
        if one == slice(None):
            return name, True
        ends = (one.start or 0, 2**62 if one.stop is None else one.stop)
        start, stop, axes, step = (
            graph.constant(np.array([n], dtype=np.int64)) for n in (*ends, axis, one.step or 1)
        )
        return graph.node("Slice", [name, start, stop, axes, step])[0], True
    if isinstance(one, int):
        place = graph.constant(np.array(one, dtype=np.int64))
        return graph.node("Gather", [name, place], axis=axis)[0], False
    one = torch.tensor(one, dtype=torch.int64) if isinstance(one, list) else one
    if one.dim() != 1 or one.dtype != torch.int64:
        raise UntranslatedError("It takes cells by more than one list of places at once.")
    return graph.node("Gather", [name, named(graph, one)], axis=axis)[0], True


@primitive("index_select")
def _write_index_select(graph: Graph, meta: Tensor, x: Any, dim: int, index: Any) -> str:
    inputs = [named(graph, x), named(graph, index)]
    return graph.node("Gather", inputs, axis=dim % meta.dim())[0]


@primitive("gather")
def _write_gather(graph: Graph, meta: Tensor, x: Any, dim: int, index: Any) -> str:
    inputs = [named(graph, x), named(graph, index)]
    return graph.node("GatherElements", inputs, axis=dim % meta.dim())[0]


@primitive("scatter")
def _write_scatter(graph: Graph, meta: Tensor, x: Any, *how: Any) -> str:
    dim, index, value = how
    value = _expanded(graph, value, torch.empty(index.shape, dtype=meta.dtype, device="meta"))
    inputs = [named(graph, x), named(graph, index), value]
    return graph.node("ScatterElements", inputs, axis=dim % meta.dim())[0]


@primitive("index_copy")
def _write_index_copy(graph: Graph, meta: Tensor, x: Traced, *how: Any) -> str:
    dim, index, rows = how
    if dim != 0:
        raise UntranslatedError("It replaces cells along another axis than the first.")
    places = _reshaped(graph, index.name, (*index.shape, 1))
    return graph.node("ScatterND", [x.name, places, named(graph, rows, x.dtype)])[0]


def where_true(x: Any) -> Any:
    """Return the places of what is true (M,) in a vector; M is a size that is not known."""
    (found,) = x.graph.node("NonZero", [x.name])
    place = _reshaped(x.graph, found, (-1,))
    size = x.graph.new_size(place, 0)
    return Traced(x.graph, place, torch.empty(size, dtype=torch.int64, device="meta"))
