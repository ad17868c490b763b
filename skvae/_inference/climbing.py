"""Climbing log p(x, z) to a mode of the posterior p(z | x), each row on its own."""

import torch
from torch import Tensor

from .._model.vae import VAE
from .mixture import Mixture, cholesky

MAX_STEPS = 40
SETTLED_NATS = 3e-5  # nats that the next step would promise
LATE = 20  # steps
LATE_NATS = 0.02  # the same after so many
FIRST_DAMPING = 1e-3
SAME_CURVATURE = 0.3  # posterior standard deviations over which the curvature hardly changes
CHORD = 0.1  # of the promise before: with more, the curvature there is evaluated anew
SAME_MODE = 0.5  # posterior standard deviations between two ends of one climb


@torch.no_grad()
def climb(
    vae: VAE,
    x: Tensor,
    observed: Tensor | None,
    z: Tensor,
    *,
    known: Mixture | None = None,
    curvature: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # (N, K), (N,), (N, K, K)
    """Climb log p(x, z) from ``z`` by damped Gauss-Newton steps, each row on its own.

    A step is kept only where it climbs; else that row's damping grows (Levenberg 1944). A curvature
    serves for further steps while each promises a fraction of the one before; ``curvature`` is one
    to begin with. Rows that have settled, or come near the mode that is ``known``, drop out.
    Returns the modes, log p(x, z) and the curvature there.
    """
    rows = _Climb(vae, x, observed, z, curvature)
    active = torch.arange(len(z), device=z.device)
    for number in range(MAX_STEPS):
        if known is not None:
            active = active[~near(rows.z[active], known.rows(active), SAME_MODE)]
        if len(active) == 0:
            break
        active = active[rows.step(active, LATE_NATS if number >= LATE else SETTLED_NATS)]
    rows.renew(torch.nonzero(rows.since > SAME_CURVATURE)[:, 0])
    return rows.z, rows.value, rows.hessian


class _Climb:
    """Where each row stands, and what it knows there."""

    def __init__(
        self, vae: VAE, x: Tensor, observed: Tensor | None, z: Tensor, curvature: Tensor | None
    ) -> None:
        self.vae, self.x, self.observed, self.z = vae, x, observed, z.clone()
        self.value, self.gradient = vae.log_joint_and_gradient(x, observed, z)
        self.hessian = vae.curvature(z, x, observed) if curvature is None else curvature
        # How far it is from where the curvature was evaluated, in standard deviations.
        self.since = z.new_full((len(z),), 0.0 if curvature is None else torch.inf)
        self.damping = z.new_full((len(z),), FIRST_DAMPING)
        self.promised = z.new_full((len(z),), torch.nan)

    def renew(self, rows: Tensor) -> None:
        """Evaluate the curvature where some rows stand."""
        if len(rows):
            seen = rows_of(self.observed, rows)
            self.hessian[rows] = self.vae.curvature(self.z[rows], self.x[rows], seen)
            self.since[rows] = 0.0

    def step(self, rows: Tensor, settled: float) -> Tensor:  # (R,) -> (R,)
        """Move some rows by a step that climbs, and tell which of them have further to go."""
        step, promise = self._proposed(rows)
        outdated = (promise > CHORD * self.promised[rows]) & (self.since[rows] > 0.0)
        if bool(outdated.any()):
            self.renew(rows[outdated])
            step[outdated], promise[outdated] = self._proposed(rows[outdated])
        left = (promise / self.promised[rows]).clamp(max=1.0)  # share; nan in the first step
        self.promised[rows] = promise
        climbed = self._moved(rows, self.z[rows] + step)
        damping = self.damping[rows]
        damping = torch.where(climbed, 0.1 * damping, 8.0 * damping)
        self.damping[rows] = damping
        return ~(promise * left < settled) & (damping <= 1e12)

    def _proposed(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # (R, K), (R,)
        gradient = self.gradient[rows]
        step = _damped_step(self.hessian[rows], gradient, self.damping[rows])
        return step, (gradient * step).sum(-1)

    def _moved(self, rows: Tensor, to: Tensor) -> Tensor:  # (R,)
        """Move the rows that climb by it, and tell which do."""
        value, gradient = self.vae.log_joint_and_gradient(
            self.x[rows], rows_of(self.observed, rows), to
        )
        climbed = value > self.value[rows]
        moved = rows[climbed]
        self.z[moved], self.value[moved] = to[climbed], value[climbed]
        self.gradient[moved] = gradient[climbed]
        self.since[moved] += torch.sqrt(self.promised[moved].clamp(min=0.0))
        return climbed


def _damped_step(hessian: Tensor, gradient: Tensor, damping: Tensor) -> Tensor:  # (N, K)
    """Return s of (H + d diag H) s = g."""
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    damped = hessian + torch.diag_embed(damping[:, None] * diagonal)
    return torch.cholesky_solve(gradient[..., None], cholesky(damped))[..., 0]


def near(z: Tensor, mode: Mixture, radius: float) -> Tensor:  # (..., N, K) -> (..., N)
    """Tell where z is within so many posterior standard deviations of a mode."""
    offset = torch.einsum("...nk,nkj->...nj", z - mode.loc[0], mode.factor[0])
    return torch.linalg.vector_norm(offset, dim=-1) < radius


def rows_of(observed: Tensor | None, rows: Tensor) -> Tensor | None:
    """Return those rows' part of what is observed, where anything is missing."""
    return None if observed is None else observed[rows]
