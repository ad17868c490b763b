"""Processes that hold rows together: sums over them, and what each has to tell the others."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed
from torch import Tensor

T = TypeVar("T")


class Collective(Protocol):
    """Processes, numbered from 0, that all call the same methods in the same order."""

    rank: int
    size: int

    def add(self, vector: Tensor) -> None:
        """Put the sum over all processes in place of each one's vector."""

    def gather(self, value: Any) -> list[Any]:
        """Return the value of each process."""


@dataclass
class Alone:
    """One process."""

    rank: int = 0
    size: int = 1

    def add(self, vector: Tensor) -> None:
        """Pass: the vector is the sum."""

    def gather(self, value: Any) -> list[Any]:
        """Return the one value."""
        return [value]


class Gloo:
    """Processes that have a store in common, by torch's Gloo.

    It is a group of its own: torch's default one may be the user's, or another fit's.
    """

    n_made = 0  # in this process

    def __init__(self, store: Any, rank: int, size: int, a_step: Any, a_phase: Any) -> None:
        distributed: Any = torch.distributed  # it does not list all of its names
        self.rank, self.size = rank, size
        self._store, self._n_gathered = store, 0
        store.set_timeout(a_phase)
        own = distributed.PrefixStore("gloo", store)
        self._group = distributed.ProcessGroupGloo(own, rank, size, a_step)

    def add(self, vector: Tensor) -> None:
        """Put the sum over all processes in place of each one's vector."""
        if vector.is_cpu:
            self._group.allreduce([vector]).wait()
            return
        own = vector.cpu()
        self._group.allreduce([own]).wait()
        vector.copy_(own)

    def gather(self, value: Any) -> list[Any]:
        """Return the value of each process; they trust each other, as their pickles are read."""
        number = self._n_gathered
        self._n_gathered += 1
        self._store.set(f"skvae/{number}/{self.rank}", pickle.dumps(value))
        found = [self._store.get(f"skvae/{number}/{rank}") for rank in range(self.size)]
        if number > 0:  # which all have read, as they have come this far
            self._store.delete_key(f"skvae/{number - 1}/{self.rank}")
        return [pickle.loads(one) for one in found]


def together(collective: Collective, work: Callable[[], T], where: str) -> T:
    """Return what this process makes of its part, or raise in all what went wrong in one.

    An error comes out as itself, with a note that says which process had it, and ``where``.
    """
    result: Any = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as raised:  # the others wait: they have to be told
        error = raised
        if collective.size > 1:
            error.add_note(f"In process {collective.rank} of {collective.size}, {where}.")
    for failed in collective.gather(error):
        if failed is not None:
            raise error or failed  # internal: it comes up as itself
    return result
