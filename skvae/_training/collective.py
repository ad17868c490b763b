"""Processes that hold rows together: sums over them, and what each has to tell the others."""

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed
from torch import Tensor

T = TypeVar("T")
PIECE = 2**22  # bytes


class Collective(Protocol):
    """Processes, numbered from 0, that all call the same methods in the same order."""

    rank: int
    size: int

    def add(self, vector: Tensor) -> None:
        """Put the sum over all processes in place of each one's vector."""

    def gather(self, value: Any, to: int | None = None) -> list[Any]:
        """Return the value of each process; with ``to``, in that one alone."""


@dataclass
class Alone:
    """One process."""

    rank: int = 0
    size: int = 1

    def add(self, vector: Tensor) -> None:
        """Pass: the vector is the sum."""

    def gather(self, value: Any, to: int | None = None) -> list[Any]:
        """Return the one value."""
        return [value]


class LostProcessError(RuntimeError):
    """Another process has ended, or does not answer."""


@contextmanager
def lost_to_others(late: timedelta) -> Iterator[None]:
    """Raise what torch says when others are gone as what it is."""
    try:
        yield
    except (RuntimeError, TimeoutError) as error:
        raise LostProcessError(
            "Another process of this fit has ended, or has not answered for "
            f"{late.total_seconds():.0f} s. Its own log says more."
        ) from error


class Gloo:
    """Processes that have a store in common, by torch's Gloo.

    It is a group of its own: torch's default one may be the user's, or another fit's.
    """

    n_made = 0  # in this process

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        a_step: timedelta,
        a_phase: timedelta,
        *,
        host: str = "",
    ) -> None:
        distributed: Any = torch.distributed  # it does not list all of its names
        self.rank, self.size = rank, size
        self._store, self._n_gathered = store, 0
        self._late = a_step, a_phase
        self._kept: list[str] = []  # keys of this process, that others may still read
        store.set_timeout(a_phase)
        made = distributed.ProcessGroupGloo
        options = made._Options()
        options._timeout = a_step
        if host and "GLOO_SOCKET_IFNAME" not in os.environ:  # the interface that the user wants
            options._devices = [made.create_device(hostname=host)]
        else:
            options._devices = [made.create_default_device()]
        with lost_to_others(a_step):
            self._group = made(distributed.PrefixStore("gloo", store), rank, size, options)

    def add(self, vector: Tensor) -> None:
        """Put the sum over all processes in place of each one's vector."""
        own = vector.cpu()
        with lost_to_others(self._late[0]):
            self._group.allreduce([own]).wait()
        if own is not vector:
            vector.copy_(own)

    def gather(self, value: Any, to: int | None = None) -> list[Any]:
        """Return the value of each process; they trust each other, as their pickles are read."""
        number = self._n_gathered
        self._n_gathered += 1
        own = pickle.dumps(value)
        with lost_to_others(self._late[1]):
            self._put(f"skvae/{number}/{self.rank}", own)
            if to not in (None, self.rank):
                return []
            found = [self._get(f"skvae/{number}/{rank}") for rank in range(self.size)]
            if to is None:  # all have come this far, and so have read what was there before
                self._forget(f"skvae/{number}/")
        return [pickle.loads(one) for one in found]

    def _put(self, key: str, data: bytes) -> None:
        """Put bytes into the store, in pieces: it takes no more than 8 MB at once."""
        pieces = [data[begin : begin + PIECE] for begin in range(0, len(data), PIECE)]
        for number, piece in enumerate(pieces):
            self._store.set(f"{key}/{number}", piece)
        self._store.set(key, str(len(pieces)))
        self._kept += [key, *(f"{key}/{number}" for number in range(len(pieces)))]

    def _get(self, key: str) -> bytes:
        n_pieces = int(self._store.get(key))
        return b"".join(self._store.get(f"{key}/{number}") for number in range(n_pieces))

    def _forget(self, last: str) -> None:
        """Let the store forget what this process has put there before its last."""
        for key in [key for key in self._kept if not key.startswith(last)]:
            self._store.delete_key(key)
        self._kept = [key for key in self._kept if key.startswith(last)]


def together(collective: Collective, work: Callable[[], T], where: str) -> T:
    """Return what this process makes of its part, or raise in all what went wrong in one.

    An error comes out as itself, with a note that says which process had it, and ``where``.
    """
    note = f"In process {collective.rank} of {collective.size}, {where}."
    result: Any = None
    error: Exception | None = None
    try:
        result = work()
    except LostProcessError:  # who is to be told?
        raise
    except Exception as raised:  # the others wait: they have to be told
        error = raised
        # Within another call it may have been told of already.
        if collective.size > 1 and not is_told(error):
            error.add_note(note)
    told = collective.gather(_portable(error))
    failed = [one for one in told if one is not None]
    if failed:
        collective.gather(None, to=0)  # whose the store may be: it is not to end before the others
        raise error or failed[0]  # internal: it comes up as itself
    return result


def is_told(error: Exception) -> bool:
    """Whether a note says already which process an error comes from."""
    return any(note.startswith("In process ") for note in getattr(error, "__notes__", ()))


def _portable(error: Exception | None) -> Exception | None:
    """Return an error that other processes can read: of a class that pickle can make again."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        told = RuntimeError(
            f"Another process had an error of a class that pickle cannot carry over. "
            f"{type(error).__name__}: {error}"
        )
        for note in getattr(error, "__notes__", ()):
            told.add_note(note)
        return told
    return error


def agreed(collective: Collective, work: Callable[[], T], where: str) -> T:
    """Return, in all processes, what process 0 makes."""
    found: T = collective.gather(together(collective, work, where))[0]
    return found
