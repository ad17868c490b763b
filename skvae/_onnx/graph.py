"""A graph in the making: its nodes, its constants and the graphs inside it. It knows no torch."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET, ML_OPSET = 18, 3  # of ai.onnx and ai.onnx.ml
FIRST_SIZE = 1_000_003  # a prime that no table has as its number of columns


class Graph:
    """Nodes in an order in which they can run, each in the innermost graph that it depends on.

    A size that is not known before the graph runs, such as the number of rows, is a prime here. Its
    multiples stand for shapes that depend on it.

    Parameters
    ----------
    prefix : str, default=""
        What all names begin with, where the nodes are to be part of another graph.
    ordered : bool, default=False
        Whether all that an inner graph takes from outside must show in the inputs of its node:
        skl2onnx sorts nodes by these alone.
    """

    def __init__(self, prefix: str = "", ordered: bool = False) -> None:
        self.initializers: list[TensorProto] = []
        self.sizes: dict[int, str] = {}  # the value, int64 of shape (1,), that a prime stands for
        self.depth: dict[str, int] = {}  # in how many inner graphs a value is
        self.prefix, self.ordered = prefix, ordered
        self._scopes: list[list[NodeProto]] = [[]]
        self._known: dict[Any, tuple[str, ...]] = {}
        self._used: dict[str, int] = {}

    @property
    def nodes(self) -> list[NodeProto]:
        return self._scopes[0]

    def _name(self, what: str) -> str:
        number = self._used[what] = self._used.get(what, -1) + 1
        return f"{self.prefix}{what}_{number}"

    def _added(self, what: str, depth: int) -> str:
        name = self._name(what)
        self.depth[name] = depth
        return name

    # -- values -----------------------------------------------------------------------------------

    def give(self, name: str) -> str:
        """Let a value be used that another graph makes, or the user."""
        self.depth[name] = 0
        return name

    def constant(self, array: NDArray) -> str:
        """Add a constant; equal ones are one."""
        array = np.ascontiguousarray(array) if array.ndim else array
        is_text = array.dtype == object
        content = tuple(array.tolist()) if is_text else array.tobytes()
        key = (array.dtype.str, array.shape, content)
        if key not in self._known:
            name = self._added("constant", 0)
            self.initializers.append(numpy_helper.from_array(array, name))
            self._known[key] = (name,)
        return self._known[key][0]

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        n_outputs: int = 1,
        domain: str = "",
        **attributes: Any,
    ) -> tuple[str, ...]:
        """Add a node, and return its outputs; a second one that does the same is the first."""
        key = (op, domain, n_outputs, *inputs, repr(sorted(attributes.items())))
        if key not in self._known:
            self._known[key] = self._new_node(op, inputs, n_outputs, domain, attributes)
        return self._known[key]

    def _new_node(
        self, op: str, inputs: Sequence[str], n_outputs: int, domain: str, attributes: Any
    ) -> tuple[str, ...]:
        depth = max((self.depth[name] for name in inputs), default=0)
        outputs = tuple(self._added(op.lower(), depth) for _ in range(n_outputs))
        name = self._name(op)
        made = helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes)
        self._scopes[depth].append(made)
        return outputs

    def finish(self, value: str, name: str) -> None:
        """Give a value the name of an output of the graph."""
        self._scopes[0].append(helper.make_node("Identity", [value], [name], self._name("Output")))

    def needed(self, outputs: Sequence[str]) -> tuple[list[NodeProto], list[TensorProto]]:
        """Return the nodes and constants that some outputs of the graph depend on."""
        nodes = _needed(self._scopes[0], outputs)
        read = set(_read_by(nodes))
        return nodes, [one for one in self.initializers if one.name in read]

    # -- sizes ------------------------------------------------------------------------------------

    def new_size(self, value: str, axis: int) -> int:
        """Return a prime for the size of a value along an axis."""
        (size,) = self.node("Shape", [value], start=axis, end=axis + 1)
        return self.size_of(size)

    def size_of(self, value: str) -> int:
        """Return a prime for the size that a value, int64 of shape (1,), holds."""
        for prime, known in self.sizes.items():
            if known == value:
                return prime
        prime = next(_primes(max(self.sizes, default=FIRST_SIZE - 1) + 1))
        self.sizes[prime] = value
        return prime

    def is_open(self, size: int) -> bool:
        """Whether a size depends on one that is not known."""
        return any(size % prime == 0 for prime in self.sizes) and size > 0

    def shape(self, sizes: Sequence[int]) -> str:
        """Return a shape as a value."""
        if not any(map(self.is_open, sizes)):
            return self.constant(np.array(sizes, dtype=np.int64))
        parts = [
            self.sizes[size] if size in self.sizes else self.constant(np.array([size], np.int64))
            for size in sizes
        ]
        return parts[0] if len(parts) == 1 else self.node("Concat", parts, axis=0)[0]

    # -- graphs inside ----------------------------------------------------------------------------

    def enter(self, inputs: Sequence[ValueInfoProto]) -> None:
        """Begin an inner graph."""
        self._scopes.append([])
        self.depth |= {value.name: len(self._scopes) - 1 for value in inputs}

    def leave(
        self, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
    ) -> GraphProto:
        """Return an inner graph, now that its outputs have been made."""
        nodes = _needed(self._scopes.pop(), [value.name for value in outputs])
        return helper.make_graph(nodes, self._name("inner"), inputs, outputs)

    def inner_name(self, what: str) -> str:
        return self._name(what)

    def copy(self, value: str) -> str:
        """Return a value as one of the innermost graph."""
        depth = len(self._scopes) - 1
        name = self._added("copy", depth)
        made = helper.make_node("Identity", [value], [name], self._name("Copy"))
        self._scopes[depth].append(made)
        return name

    def loop(self, inputs: Sequence[str], body: GraphProto) -> tuple[str, ...]:
        """Add a loop: how often, whether at all, and the values that change, begin it."""
        constants = {constant.name for constant in self.initializers}
        outside = [name for name in _read_by(body.node) if self.depth[name] < len(self._scopes)]
        taken = [name for name in dict.fromkeys(outside) if name not in constants]
        depth = max(self.depth[name] for name in (*taken, *inputs))
        if self.ordered:
            inputs = [self._after(taken, inputs[0]), *inputs[1:]]
        outputs = tuple(self._added("loop", depth) for _ in body.output[1:])
        made = helper.make_node("Loop", inputs, outputs, self._name("Loop"), body=body)
        self._scopes[depth].append(made)
        return outputs

    def _after(self, names: Sequence[str], number: str) -> str:
        """Return a number that is known when all these values are: it adds 0 times their ranks."""
        nothing = self.constant(np.array([0], np.int64))
        for name in names:
            (shape,) = self.node("Shape", [name])
            (rank,) = self.node("Shape", [shape])
            (product,) = self.node("Mul", [rank, nothing])
            (number,) = self.node("Add", [number, product])
        return number


def _needed(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> list[NodeProto]:
    """Keep the nodes whose outputs somebody reads."""
    read, kept = set(outputs), []
    for node in reversed(nodes):
        if read & set(node.output):
            read |= set(_read_by([node]))
            kept.append(node)
    return kept[::-1]


def _read_by(nodes: Iterable[NodeProto]) -> Iterator[str]:
    """Yield the values that nodes read, and those of graphs inside them."""
    for node in nodes:
        yield from filter(None, node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _read_by(attribute.g.node)


def _primes(start: int) -> Iterator[int]:
    number = start
    while True:
        if all(number % divisor for divisor in range(2, int(number**0.5) + 1)):
            yield number
        number += 1
