"""p(z): the prior over the components."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ._gaussian import kl_to_standard_normal, standard_normal_log_prob
from ._parameters import Rule, check_parameters
from ._specification import Specification

CLUSTERS_RULE = Rule(("auto",), Integral, 1)
AUTOMATIC = 50  # Gaussians at most
ROWS_A_GAUSSIAN = 100
SHRINKAGE = 2.0  # rows that a covariance of even clusters counts
EM_STEPS = 100
SETTLED = 1e-4  # nats a row, gained in a step
NO_SHARE = -30.0  # log-share of a Gaussian that is not used


class Prior(Specification, ABC):
    """Interface of all priors over z (..., N, K).

    A prior is a frozen dataclass whose fields say what the user chose. What it learns is declared
    by ``parameters`` and read as attributes of the same names: a model makes a torch module of it
    for its K components. A prior of one's own implements ``log_prob``, ``sample`` and
    ``precision``; the rest has defaults.

    Attributes
    ----------
    component_axis : dict of str to int
        The axis of each parameter along which the components stand, ``{"means": 1}``. After
        training the components are renumbered, and these parameters with them.
    begins_standard : bool
        Whether the prior is N(0, I) with what ``parameters`` says. Then the linear start is exact,
        as with ``StandardNormal``, and training begins at ``from_codes``.
    """

    component_axis: ClassVar[Mapping[str, int]] = {}
    begins_standard: ClassVar[bool] = False

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) in nats, summed over the components: (..., N)."""

    @abstractmethod
    def sample(self, n_samples: int, n_components: int, generator: torch.Generator) -> Tensor:
        """Draw z, (n_samples, n_components), in float64."""

    @abstractmethod
    def precision(self, z: Tensor) -> Tensor:  # (N, K) -> (N, K, K) or (K, K)
        """Return what log p(z) adds to the curvature at z, positive definite.

        Minus its Hessian, or the part of it that is positive definite, as in Gauss-Newton steps.
        """

    def kl(self, loc: Tensor, log_scale: Tensor) -> Tensor | None:
        """Return KL(N(loc, exp(log_scale)^2) || p) per component in nats, (N, K).

        None where it has no closed form. The bound then estimates it from samples of z, and
        components are ordered by their divergence from the Gaussian that has the moments of all
        codes together.
        """
        return None

    @property
    def has_kl(self) -> bool:
        """Whether the KL divergence has a closed form, and it is that of the density.

        A subclass with another ``log_prob`` does not inherit the formula.
        """
        order = type(self).__mro__
        of_kl, of_density = (
            next(n for n, kind in enumerate(order) if name in vars(kind))
            for name in ("kl", "log_prob")
        )
        return order[of_kl] is not Prior and of_kl <= of_density

    def closed_kl(self, loc: Tensor, log_scale: Tensor) -> Tensor | None:
        """Return ``kl`` where there is one."""
        return self.kl(loc, log_scale) if self.has_kl else None

    def centre(self, n_components: int) -> Tensor:  # (K,)
        """Return a point of high density, where searches for modes of p(x, z) may begin."""
        return torch.zeros(n_components, dtype=torch.float64)

    def parameters(self, n_components: int) -> dict[str, Tensor]:
        """Return the start of what is learned, by name."""
        return {}

    def from_codes(self, codes: Tensor, weight: Tensor) -> dict[str, Tensor]:  # (N, K), (N,)
        """Return parameters by codes of rows, and how often each row counts.

        The codes are drawn from the linear start's posteriors: together they are what the prior
        should be. Parameters that are not named stay as ``parameters`` has them.
        """
        return {}


@dataclass(frozen=True)
class StandardNormal(Prior):
    """z ~ N(0, I): the prior of Kingma & Welling 2014.

    Examples
    --------
    >>> import torch
    >>> from skvae.priors import StandardNormal
    >>> StandardNormal().log_prob(torch.zeros(1, 2)).item()  # 2 log 1 / sqrt(2 pi)
    -1.8378...
    """

    def log_prob(self, z: Tensor) -> Tensor:
        return standard_normal_log_prob(z).sum(-1)

    def sample(self, n_samples: int, n_components: int, generator: torch.Generator) -> Tensor:
        size = (n_samples, n_components)
        return torch.randn(size, generator=generator, dtype=torch.float64, device=generator.device)

    def precision(self, z: Tensor) -> Tensor:
        return torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)

    def kl(self, loc: Tensor, log_scale: Tensor) -> Tensor:
        return kl_to_standard_normal(loc, log_scale)


@dataclass(frozen=True)
class Mixture(Prior):
    """z ~ a mixture of Gaussians, each with a full covariance matrix, learned with the model.

    Samples, scores and searches follow where the codes lie instead of N(0, I), as in a second stage
    [1]_, but it is trained with the model [2]_. It begins at a mixture that EM fits to the codes of
    the linear start, which itself has N(0, I) and stays a candidate.

    Parameters
    ----------
    n_clusters : int or "auto", default="auto"
        Number of Gaussians. "auto" is one for each 100 rows, at most 50: so many that training can
        separate what the codes of the linear start do not. A single one begins as N(0, I).

    Notes
    -----
    Never below the linear start, it can still end below a model that was trained with N(0, I): with
    fewer components than the clusters need, a mixture can hold on to a poor arrangement of them.

    References
    ----------
    .. [1] Dai & Wipf (2019), Diagnosing and Enhancing VAE Models.
    .. [2] Jiang et al. (2017), Variational Deep Embedding.

    Examples
    --------
    >>> import torch
    >>> from skvae.priors import Mixture
    >>> Mixture(2).log_prob(torch.zeros(1, 2)).item()  # both begin as N(0, I)
    -1.8378...
    """

    n_clusters: int | str = "auto"

    component_axis: ClassVar[Mapping[str, int]] = {"means": 1, "factors": 1}
    begins_standard: ClassVar[bool] = True
    logits: ClassVar[Tensor] = torch.zeros(1)  # (C,)
    means: ClassVar[Tensor | None] = None  # (C, K)
    factors: ClassVar[Tensor | None] = None  # (C, K, K)  F of the precisions F F^T

    def __post_init__(self) -> None:
        rules = {"n_clusters": CLUSTERS_RULE}
        check_parameters(type(self).__name__, {"n_clusters": self.n_clusters}, rules)

    @property
    def most(self) -> int:
        """How many Gaussians there are room for."""
        return AUTOMATIC if isinstance(self.n_clusters, str) else int(self.n_clusters)

    def parameters(self, n_components: int) -> dict[str, Tensor]:
        return {
            "logits": torch.zeros(self.most),
            "means": torch.zeros(self.most, n_components),
            "factors": torch.eye(n_components).repeat(self.most, 1, 1),
        }

    def from_codes(self, codes: Tensor, weight: Tensor) -> dict[str, Tensor]:
        number = max(min(len(codes) // ROWS_A_GAUSSIAN, self.most), 1)
        number = number if isinstance(self.n_clusters, str) else self.most
        fitted = fit_mixture(codes.double(), weight.double(), number)
        n_spare, n_components = self.most - len(fitted.log_share), codes.shape[1]
        spare = self.parameters(n_components)
        parts = (fitted.log_share, fitted.mean, torch.linalg.cholesky(fitted.covariance.inverse()))
        empty = {**spare, "logits": torch.full((self.most,), NO_SHARE)}
        return {
            name: torch.cat([part, empty[name][:n_spare].to(part)])
            for name, part in zip(spare, parts, strict=True)
        }

    def log_shares(self, z: Tensor) -> Tensor:  # (..., K) -> (..., C)
        """Return log p(c, z) of each Gaussian c, in nats."""
        means, factors = self._placed(z)
        standardised = torch.einsum("...k,ckj->...cj", z, factors)
        standardised = standardised - torch.einsum("ck,ckj->cj", means, factors)
        log_det = torch.linalg.slogdet(factors).logabsdet
        log_p = standard_normal_log_prob(standardised).sum(-1) + log_det
        return log_p + torch.log_softmax(self.logits, 0).to(z.dtype)

    def _placed(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.means is None or self.factors is None:  # on its own
            own = self.parameters(z.shape[-1])
            return own["means"][:1].to(z), own["factors"][:1].to(z)
        return self.means, self.factors

    def log_prob(self, z: Tensor) -> Tensor:
        return torch.logsumexp(self.log_shares(z), -1)

    def sample(self, n_samples: int, n_components: int, generator: torch.Generator) -> Tensor:
        size = (n_samples, n_components)
        eps = torch.randn(size, generator=generator, dtype=torch.float64, device=generator.device)
        means, factors = self._placed(eps)
        share = torch.softmax(self.logits.double(), 0)
        chosen = torch.multinomial(share, n_samples, replacement=True, generator=generator)
        roots = torch.linalg.inv(factors.double()).mT[chosen]
        return means.double()[chosen] + torch.einsum("nij,nj->ni", roots, eps)

    def precision(self, z: Tensor) -> Tensor:
        # Without what draws z between two of them: the part that is positive definite.
        share = torch.softmax(self.log_shares(z), -1)
        _, factors = self._placed(z)
        return torch.einsum("nc,cij->nij", share, factors @ factors.mT)


class Fit(NamedTuple):
    """A mixture of C Gaussians."""

    log_share: Tensor  # (C,)
    mean: Tensor  # (C, K)
    covariance: Tensor  # (C, K, K)

    def log_joint(self, z: Tensor) -> Tensor:  # (N, K) -> (N, C)
        root = torch.linalg.cholesky(self.covariance)
        left = (z[:, None, :] - self.mean).transpose(0, 1).mT  # (C, K, N)
        standardised = torch.linalg.solve_triangular(root, left, upper=False)
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_p = standard_normal_log_prob(standardised).sum(1) - log_det[:, None]
        return (log_p + self.log_share[:, None]).T


def fit_mixture(z: Tensor, weight: Tensor, n_clusters: int) -> Fit:
    """Fit a mixture by EM from spread seeds; a single Gaussian is N(0, I).

    Covariances shrink towards those of clusters that share N(0, I) evenly.
    """
    n_components, identity = z.shape[1], torch.eye(z.shape[1]).to(z)
    if n_clusters == 1:
        return Fit(z.new_zeros(1), z.new_zeros(1, n_components), identity[None])
    share = weight / weight.sum()
    volume = float(n_clusters) ** (-2.0 / n_components)
    fit = Fit(
        z.new_full((n_clusters,), -math.log(n_clusters)),
        _seeds(z, share, n_clusters),
        volume * identity.repeat(n_clusters, 1, 1),
    )
    prior = SHRINKAGE * volume * identity
    before = -math.inf
    for _ in range(EM_STEPS):
        log_joint = fit.log_joint(z)
        log_p = torch.logsumexp(log_joint, -1, keepdim=True)
        value = float((share * log_p[:, 0]).sum())
        counted = torch.exp(log_joint - log_p) * share[:, None]  # (N, C)
        total = counted.sum(0).clamp(min=1e-12)
        mean = counted.T @ z / total[:, None]
        second = torch.einsum("nc,ni,nj->cij", counted, z, z) / total[:, None, None]
        n_rows = (total * len(z))[:, None, None]
        scatter = second - mean[:, :, None] * mean[:, None, :]
        covariance = (n_rows * scatter + prior) / (n_rows + SHRINKAGE)
        fit = Fit(torch.log(total / total.sum()), mean, covariance)
        if value - before < SETTLED:
            break
        before = value
    return fit


def _seeds(z: Tensor, share: Tensor, number: int) -> Tensor:
    """Draw codes far from each other (k-means++: Arthur & Vassilvitskii 2007)."""
    generator = torch.Generator(z.device).manual_seed(0)
    seeds: list[Tensor] = []
    distance = torch.ones_like(share)
    for _ in range(number):
        odds = share * distance
        odds = odds if bool(odds.sum() > 0.0) else share
        chosen = z[torch.multinomial(odds, 1, generator=generator)]
        apart = (z - chosen).square().sum(-1)
        distance = torch.minimum(distance, apart) if seeds else apart
        seeds.append(chosen)
    return torch.cat(seeds)


PRIORS: dict[str, type[Prior]] = {"normal": StandardNormal, "mixture": Mixture}


def check_prior(prior: Prior) -> None:
    """Raise a TypeError that says what is wrong with a prior of the user's own."""
    name, two, three = type(prior).__name__, prior.parameters(2), prior.parameters(3)
    for parameter, value in two.items():
        sizes = zip(value.shape, three[parameter].shape, strict=True)
        axes = [axis for axis, (n, m) in enumerate(sizes) if n != m]
        if axes and prior.component_axis.get(parameter) not in axes:
            raise TypeError(
                f"The parameter {parameter!r} of the prior {name} has a place for each component "
                f"along axis {axes[0]}. Declare component_axis = {{{parameter!r}: {axes[0]}}}, so "
                "that it is renumbered with the components."
            )
    now, generator = prior.with_values(three), torch.Generator().manual_seed(0)
    z = torch.zeros(2, 3)
    shapes: dict[str, tuple[Tensor, list[tuple[int, ...]]]] = {
        "log_prob(z)": (now.log_prob(z), [(2,)]),
        "precision(z)": (now.precision(z), [(2, 3, 3), (3, 3)]),
        "sample(2, 3, generator)": (now.sample(2, 3, generator), [(2, 3)]),
    }
    for call, (found, expected) in shapes.items():
        if tuple(found.shape) not in expected:
            raise TypeError(
                f"{name}.{call} must return the shape {' or '.join(map(str, expected))} for z of "
                f"shape (2, 3). It returned the shape {tuple(found.shape)}."
            )
