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
from numpy.typing import NDArray

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
from ._table.sources import located
from ._table.statistics import row_chunks
from ._training.collective import Collective, agreed
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


class Own(NamedTuple):
    """The rows of a process: those of its shards, one after the other."""

    rows: Rows
    shards: list[int]  # their numbers
    sizes: list[int]  # and how many rows each has
    n_rows: int  # of all processes
    place: str = ""  # of the process, for a note

    @property
    def where(self) -> str:
        return which(self.shards) + self.place


def which(shards: Sequence[int]) -> str:
    """Say which shards a process has, for a note."""
    return f"which has the shards {list(shards)}"


# -- what training begins with ----------------------------------------------------------------


def shards_of(
    parameters: Parameters, sizes: Sequence[int], n_shards: int | None
) -> list[list[int]]:
    """Give pieces of so many rows to shards: whatever the number of processes."""
    n_pieces = sum(size > 0 for size in sizes)
    per_step = plan_for(parameters, sum(sizes)).batch_size // ROWS_OF_A_SHARD
    return dealt(sizes, min(n_shards or int(np.clip(per_step, *SHARDS)), n_pieces))


def columns_asked(
    parameters: Parameters, labels: list[Any] | None, names: list[str]
) -> tuple[list[Asked], list[Any]]:
    """Return what is asked of each column, and its likelihood."""
    categories, asked = asked_of(parameters, labels, names)
    most = parameters["max_categories"]
    return [Asked(*both, most) for both in zip(names, categories, strict=True)], asked


def schema_of(asked: Sequence[Asked], seen: Sequence[SeenColumns]) -> Schema:
    """Return the schema of what was seen in all pieces, in their order."""
    for more in seen[1:]:
        seen[0].merge(more)
    return seen[0].schema(asked)


def read_into(
    table: Any, gathered: Gathered, schema: Schema, asked: list[Any], names: list[str]
) -> Array:  # (n,)
    """Read the rows of a piece that count into a table, and return how often they do."""
    weights: list[Array] = [np.zeros(0)]
    place = 0
    for first, part, weight in gathered.parts():
        with located(gathered.source.what, first):
            cells = admissible(schema.read(part, "error")[0], asked, names)
        table[place : place + len(cells)] = cells
        place += len(cells)
        weights.append(weight)
    return np.concatenate(weights)


def first_missing(table: Any, number: NDArray[np.intp]) -> Array:  # (D,)
    """Return the smallest number of a row in which each column misses; infinity without any."""
    first = np.full(table.shape[1], np.inf)
    for rows in row_chunks(*table.shape):
        place, column = np.nonzero(np.isnan(table[rows]))
        np.minimum.at(first, column, number[rows][place])
    return first


class Sample(NamedTuple):
    """Rows that the start is made of."""

    number: NDArray[np.intp]  # (n,)  among all rows
    table: Array  # (n, D)
    weight: Array  # (n,)


def sample_of(whole: Sample, n_rows: int, first: Array) -> Sample:
    """Take rows at even distances, if not all: as many as the start is made of.

    A column that may miss needs parameters for that, even if it hardly ever does: ``first`` is the
    first row of all in which each does.
    """
    step = -(-n_rows * whole.table.shape[1] // SAMPLE_CELLS)
    some = np.flatnonzero((whole.number % step == 0) | np.isin(whole.number, first))
    return Sample(
        whole.number[some], np.array(whole.table[some], dtype=np.float64), whole.weight[some]
    )


def prepared_of(
    parameters: Parameters,
    schema: Schema,
    asked: list[Any],
    samples: Sequence[Sample],
    seed: int,
) -> Prepared:
    """Begin a fit with the rows that the start is made of."""
    order, table, weight = (np.concatenate(parts) for parts in zip(*samples, strict=True))
    order = np.argsort(order, kind="stable")
    return prepare_table(parameters, schema, asked, table[order], weight=weight[order], seed=seed)


def without_rows(prepared: Prepared) -> Prepared:
    """Return what processes need that do not say in the end what the model is like."""
    return prepared._replace(rows=None)  # type: ignore[arg-type]


def here(prepared: Prepared, device: str) -> Prepared:
    """Move modules that another process has made to the device of this one."""
    for module in (prepared.vae, prepared.launch):
        module.to(device_of(device))
    return prepared._replace(parameters={**prepared.parameters, "device": device})


def encoded(prepared: Prepared, table: Any, weight: Array, total: float, n_rows: int) -> Rows:
    """Encode the rows of a process; weights have mean 1 over the ``n_rows`` of all processes."""
    vae = prepared.launch
    if not len(weight):
        empty = torch.zeros(0, len(prepared.columns), dtype=trainable_dtype(prepared.parameters))
        return Rows(DenseCells(empty.to(vae.device), None), empty[:, 0].to(vae.device))
    table = widened(table, prepared.schema.holes)
    rows = rows_for(prepared.parameters, prepared.columns, table, weight)
    own = torch.as_tensor(weight * (n_rows / total)).to(rows.weight)
    return Rows(rows.cells, own)


# -- training -----------------------------------------------------------------------------------


def train_shards(
    prepared: Prepared, own: Own, going: Going, audience: Audience
) -> tuple[Fitted, History]:
    """Train a model on rows of which each process has its own shards.

    Parameters
    ----------
    prepared : Prepared
        What training begins with; the rows of the start in process 0 alone.
    own : Own
        The rows of this process.
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
    collective, parameters = going.collective, prepared.parameters
    plan = plan_for(parameters, own.n_rows)

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
            own,
            going,
            lambda epoch: agreed(collective, lambda: told(epoch), "which is told of the epochs"),
        )

    def train() -> tuple[Fitted, History] | None:
        if collective.rank == 0:
            return trained(prepared, plan, climbs, None, audience)
        work = plan.work_per_step(prepared.vae, own.n_rows)
        with enough_threads(work), training_resources(work, parameters["precision"]):
            climbs(lambda epoch: False)
        return None

    found: Any = agreed(collective, train, own.where)
    fitted, history = found
    return fitted, history


def added(collective: Collective, values: Any) -> Array:
    """Return the sum of what all processes have; they may have taken long to come here."""
    return np.sum(collective.gather(np.asarray(values, dtype=np.float64)), axis=0)


def _climbed(prepared: Prepared, plan: Plan, own: Own, going: Going, watch: Watch) -> Outcome:
    """Train on the shards of all processes, from where ``going.progress`` stands."""
    rows = own.rows
    if plan.max_epochs == 0:
        return Outcome(None, [], [], 0, 0, False)
    parameters, progress, collective = prepared.parameters, going.progress, going.collective
    vae, start = trainable(parameters, prepared.launch), None
    if prepared.launch is not prepared.vae:
        start = Start(trainable(parameters, prepared.vae), prepared.optimism)
    selection = selection_for(parameters, len(prepared.columns))
    kept, tested = _split(vae, own, selection, going)
    n_kept, n_tested = (int(n) for n in added(collective, [_size(kept), _size(tested)]))
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
    vae: Any, own: Own, selection: Selection, going: Going
) -> tuple[list[Shard], list[Shard]]:
    """Split the shards of this process: what is trained on, and what is held out."""
    kept: list[Shard] = []
    tested: list[Shard] = []
    rows = own.rows
    fraction = min(selection.validation_fraction, MAX_HELD_OUT / own.n_rows)
    begin = 0
    for number, size in zip(own.shards, own.sizes, strict=True):
        end = begin + size
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
    total = added(collective, [weight.sum()])[0]
    return [
        replace(shard, factor=float(own / total) * n_rows / len(shard.index))
        for shard, own in zip(shards, weight, strict=True)
    ]
