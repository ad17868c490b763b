"""What a run of training is told, and what it reports."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .._model.bounds import LogTerms, elbo, importance_weighted_bound, warmed_beta
from .._model.vae import VAE, State
from .._parameters import Parameters, automatic_batch_size

TRAINING_STEPS = 1800  # that max_iter="auto" aims at: 40% more, at 0.003, gained nothing
LEARNING_RATE = 0.005  # by batches of 128 rows
# 10 epochs of it gained 0.22 nats a column over the start; of 0.003 they gained 0.15.
FASTEST_RATE = 0.012


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
    n_samples: int = 2
    decay: bool = True  # of the learning rate, to 0 at the end of max_epochs

    @property
    def n_draws(self) -> int:
        """How often noise is drawn for a row."""
        return self.n_samples // 2 if self._has_pairs else self.n_samples

    @property
    def _has_pairs(self) -> bool:
        return self.objective == "elbo" and self.n_samples % 2 == 0

    def with_opposites(self, eps: Tensor) -> Tensor:  # (n_draws, N, K) -> (S, N, K)
        """Return the noise of all samples: each draw of the ELBO has an opposite one, if it may.

        What is odd in the noise cancels out of the gradient: antithetic variates (Owen 2013,
        section 8.2).
        """
        return torch.cat([eps, -eps]) if self._has_pairs else eps

    def work_per_step(self, vae: VAE, n_rows: int) -> float:
        """Return about how many multiplications a step takes."""
        n_parameters = sum(p.numel() for p in vae.parameters())
        return 3.0 * n_parameters * min(self.batch_size, n_rows) * self.n_samples


@dataclass(frozen=True)
class Epoch:
    """What the loop reports after each epoch; number 0 is the start, before any step."""

    number: int
    bound: float  # mean objective over the epoch's rows, nats; nan for number 0
    held_out: float  # mean objective of the held-out rows, nats; nan without any
    doubt: float  # standard error of its gain over the start: large where few rows decide
    snapshot: Callable[[], State]  # makes a copy of the (averaged) weights
    n_undone: int = 0  # passes so far that diverged and were taken again, slower
    kl: float = math.nan  # mean KL divergence over the epoch's rows, nats
    held_out_kl: float = math.nan  # of the held-out rows


@dataclass(frozen=True)
class Start:
    """What is kept unless an epoch is better, where training may begin elsewhere."""

    vae: VAE
    optimism: float = 0.0  # nats a row: what training begins with has seen the held-out rows


class NonFiniteBoundError(ArithmeticError):
    """The objective became nan or infinite. Internal: a fit turns it into a ValueError."""

    def __init__(self, epoch: int, column: int) -> None:
        super().__init__(epoch, column)
        self.epoch = epoch
        self.column = column


def objective(terms: LogTerms, plan: Plan, progress: float) -> Tensor:  # (N,)
    """Return what a step climbs: the ELBO with its modifiers, or the importance-weighted bound."""
    if plan.objective == "iwae":
        return importance_weighted_bound(terms)
    return elbo(terms, warmed_beta(progress, plan.beta, plan.kl_warmup), plan.free_bits)


def plan_for(parameters: Parameters, n_rows: int) -> Plan:
    """Plan a run by the estimator's parameters and the number of distinct rows."""
    batch_size = _batch_size(parameters, n_rows)
    max_epochs = _max_epochs(parameters, n_rows, batch_size)
    n_steps = max_epochs * -(-n_rows // batch_size)
    learning_rate = _learning_rate(parameters, n_steps) * (batch_size / 128) ** 0.5
    # Decay acts in proportion to learning rate x steps; longer runs get proportionally less.
    longer = learning_rate * n_steps / (LEARNING_RATE * TRAINING_STEPS)
    return Plan(
        max_epochs=max_epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        alpha=parameters["alpha"] / max(longer, 1.0),
        beta=parameters["beta"],
        kl_warmup=parameters["kl_warmup"],
        free_bits=parameters["free_bits"],
        objective=parameters["objective"],
        n_samples=parameters["n_train_samples"],
    )


def _batch_size(parameters: Parameters, n_rows: int) -> int:
    if parameters["batch_size"] != "auto":
        return int(parameters["batch_size"])
    return automatic_batch_size(n_rows)


def _learning_rate(parameters: Parameters, n_steps: int) -> float:
    """Choose a larger rate in a run that the user has cut short: it is small soon enough."""
    if parameters["learning_rate_init"] != "auto":
        return float(parameters["learning_rate_init"])
    if parameters["max_iter"] == "auto":
        return LEARNING_RATE
    rate = LEARNING_RATE * TRAINING_STEPS / max(n_steps, 1)
    return float(np.clip(rate, LEARNING_RATE, FASTEST_RATE))


def _max_epochs(parameters: Parameters, n_rows: int, batch_size: int) -> int:
    """Return as many epochs as make about the same number of steps on any table, at most 400."""
    if parameters["max_iter"] != "auto":
        return int(parameters["max_iter"])
    steps_per_epoch = -(-n_rows // batch_size)
    return int(np.clip(-(-TRAINING_STEPS // steps_per_epoch), 8, 400))
