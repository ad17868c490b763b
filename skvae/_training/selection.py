"""Which epoch to keep: rows held out, folds, early stopping."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .._model.bounds import log_weights
from .._model.vae import VAE, State
from .._parameters import Parameters
from .._specification import copied
from .loop import train
from .plan import Epoch, Plan, Start
from .rows import Rows, folds, some_copies

SMALL_TABLE = 500  # distinct rows
N_FOLDS = 5
MAX_HELD_OUT = 5000  # rows: more would not choose better
CAUTION = 2.0  # standard errors
TAIL = 0.005  # fraction of the rows: the wildest under the start


@dataclass(frozen=True)
class Selection:
    """How the epoch to keep is chosen."""

    early_stopping: bool
    validation_fraction: float
    patience: int
    tol: float  # nats a row


@dataclass(frozen=True)
class Outcome:
    """What a fit leaves: weights, and how it got there. Bounds are nats a row."""

    state: State | None  # None: the start was the best
    bounds: list[float]  # of the run that made the weights, one an epoch
    held_out: list[float]  # from the start on; empty if nothing was held out
    best: int  # the epoch whose weights are kept
    n_epochs: int
    cut_short: bool  # the cap came while the held-out bound was still rising
    undone: list[int] = field(default_factory=list)  # epochs that diverged and were taken again
    interrupted: bool = False  # by the user, before it had ended


class Course(NamedTuple):
    """How a run went until it was told to stop."""

    last: Epoch
    bounds: list[float]  # of each epoch, nats a row
    undone: list[int]
    interrupted: bool


Watch = Callable[[Epoch], bool]  # told of every epoch; True stops the run


def climb(
    vae: VAE,
    rows: Rows,
    plan: Plan,
    selection: Selection,
    *,
    generator: torch.Generator,
    watch: Watch,
    noise: torch.Generator | None = None,
    start: Start | None = None,
    keeps: bool = False,
) -> Outcome:
    """Train, hold out as the number of rows allows, and keep the best epoch, or the start.

    ``generator`` chooses what is held out, and ``noise``, mostly the same, all that steps draw.
    With ``keeps``, what there is when the user interrupts is kept, too.
    """
    noise = noise or generator
    n_rows = len(rows)
    n_copies = n_rows if rows.copies is None else int(rows.copies.sum())
    if plan.max_epochs == 0 or (selection.early_stopping and n_rows == 1):
        return Outcome(None, [], [], 0, 0, False)
    if not selection.early_stopping:
        epochs = train(vae, rows, None, plan, noise, start=start)
    elif n_rows < SMALL_TABLE:
        # Too few rows to lose a tenth of: folds choose the number of epochs, all rows train.
        held_out = folds(_copies(rows), min(N_FOLDS, n_copies), generator)
        parts = [rows.split(one) for one in held_out]
        epochs = train_folds(vae, parts, plan, noise, start=start)
        stopper, course = _judged(epochs, plan, selection, watch, keeps)
        return _refitted(vae, rows, plan, noise, stopper=stopper, course=course)
    else:
        fraction = min(selection.validation_fraction, MAX_HELD_OUT / n_copies)
        kept, tested = split_with_tail(vae, rows, fraction, generator)
        epochs = train(vae, kept, tested, plan, noise, start=start)
    return best_of(epochs, plan, selection, watch, keeps)


def best_of(
    epochs: Iterator[Epoch], plan: Plan, selection: Selection, watch: Watch, keeps: bool = False
) -> Outcome:
    """Keep the best of the epochs, by their held-out rows; the last where nothing is held out."""
    if selection.early_stopping:
        stopper, course = _judged(epochs, plan, selection, watch, keeps)
        return _chosen(stopper, stopper.best_state, course, plan)
    course = _followed(epochs, watch, keeps)
    number = course.last.number
    return Outcome(course.last.snapshot(), course.bounds, [], number, number, False, *course[2:])


def _judged(
    epochs: Iterator[Epoch], plan: Plan, selection: Selection, watch: Watch, keeps: bool
) -> tuple["EarlyStopping", Course]:
    warm = math.ceil(plan.kl_warmup * plan.max_epochs)
    stopper = EarlyStopping(selection.patience, selection.tol, warm)
    return stopper, _followed(epochs, lambda epoch: stopper.done(epoch) | watch(epoch), keeps)


def _refitted(
    vae: VAE,
    rows: Rows,
    plan: Plan,
    noise: torch.Generator,
    *,
    stopper: "EarlyStopping",
    course: Course,
) -> Outcome:
    """Train on all rows for as many epochs as the folds chose."""
    if stopper.best == 0:
        return _chosen(stopper, None, course, plan)
    refit = itertools.islice(train(vae, rows, None, plan, noise), stopper.best + 1)
    again = _followed(refit, lambda epoch: False)
    undone = sorted({*course.undone, *again.undone})
    course = course._replace(bounds=again.bounds, undone=undone)
    return _chosen(stopper, again.last.snapshot(), course, plan)


def _chosen(stopper: "EarlyStopping", state: State | None, course: Course, plan: Plan) -> Outcome:
    n_epochs = len(stopper.curve) - 1
    cut_short = n_epochs == plan.max_epochs and stopper.still_improving
    curve, best = stopper.curve, stopper.best
    return Outcome(state, course.bounds, curve, best, n_epochs, cut_short, *course[2:])


def _followed(epochs: Iterator[Epoch], stop: Watch, keeps: bool = False) -> Course:
    """Run until told to stop, or until the user interrupts after the start has been seen."""
    last: Epoch | None = None
    bounds, undone, n_undone, interrupted = [], [], 0, False
    try:
        for epoch in epochs:
            bounds.append(epoch.bound)
            if epoch.n_undone > n_undone:
                undone.append(epoch.number)
            last, n_undone = epoch, epoch.n_undone
            if stop(epoch):
                break
    except KeyboardInterrupt:
        if last is None or not keeps:
            raise
        interrupted = True
    assert last is not None  # the start is always told of
    return Course(last, bounds[1:], undone, interrupted)


def train_folds(
    vae: VAE,
    parts: Sequence[tuple[Rows, Rows]],
    plan: Plan,
    generator: torch.Generator,
    *,
    start: Start | None = None,
) -> Iterator[Epoch]:
    """Train one copy of ``vae`` for each fold in step; epochs are means over the folds.

    ``parts`` are each fold's training and held-out rows. For tables too small to hold rows out for
    good: it says how many epochs to train on all.
    """
    n_folds = len(parts)
    runs = [train(copied(vae), *both, plan, generator, start=start) for both in parts]
    for epochs in zip(*runs, strict=True):
        bound = sum(e.bound for e in epochs) / n_folds
        held_out = sum(e.held_out for e in epochs) / n_folds
        doubt = math.hypot(*(e.doubt for e in epochs)) / n_folds
        n_undone = sum(e.n_undone for e in epochs)
        kl = sum(e.kl for e in epochs) / n_folds
        held_out_kl = sum(e.held_out_kl for e in epochs) / n_folds
        first = epochs[0]
        yield Epoch(first.number, bound, held_out, doubt, first.snapshot, n_undone, kl, held_out_kl)


class EarlyStopping:
    """Remember the best held-out epoch; say when to stop.

    The best is the one whose gain over the start is the largest, less ``CAUTION`` standard errors:
    a gain that hangs on few rows can as well be a loss on others. The start, with no gain and no
    doubt, counts as a candidate, so what is kept is never below it on the held-out rows. Patience
    begins after ``warm`` epochs, in which training climbs something else.
    """

    def __init__(self, patience: int, tol: float, warm: int = 0) -> None:
        self.patience = patience
        self.tol = tol
        self.warm = warm
        self.curve: list[float] = []
        self._cautious: list[float] = []
        self.best = 0
        self.best_state: State | None = None
        self._last_gain = 0

    def done(self, epoch: Epoch) -> bool:
        self.curve.append(epoch.held_out)
        self._cautious.append(epoch.held_out - CAUTION * epoch.doubt)
        if self._cautious[-1] > self._cautious[self.best]:
            self.best = epoch.number
            self.best_state = epoch.snapshot()
        if epoch.held_out > self.curve[self._last_gain] + self.tol:
            self._last_gain = epoch.number
        return epoch.number - max(self._last_gain, self.warm) >= self.patience

    @property
    def still_improving(self) -> bool:
        """Whether the very last epoch gained more than ``tol`` over the one before."""
        return len(self.curve) > 1 and self.curve[-1] > max(self.curve[:-1]) + self.tol


def split_with_tail(
    vae: VAE, rows: Rows, fraction: float, generator: torch.Generator
) -> tuple[Rows, Rows]:
    """Split training and held-out rows; half of the wildest are held out, weighted down.

    A mean bound can hang on a few rows tens of standard deviations off. A plain tenth of the rows
    would hardly hold one of them, and training, with clipped gradients, takes little notice.
    """
    in_tail = _in_tail(_surprise(vae, rows))
    drawn = [_drawn(rows, ~in_tail, fraction, generator), _drawn(rows, in_tail, 0.5, generator)]
    chosen, number, weight = (torch.cat(both) for both in zip(*drawn, strict=True))
    chosen, order = chosen.sort()
    number, weight = number[order], weight[order]
    held_out = torch.zeros(len(rows), dtype=torch.int32, device=number.device)
    held_out[chosen] = number.int()
    kept, _ = rows.split(held_out)
    return kept, Rows(rows.cells.take(chosen), weight / weight.mean(), number)


def _drawn(
    rows: Rows, stratum: Tensor, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:  # (M,) each
    """Draw what is held out of a stratum (N,): its rows, how many of their copies, and weights."""
    members = torch.nonzero(stratum)[:, 0]
    copies = None if rows.copies is None else rows.copies[members]
    total = len(members) if copies is None else int(copies.sum())
    if total < 2:
        return members[:0], members[:0], rows.weight[:0]
    place, number = some_copies(copies, total, share, generator)
    chosen = members[place]
    own = rows.weight[chosen] * number / (1 if copies is None else copies[place])
    return chosen, number, own * (rows.weight[stratum].sum() / own.sum())


def _copies(rows: Rows) -> Tensor:  # (N,)
    return torch.ones_like(rows.weight, dtype=torch.long) if rows.copies is None else rows.copies


def _in_tail(surprise: Tensor) -> Tensor:  # (N,) of bool
    return surprise > surprise.kthvalue(math.ceil((1.0 - TAIL) * len(surprise))).values


@torch.no_grad()
def _surprise(vae: VAE, rows: Rows) -> Tensor:  # (N,)
    """Return -log p(x) of the linear start, where any z will do (else about that)."""
    surprise = torch.empty_like(rows.weight)  # results in between would cut up the heap
    place = 0
    for x, observed, _ in rows.chunks(vae.n_features):
        at_mean = torch.zeros((1, len(x), vae.n_components), dtype=x.dtype, device=x.device)
        surprise[place : place + len(x)] = -log_weights(vae(x, observed, at_mean))[0]
        place += len(x)
    return surprise


def selection_for(parameters: Parameters, n_columns: int) -> Selection:
    """Say how the epoch is chosen, by the estimator's parameters."""
    return Selection(
        early_stopping=bool(parameters["early_stopping"]),
        validation_fraction=parameters["validation_fraction"],
        patience=parameters["n_iter_no_change"],
        tol=parameters["tol"] * n_columns,
    )
