"""Rows in logical shards: which rows a step has, and their noise, whoever holds the shards.

The shards are fixed when a fit starts. Step t of T gives the rows [n t / T, n (t + 1) / T) of each
shard of n rows, in an order of its own in each epoch: every row once an epoch. Order and noise are
keyed by the seed, the epoch, the shard and the step (Philox: Salmon et al. 2011), so that they do
not depend on which process has the shard. Gradients are summed over rows, and then over processes.
Where these numbers are no whole ones, each shard rounds them at a point of its own: else batches of
fewer rows than shards would be empty ones and large ones in turn.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._model.vae import VAE
from .collective import Collective
from .held_out import HeldOut, pairs_for
from .loop import AVERAGED_EVERY, Run, Value
from .plan import Plan
from .rows import Batch, Cells, Rows, epoch_order, window_of

ORDER, NOISE, HELD_OUT, SPLIT = range(4)  # what is drawn
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0  # multiples of it lie evenly between whole numbers


def generator_of(seed: int, what: int, *place: int) -> np.random.Generator:
    """Return the generator of what is drawn at a place: up to three of epoch, shard and step."""
    counter = [0, *place, *(0 for _ in range(3 - len(place)))]
    return np.random.Generator(np.random.Philox(key=[seed, what], counter=counter))


def torch_generator_of(
    seed: int, what: int, *place: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return torch's generator of the same place."""
    number = int(generator_of(seed, what, *place).integers(2**63))
    return torch.Generator(device).manual_seed(number)


@dataclass(frozen=True)
class Shard:
    """Some rows of a process.

    ``index`` (n,) are their numbers among the process's cells, ``weight`` (n,) how often each
    counts, of mean 1, and ``factor`` what a row of that mean weighs among the rows of all shards.
    """

    number: int
    index: Tensor
    weight: Tensor
    factor: float
    n_rows: int  # before some of them were held out


@dataclass(frozen=True)
class ShardedRows:
    """The shards that a process holds of rows that several hold together."""

    cells: Cells
    shards: Sequence[Shard]
    n_rows: int  # of all processes
    seed: int

    def orders(self, epoch: int) -> list[Tensor]:
        """Draw the order of each shard's rows in an epoch, as numbers among the cells.

        It does not depend on who holds the rows: many stand in a file, and few in memory.
        """
        window = window_of(self.cells[:0][0].shape[1])
        return [
            shard.index[
                epoch_order(
                    shard.weight, torch_generator_of(self.seed, ORDER, epoch, shard.number), window
                ).long()
            ]
            for shard in self.shards
        ]

    def step(
        self, orders: list[Tensor], place: tuple[int, int, int], size: tuple[int, int]
    ) -> Iterator[tuple[Batch, Tensor]]:
        """Yield the rows of each shard in a step, and their noise (S, N, K).

        ``place`` is the epoch, the step and the number of steps, ``size`` is (S, K).
        """
        epoch, number, n_steps = place
        for shard, order in zip(self.shards, orders, strict=True):
            phase = shard.number * GOLDEN % 1.0
            begin, end = (int(len(order) * n / n_steps + phase) for n in (number, number + 1))
            if end == begin:
                continue
            x, observed = self.cells[order[begin:end]]
            drawn = generator_of(self.seed, NOISE, epoch, shard.number, number)
            eps = drawn.standard_normal((size[0], end - begin, size[1]), dtype=np.float32)
            weight = x.new_full((end - begin,), shard.factor)
            yield Batch(x, observed, weight), torch.from_numpy(eps).to(x)


class ShardedRun(Run):
    """A run over rows that several processes hold: each of them takes the same steps.

    ``marks`` is asked in process 0 in each step whether ``marked`` is to be called after it, in all
    processes at the same one.
    """

    marked: Callable[[], None]

    def __init__(
        self,
        vae: VAE,
        plan: Plan,
        rows: ShardedRows,
        collective: Collective,
        marks: Callable[[], bool],
    ) -> None:
        super().__init__(vae, plan, torch.Generator(), rows.n_rows)
        self._records = False
        self._rows, self._collective, self._marks = rows, collective, marks
        self._totals = torch.zeros(3, dtype=torch.float64)  # of an epoch: bound, KL, rows
        self._vectors = (*self._vectors, self._totals)
        self._is_due = False  # to be marked
        # Of the gradient, the bound, the KL, rows and marks. In float64, sums over shards hardly
        # depend on the order in which they are added, and so not on who has which shard.
        self._sums = self.flat.grad.new_zeros(len(self.flat.grad) + 4, dtype=torch.float64)
        self._n_steps = math.ceil(rows.n_rows / plan.batch_size)

    def _pass(self, rows: Rows) -> float:
        epoch, begin = divmod(self.step_number, self._n_steps)
        orders = self._rows.orders(epoch)
        size = (self.plan.n_draws, self.vae.n_components)
        if self._is_due:
            self._mark()
        if begin == 0:
            self._totals.zero_()
        for number in range(begin, self._n_steps):
            self._set_learning_rate()
            self._moved(
                self._mean_of(self._rows.step(orders, (epoch, number, self._n_steps), size))
            )
            self._totals += self._sums[-4:-1].cpu()
            self.step_number += 1
            if self.step_number % AVERAGED_EVERY == 0:
                self._average()
            # After the last not yet: what the epoch has come to is not remembered so far.
            self._is_due = bool(self._sums[-1] > 0)
            if self._is_due and number + 1 < self._n_steps:
                self._mark()
        self._average()
        bound, kl, n_rows = self._totals.tolist()
        self.kl = kl / n_rows
        return float(bound / n_rows)

    def can_gain(self, rows: Rows) -> bool:
        return True  # no process sees enough of the rows to deny it

    def _mark(self) -> None:
        self._is_due = False
        self.marked()

    def _mean_of(self, parts: Iterable[tuple[Batch, Tensor]]) -> Value:
        """Put minus the gradient of the mean over all processes' rows in ``flat.grad``."""
        own = self._sums.zero_()
        for batch, eps in parts:
            n_rows = len(batch.weight)
            value = self._gradient(batch, self.plan.with_opposites(eps))
            own[:-4].add_(self.flat.grad, alpha=n_rows)
            own[-4:-1] += torch.stack([value.bound, value.kl, torch.ones_like(value.kl)]) * n_rows
        if self._collective.rank == 0 and self._marks():
            own[-1] = 1.0
        self._collective.add(own)
        n_all = own[-2].clamp(min=1.0)  # a step of few rows may come to none
        self.flat.grad.copy_(own[:-4] / n_all)
        return Value(own[-4] / n_all, own[-3] / n_all)

    def state(self) -> dict[str, Any]:
        """Return where the run stands, for another process to go on from."""
        vectors = [vector.clone() for vector in self._vectors]
        numbers = (self.step_number, self._averaged_step, self._slowed, self.n_undone)
        return {"vectors": vectors, "numbers": list(numbers)}

    def go_on_from(self, state: dict[str, Any]) -> None:
        """Go on where another run stood."""
        for own, vector in zip(self._vectors, state["vectors"], strict=True):
            own.copy_(vector)
        self.step_number, self._averaged_step, self._slowed, self.n_undone = state["numbers"]


class SharedHeldOut(HeldOut):
    """Held-out rows of several processes.

    Parameters
    ----------
    cells : Cells
        Those of this process.
    shards : sequence of Shard
        What is held out of its shards; a ``factor`` is the weight of one such row among all.
    n_rows : int
        How many rows all processes hold out.
    n_components : int
    plan : Plan
    seed : int
    collective : Collective
    device : torch.device
        Of the module.
    """

    def __init__(
        self,
        cells: Cells,
        shards: Sequence[Shard],
        n_rows: int,
        n_components: int,
        plan: Plan,
        *,
        seed: int,
        collective: Collective,
        device: torch.device,
    ) -> None:
        self.plan, self.collective = plan, collective
        self.at_start, self.kl = None, math.nan
        n_pairs = pairs_for(n_rows, plan)
        drawn = [np.zeros((n_pairs, 0, n_components), dtype=np.float32)]
        for shard in shards:
            generator = generator_of(seed, HELD_OUT, 0, shard.number)
            size = (n_pairs, len(shard.index), n_components)
            drawn.append(generator.standard_normal(size, dtype=np.float32))
        eps = torch.from_numpy(np.concatenate(drawn, axis=1)).to(device)
        index = torch.cat([torch.zeros(0, dtype=torch.long), *(s.index.cpu() for s in shards)])
        weight = torch.cat([torch.zeros(0), *(s.weight * s.factor for s in shards)]).to(device)
        self.rows = Rows(cells.take(index), weight)
        self.share = weight.double() / n_rows
        self.eps = torch.cat([eps, -eps])

    def _added(self, sums: Tensor) -> Tensor:
        sums = sums.clone()
        self.collective.add(sums)
        return sums
