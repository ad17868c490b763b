"""The training loop: a generator of epochs that the estimator consumes.

The only minus sign of the package is here: optimisers minimise, bounds are maximised.
"""

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ._batches import Batch, Rows, batches, folds, hold_out
from ._bounds import LogTerms, elbo, importance_weighted_bound, log_weights, warmed_beta
from ._columns import row_chunks
from ._fused import fused_gradient
from ._recorded import Recorded, can_record
from ._vae import VAE

State = dict[str, Tensor]

MAX_GRADIENT_NORM = 5.0  # of the mean bound of a batch
WARMUP_STEPS = 50
LONGEST_MEMORY = 0.995  # of the weights' moving average, per step
UNRECORDED_STEPS = 3  # of a GPU: its libraries set themselves up, which is not to be recorded
AVERAGED_EVERY = 4  # steps: on wide layers an average takes 0.4 of the optimiser's time
SMALL_TABLE = 500  # distinct rows
N_FOLDS = 5
MAX_HELD_OUT = 5000  # rows: more would not choose better
CAUTION = 2.0  # standard errors
TAIL = 0.005  # fraction of the rows: the wildest under the start
VALIDATION_DRAWS = 2048  # rows times samples: a small held-out part gets more samples a row


@dataclass(frozen=True)
class Plan:
    """What a run of the loop is told."""

    max_epochs: int
    batch_size: int
    learning_rate: float
    alpha: float = 0.0
    beta: float = 1.0
    kl_warmup: float = 0.0
    free_bits: float = 0.0
    objective: str = "elbo"
    n_samples: int = 1
    decay: bool = True  # of the learning rate, to 0 at the end of max_epochs


@dataclass(frozen=True)
class Epoch:
    """What the loop reports after each epoch; number 0 is the start, before any step."""

    number: int
    bound: float  # mean objective over the epoch's rows, nats; nan for number 0
    held_out: float  # mean bound of the held-out rows, nats; nan without any
    doubt: float  # standard error of its gain over the start: large where few rows decide
    snapshot: Callable[[], State]  # makes a copy of the (averaged) weights


class NonFiniteBoundError(ArithmeticError):
    """The objective became nan or infinite."""

    def __init__(self, epoch: int, column: int) -> None:
        super().__init__(epoch, column)
        self.epoch = epoch
        self.column = column


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


Watch = Callable[[Epoch], bool]  # told of every epoch; True stops the run


def climb(
    vae: VAE,
    rows: Rows,
    plan: Plan,
    selection: Selection,
    generator: torch.Generator,
    watch: Watch,
) -> Outcome:
    """Train, hold out as the number of rows allows, and keep the best epoch."""
    n_rows = len(rows)
    if plan.max_epochs == 0 or (selection.early_stopping and n_rows == 1):
        return Outcome(None, [], [], 0, 0, False)
    if not selection.early_stopping:
        last, bounds = _consume(train(vae, rows, None, plan, generator), watch)
        return Outcome(last.snapshot(), bounds, [], last.number, last.number, False)
    stopper = EarlyStopping(selection.patience, selection.tol)

    def either(epoch: Epoch) -> bool:
        return watch(epoch) | stopper.done(epoch)

    if n_rows < SMALL_TABLE:
        # Too few rows to lose a tenth of: folds choose the number of epochs, all rows train.
        n_folds = min(N_FOLDS, n_rows)
        _, bounds = _consume(train_folds(vae, rows, n_folds, plan, generator), either)
        state = None
        if stopper.best > 0:
            refit = itertools.islice(train(vae, rows, None, plan, generator), stopper.best + 1)
            last, bounds = _consume(refit, lambda epoch: False)
            state = last.snapshot()
    else:
        fraction = min(selection.validation_fraction, MAX_HELD_OUT / n_rows)
        kept, held_out = split_with_tail(vae, rows, fraction, generator)
        epochs = train(vae, kept, held_out, plan, generator)
        _, bounds = _consume(epochs, either)
        state = stopper.best_state
    n_epochs = len(stopper.curve) - 1
    cut_short = n_epochs == plan.max_epochs and stopper.still_improving
    return Outcome(state, bounds, stopper.curve, stopper.best, n_epochs, cut_short)


def _consume(epochs: Iterator[Epoch], stop: Watch) -> tuple[Epoch, list[float]]:
    """Run until told to stop; the last epoch and the objective of each."""
    bounds = []
    for epoch in epochs:
        bounds.append(epoch.bound)
        if stop(epoch):
            break
    return epoch, bounds[1:]


def train(
    vae: VAE, rows: Rows, held_out: Rows | None, plan: Plan, generator: torch.Generator
) -> Iterator[Epoch]:
    """Yield epoch 0 (the start), then every epoch until ``plan.max_epochs``."""
    run = Run(vae, plan, generator, n_rows=len(rows))
    probe = None if held_out is None else _HeldOut(held_out, vae.n_components, plan, generator)
    for number in range(plan.max_epochs + 1):
        bound = run.epoch(rows) if number > 0 else math.nan
        if number > 0 and not (math.isfinite(bound) and run.is_finite()):
            raise NonFiniteBoundError(number, worst_column(vae, rows))
        with run.averaged():
            if probe is not None and number > 0:
                probe.calibrate(vae)
            held_out_bound, doubt = (math.nan, 0.0) if probe is None else probe.measure(vae)
        yield Epoch(number, bound, held_out_bound, doubt, run.snapshot)


def train_folds(
    vae: VAE, rows: Rows, n_folds: int, plan: Plan, generator: torch.Generator
) -> Iterator[Epoch]:
    """Train one copy of ``vae`` for each fold in step; epochs are means over the folds.

    For tables too small to hold rows out for good: it says how many epochs to train on all.
    """
    runs = [
        train(copy.deepcopy(vae), rows.take(kept), rows.take(held_out), plan, generator)
        for kept, held_out in folds(len(rows), n_folds, generator)
    ]
    for epochs in zip(*runs, strict=True):
        bound = sum(e.bound for e in epochs) / n_folds
        held_out = sum(e.held_out for e in epochs) / n_folds
        doubt = math.hypot(*(e.doubt for e in epochs)) / n_folds
        yield Epoch(epochs[0].number, bound, held_out, doubt, epochs[0].snapshot)


def objective(terms: LogTerms, plan: Plan, progress: float) -> Tensor:  # (N,)
    """What a step climbs: the ELBO with its modifiers, or the importance-weighted bound."""
    if plan.objective == "iwae":
        return importance_weighted_bound(terms)
    return elbo(terms, warmed_beta(progress, plan.beta, plan.kl_warmup), plan.free_bits)


class Flat:
    """A module's parameters as one vector, likewise their gradients and their moving average.

    The parameters become views of it, so that what is done to all of them is one operation. Those
    that weight decay pulls stand last.
    """

    def __init__(self, vae: VAE) -> None:
        named = dict(vae.named_parameters())
        names = sorted(named, key=_is_decayed)
        begins = [0, *itertools.accumulate(_padded(named[name].numel()) for name in names)]
        self.n_kept = begins[sum(not _is_decayed(name) for name in names)]
        self.parameters = named
        self._place = dict(zip(names, begins, strict=False))
        like = vae.encoder.log_scale.detach()
        self.live, self.grad = like.new_zeros(begins[-1]), like.new_zeros(begins[-1])
        for parameter, own in zip(named.values(), self.views(self.live), strict=True):
            own.copy_(parameter.detach())
        self.mean = self.live.clone()
        self.point_at(self.live)
        for parameter, own in zip(named.values(), self.views(self.grad), strict=True):
            parameter.grad = own

    def views(self, vector: Tensor) -> list[Tensor]:
        """The parts of a vector of this layout, in the order and shapes of the parameters."""
        return [
            vector[(start := self._place[name]) : start + p.numel()].view(p.shape)
            for name, p in self.parameters.items()
        ]

    def point_at(self, vector: Tensor) -> None:
        """Let the module hold the values of a vector of this layout."""
        for parameter, own in zip(self.parameters.values(), self.views(vector), strict=True):
            parameter.data = own

    def halves(self, *vectors: Tensor) -> list[list[Tensor]]:
        """What weight decay leaves alone, and what it pulls, of each vector."""
        return [[v[: self.n_kept] for v in vectors], [v[self.n_kept :] for v in vectors]]


class AdamW:
    """Loshchilov & Hutter 2019; weight decay pulls the MLPs alone, and so towards the start.

    ``torch.optim.AdamW`` calls the same kernel, and takes longer to find it than the kernel runs.
    """

    def __init__(self, flat: Flat, alpha: float) -> None:
        # On a GPU a tensor, always of float32: there a recorded step looks it up.
        self._rate: float | Tensor = 0.0
        if not flat.live.is_cpu:
            self._rate = torch.zeros((), dtype=torch.float32, device=flat.live.device)
        self.moments = {key: torch.zeros_like(flat.live) for key in ("exp_avg", "exp_avg_sq")}
        self.n_steps = torch.zeros((), device=flat.live.device)
        vectors = (flat.live, flat.grad, *self.moments.values())
        self.groups = list(zip(flat.halves(*vectors), (0.0, alpha), strict=True))

    @property
    def learning_rate(self) -> float:
        return float(self._rate)

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self._rate = self._rate.fill_(rate) if isinstance(self._rate, Tensor) else rate

    def step(self) -> None:
        self.n_steps += 1.0
        for (live, grad, mean, square), decay in self.groups:
            torch._fused_adamw_(
                [live],
                [grad],
                [mean],
                [square],
                [],
                [self.n_steps],
                lr=self._rate,
                beta1=0.9,
                beta2=0.99,
                weight_decay=decay,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )


class Run:
    """A module, its optimiser, and the moving average of its weights."""

    def __init__(self, vae: VAE, plan: Plan, generator: torch.Generator, n_rows: int) -> None:
        self.vae = vae
        self.plan = plan
        self.generator = generator
        self.n_steps = plan.max_epochs * math.ceil(n_rows / plan.batch_size)
        self.step_number = self._averaged_step = 0
        self.flat = Flat(vae)
        self.optimizer = AdamW(self.flat, plan.alpha)
        self._fused = fused_gradient(vae, plan.objective, plan.free_bits)
        # What each step needs, looked up once: a module's attributes take long to find.
        self._n_components, self._project = vae.n_components, vae.likelihood.project
        self._recorded: Recorded | None = None
        self._n_unrecorded = 0
        self._records = self._fused is not None and plan.kl_warmup == 0.0 and can_record(vae.device)

    def epoch(self, rows: Rows) -> float:
        """One pass over the rows; the mean objective before each step, in nats."""
        total, n_rows = torch.zeros_like(rows.weight[0]), 0
        for batch in batches(rows, self.plan.batch_size, self.generator):
            n = batch.x.shape[0]
            total.add_(self._step(batch), alpha=n)  # stays on the device: read once, below
            n_rows += n
        self._average()
        return float(total) / n_rows

    def is_finite(self) -> bool:
        """Whether all weights are: the last step comes after the last bound."""
        return bool(torch.isfinite(self.flat.live).all())

    def _step(self, batch: Batch) -> Tensor:
        self._set_learning_rate()
        x = batch.x
        size = (self.plan.n_samples, x.shape[0], self._n_components)
        eps = torch.randn(size, generator=self.generator, dtype=x.dtype, device=x.device)
        take = self._recorded_step(batch) if self._records else self._climb
        bound = take(batch, eps)
        self.step_number += 1
        if self.step_number % AVERAGED_EVERY == 0:
            self._average()
        return bound

    def _recorded_step(self, batch: Batch) -> Callable[[Batch, Tensor], Tensor]:
        """For whole batches of complete rows, after some that warm the GPU up."""
        whole = len(batch.x) == self.plan.batch_size and batch.observed is None
        if not whole or self._n_unrecorded < UNRECORDED_STEPS:
            self._n_unrecorded += 1
            return self._climb
        if self._recorded is None:
            size = (self.plan.n_samples, len(batch.x), self._n_components)
            try:
                self._recorded = Recorded(self._climb, batch, size)
            except RuntimeError as error:
                warnings.warn(
                    f"The GPU could not record a training step, so each is launched anew: {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                self._records = False
                return self._climb
        return self._recorded

    def _climb(self, batch: Batch, eps: Tensor) -> Tensor:
        """Move the weights; returns the mean objective before."""
        bound = self._gradient(batch, eps)
        with torch.inference_mode():  # the least overhead
            self._clip()
            self.optimizer.step()
            self._project()
        return bound

    def _gradient(self, batch: Batch, eps: Tensor) -> Tensor:
        """The mean objective; minus its gradient is left in ``flat.grad``."""
        plan, progress = self.plan, self.step_number / self.n_steps
        if self._fused is not None:
            beta = warmed_beta(progress, plan.beta, plan.kl_warmup)
            return self._fused(*batch, eps, beta)
        self.flat.grad.zero_()
        with torch.enable_grad():
            terms = self.vae(batch.x, batch.observed, eps)
            bound = (objective(terms, plan, progress) * batch.weight).mean()
            loss = -bound
        loss.backward()
        return bound.detach()

    def _clip(self) -> None:
        norm = torch.linalg.vector_norm(self.flat.grad)
        if not norm.is_cpu:  # to look at it would be to wait for it
            self.flat.grad *= (MAX_GRADIENT_NORM / norm).clamp_(max=1.0)
        elif not norm <= MAX_GRADIENT_NORM:
            self.flat.grad *= MAX_GRADIENT_NORM / norm

    def _set_learning_rate(self) -> None:
        """Linear warm-up, then half a cosine down to 0 over the whole run."""
        rate = self.plan.learning_rate * min(1.0, (self.step_number + 1) / WARMUP_STEPS)
        if self.plan.decay:
            rate *= 0.5 * (1.0 + math.cos(math.pi * self.step_number / self.n_steps))
        self.optimizer.learning_rate = rate

    def _average(self) -> None:
        # Short memory at first: the start is forgotten as fast as training leaves it.
        memory = min(LONGEST_MEMORY, self.step_number / (9.0 + self.step_number))
        n_steps = self.step_number - self._averaged_step
        self.flat.mean.lerp_(self.flat.live, 1.0 - memory**n_steps)
        self._averaged_step = self.step_number

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context in which the module holds the averaged weights."""
        self.flat.point_at(self.flat.mean)
        try:
            yield
        finally:
            self.flat.point_at(self.flat.live)

    def snapshot(self) -> State:
        """A copy of the module's state with the averaged weights."""
        with self.averaged():
            return {name: value.clone() for name, value in self.vae.state_dict().items()}

    def memory(self) -> State:
        """What a later ``Run`` needs to go on as if it were this one."""
        memory = {"step_number": torch.tensor(self.step_number)}
        for key, vector in {"live": self.flat.live, **self.optimizer.moments}.items():
            for name, own in zip(self.flat.parameters, self.flat.views(vector), strict=True):
                memory[f"{name}:{key}"] = own.clone()
        return memory

    def resume(self, memory: State) -> None:
        self.step_number = self._averaged_step = int(memory["step_number"])
        for key, vector in {"live": self.flat.live, **self.optimizer.moments}.items():
            for name, own in zip(self.flat.parameters, self.flat.views(vector), strict=True):
                own.copy_(memory[f"{name}:{key}"])
        self.optimizer.n_steps.fill_(self.step_number)


class EarlyStopping:
    """Remember the best held-out epoch; say when to stop.

    The best is the one whose gain over the start is the largest, less ``CAUTION`` standard errors:
    a gain that hangs on few rows can as well be a loss on others. The start, with no gain and no
    doubt, counts as a candidate, so what is kept is never below it on the held-out rows.
    """

    def __init__(self, patience: int, tol: float) -> None:
        self.patience = patience
        self.tol = tol
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
        return epoch.number - self._last_gain >= self.patience

    @property
    def still_improving(self) -> bool:
        """Whether the very last epoch gained more than ``tol`` over the one before."""
        return len(self.curve) > 1 and self.curve[-1] > max(self.curve[:-1]) + self.tol


def split_with_tail(
    vae: VAE, rows: Rows, fraction: float, generator: torch.Generator
) -> tuple[Rows, Rows]:
    """Training and held-out rows; half of the wildest rows are held out, and weighted down.

    A mean bound can hang on a few rows tens of standard deviations off. A plain tenth of the rows
    would hardly hold one of them, and training, with clipped gradients, takes little notice.
    """
    surprise = _surprise(vae, rows)
    in_tail = surprise > surprise.kthvalue(math.ceil((1.0 - TAIL) * len(surprise))).values
    weight = torch.zeros_like(rows.weight)
    for stratum, share in [(~in_tail, fraction), (in_tail, 0.5)]:
        members = torch.nonzero(stratum)[:, 0]
        if len(members) < 2:
            continue
        _, held_out = hold_out(len(members), share, generator)
        chosen = members[held_out]
        stands_for = rows.weight[members].sum() / rows.weight[chosen].sum()
        weight[chosen] = rows.weight[chosen] * stands_for
    held_out, kept = torch.nonzero(weight > 0)[:, 0], torch.nonzero(weight == 0)[:, 0]
    return rows.take(kept), Rows(rows.cells, weight).take(held_out)


@torch.no_grad()
def _surprise(vae: VAE, rows: Rows) -> Tensor:  # (N,)
    """-log p(x) of the linear start, where any z will do (else of about that)."""
    chunks = []
    for x, observed, _ in rows.chunks(vae.n_features):
        at_mean = torch.zeros((1, len(x), vae.n_components), dtype=x.dtype, device=x.device)
        chunks.append(-log_weights(vae(x, observed, at_mean))[0])
    return torch.cat(chunks)


class _HeldOut:
    """Held-out rows with one fixed noise, in antithetic pairs, so that epochs compare.

    They are judged by the bound that training climbs: the ELBO, or the importance-weighted one.
    """

    def __init__(
        self, rows: Rows, n_components: int, plan: Plan, generator: torch.Generator
    ) -> None:
        weighted = plan.objective == "iwae"
        self.bound = importance_weighted_bound if weighted else elbo
        n_pairs = max(1, min(8, VALIDATION_DRAWS // (2 * len(rows))))
        if weighted:
            n_pairs = max(n_pairs, (plan.n_samples + 1) // 2)
        size = (n_pairs, len(rows), n_components)
        weight = rows.weight
        eps = torch.randn(size, generator=generator, dtype=weight.dtype, device=weight.device)
        self.rows = rows
        self.eps = torch.cat([eps, -eps])
        self.at_start: Tensor | None = None

    @torch.no_grad()
    def measure(self, vae: VAE) -> tuple[float, float]:
        """Mean bound, and the standard error of its gain over the first time it was measured."""
        parts = [self.bound(vae(x, observed, eps)) for (x, observed, _), eps in self._chunks(vae)]
        bound = torch.cat(parts).double()
        if self.at_start is None:
            self.at_start = bound
        weight = self.rows.weight.double() / len(bound)  # sums to 1
        gain = bound - self.at_start
        spread = weight * (gain - (weight * gain).sum())
        return float((weight * bound).sum()), float(torch.linalg.vector_norm(spread))

    @torch.no_grad()
    def calibrate(self, vae: VAE) -> None:
        """Set the noise by what is left over on rows that were not trained on.

        On training rows it is too small, and clipped gradients let it ignore the wild ones.
        """
        total = torch.zeros(vae.n_features, dtype=torch.float64, device=self.eps.device)
        count = torch.zeros_like(total)
        for (x, observed, weight), eps in self._chunks(vae):
            loc, log_scale = vae.encode(x, observed)
            raw = vae.decoder(loc + torch.exp(log_scale) * eps)
            left = (vae.likelihood.features(x) - raw).square().mean(0)  # (N, P)
            seen = weight[:, None].expand_as(left)
            if observed is not None:
                seen = seen * observed[:, vae.encoder.column]
            total += (left * seen).sum(0)
            count += seen.sum(0)
        vae.likelihood.set_noise(total / count.clamp(min=1e-9), count)

    def _chunks(self, vae: VAE) -> Iterator[tuple[Batch, Tensor]]:
        for chunk in row_chunks(len(self.rows), 4 * vae.n_features):
            yield self.rows[chunk], self.eps[:, chunk]


def _is_decayed(name: str) -> bool:
    """Weight decay pulls the MLPs alone, and so the model towards its linear start."""
    return ".mlp." in name and name.endswith("weight")


def _padded(size: int) -> int:
    """So that each parameter begins at a cache line: products of odd addresses are slow."""
    return -(-size // 16) * 16


@torch.no_grad()
def worst_column(vae: VAE, rows: Rows) -> int:
    """The column that holds the wildest cell: where a bound explodes first."""
    encoder = vae.encoder
    wildest = torch.zeros_like(encoder.center)
    for x, observed, _ in rows.chunks(vae.n_features):
        robust = ((vae.likelihood.features(x) - encoder.center) / encoder.spread).abs()
        if observed is not None:
            robust = torch.where(observed[:, encoder.column], robust, 0.0)
        wildest = torch.maximum(wildest, robust.amax(0))
    return int(encoder.column[wildest.argmax()])
