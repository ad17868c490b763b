"""The training loop: a generator of epochs.

The only minus sign of the package is here: optimisers minimise, bounds are maximised.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .._advice import warn
from .._model.bounds import warmed_beta
from .._model.vae import VAE, State
from .._resources import LITTLE, enough_threads
from .hand_gradient import ElboByHand, gradient_of
from .held_out import HeldOut
from .in_parts import ElboInParts, n_parts_of
from .optimiser import AdamW, Flat
from .plan import Epoch, NonFiniteBoundError, Plan, Start, objective
from .recorded import Recorded, can_record
from .rows import Batch, Rows, batches
from .signal import (
    CLEAR,
    MOST_CELLS,
    MOST_COLUMNS,
    NOT_NORMAL,
    ROWS,
    can_test,
    departure_from_normal,
    unexplained,
)
from .sparse_gradient import SparseElbo, pays

MAX_GRADIENT_NORM = 5.0  # of the mean bound of a batch
WARMUP_STEPS = 50
LONGEST_MEMORY = 0.995  # of the weights' moving average, per step
UNRECORDED_STEPS = 3  # of a GPU: its libraries set themselves up, which is not to be recorded
RETRIES = 4  # of an epoch that diverges,
SLOWER = 0.1  # each at so much of the learning rate
AVERAGED_EVERY = 4  # steps: on wide layers an average takes 0.4 of the optimiser's time


def train(
    vae: VAE,
    rows: Rows,
    held_out: Rows | None,
    plan: Plan,
    generator: torch.Generator,
    *,
    start: Start | None = None,
) -> Iterator[Epoch]:
    """Yield epoch 0 (the start), then every epoch until ``plan.max_epochs``.

    ``start`` is what the epochs are compared with; None is where training begins.
    """
    run = Run(vae, plan, generator, n_rows=len(rows))
    probe = None if held_out is None else HeldOut(held_out, vae.n_components, plan, generator)
    yield from epochs_of(run, rows, probe, start)


def epochs_of(
    run: "Run", rows: Rows, probe: HeldOut | None, start: Start | None, past: Sequence[Epoch] = ()
) -> Iterator[Epoch]:
    """Yield the epochs of a run, those that are past first."""
    vae, plan = run.vae, run.plan
    yield from past
    for number in range(len(past), plan.max_epochs + 1):
        if number == 1 and start is None and probe is not None and not run.can_gain(rows):
            return
        bound = math.nan
        if number > 0 and not math.isfinite(bound := run.epoch(rows)):
            raise NonFiniteBoundError(number, worst_column(vae, rows))  # internal
        with run.averaged(), enough_threads(LITTLE):
            held_out_bound, doubt = _measured(probe, vae, start, number)
        snapshot = run.snapshot
        if number == 0 and start is not None:
            snapshot = partial(state_of, start.vae)
        kl = math.nan if probe is None else probe.kl
        yield Epoch(number, bound, held_out_bound, doubt, snapshot, run.n_undone, run.kl, kl)


def state_of(vae: VAE) -> State:
    """Copy a module's state."""
    return {name: value.clone() for name, value in vae.state_dict().items()}


def _measured(
    probe: HeldOut | None, vae: VAE, start: Start | None, number: int
) -> tuple[float, float]:
    """Return the bound of held-out rows after an epoch, and the doubt of its gain."""
    if probe is None:
        return math.nan, 0.0
    if number == 0:
        return probe.measure(vae if start is None else start.vae)
    bound, doubt = probe.measure(vae, calibrate=True)
    return bound - (0.0 if start is None else start.optimism), doubt


class Value(NamedTuple):
    """What a step says of its batch, before it moves the weights: means over the rows, in nats."""

    bound: Tensor
    kl: Tensor


class Run:
    """A module, its optimiser, and the moving average of its weights."""

    def __init__(self, vae: VAE, plan: Plan, generator: torch.Generator, n_rows: int) -> None:
        self.vae = vae
        self.plan = plan
        self.generator = generator
        self.n_rows, self.n_steps = n_rows, plan.max_epochs * math.ceil(n_rows / plan.batch_size)
        self.step_number = self._averaged_step = 0
        self.flat = Flat(vae)
        self.optimizer = AdamW(self.flat, plan.alpha)
        self._by_hand = gradient_of(vae, plan.objective, plan.free_bits)
        # What each step needs, looked up once: a module's attributes take long to find.
        self._n_components, self._project = vae.n_components, vae.likelihood.project
        self._slowed, self.n_undone = 1.0, 0
        self.kl = math.nan  # mean KL divergence before each step of the last pass, in nats
        # Where a pass began that ended well: where it ended, no bound has been seen yet.
        self._sound: tuple[int, list[Tensor]] | None = None
        moments = self.optimizer.moments.values()
        self._vectors = (self.flat.live, self.flat.mean, *moments, self.optimizer.n_steps)
        self._recorded: Recorded[Value] | None = None
        self._n_unrecorded = 0
        self._records = (
            self._by_hand is not None and plan.kl_warmup == 0.0 and can_record(vae.device)
        )

    def epoch(self, rows: Rows) -> float:
        """Pass over the rows once; return the mean objective before each step, in nats.

        A pass that ends in what is not finite is undone and another taken, at smaller rates. It is
        nan if none of them helps.
        """
        for _ in range(RETRIES + 1):
            begun = self._place()
            bound = self._pass(rows)
            # The last step comes after the last bound was seen.
            if math.isfinite(bound) and bool(torch.isfinite(self.flat.live).all()):
                self._sound = begun
                return bound
            self._return_to(self._sound or begun)
            self._slowed *= SLOWER
            self.n_undone += 1
        return math.nan

    def can_gain(self, rows: Rows) -> bool:
        """Whether hidden layers may gain anything over a linear start, as far as can be seen."""
        layers = self.vae.hidden_layers
        begins = self.step_number == 0 and layers and all(mlp.is_idle for mlp in layers)
        plain = self.plan.beta == 1.0 and self.plan.free_bits == 0.0  # what the start is best at
        complete = rows.cells.complete  # the fewer cells are seen, the narrower the codes
        few = self.vae.n_features <= MOST_COLUMNS
        if not (begins and plain and complete and few):
            return True
        if not can_test(self.n_rows, self.plan.max_epochs):
            return True
        return not (self._looks_normal(rows) and self._looks_linear(rows))

    @torch.no_grad()
    def _looks_normal(self, rows: Rows) -> bool:
        """Whether columns and codes are normal, as far as many rows can show."""
        columns: list[Tensor] = []
        codes: list[Tensor] = []
        for x in self._features(rows):
            if len(columns) * x.numel() < MOST_CELLS:
                columns.append(x)
            codes.append(self.vae.encoder(x, None)[0])
        both = (torch.cat(columns), torch.cat(codes))
        return all(departure_from_normal(values) <= NOT_NORMAL for values in both)

    def _looks_linear(self, rows: Rows) -> bool:
        """Whether what is left of the columns has nothing to do with the decoder's units."""
        return unexplained(self.vae, self._features(rows)) <= CLEAR

    def _features(self, rows: Rows) -> Iterator[Tensor]:
        """Yield those of batches in a random order; the steps' generator has drawn nothing then."""
        state = self.generator.get_state()
        try:
            some = batches(rows, self.plan.batch_size, self.generator)
            for batch in itertools.islice(some, max(ROWS // self.plan.batch_size, 1)):
                yield self.vae.likelihood.features(batch.x)
        finally:
            self.generator.set_state(state)

    def _place(self) -> tuple[int, list[Tensor]]:
        """Copy where the run stands."""
        return self.step_number, [vector.clone() for vector in self._vectors]

    def _return_to(self, place: tuple[int, list[Tensor]]) -> None:
        self.step_number, vectors = place
        self._averaged_step = self.step_number
        for vector, before in zip(self._vectors, vectors, strict=True):
            vector.copy_(before)
        self.flat.grad.zero_()  # between the parameters, too, where no step writes

    def _pass(self, rows: Rows) -> float:
        rows = self._as_needed(rows)
        total, n_rows = torch.zeros_like(rows.weight[0]), 0
        total_kl = torch.zeros_like(total)
        with nullcontext() if self._by_hand is None else self._by_hand.at_work():
            for batch in batches(rows, self.plan.batch_size, self.generator):
                n, value = batch.x.shape[0], self._step(batch)
                total.add_(value.bound, alpha=n)  # stays on the device: read once, below
                total_kl.add_(value.kl, alpha=n)
                n_rows += n
        self._average()
        self.kl = float(total_kl) / n_rows
        return float(total) / n_rows

    def _as_needed(self, rows: Rows) -> Rows:
        """Choose the gradient that is the fastest for these rows, from this pass on.

        Let sparse rows be sparse where it takes them so.
        """
        if self._by_hand is None:
            return rows
        n_rows = min(self.plan.batch_size, len(rows))
        share = rows.stored_share
        stored = share < 1.0 and pays(self.vae, share, self.plan.n_samples * n_rows)
        n_parts = 1
        if not stored and self.vae.device.type == "cpu":
            n_parts = n_parts_of(self.plan.work_per_step(self.vae, len(rows)), n_rows)
        wanted: type[ElboByHand] = SparseElbo if stored else ElboByHand
        if n_parts > 1:
            wanted = ElboInParts
        if type(self._by_hand) is not wanted:
            parts = wanted is ElboInParts
            self._by_hand = ElboInParts(self.vae, n_parts) if parts else wanted(self.vae)
        return rows.as_stored() if stored else rows

    def _step(self, batch: Batch) -> Value:
        self._set_learning_rate()
        x = batch.x
        size = (self.plan.n_draws, x.shape[0], self._n_components)
        eps = torch.randn(size, generator=self.generator, dtype=x.dtype, device=x.device)
        eps = self.plan.with_opposites(eps)
        take = self._recorded_step(batch) if self._records else self._take_step
        value = take(batch, eps)
        self.step_number += 1
        if self.step_number % AVERAGED_EVERY == 0:
            self._average()
        return value

    def _recorded_step(self, batch: Batch) -> Callable[[Batch, Tensor], Value]:
        """Return the recorded step for whole batches of complete rows, after some to warm up."""
        whole = len(batch.x) == self.plan.batch_size and batch.observed is None
        if not whole or self._n_unrecorded < UNRECORDED_STEPS:
            self._n_unrecorded += 1
            return self._take_step
        if self._recorded is None:
            size = (self.plan.n_samples, len(batch.x), self._n_components)
            try:
                self._recorded = Recorded(self._take_step, batch, size)
            except RuntimeError as error:
                warn(
                    f"The GPU could not record a training step, so training is slower: {error}",
                    RuntimeWarning,
                )
                self._records = False
                return self._take_step
        return self._recorded

    def _take_step(self, batch: Batch, eps: Tensor) -> Value:
        """Move the weights, and return what they said before."""
        return self._moved(self._gradient(batch, eps))

    def _moved(self, value: Value) -> Value:
        """Move the weights against ``flat.grad``, and return the value."""
        with torch.inference_mode():  # the least overhead
            self._clip()
            self.optimizer.step()
            self._project()
        return value

    def _gradient(self, batch: Batch, eps: Tensor) -> Value:
        """Return the mean objective and the KL; minus its gradient is left in ``flat.grad``."""
        plan, progress = self.plan, self.step_number / self.n_steps
        if self._by_hand is not None:
            beta = warmed_beta(progress, plan.beta, plan.kl_warmup)
            return Value(self._by_hand(*batch, eps, beta), self._by_hand.kl)
        self.flat.grad.zero_()
        with torch.enable_grad():
            terms = self.vae(batch.x, batch.observed, eps)
            bound = (objective(terms, plan, progress) * batch.weight).mean()
            loss = -bound
        loss.backward()
        kl = (terms.kl.detach().sum(-1) * batch.weight).mean()
        return Value(bound.detach(), kl)

    def _clip(self) -> None:
        norm = torch.linalg.vector_norm(self.flat.grad)
        if not norm.is_cpu:  # to look at it would be to wait for it
            self.flat.grad *= (MAX_GRADIENT_NORM / norm).clamp_(max=1.0)
        elif not norm <= MAX_GRADIENT_NORM:
            self.flat.grad *= MAX_GRADIENT_NORM / norm

    def _set_learning_rate(self) -> None:
        """Warm up linearly, then follow half a cosine down to 0 over the whole run."""
        rate = (
            self._slowed * self.plan.learning_rate * min(1.0, (self.step_number + 1) / WARMUP_STEPS)
        )
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
        """Let the module hold the averaged weights inside the context."""
        self.flat.point_at(self.flat.mean)
        try:
            yield
        finally:
            self.flat.point_at(self.flat.live)

    def snapshot(self) -> State:
        """Copy the module's state with the averaged weights."""
        with self.averaged():
            return state_of(self.vae)

    def memory(self) -> State:
        """Return what a later ``Run`` needs to go on as if it were this one."""
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


@torch.no_grad()
def worst_column(vae: VAE, rows: Rows) -> int:
    """Find the column that holds the wildest cell: where a bound explodes first."""
    encoder = vae.encoder
    wildest = torch.zeros_like(encoder.center)
    for x, observed, _ in rows.chunks(vae.n_features):
        robust = encoder.in_robust_units(vae.likelihood.features(x)).abs()
        if observed is not None:
            robust = torch.where(observed[:, encoder.column], robust, 0.0)
        wildest = torch.maximum(wildest, robust.amax(0))
    return int(encoder.column[wildest.argmax()])
