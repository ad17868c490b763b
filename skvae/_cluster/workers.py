"""What the workers of a cluster do in a fit: read their rows, and train together."""

import copy
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import wraps
from typing import Any, NamedTuple

import numpy as np
import torch.distributed
from scipy.sparse import issparse

from .._advice import heard, warn
from .._callbacks import Nobody
from .._fitted import Fitted
from .._history import History
from .._parameters import Parameters
from .._preparing import Prepared
from .._resources import own_gradients
from .._sharded import (
    Going,
    Own,
    Progress,
    Sample,
    encoded,
    first_missing,
    here,
    prepared_of,
    read_into,
    sample_of,
    train_shards,
    without_rows,
)
from .._table.column import Array
from .._table.frames import joined, take_rows
from .._table.gathered import Gathered, SeenColumns
from .._table.schema import Schema
from .._table.sources import Source
from .._training.collective import Alone, Collective, Gloo, is_told, lost_to_others
from .._training.plan import Epoch

BETWEEN = 2.0  # seconds, of questions whether the client wants to stop


class Result(NamedTuple):
    """What a task found, and its warnings."""

    found: Any
    said: list[tuple[str, type[Warning]]]


class Seen(NamedTuple):
    """What a part holds."""

    columns: SeenColumns
    n_rows: int
    n_counted: int  # of some weight


def located(task: Callable[..., Any]) -> Callable[..., Any]:
    """Let a task's errors say where they were, and return its warnings with what it found."""

    @wraps(task)
    def on_worker(where: str, *arguments: Any) -> Result:
        from distributed import get_worker

        try:
            with own_gradients(), heard() as said:
                return Result(task(*arguments), said)
        except Exception as error:
            if not is_told(error):
                error.add_note(f"In {where}, on the worker {get_worker().address}.")
            raise

    return on_worker


def as_weights(weight: Any) -> Array:
    try:
        return np.asarray(weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"sample_weight needs numbers, one for each row: {error}.") from None


def gathered_of(part: Any, weight: Any, check: Callable[[Any], Any], where: str) -> Gathered:
    n_rows = part.shape[0]
    if issparse(part):
        raise TypeError(
            "X must have dense blocks. Got sparse ones instead: "
            "X.map_blocks(lambda block: block.toarray()) has dense ones."
        )
    if weight is not None:
        if len(weight) != n_rows:
            raise ValueError(
                "sample_weight must have the partitions of X, row for row: the one here has "
                f"{len(weight)} weights for {n_rows} rows."
            )
        weight = as_weights(weight)
        if not (np.isfinite(weight) & (weight >= 0.0)).all():
            raise ValueError(
                "sample_weight must hold finite numbers that are not below 0. Got "
                f"{weight[~(np.isfinite(weight) & (weight >= 0.0))][0]} instead."
            )
    source = Source(where, lambda: iter([part] if n_rows else []), lambda: n_rows)
    count = n_rows if weight is None else int((weight > 0.0).sum())
    return Gathered(source, check, weight, (count, part.shape[1]))


@located
def see(part: Any, weight: Any, check: Any, asked: Any) -> Seen:
    gathered = gathered_of(part, weight, check, "X")
    return Seen(gathered.seen(asked), part.shape[0], gathered.shape[0])


@located
def read(
    part: Any, weight: Any, check: Any, columns: tuple[Schema, list[Any], list[str]], first: int
) -> Sample:
    gathered = gathered_of(part, weight, check, "X")
    table = np.empty(gathered.shape)
    own = read_into(table, gathered, *columns)
    number = np.arange(first, first + len(table), dtype=np.intp)
    with np.errstate(over="ignore"):
        single = table.astype(np.float32)
    is_single = np.array_equal(single, table, equal_nan=True)  # then half of the memory is enough
    return Sample(number, single if is_single else table, own)


@located
def missing(whole: Result) -> tuple[Array, float]:
    return first_missing(whole.found.table, whole.found.number), float(whole.found.weight.sum())


@located
def some(whole: Result, n_rows: int, first: Array) -> Sample:
    return sample_of(whole.found, n_rows, first)


@located
def prepare(
    parameters: Parameters,
    columns: tuple[Schema, list[Any], list[str]],
    samples: list[Result],
    seed: int,
) -> Prepared:
    return prepared_of(parameters, *columns[:2], [one.found for one in samples], seed)


@located
def said(prepared: Result) -> None:
    """Warn as the start did: what it found is too large to be sent to the client for that."""
    for message, category in prepared.said:
        warn(message, category)


@located
def slim(prepared: Result) -> Prepared:
    return without_rows(prepared.found)


@located
def rows_of(
    prepared: Result,
    wholes: list[Result],
    shards: tuple[list[int], list[int]],
    total: float,
    n_rows: int,
) -> Own:
    from distributed import get_worker

    begun = here(prepared.found, prepared.found.parameters["device"])
    width = len(begun.schema.columns)  # those of holes come with the encoding
    tables = [np.empty((0, width)), *(one.found.table for one in wholes)]
    table = np.concatenate(tables, dtype=np.float64)
    weight = np.concatenate([np.zeros(0), *(one.found.weight for one in wholes)])
    rows = encoded(begun, table, weight, total, n_rows)
    return Own(rows, *shards, n_rows, f", on the worker {get_worker().address}")


@located
def shape_of(part: Any) -> tuple[int, int]:
    return part.shape


@located
def every(part: Any, weight: Any, begin: int, step: int) -> tuple[Any, Array | None]:
    """Return each so many-th row of a part, and its weight."""
    gathered_of(part, weight, lambda rows: rows, "X")  # or its error
    some = slice(begin, None, step)
    return take_rows(part, np.arange(part.shape[0])[some]), (
        None if weight is None else as_weights(weight)[some]
    )


@located
def fitted(estimator: Any, some: list[Result]) -> Any:
    """Fit an estimator to the rows of all partitions."""
    parts = [one.found for one in some if len(one.found[0])]
    weight = None if parts[0][1] is None else np.concatenate([weight for _, weight in parts])
    return estimator.fit(joined([part for part, _ in parts]), sample_weight=weight)


class Paused(BaseException):
    """The time of a segment is over."""


@dataclass(frozen=True)
class Segment:
    """Some of a fit's training, that workers do together."""

    name: str  # of what they tell each other by Dask
    size: int  # how many they are
    seconds: float
    late: timedelta
    n_heard: int  # epochs that the client has been told of
    asks: bool  # whether the client answers to each
    ends: bool  # with the last epoch that is known


@located
def train(
    segment: Segment, rank: int, prepared: Result, own: Result, progress: Progress
) -> tuple[Fitted, History] | Progress | None:
    """Train for some time; the first worker returns the model, or how far they have come."""
    from distributed import secede

    secede()  # other tasks go on, and so do the segments of other fits: none waits for another
    begun = time.monotonic()
    begun_with = here(prepared.found, prepared.found.parameters["device"])
    progress = copy.deepcopy(progress)  # the client's, in threads
    told = _Told(segment, progress) if rank == 0 else None

    def is_over() -> bool:
        return time.monotonic() - begun >= segment.seconds or (told is not None and told.stops())

    with closing(told) if told else nullcontext(), met(segment, rank) as collective:

        def pause() -> None:
            raise Paused

        going = Going(collective, progress, is_over, pause)
        try:
            found: Any = train_shards(begun_with, own.found, going, told or Nobody())
        except Paused:
            found = progress
    return found if rank == 0 else None


@contextmanager
def met(segment: Segment, rank: int) -> Iterator[Collective]:
    """Let the workers of a segment find each other, by the host that Dask knows each by."""
    if segment.size == 1:
        yield Alone()
        return
    from distributed import Variable, get_worker
    from distributed.comm.addressing import get_address_host

    distributed: Any = torch.distributed
    host, late = get_address_host(get_worker().address), segment.late
    place = Variable(segment.name)
    with lost_to_others(late):
        if rank == 0:
            store = distributed.TCPStore(
                host, 0, is_master=True, timeout=late, wait_for_workers=False
            )
            place.set([host, store.port])
        else:
            to, port = place.get(timeout=late.total_seconds())
            store = distributed.TCPStore(to, port, is_master=False, timeout=late)
    collective = Gloo(store, rank, segment.size, late, late, host=host)
    yield collective
    collective.gather(None, to=0)  # whose the store is: it is not to end before the others


class _Told:
    """The client as the audience of a worker."""

    def __init__(self, segment: Segment, progress: Progress) -> None:
        from distributed import Queue

        self.segment = segment
        self.last = len(progress.epochs) - 1 if segment.ends else None
        self.out = Queue(f"{segment.name}-told")
        self.back = Queue(f"{segment.name}-answers")
        self._asked = time.monotonic()

    def begin(self, max_epochs: int) -> None:
        self._put(max_epochs)

    def hear(self, epoch: Epoch, fitted: Callable[[], Any]) -> bool:
        if epoch.number >= self.segment.n_heard:
            self._put((replace(epoch, snapshot=dict), fitted() if self.segment.asks else None))
            if self.segment.asks and self.back.get():
                self.last = epoch.number
        return epoch.number == self.last

    def stops(self) -> bool:
        """Whether the client has asked to stop: it is asked every other second."""
        if (now := time.monotonic()) - self._asked < BETWEEN:
            return False
        self._asked = now
        return bool(self.back.qsize())

    def close(self) -> None:
        self.out.close()
        self.back.close()

    def _put(self, message: Any) -> None:
        self.out.put(pickle.dumps(message))
