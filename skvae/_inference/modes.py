"""The search for the modes of each row's posterior p(z | x), and Laplace approximations there.

An encoder has never seen an outlier, so its posterior is wrong exactly there. Here z climbs
log p(x, z) from several points, each row on its own: first from where the encoder or the codebook
is best; then from other points of the codebook that are not seen to lead to the same mode; then,
while that finds more, and for odd rows, from around the heaviest mode.
"""

import math
from collections.abc import Iterator
from itertools import starmap
from typing import NamedTuple

import torch
from torch import Tensor

from .._model.vae import VAE, Points
from .climbing import SAME_MODE, SETTLED_NATS, climb, near, rows_of
from .codebook import Codebook, starts_of, usual_log_prob
from .mixture import Mixture, cholesky, log_det

LEADS_THERE = 1.5  # posterior standard deviations from a mode: a Newton step that lands nearer
SMALLEST_SHARE = 1e-3  # of a mode in the mixture
NEGLIGIBLE = 12.0  # nats: how much lighter a mode may be and still count
N_STARTS = 8  # of each row, and of each further search
MOST_MODES = 9
MORE_SEARCHES = 3
STILL_FINDING = 0.05  # nats that the last search added: another one follows
ODD = 5.0  # standard deviations of log p(x | z) below that of the model's own rows
STEPS_TOGETHER = 128  # rows: few of them cost what each call costs
JUMPS = (0.5, 1.5)  # how far further searches begin from the mode, times 1 + its size


class Search(NamedTuple):
    """What a search has found in each row's posterior."""

    modes: Mixture  # Laplace approximations at all modes
    heaviest: Mixture  # at the heaviest alone
    only_one: Tensor  # (N,)  whether no other one counts
    gap: Tensor  # (N,)       nats that the last search added to the mass of all modes


class _Newton(NamedTuple):
    """A Gauss-Newton step of each row from a point of its own."""

    z: Tensor  # (N, K)
    value: Tensor  # (N,)     log p(x, z) there
    promise: Tensor  # (N,)   at the top of the quadratic approximation
    landing: Tensor  # (N, K)
    curvature: Tensor  # (N, K, K)


class _Rows:
    """Rows, and how their log p(x, z) is climbed."""

    def __init__(self, vae: VAE, x: Tensor, observed: Tensor | None) -> None:
        self.vae, self.x, self.observed = vae, x, observed

    def of(self, index: Tensor) -> "_Rows":
        return _Rows(self.vae, self.x[index], rows_of(self.observed, index))

    def newton_from(self, points: Points) -> _Newton:
        """Return the steps from points whose decoding is known."""
        value, gradient, curvature = self.vae.log_joint_and_slope(self.x, self.observed, points)
        step = torch.cholesky_solve(gradient[..., None], cholesky(curvature))[..., 0]
        promise = value + 0.5 * (gradient * step).sum(-1)
        return _Newton(points.z, value, promise, points.z + step, curvature)

    def climb(
        self, z: Tensor, known: Mixture | None = None, curvature: Tensor | None = None
    ) -> Mixture:
        """Return the Laplace approximation at the mode that z leads to.

        Instead of a share it has its log mass, less a constant.
        """
        loc, log_joint, curvature = climb(
            self.vae, self.x, self.observed, z, known=known, curvature=curvature
        )
        factor = cholesky(curvature)
        log_mass = (log_joint - log_det(factor)).nan_to_num(-math.inf, math.inf, -math.inf)
        return Mixture(loc[None], factor[None], log_mass[None])


class _Found:
    """The distinct modes that rows have so far, the first of them where the search began."""

    def __init__(self, home: Mixture) -> None:
        size = (MOST_MODES, -1, -1)
        self.modes = Mixture(
            home.loc.expand(*size).clone(),
            home.factor.expand(*size, -1).clone(),
            torch.full_like(home.log_share, -math.inf).expand(MOST_MODES, -1).clone(),
        )
        self.modes.log_share[0] = home.log_share[0]

    def total(self) -> Tensor:  # (N,)
        return torch.logsumexp(self.modes.log_share, 0)

    def mode(self, number: int, rows: Tensor) -> Mixture:
        return Mixture(*(values[number, rows][None] for values in self.modes))

    def heaviest(self, rows: Tensor | None = None) -> Mixture:
        loc, factor, log_mass = self.modes if rows is None else self.modes.rows(rows)
        best, each = log_mass.argmax(0), torch.arange(loc.shape[1], device=loc.device)
        return Mixture(loc[best, each][None], factor[best, each][None], log_mass[best, each][None])

    def add(self, rows: Tensor, new: Mixture) -> None:
        """Add a mode to some rows unless they have it, in place of their lightest one."""
        other = torch.ones_like(rows, dtype=torch.bool)
        for number in range(MOST_MODES):
            mode = self.mode(number, rows)
            other &= ~near(new.loc[0], mode, SAME_MODE) | torch.isinf(mode.log_share[0])
        lightest, place = self.modes.log_share[:, rows].min(0)
        other &= new.log_share[0] > lightest
        where = place[other], rows[other]
        for values, of_new in zip(self.modes, new, strict=True):
            values[where] = of_new[0, other]

    def summary(self, gap: Tensor) -> Search:
        """Return shares from masses, for as many modes as some row has."""
        log_mass = self.modes.log_share
        counts = log_mass >= log_mass.amax(0) - NEGLIGIBLE
        share = torch.where(counts, torch.softmax(log_mass, 0) + SMALLEST_SHARE, 0.0)
        log_share = torch.log(share / share.sum(0))
        number = counts.sum(0)
        order = torch.argsort(log_share, dim=0, descending=True, stable=True)[: int(number.max())]
        each = torch.arange(log_mass.shape[1], device=log_mass.device)
        modes = Mixture(self.modes.loc[order, each], self.modes.factor[order, each], log_share)
        heaviest = self.heaviest()._replace(log_share=torch.zeros_like(log_share[:1]))
        return Search(
            modes._replace(log_share=log_share.gather(0, order)), heaviest, number == 1, gap
        )


@torch.no_grad()
def find_modes(vae: VAE, x: Tensor, observed: Tensor | None, codebook: Codebook) -> Search:
    """Search the modes of each row, and go on while that finds more."""
    rows, everyone = _Rows(vae, x, observed), torch.arange(len(x), device=x.device)
    step, *others = _steps(rows, codebook, starts_of(codebook, vae, x, observed, N_STARTS))
    own, _ = vae.encode(x, observed)
    better = step.value > vae.log_joint(x, observed, own) + SETTLED_NATS
    start = torch.where(better[:, None], step.z, own)
    home = rows.climb(start, curvature=step.curvature)
    found = _Found(home)
    before = found.total()
    doubtful = [_doubtful(rows, home, each) for each in (step, *others)]
    doubtful.append((everyone[better], own[better]))
    _climb_from(rows, found, doubtful)
    gap = found.total() - before
    again = everyone[(gap > STILL_FINDING) | _odd(rows, codebook, home.loc[0])]
    for number in range(MORE_SEARCHES):
        if len(again) == 0:
            break
        before = found.total()[again]
        _climb_from(rows, found, [(again, z) for z in _around(found.heaviest(again), number)])
        gap[again] = found.total()[again] - before
        again = again[gap[again] > STILL_FINDING]
    return found.summary(gap)


def _steps(rows: _Rows, codebook: Codebook, starts: list[Tensor]) -> Iterator[_Newton]:
    """Yield the Newton steps of all rows from their first start, then from their second, ..."""
    n_rows = len(rows.x)
    at_once = max(STEPS_TOGETHER // n_rows, 1)
    for number in range(0, len(starts), at_once):
        some = torch.cat(starts[number : number + at_once])
        again = torch.arange(n_rows, device=some.device).repeat(len(some) // n_rows)
        steps = rows.of(again).newton_from(codebook.points.chosen(some))
        yield from starmap(_Newton, zip(*(value.split(n_rows) for value in steps), strict=True))


def _doubtful(rows: _Rows, home: Mixture, start: _Newton) -> tuple[Tensor, Tensor]:
    """Return the rows for which a start may lead to another mode than ``home``, and from where.

    It leads home where a Newton step lands near it, or a second one, with the curvature of that
    mode, which is right where it is that mode's.
    """
    index = torch.nonzero(
        (start.promise > home.log_share[0] + log_det(home.factor[0]) - NEGLIGIBLE)
        & ~near(start.landing, home, LEADS_THERE)
    )[:, 0]
    some, landing, known = rows.of(index), start.landing[index], home.rows(index)
    if len(index) == 0:
        return index, landing
    value, gradient = some.vae.log_joint_and_gradient(some.x, some.observed, landing)
    second = landing + torch.cholesky_solve(gradient[..., None], known.factor[0])[..., 0]
    z = torch.where((value > start.value[index])[:, None], landing, start.z[index])
    other = ~near(second, known, LEADS_THERE)
    return index[other], z[other]


def _climb_from(rows: _Rows, found: _Found, starts: list[tuple[Tensor, Tensor]]) -> None:
    """Climb from the starts, each with at most one point for each row, and add what is new."""
    index, z = (torch.cat(each) for each in zip(*starts, strict=True))
    if len(index) == 0:
        return
    home = found.mode(0, index)
    modes = rows.of(index).climb(z, home)
    other = torch.nonzero(~near(modes.loc[0], home, SAME_MODE))[:, 0]
    ends = torch.tensor([len(part) for part, _ in starts], device=z.device).cumsum(0)
    from_start = torch.bucketize(other, ends, right=True)
    for number in from_start.unique().tolist():
        new = other[from_start == number]
        found.add(index[new], modes.rows(new))


def _around(mode: Mixture, number: int) -> list[Tensor]:  # of (N, K)
    """Return points in random directions from a mode of each row, the same for every row."""
    loc = mode.loc[0]
    n_components = loc.shape[1]
    generator = torch.Generator(loc.device).manual_seed(number)
    size = 1.0 + torch.linalg.vector_norm(loc, dim=1, keepdim=True) / math.sqrt(n_components)
    directions = torch.randn(
        (N_STARTS, n_components), generator=generator, dtype=loc.dtype, device=loc.device
    )
    jumps = [jump for jump in JUMPS for _ in range(N_STARTS // len(JUMPS))]
    return [loc + jump * size * way for jump, way in zip(jumps, directions, strict=True)]


def _odd(rows: _Rows, codebook: Codebook, z: Tensor) -> Tensor:  # (N,)
    """Tell the rows that the model does not expect, even at the best z."""
    log_p, _ = rows.vae.joint(rows.x, rows.observed, z)
    mean, variance = usual_log_prob(codebook, rows.observed)
    return log_p < mean - ODD * torch.sqrt(variance)
