"""An estimator fitted by several processes: how these find each other, and what they leave."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from hashlib import sha256
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import issparse
from torch import distributed as torch_distributed

from ._callbacks import Audience, Listeners, Nobody, with_callbacks
from ._health import warn_about_columns, warn_about_fit
from ._inputs import (
    attributes_of,
    become,
    check_transformer,
    columns_shown,
    given,
    model_attributes,
    snapshot,
    validated,
)
from ._parameters import VERSION, Parameters, Rule, seed_of
from ._preparing import Prepared
from ._resources import own_gradients
from ._sharded import (
    Going,
    Own,
    Progress,
    Sample,
    added,
    columns_asked,
    dealt,
    encoded,
    first_missing,
    here,
    prepared_of,
    read_into,
    sample_of,
    schema_of,
    shards_of,
    train_shards,
    which,
    without_rows,
)
from ._table.column import Array
from ._table.gathered import Gathered, SeenColumns
from ._table.schema import Schema
from ._table.sources import Source, in_slices, source_of
from ._table.spool import is_large, spooled
from ._training.collective import Alone, Collective, Gloo, agreed, together
from ._training.plan import Epoch

distributed: Any = torch_distributed  # it does not list all of its names
RULES = {"n_shards": Rule((None,), Integral, 1), "checkpoint_every": Rule((), Real, 0.0)}
SLICE_ROWS = 16_384  # of rows in memory, that are one piece of a shard
A_STEP = timedelta(minutes=2)  # that another process may be late in a step
A_PHASE = timedelta(hours=4)  # to read its rows


@contextmanager
def processes() -> Iterator[Collective]:
    """Let the processes that a launcher has started find each other; else there is one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Alone()
        return
    store, rank, size = _met()
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    Gloo.n_made += 1  # each fit of a process has keys of its own in the store
    store = distributed.PrefixStore(f"skvae/{attempt}/{Gloo.n_made}", store)
    collective = Gloo(store, rank, size, A_STEP, A_PHASE)
    yield collective
    collective.gather(None, to=0)  # whose the store may be: it is not to end before the others


@cache
def _met() -> tuple[Any, int, int]:
    """Return the store of all processes, once: it ends with whoever made it."""
    return next(iter(distributed.rendezvous("env://", timeout=A_PHASE)))


def device_of_rank(device: str) -> str:
    """Return a GPU of its own for each process of a host, where the user has named none."""
    rank, n_devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    return f"cuda:{rank % n_devices}" if device in ("auto", "cuda") and n_devices > 1 else device


class Checkpoint:
    """How far a fit has come, in a file that process 0 writes now and then."""

    def __init__(
        self, folder: str | os.PathLike[str] | None, every: float, collective: Collective
    ) -> None:
        self.collective, self.every = collective, every
        self.path = None if folder is None else Path(folder) / "skvae-progress.pt"
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to write."""
        return self.path is not None and time.monotonic() - self._last >= self.every

    def read(self, fit: dict[str, Any], seed: int) -> Progress:
        """Return how far the same fit has come, in all processes; else its beginning."""

        def found() -> Progress:
            if self.path is None or not self.path.exists():
                return Progress(seed, [])
            kept = torch.load(self.path, weights_only=True)
            if kept["fit"] != fit:
                raise ValueError(
                    f"The checkpoint {self.path} is that of another fit: of other parameters, "
                    "other rows or another version. Remove it, or use another checkpoint_dir."
                )
            epochs = [Epoch(**one, snapshot=dict) for one in kept["epochs"]]
            return Progress(kept["seed"], epochs, kept["best"], kept["run"])

        work = found if self.collective.rank == 0 else lambda: Progress(seed, [])
        return agreed(self.collective, work, "which reads the checkpoint")

    def write(self, fit: dict[str, Any], progress: Progress) -> None:
        """Write it, in one step."""
        self._last = time.monotonic()
        if self.collective.rank > 0 or self.path is None:
            return
        epochs = [
            {name: value for name, value in vars(one).items() if name != "snapshot"}
            for one in progress.epochs
        ]
        kept = {"fit": fit, "seed": progress.seed, "epochs": epochs}
        kept |= {"best": progress.best, "run": progress.run}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save(kept, partial)
        partial.replace(self.path)

    def remove(self) -> None:
        """Let nothing of it be left, when the fit has ended."""
        if self.collective.rank == 0 and self.path is not None:
            self.path.unlink(missing_ok=True)


def _source(estimator: Any, X: Any) -> Source:
    found = source_of(X)
    if found is not None:
        return found
    X = validated(snapshot(estimator), X, True)
    if issparse(X):
        raise TypeError(
            "X must be dense, or a source of rows, to be fitted by several processes. Got a sparse "
            "array instead: pass X.toarray(), or call the fit of the estimator."
        )
    return in_slices(X, SLICE_ROWS)


def _told(parameters: Parameters) -> dict[str, str]:
    """Return parameters as a later process finds them again."""
    told = {name: repr(value) for name, value in parameters.items() if name != "verbose"}
    if not isinstance(seed := parameters["random_state"], Integral):
        told["random_state"] = type(seed).__name__  # the checkpoint has the seed that it gave
    return told


class Given(NamedTuple):
    """The rows of a fit, the same in all processes."""

    names: list[str]  # of the columns, for messages
    labels: list[Any] | None  # as parameters name them
    pieces: Sequence[Source]
    check: Callable[[Any], Any]  # checks a part, and returns it
    weight: Array | None  # (N,)  None: each row counts once
    n_shards: int | None


class _Piece(NamedTuple):
    """Some rows of a shard, that are read together."""

    gathered: Gathered
    number: NDArray[np.intp]  # (n,)  of the rows, among all


class _Local(NamedTuple):
    """The rows of a process: those of its shards, one after the other."""

    shards: list[int]  # their numbers
    pieces: list[list[_Piece]]  # of each

    @property
    def where(self) -> str:
        return which(self.shards)

    @property
    def all(self) -> list[_Piece]:
        return [piece for shard in self.pieces for piece in shard]


class _Begun(NamedTuple):
    """What a process knows of a fit before it reads its rows."""

    rows: Given
    attributes: dict[str, Any]  # scikit-learn's: n_features_in_, feature_names_in_
    fit: dict[str, Any]  # which fit it is
    seed: int


def _begun(estimator: Any, X: Any, sample_weight: Any, n_shards: int | None) -> _Begun:
    check_transformer(estimator)
    source = _source(estimator, X)
    rows, attributes, _ = given(estimator, source, sample_weight)
    parameters, pieces, weight = (
        estimator.get_params(deep=False),
        source.pieces(),
        rows.X.row_weight,
    )
    fit = {
        "version": VERSION,
        "parameters": _told(parameters),
        "n_shards": n_shards,
        "columns": rows.names,
        "sizes": [piece.n_rows() for piece in pieces],
        "weight": None if weight is None else sha256(weight).hexdigest(),
    }
    shards = Given(rows.names, rows.labels, pieces, rows.X.check, weight, n_shards)
    return _Begun(shards, attributes, fit, seed_of(parameters["random_state"]))


@with_callbacks
def fit_together(
    estimator: Any, X: Any, sample_weight: Any, n_shards: int | None, checkpoint: Checkpoint
) -> None:
    """Fit an estimator, in this process as in all others."""
    collective, is_first = checkpoint.collective, checkpoint.collective.rank == 0
    listeners = Listeners(estimator, X, None) if is_first else None
    with own_gradients():
        rows, attributes, fit, seed = together(
            collective, lambda: _begun(estimator, X, sample_weight, n_shards), "which looks at X"
        )
        parameters = estimator.get_params(deep=False)
        parameters["device"] = device_of_rank(parameters["device"])
        progress = checkpoint.read(fit, seed)
        going = Going(collective, progress, checkpoint.due, lambda: checkpoint.write(fit, progress))
        audience: Audience = listeners or Nobody()
        if listeners is not None:
            listeners.attributes_of = lambda model: attributes | model_attributes(model)
        with columns_shown(estimator, attributes, listeners is not None and listeners.any):
            prepared, own = _prepared(parameters, rows, going)
            fitted, history = train_shards(prepared, own, going, audience)
            if is_first:
                warn_about_fit(parameters, fitted, history, rows.names)
                warn_about_columns(fitted.schema)
    become(estimator, attributes | attributes_of(fitted, history))
    if listeners is not None:
        listeners.end(history)
    checkpoint.remove()


def _prepared(parameters: Parameters, given: Given, going: Going) -> tuple[Prepared, Own]:
    """Learn the columns of all rows, read those of this process, and prepare its training."""
    collective = going.collective
    local = _local(parameters, given, collective)
    asked, likelihoods = columns_asked(parameters, given.labels, given.names)

    def see() -> list[SeenColumns]:
        return [piece.gathered.seen(asked) for piece in local.all]

    seen = collective.gather(together(collective, see, local.where))
    schema = schema_of(asked, [one for some in seen for one in some])

    def read() -> Sample:
        return _read(local, schema, likelihoods, given.names)

    whole = together(collective, read, local.where)
    total, n_rows = added(collective, [whole.weight.sum(), len(whole.weight)])
    first = np.min(collective.gather(first_missing(whole.table, whole.number)), axis=0)
    sent = collective.gather(sample_of(whole, int(n_rows), first), to=0)

    def prepare() -> Prepared | None:
        if collective.rank > 0:
            return None
        return prepared_of(parameters, schema, likelihoods, sent, going.progress.seed)

    first_has = together(collective, prepare, "which prepares the start")
    parts = collective.gather(None if first_has is None else without_rows(first_has))
    prepared = here(parts[0], parameters["device"]) if first_has is None else first_has
    rows = encoded(prepared, whole.table, whole.weight, total, int(n_rows))
    sizes = [sum(len(piece.number) for piece in pieces) for pieces in local.pieces]
    return prepared, Own(rows, local.shards, sizes, int(n_rows))


def _local(parameters: Parameters, given: Given, collective: Collective) -> _Local:
    """Return the shards of this process: fixed by the rows, whatever the number of processes."""
    sizes = [piece.n_rows() for piece in given.pieces]
    shards = shards_of(parameters, sizes, given.n_shards)
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
                pieces[-1].append(_Piece(gathered, first[number] + np.arange(count)))
    return _Local(own, pieces)


def _read(local: _Local, schema: Schema, likelihoods: list[Any], names: list[str]) -> Sample:
    """Read the rows of this process."""
    number = np.concatenate([np.zeros(0, np.intp), *(piece.number for piece in local.all)])
    shape = (len(number), len(names))
    table = spooled(shape, np.float64) if is_large(shape) else np.empty(shape)
    weights: list[Array] = [np.zeros(0)]
    place = 0
    for piece in local.all:
        rows = table[place : place + len(piece.number)]
        weights.append(read_into(rows, piece.gathered, schema, likelihoods, names))
        place += len(piece.number)
    return Sample(number, table, np.concatenate(weights))
