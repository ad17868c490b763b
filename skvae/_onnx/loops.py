"""Graphs inside the graph: what is done for each of many slices, or again and again."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx import GraphProto, ValueInfoProto, helper
from torch import Tensor

from .graph import Graph
from .traced import ELEMENTS, Traced, constant, named

Function = Callable[..., Any]


def repeat(function: Function, times: int, *values: Traced) -> Any:
    """Return ``values = function(number, *values)`` after some times, counted from 0."""
    graph = values[0].graph
    names, metas = _loop(graph, function, torch.tensor([times]), values)
    return tuple(Traced(graph, *pair) for pair in zip(names, metas, strict=True))


def fold(function: Function, start: Any, sequence: Tensor) -> Any:
    """Return ``value = function(value, slice)`` after all slices of a constant's first axis."""

    def step(number: Any, value: Any) -> list[Any]:
        return [function(value, _slice(sequence, number))]

    return repeat(step, len(sequence), start)[0]


def for_each(function: Function, *sequences: Traced) -> Any:
    """Return ``function(*slices)`` of all slices along the first axis, stacked along it."""

    def step(number: Any) -> list[Any]:
        return [function(*(_slice(sequence, number) for sequence in sequences))]

    graph, first = sequences[0].graph, sequences[0]
    (name,), (meta,) = _loop(graph, step, graph_size(first, 0), ())
    return Traced(graph, name, meta.new_empty((first.shape[0], *meta.shape)))


def _slice(sequence: Any, number: Traced) -> Any:
    graph = number.graph
    (part,) = graph.node("Gather", [named(graph, sequence), number.name], axis=0)
    meta = sequence.meta if isinstance(sequence, Traced) else sequence.to("meta")
    return Traced(graph, part, meta[0])


def _loop(
    graph: Graph, function: Function, times: Any, values: Sequence[Traced]
) -> tuple[Sequence[str], Sequence[Tensor]]:
    """Add a loop, and return names and metas of its results; those beyond ``values`` stack up."""
    number, go_on = (torch.empty((), dtype=d, device="meta") for d in (torch.int64, torch.bool))
    body = _Body(graph, [number, go_on, *(value.meta for value in values)])
    step, again, *own = body.values
    results = function(step, *own)
    inner = body.end([again, *results])
    inputs = [named(graph, times), named(graph, True), *(value.name for value in values)]
    return graph.loop(inputs, inner), [result.meta for result in results]


class _Body:
    """An inner graph from its inputs on."""

    def __init__(self, graph: Graph, inputs: Sequence[Tensor]) -> None:
        self.graph = graph
        self.values = [Traced(graph, graph.inner_name("inside"), meta) for meta in inputs]
        self._inputs = [described(value) for value in self.values]
        graph.enter(self._inputs)

    def end(self, outputs: Sequence[Traced]) -> GraphProto:
        copies = [Traced(self.graph, self.graph.copy(one.name), one.meta) for one in outputs]
        return self.graph.leave(self._inputs, [described(one) for one in copies])


def described(value: Traced, name: str | None = None) -> ValueInfoProto:
    """Describe a value as an input or output of a graph."""
    shape = [None if value.graph.is_open(size) else size for size in value.shape]
    return helper.make_tensor_value_info(name or value.name, ELEMENTS[value.dtype], shape)


def whitening_of(a: Any) -> tuple[Any, Any]:  # (B, K, K) -> (B, K, K), (B,)
    """Return L^-1 for A = L L^T, positive definite and L lower triangular, and log det A.

    By elimination, of a matrix whose diagonal was made 1: components differ by many orders of
    magnitude.
    """
    places, identity = torch.arange(a.shape[-1]), torch.eye(a.shape[-1], dtype=a.dtype)
    unit = (a * identity).sum(-1).rsqrt()  # (B, K)

    def eliminate(step: Any, a: Any, lower: Any) -> tuple[Any, Any]:
        row = a.index_select(1, step.reshape(1))  # (B, 1, K)
        share = row / row.index_select(2, step.reshape(1)) * (places > step).double()
        taken = lower.index_select(1, step.reshape(1))
        return a - share.mT * row, lower - share.mT * taken

    scaled = a * unit[:, :, None] * unit[:, None, :]
    begun = constant(a, identity).expand_as(a)
    upper, lower = repeat(eliminate, a.shape[-1], scaled, begun)
    pivot = (upper * identity).sum(-1)
    log_det = pivot.log().sum(1) - 2.0 * unit.log().sum(1)
    return lower * pivot.rsqrt()[:, :, None] * unit[:, None, :], log_det


def gram_of(weight: Any, factor: Any) -> Any:  # (B, P), (P, K) -> (B, K, K)
    """Return F^T diag(weight) F of each row of weights."""
    n_features, n_components = factor.shape
    factor = constant(weight, factor)
    products = factor[:, :, None] * factor[:, None, :]
    flat = weight @ products.reshape(n_features, n_components**2)
    return flat.reshape(-1, n_components, n_components)


# -- blocks of rows -------------------------------------------------------------------------------


def by_blocks(function: Function, size: int, *rows: Traced) -> Any:  # (N, ...) -> (N, C)
    """Return ``function(*blocks)``, some numbers for each row, of blocks of at most so many rows.

    Copies of the last row stand in for what the last block lacks.
    """
    graph = rows[0].graph
    n_rows: Any = graph_size(rows[0], 0)
    count = _quotient(n_rows + (size - 1), size)
    block = _quotient(n_rows + (count.clamp(min=1) - 1), count.clamp(min=1))
    place = torch.minimum(_numbers_below(count * block), n_rows - 1)
    cut = [_folded(one.index_select(0, place), count, block) for one in rows]
    found = for_each(function, *cut)
    shape = torch.tensor([-1, found.shape[-1]])
    (flat,) = graph.node("Reshape", [found.name, named(graph, shape)])
    (own,) = graph.node("Slice", [flat, named(graph, torch.tensor([0])), n_rows.name])
    return Traced(graph, own, found.meta.new_empty((rows[0].shape[0], found.shape[-1])))


def graph_size(value: Traced, axis: int) -> Traced:
    """Return a size that is not known as a value of shape (1,)."""
    name = value.graph.sizes[value.shape[axis]]
    return Traced(value.graph, name, torch.empty(1, dtype=torch.int64, device="meta"))


def _quotient(a: Any, b: Any) -> Any:
    """Return a / b, rounded down."""
    return Traced(a.graph, a.graph.node("Div", [a.name, named(a.graph, b, a.dtype)])[0], a.meta)


def _numbers_below(end: Traced) -> Any:
    graph = end.graph
    ends = [named(graph, 0, torch.int64), end.reshape(()).name, named(graph, 1, torch.int64)]
    (numbers,) = graph.node("Range", ends)
    size = graph.size_of(end.name)
    return Traced(graph, numbers, torch.empty(size, dtype=torch.int64, device="meta"))


def _folded(value: Traced, count: Traced, block: Traced) -> Traced:
    """Return rows as blocks of rows."""
    graph = value.graph
    shape = (graph.size_of(count.name), graph.size_of(block.name), *value.shape[1:])
    (folded,) = graph.node("Reshape", [value.name, graph.shape(shape)], allowzero=1)
    return Traced(graph, folded, value.meta.new_empty(shape))
