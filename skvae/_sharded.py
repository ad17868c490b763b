"""A fit whose rows several processes hold: each of them calls ``fit_shards``, and gets the model.

The columns are learned from all rows. The start, and what is said of the model at the end, is that
of rows at even distances: all of them where they are few. Training is over all rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any, NamedTuple

import numpy as np
import torch

from ._callbacks import Audience
from ._fitted import Fitted, device_of
from ._fitting import not_finite, trained
from ._history import History
from ._parameters import Parameters
from ._preparing import (
    Prepared,
    admissible,
    asked_of,
    prepare_table,
    rows_for,
    trainable,
    trainable_dtype,
)
from ._resources import enough_threads, training_resources
from ._table.column import Array
from ._table.gathered import Gathered, SeenColumns
from ._table.holes import widened
from ._table.schema import Asked, Schema
from ._table.sources import Source, located
from ._table.spool import is_large, spooled
from ._table.statistics import row_chunks
from ._training.collective import Collective, agreed, together
from ._training.loop import epochs_of
from ._training.plan import Epoch, NonFiniteBoundError, Plan, Start, plan_for
from ._training.rows import DenseCells, Rows, TakenCells
from ._training.selection import (
    MAX_HELD_OUT,
    Outcome,
    Selection,
    Watch,
    best_of,
    selection_for,
    split_with_tail,
)
from ._training.shards import (
    SPLIT,
    Shard,
    ShardedRows,
    ShardedRun,
    SharedHeldOut,
    torch_generator_of,
)

SAMPLE_CELLS = 2**24  # of the rows that the start is made of: 128 MB in float64
ROWS_OF_A_SHARD = 512  # in a step: each shard has its own products, small ones take longer
SHARDS = (2, 16)  # by default, at least and at most


def dealt(sizes: Sequence[int], n_hands: int) -> list[list[int]]:
    """Give numbered things to hands, the largest first, each to the hand that has the least."""
    hands: list[list[int]] = [[] for _ in range(n_hands)]
    heap = [(0, hand) for hand in range(n_hands)]
    for number in sorted(range(len(sizes)), key=lambda n: (-sizes[n], n)):
        total, hand = heappop(heap)
        hands[hand].append(number)
        heappush(heap, (total + sizes[number], hand))
    return [sorted(hand) for hand in hands]


class Given(NamedTuple):
    """The rows of a fit, the same in all processes."""

    names: list[str]  # of the columns, for messages
    labels: list[Any] | None  # as parameters name them
    pieces: Sequence[Source]
    check: Callable[[Any], Any]  # checks a part, and returns it
    weight: Array | None  # (N,)  None: each row counts once
    n_shards: int | None


@dataclass
class Progress:
    """How far a fit has come, as another process can go on from it."""

    seed: int
    epochs: list[Epoch]
    best: Any = None  # state of the best epoch so far
    run: dict[str, Any] | None = None  # state of the run

    def remembered(self, epochs: Any) -> Any:
        """Yield epochs, and remember each, and the weights of those that were asked for."""
        for number, epoch in enumerate(epochs):
            if number >= len(self.epochs):
                self.epochs.append(replace(epoch, snapshot=dict))
            yield replace(epoch, snapshot=self._snapshot_of(epoch))

    def _snapshot_of(self, epoch: Epoch) -> Callable[[], Any]:
        def snapshot() -> Any:
            self.best = epoch.snapshot()
            return self.best

        return snapshot

    def past(self) -> list[Epoch]:
        """Return the epochs so far; the weights of the last best stand for any."""
        best = self.best
        return [replace(epoch, snapshot=lambda: best) for epoch in self.epochs]


class _Piece(NamedTuple):
    """Some rows of a shard, that are read together."""

    gathered: Gathered
    first: int  # number of the first row among all rows


class _Local(NamedTuple):
    """The rows of a process: those of its shards, one after the other."""

    shards: list[int]  # their numbers
    pieces: list[list[_Piece]]  # of each

    @property
    def where(self) -> str:
        return f"which has the shards {self.shards}"

    @property
    def all(self) -> list[_Piece]:
        return [piece for shard in self.pieces for piece in shard]


@dataclass(frozen=True)
class Going:
    """How a fit goes on together.

    Attributes
    ----------
    collective : Collective
        The processes.
    progress : Progress
        Where to go on.
    marks : callable
        Asked in process 0 after each step whether ``progress`` is to be brought up to date.
    marked : callable
        Called in all processes when it has been.
    """

    collective: Collective
    progress: Progress
    marks: Callable[[], bool]
    marked: Callable[[], None]


def fit_shards(
    parameters: Parameters, given: Given, going: Going, audience: Audience
) -> tuple[Fitted, History]:
    """Fit a model to rows of which each process reads its own shards.

    Parameters
    ----------
    parameters : dict
        Of VAETransformer.
    given : Given
        The rows.
    going : Going
        How the processes go on together.
    audience : Audience
        Whom process 0 tells of each epoch.

    Returns
    -------
    fitted : Fitted
        The model, in each process.
    history : History
        How it was trained.
    """
    collective = going.collective
    local = _local(parameters, given, collective)
    categories, asked = asked_of(parameters, given.labels, given.names)
    most = parameters["max_categories"]
    columns_asked = [Asked(*both, most) for both in zip(given.names, categories, strict=True)]
    schema = _schema(columns_asked, local, collective)

    def read() -> tuple[Any, Array]:
        return _table(local, schema, asked, given)

    table, weight = together(collective, read, local.where)
    prepared = _prepared(parameters, (schema, asked), local, (table, weight), going)
    rows, n_rows = _rows(prepared, table, weight, collective)
    plan = plan_for(parameters, n_rows)

    def climbs(watch: Watch) -> Outcome:
        def told(epoch: Epoch) -> bool:
            best = going.progress.best  # which a look at another epoch does not change
            try:
                return watch(epoch)
            finally:
                going.progress.best = best

        return _climbed(
            prepared,
            plan,
            (rows, local),
            going,
            lambda epoch: agreed(collective, lambda: told(epoch), "which is told of the epochs"),
        )

    def train() -> tuple[Fitted, History] | None:
        if collective.rank == 0:
            return trained(prepared, plan, climbs, None, audience)
        work = plan.work_per_step(prepared.vae, n_rows)
        with enough_threads(work), training_resources(work, parameters["precision"]):
            climbs(lambda epoch: False)
        return None

    found: Any = agreed(collective, train, local.where)
    fitted, history = found
    return fitted, history


def _local(parameters: Parameters, given: Given, collective: Collective) -> _Local:
    """Return the shards of this process: fixed by the rows, whatever the number of processes."""
    sizes = [piece.n_rows() for piece in given.pieces]
    n_pieces = sum(size > 0 for size in sizes)
    per_step = plan_for(parameters, sum(sizes)).batch_size // ROWS_OF_A_SHARD
    shards = dealt(sizes, min(given.n_shards or int(np.clip(per_step, *SHARDS)), n_pieces))
    totals = [sum(sizes[number] for number in shard) for shard in shards]
    own = dealt(totals, collective.size)[collective.rank]
    first = np.cumsum([0, *sizes])
    pieces: list[list[_Piece]] = []
    for shard in own:
        pieces.append([])
        for number in shards[shard]:
            weight = given.weight
            if weight is not None:
                weight = weight[first[number] : first[number + 1]]
            count = sizes[number] if weight is None else int((weight > 0.0).sum())
            shape = (count, len(given.names))
            gathered = Gathered(given.pieces[number], given.check, weight, shape)
            if count:
                pieces[-1].append(_Piece(gathered, int(first[number])))
    return _Local(own, pieces)


def _schema(asked: Sequence[Asked], local: _Local, collective: Collective) -> Schema:
    """Learn the columns from the rows of all processes."""

    def see() -> list[SeenColumns]:
        return [piece.gathered.seen(asked) for piece in local.all]

    seen = [
        one for some in collective.gather(together(collective, see, local.where)) for one in some
    ]
    for more in seen[1:]:
        seen[0].merge(more)
    return seen[0].schema(asked)


def _table(
    local: _Local, schema: Schema, asked: list[Any], given: Given
) -> tuple[Any, Array]:  # (n, D), (n,)
    """Read the rows of this process."""
    shape = (sum(piece.gathered.shape[0] for piece in local.all), len(given.names))
    table = spooled(shape, np.float64) if is_large(shape) else np.empty(shape)
    weights: list[Array] = [np.zeros(0)]
    place = 0
    for piece in local.all:
        for first, part, weight in piece.gathered.parts():
            with located(piece.gathered.source.what, first):
                cells = admissible(schema.read(part, "error")[0], asked, given.names)
            table[place : place + len(cells)] = cells
            place += len(cells)
            weights.append(weight)
    return table, np.concatenate(weights)


def _prepared(
    parameters: Parameters,
    columns: tuple[Schema, list[Any]],
    local: _Local,
    own: tuple[Any, Array],
    going: Going,
) -> Prepared:
    """Let process 0 prepare rows at even distances, which all processes send it."""
    collective = going.collective
    n_rows, n_columns = int(_added(collective, [len(own[1])])[0]), own[0].shape[1]
    step = -(-n_rows * n_columns // SAMPLE_CELLS)
    numbers = [np.arange(piece.first, piece.first + piece.gathered.shape[0]) for piece in local.all]
    number = np.concatenate([np.zeros(0, dtype=np.intp), *numbers])
    # A column that may miss needs parameters for that, even if it hardly ever does.
    first = np.min(collective.gather(_first_missing(own[0], number)), axis=0)
    some = np.flatnonzero((number % step == 0) | np.isin(number, first))
    sent = collective.gather((number[some], np.array(own[0][some]), own[1][some]), to=0)
    prepared = None

    def prepare() -> Prepared:
        order, table, weight = (np.concatenate(parts) for parts in zip(*sent, strict=True))
        order = np.argsort(order, kind="stable")
        return prepare_table(
            parameters, *columns, table[order], weight=weight[order], seed=going.progress.seed
        )

    prepared = together(
        collective, prepare if collective.rank == 0 else lambda: None, "which prepares the start"
    )
    # The others need all of it but the rows, which say in the end what the model is like.
    parts = None if prepared is None else prepared._replace(rows=None)  # type: ignore[arg-type]
    found: Prepared = collective.gather(parts)[0]
    for module in (found.vae, found.launch):  # this process may have another GPU
        module.to(device_of(parameters["device"]))
    return found if prepared is None else prepared


def _first_missing(table: Any, number: Array) -> Array:  # (D,)
    """Return the smallest number of a row in which each column misses; infinity without any."""
    first = np.full(table.shape[1], np.inf)
    for rows in row_chunks(*table.shape):
        place, column = np.nonzero(np.isnan(table[rows]))
        np.minimum.at(first, column, number[rows][place])
    return first


def _added(collective: Collective, values: Any) -> Array:
    """Return the sum of what all processes have; they may have taken long to come here."""
    return np.sum(collective.gather(np.asarray(values, dtype=np.float64)), axis=0)


def _rows(
    prepared: Prepared, table: Any, weight: Array, collective: Collective
) -> tuple[Rows, int]:
    """Return the encoded rows of this process, and the number of those of all.

    Weights have mean 1 over all of them.
    """
    total, n_rows = _added(collective, [weight.sum(), len(weight)])
    vae = prepared.launch
    if not len(weight):
        empty = torch.zeros(0, len(prepared.columns), dtype=trainable_dtype(prepared.parameters))
        return Rows(DenseCells(empty.to(vae.device), None), empty[:, 0].to(vae.device)), int(n_rows)
    table = widened(table, prepared.schema.holes)
    rows = rows_for(prepared.parameters, prepared.columns, table, weight)
    own = torch.as_tensor(weight * (n_rows / total)).to(rows.weight)
    return Rows(rows.cells, own), int(n_rows)


def _climbed(
    prepared: Prepared, plan: Plan, own: tuple[Rows, _Local], going: Going, watch: Watch
) -> Outcome:
    """Train on the shards of all processes, from where ``going.progress`` stands."""
    rows, local = own
    if plan.max_epochs == 0:
        return Outcome(None, [], [], 0, 0, False)
    parameters, progress, collective = prepared.parameters, going.progress, going.collective
    vae, start = trainable(parameters, prepared.launch), None
    if prepared.launch is not prepared.vae:
        start = Start(trainable(parameters, prepared.vae), prepared.optimism)
    selection = selection_for(parameters, len(prepared.columns))
    kept, tested = _split(vae, rows, local, selection, going)
    n_kept, n_tested = (int(n) for n in _added(collective, [_size(kept), _size(tested)]))
    if selection.early_stopping and n_tested == 0:  # each shard has one row: nothing would judge
        return Outcome(None, [], [], 0, 0, False)
    probe = None
    if n_tested:
        probe = SharedHeldOut(
            rows.cells,
            _with_shares(tested, n_tested, collective),
            n_tested,
            vae.n_components,
            plan,
            seed=progress.seed,
            collective=collective,
            device=vae.device,
        )
    sharded = ShardedRows(rows.cells, kept, n_kept, progress.seed)
    run = ShardedRun(vae, plan, sharded, collective, going.marks)
    if progress.run is not None:
        if probe is not None:
            probe.measure(vae if start is None else start.vae)  # what gains are over
        run.go_on_from(progress.run)

    def mark() -> None:
        progress.run = run.state()
        going.marked()

    run.marked = mark
    epochs = progress.remembered(epochs_of(run, rows, probe, start, progress.past()))
    try:
        return best_of(epochs, plan, selection, watch)
    except NonFiniteBoundError as error:
        raise not_finite(error, prepared) from None


def _split(
    vae: Any, rows: Rows, local: _Local, selection: Selection, going: Going
) -> tuple[list[Shard], list[Shard]]:
    """Split the shards of this process: what is trained on, and what is held out."""
    kept: list[Shard] = []
    tested: list[Shard] = []
    n_rows = _added(going.collective, [len(rows)])[0]
    fraction = min(selection.validation_fraction, MAX_HELD_OUT / n_rows)
    begin = 0
    for number, pieces in zip(local.shards, local.pieces, strict=True):
        end = begin + sum(piece.gathered.shape[0] for piece in pieces)
        if end == begin:
            continue
        part, mean = rows.take(torch.arange(begin, end)), float(rows.weight[begin:end].mean())
        both: tuple[Rows, ...] = (part,)
        if selection.early_stopping and end - begin > 1:
            seed, device = going.progress.seed, part.weight.device
            generator = torch_generator_of(seed, SPLIT, 0, number, device=device)
            both = split_with_tail(vae, part, fraction, generator)
        for one, shards in zip(both, (kept, tested), strict=False):
            if len(one) and isinstance(one.cells, TakenCells):
                index = one.cells.index.long()
                shards.append(Shard(number, index, one.weight.cpu(), mean, end - begin))
        begin = end
    return kept, tested


def _size(shards: Sequence[Shard]) -> float:
    return float(sum(len(shard.index) for shard in shards))


def _with_shares(shards: Sequence[Shard], n_rows: int, collective: Collective) -> list[Shard]:
    """Let what is held out of a shard stand for the weight of the whole shard."""
    weight = np.array([shard.factor * shard.n_rows for shard in shards])
    total = _added(collective, [weight.sum()])[0]
    return [
        replace(shard, factor=float(own / total) * n_rows / len(shard.index))
        for shard, own in zip(shards, weight, strict=True)
    ]
