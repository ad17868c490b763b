"""An estimator fitted by several processes: how these find each other, and what they leave."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from hashlib import sha256
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
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
from ._resources import own_gradients
from ._sharded import Given, Going, Progress, fit_shards
from ._table.sources import Source, in_slices, source_of
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
        progress = checkpoint.read(fit, seed)
        going = Going(collective, progress, checkpoint.due, lambda: checkpoint.write(fit, progress))
        audience: Audience = listeners or Nobody()
        if listeners is not None:
            listeners.attributes_of = lambda model: attributes | model_attributes(model)
        with columns_shown(estimator, attributes, listeners is not None and listeners.any):
            fitted, history = fit_shards(parameters, rows, going, audience)
            if is_first:
                warn_about_fit(parameters, fitted, history, rows.names)
                warn_about_columns(fitted.schema)
    become(estimator, attributes | attributes_of(fitted, history))
    if listeners is not None:
        listeners.end(history)
    checkpoint.remove()
