"""A fit on a cluster, as the client goes about it."""

import pickle
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np

from .._advice import warn
from .._by_parts import step_of
from .._callbacks import Audience
from .._fitted import Fitted
from .._history import History
from .._parameters import Parameters
from .._sharded import Progress, columns_asked, dealt, schema_of, shards_of
from .._table.column import Array
from .._table.schema import Schema
from . import watching, workers
from .collections import constant
from .watching import Cluster, Kept, Lost


class Rows(NamedTuple):
    """The rows of a fit, as a cluster holds them."""

    names: list[str]  # of the columns, for messages
    labels: list[Any] | None  # as parameters name them
    parts: Sequence[Any]  # Delayed: frames or arrays
    weights: Sequence[Any]  # Delayed, or None for each part: each row counts once
    check: Callable[[Any], Any]  # checks a part, and returns it
    n_shards: int | None


class Listener(NamedTuple):
    """Who is told of a fit in the client."""

    audience: Audience
    asks: bool  # whether it wants the model of each epoch, and may stop the fit


class Gang(NamedTuple):
    """Workers that train together."""

    addresses: list[str]
    rows: list[Any]  # futures, each on its worker


class Interrupted(Exception):
    """The user has interrupted the training."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found  # what it had come to


class Limits(NamedTuple):
    """How a fit goes about on a cluster."""

    n_workers: int | None
    max_restarts: int
    seconds: float  # of training, that the loss of a worker may cost


class Read(NamedTuple):
    """What is known of the rows of a fit."""

    columns: tuple[Schema, list[Any], list[str]]  # with their likelihoods and names
    sizes: list[int]  # of the partitions
    counts: list[int]  # how many of these rows count
    first: Array  # (D,)  the first row in which each column misses
    total: float  # weight of all rows

    @property
    def n_rows(self) -> int:
        return sum(self.counts)


class ClusterFit:
    """A fit that goes on when workers are lost."""

    def __init__(
        self, client: Any, parameters: Parameters, rows: Rows, listener: Listener, limits: Limits
    ) -> None:
        self.client, self.cluster = client, Cluster(client)
        self.kept = Kept(self.cluster)
        self.parameters, self.rows, self.limits = parameters, rows, limits
        self.audience, self.asks = listener
        self.asked, self.likelihoods = columns_asked(parameters, rows.labels, rows.names)
        self.numbers = range(len(rows.parts))
        self.losses: list[str] = []
        self.n_heard, self.is_told, self.is_warned = 0, False, False
        self.gang: Gang | None = None

    def run(self, seed: int) -> tuple[Fitted, History]:
        """Fit, and go on from where it stood when workers are lost."""
        progress, read = Progress(seed, []), None
        try:
            while True:
                try:
                    read = read or self._read()
                    self._prepare(read, seed)
                    found = self._train(read, progress)
                    if not isinstance(found, Progress):
                        return found
                    progress = found
                except Lost as lost:
                    self._let_go()
                    self._count(lost)
        except Interrupted as interrupt:
            found = interrupt.found
            if isinstance(found, Progress):
                assert read is not None  # training comes after it
                found = self._train(read, found, ends=True)
            fitted, history = found
            return fitted, replace(history, interrupted=True)
        finally:
            self._let_go()
            self.kept.forget()

    def _let_go(self) -> None:
        """Let the gang go."""
        for one in () if self.gang is None else self.gang.rows:
            one.release()
        self.gang = None

    def _count(self, lost: Lost) -> None:
        self.losses.append(str(lost))
        most = self.limits.max_restarts
        if len(self.losses) > most:
            raise RuntimeError(
                f"The fit was lost {len(self.losses)} times, and max_restarts is {most}: "
                f"{'; '.join(self.losses)}. Look into the logs of the workers, for memory first: "
                "smaller partitions take less of it."
            ) from lost
        warn(f"The fit on the cluster goes on after a loss: {lost}.", RuntimeWarning)

    # -- what training begins with -------------------------------------------------------------

    def _read(self) -> Read:
        """Learn the columns from all partitions, and let their tables be on the cluster."""
        names = [("seen", n) for n in self.numbers]
        self.kept.let_be(names, self._seen)
        seen = self.kept.get(names)
        sizes, counts = [one.n_rows for one in seen], [one.n_counted for one in seen]
        if not sum(counts):
            lacks = "of a weight above 0" if sum(sizes) else "at all"
            raise ValueError(
                f"X must have rows, and its {len(sizes)} partitions have none {lacks}."
            )
        held = [one.columns for one in seen if one.n_counted]
        columns = schema_of(self.asked, held), self.likelihoods, self.rows.names
        read = Read(columns, sizes, counts, np.zeros(0), 0.0)
        self._tables(read)
        names = [("missing", n) for n in self.numbers]
        self.kept.let_be(names, self._of_tables(workers.missing))
        first, total = zip(*self.kept.get(names), strict=True)
        return read._replace(first=np.min(first, axis=0), total=sum(total))

    def _seen(self, names: list[Any]) -> list[Any]:
        common = _constants(self.rows.check, self.asked)
        return [_task(workers.see, _partition(n), *self._part(n), *common) for _, n in names]

    def _part(self, number: int) -> tuple[Any, Any]:
        return self.rows.parts[number], self.rows.weights[number]

    def _tables(self, read: Read) -> None:
        first = np.cumsum([0, *read.sizes])

        def tasks(names: list[Any]) -> list[Any]:
            common = _constants(self.rows.check, read.columns)
            return [
                _task(workers.read, _partition(n), *self._part(n), *common, int(first[n]))
                for _, n in names
            ]

        self.kept.let_be([("table", n) for n in self.numbers], tasks)

    def _of_tables(self, task: Any, *more: Any) -> Callable[[list[Any]], list[Any]]:
        def tasks(names: list[Any]) -> list[Any]:
            common = _constants(*more)
            return [
                _task(task, _partition(n), self.kept.futures["table", n], *common) for _, n in names
            ]

        return tasks

    def _prepare(self, read: Read, seed: int) -> None:
        """Let the tables and the start be on the cluster."""
        self._tables(read)

        def tasks(names: list[Any]) -> list[Any]:
            some = self._of_tables(workers.some, read.n_rows, read.first)
            samples = some([("some", n) for n in self.numbers])
            what = self.parameters, read.columns, samples, seed
            return [_task(workers.prepare, "the start of the fit", *what)]

        self.kept.let_be(["start"], tasks)
        start = self.kept.futures["start"]
        self.kept.let_be(["slim"], lambda names: [_task(workers.slim, "the start", start)])
        if not self.is_warned:
            self.kept.let_be(["said"], lambda names: [_task(workers.said, "the start", start)])
            self.kept.get(["said"])
            self.is_warned = True

    # -- training -------------------------------------------------------------------------------

    def _train(self, read: Read, progress: Progress, ends: bool = False) -> Any:
        """Train for one segment, and return the model and its history, or how far it has come."""
        gang = self._gang(read)
        name = f"skvae-{uuid4().hex}"
        segment = workers.Segment(
            name,
            len(gang.addresses),
            self.limits.seconds,
            watching.A_STEP,
            self.n_heard,
            self.asks,
            ends,
        )
        start, slim = (self.kept.futures[one] for one in ("start", "slim"))
        futures = [
            self._on(address, workers.train, segment, rank, slim if rank else start, rows, progress)
            for rank, (address, rows) in enumerate(zip(*gang, strict=True))
        ]
        with closing(_Messages(self, name)) as messages:
            try:
                self.cluster.wait(futures, gang.addresses, messages.hear)
                messages.hear()
                return self.cluster.result(futures[0], gang.addresses)
            except KeyboardInterrupt:
                messages.stop()
                self.cluster.wait(futures, gang.addresses)
                found = self.cluster.result(futures[0], gang.addresses)
                if isinstance(found, Progress) and not found.epochs:
                    raise  # there is nothing to keep yet
                raise Interrupted(found) from None
            except BaseException:
                messages.stop()
                raise
            finally:
                for one in futures:
                    one.release()

    def _gang(self, read: Read) -> "Gang":
        """Return the workers that train now, with the rows of their shards."""
        shards = shards_of(self.parameters, read.sizes, self.rows.n_shards)
        answering = self.cluster.answering()
        size = min(self.limits.n_workers or len(answering), len(shards))
        known = self.gang
        if known is not None and len(known.addresses) >= min(size, len(answering)):
            return known
        hands = dealt([sum(read.sizes[n] for n in shard) for shard in shards], size)
        rows = [
            self._rows([shards[n] for n in hand], hand, read, address)
            for hand, address in zip(hands, answering, strict=False)
        ]
        self.gang = gang = Gang(answering[:size], rows)
        self.cluster.wait(rows, gang.addresses)
        return gang

    def _rows(self, shards: list[list[int]], hand: list[int], read: Read, address: str) -> Any:
        tables = [self.kept.futures["table", n] for shard in shards for n in shard]
        sizes = [sum(read.counts[n] for n in shard) for shard in shards]
        slim, n_rows = self.kept.futures["slim"], read.n_rows
        what = slim, tables, (hand, sizes), read.total, n_rows
        return self._on(address, workers.rows_of, *what)

    def _on(self, address: str, task: Any, *arguments: Any) -> Any:
        """Start a task on one worker."""
        return self.client.submit(
            task, "the training", *arguments, workers=[address], pure=False, retries=0
        )


class _Messages:
    """What a segment tells the client, and its answers."""

    def __init__(self, fit: ClusterFit, name: str) -> None:
        from distributed import Queue, Variable

        self.fit = fit
        self.told, self.answers = (
            Queue(f"{name}-{what}", client=fit.client) for what in ("told", "answers")
        )
        self.place = Variable(name, client=fit.client)

    def hear(self) -> None:
        """Tell the audience what has been told since the last time."""
        fit = self.fit
        for message in map(pickle.loads, self.told.get(batch=True)):
            if isinstance(message, int):
                if not fit.is_told:
                    fit.audience.begin(message)
                fit.is_told = True
                continue
            epoch = message[0]
            fit.n_heard = epoch.number + 1
            stop = True
            try:
                stop = fit.audience.hear(epoch, partial(itemgetter(1), message))
            finally:
                if fit.asks:
                    self.answers.put(bool(stop))

    def stop(self) -> None:
        """Let the workers come to an end."""
        self.answers.put(True)

    def close(self) -> None:
        """Let the scheduler forget them."""
        self.told.close()
        self.answers.close()
        self.place.delete()


def fit_to_some(client: Any, estimator: Any, parts: Sequence[Any], weights: Sequence[Any]) -> Any:
    """Let a worker fit an estimator that keeps rows in memory: to all, or as many as it takes."""
    kept = Kept(Cluster(client))
    try:
        return _fitted_to_some(kept, estimator, parts, weights)
    except Lost as lost:
        raise RuntimeError(f"The worker that fitted was lost: {lost}. Call fit again.") from lost
    finally:
        kept.forget()


def _fitted_to_some(
    kept: Kept, estimator: Any, parts: Sequence[Any], weights: Sequence[Any]
) -> Any:
    names = [("shape", n) for n in range(len(parts))]
    kept.let_be(
        names, lambda some: [_task(workers.shape_of, _partition(n), parts[n]) for _, n in some]
    )
    shapes = kept.get(names)
    sizes = [size for size, _ in shapes]
    if not sum(sizes):
        raise ValueError(f"X must have rows, and its {len(sizes)} partitions have none at all.")
    step = step_of(type(estimator).__name__, (sum(sizes), shapes[0][1]), "X")
    first = np.cumsum([0, *sizes])
    some = [
        _task(workers.every, _partition(n), parts[n], weights[n], int(-first[n] % step), step)
        for n in range(len(parts))
    ]
    kept.let_be(["fitted"], lambda _: [_task(workers.fitted, "the fit", estimator, some)])
    return kept.get(["fitted"])[0]


def _partition(number: int) -> str:
    return f"partition {number} of X"


def _task(function: Any, *arguments: Any) -> Any:
    """Return a task of Dask's, under a name of its own."""
    from dask.delayed import delayed

    return delayed(function, pure=False)(*arguments)


def _constants(*values: Any) -> list[Any]:
    """Return values that many tasks share."""
    return [constant(value) for value in values]
