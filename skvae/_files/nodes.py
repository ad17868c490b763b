"""Values as nodes of a manifest, and back: arrays, containers, objects of a closed set of classes.

A *node* is a plain value (see ``_table/plain``) or ``{kind: parts}``. An object's kind is the name
of its class; which classes there are is said by ``forms``, and nothing else is ever made or called.
"""

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._table.plain import NotPlainError, from_plain, plain_of
from .container import FileError

BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
OWN_KINDS = "skvae._specification.Specification"  # the base of likelihoods and priors


class Form(NamedTuple):
    """How objects of one class become nodes, and what is built of these."""

    module: str
    name: str
    take: Callable[["Writer", Any, str], Any]  # object, where it stands -> parts
    build: Callable[["Reader", Any, type], Any]  # parts, class -> object

    def owner(self) -> type:
        """Return the class, which is imported where it is first needed."""
        found: type = getattr(import_module(f"skvae.{self.module}"), self.name)
        return found


class Writer:
    """What turns values into nodes, and keeps the arrays aside.

    Parameters
    ----------
    forms : iterable of Form
        The classes whose objects are stored.

    Attributes
    ----------
    arrays : dict of str to ndarray
        All arrays so far, by where they stand.
    """

    def __init__(self, forms: Iterable[Form]) -> None:
        self.forms = {(f"skvae.{form.module}", form.name): form for form in forms}
        self.arrays: dict[str, NDArray] = {}
        self._known: dict[int, tuple[Any, Any]] = {}  # objects that may stand in several places
        self._n_generators = 0

    def node(self, value: Any, where: str) -> Any:
        """Return the node of a value, or raise a TypeError that says where it stands."""
        if isinstance(value, np.ndarray):
            return self._once(value, where, self._array)
        if type(value) in (list, tuple):
            parts = [self.node(one, f"{where}.{n}") for n, one in enumerate(value)]
            return {type(value).__name__: parts}
        if type(value) in (dict, MappingProxyType):
            pairs = value.items()
            return {"dict": [[self.node(k, where), self.node(v, f"{where}.{k}")] for k, v in pairs]}
        if type(value) is np.random.RandomState:
            return self._once(value, where, self._random_state)
        form = self.forms.get((type(value).__module__, type(value).__qualname__))
        if form is not None and form.owner() is type(value):
            return {form.name: form.take(self, value, where)}
        try:
            return plain_of(value)
        except NotPlainError as error:
            raise TypeError(_refusal(value, where, str(error))) from None

    def _once(self, value: Any, where: str, make: Callable[[Any, str], Any]) -> Any:
        """Return the same node for the same object."""
        if id(value) not in self._known:
            self._known[id(value)] = (value, make(value, where))
        return self._known[id(value)][1]

    def _array(self, array: NDArray, where: str) -> Any:
        if array.dtype.kind in "OSU":
            cells = [self.node(one, f"{where}.{n}") for n, one in enumerate(array.ravel().tolist())]
            return {"cells": [array.dtype.kind, list(array.shape), cells]}
        name, plain = where, np.asarray(array)
        while name in self.arrays:  # labels that differ may be written alike
            name += "'"
        if plain.dtype.kind not in "biuf" or plain.dtype.itemsize > 8:
            raise TypeError(_refusal(array, where, f"it is an array of the dtype {array.dtype}"))
        order = "F" if plain.flags.f_contiguous and not plain.flags.c_contiguous else "C"
        native = plain.astype(plain.dtype.newbyteorder("="), copy=False)
        self.arrays[name] = native.T if order == "F" else native
        return {"array": [name, order, plain.dtype.str]}

    def _random_state(self, state: np.random.RandomState, where: str) -> Any:
        self._n_generators += 1
        held = state.get_state(legacy=False)
        return {"RandomState": [self._n_generators, self.node(held, where)]}


class Reader:
    """What turns nodes into values again; whatever is wrong with them is raised.

    Parameters
    ----------
    forms : iterable of Form
        The classes whose objects may be made.
    arrays : dict of str to ndarray
        The arrays of the file.
    trusted : sequence of str, default=()
        Further types that skops is to trust.
    """

    def __init__(
        self, forms: Iterable[Form], arrays: Mapping[str, NDArray], trusted: Sequence[str] = ()
    ) -> None:
        self.forms = {form.name: form for form in forms}
        self.trusted = trusted
        self.arrays = arrays
        self._known: dict[tuple[str, Any], Any] = {}

    def value(self, node: Any) -> Any:
        """Return the value of a node."""
        if not isinstance(node, dict):
            return from_plain(node)
        ((kind, parts),) = node.items()
        if kind in ("list", "tuple"):
            values = [self.value(part) for part in parts]
            return values if kind == "list" else tuple(values)
        if kind == "dict":
            return {self.value(key): self.value(part) for key, part in parts}
        if kind == "cells":
            return self._cells(*parts)
        if kind == "array":
            return self._once(kind, tuple(parts), lambda: self._array(*parts))
        if kind == "RandomState":
            return self._once(kind, parts[0], lambda: _random_state(self.value(parts[1])))
        if kind in self.forms:
            form = self.forms[kind]
            return form.build(self, parts, form.owner())
        return from_plain(node)

    def _once(self, kind: str, name: Any, make: Callable[[], Any]) -> Any:
        """Return the same object for the same name."""
        if (kind, name) not in self._known:
            self._known[kind, name] = make()
        return self._known[kind, name]

    def _array(self, name: str, order: str, code: str) -> NDArray:
        array = self.arrays[name]
        dtype = np.dtype(code)
        if dtype.newbyteorder("=") != array.dtype:
            raise ValueError(f"the array {name} has the dtype {array.dtype} instead of {dtype}")
        array = array.astype(dtype, copy=False)
        return array.T if order == "F" else array

    def _cells(self, kind: str, shape: list[int], parts: list[Any]) -> NDArray:
        """Return an array of objects or texts; of texts it is as wide as the longest one."""
        if kind not in ("O", "S", "U") or math.prod(shape) != len(parts):
            raise ValueError(f"{len(parts)} cells of the kind {kind!r} do not fill {shape}")
        cells = np.empty(len(parts), dtype=object)
        for number, part in enumerate(parts):
            cells[number] = self.value(part)
        return cells.astype(kind).reshape(shape)


def _random_state(held: Any) -> np.random.RandomState:
    name = held["bit_generator"]
    if name not in BIT_GENERATORS:
        raise ValueError(f"the random generator {name!r} is not known")
    generator = getattr(np.random, name)()
    state = np.random.RandomState(generator)
    state.set_state(held)
    return state


def _refusal(value: Any, where: str, why: str) -> str:
    """Say what is not stored, and what to do."""
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if _is_own_kind(value):
        return (
            f"skvae.save stores skvae's own likelihoods and priors alone, and {where} is a {name}. "
            f"Use pickle, or skops.io with {name!r} among its trusted types."
        )
    return (
        f"skvae.save does not store {where}: {why}. Give it another type, or use pickle for files "
        "that you trust."
    )


def _is_own_kind(value: Any) -> bool:
    """Whether it is a likelihood or a prior; these are not imported to find out."""
    module = sys.modules.get(OWN_KINDS.rpartition(".")[0])
    return module is not None and isinstance(value, getattr(module, OWN_KINDS.rpartition(".")[2]))


def record_of(reader: Reader, parts: Mapping[str, Any], owner: type) -> Any:
    """Build a dataclass or a named tuple of its fields."""
    return owner(**fields_of(reader, parts, owner))


def fields_of(reader: Reader, parts: Mapping[str, Any], owner: Any) -> dict[str, Any]:
    """Return the values of the fields, none of which may be unknown."""
    check_known(owner, parts, getattr(owner, "_fields", None) or owner.__dataclass_fields__)
    return {name: reader.value(part) for name, part in parts.items()}


def check_known(owner: type, found: Iterable[str], known: Iterable[str]) -> None:
    """Raise a FileError unless a class has all that a file holds of it."""
    if unknown := sorted(set(found) - set(known)):
        raise FileError(
            f"its {owner.__name__} has {unknown[0]!r}, which this skvae does not know. "
            "Upgrade skvae"
        )
