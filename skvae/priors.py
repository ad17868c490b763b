"""p(z): the prior over the components."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ._gaussian import kl_to_standard_normal, standard_normal_log_prob
from ._specification import Specification


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
    """

    component_axis: ClassVar[Mapping[str, int]] = {}

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
        """Return parameters by the linear start's posterior means of rows and how often they count.

        Those that are not named stay as ``parameters`` has them.
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


PRIORS: dict[str, type[Prior]] = {"normal": StandardNormal}


def check_prior(prior: Prior) -> None:
    """Raise a TypeError that says what is wrong with a prior of the user's own."""
    name, two, three = type(prior).__name__, prior.parameters(2), prior.parameters(3)
    for parameter, value in two.items():
        sizes = zip(value.shape, three[parameter].shape, strict=True)
        axes = [axis for axis, (n, m) in enumerate(sizes) if n != m]
        if axes and axes != [prior.component_axis.get(parameter)]:
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
                f"{name}.{call} must have the shape {' or '.join(map(str, expected))} for z of "
                f"shape (2, 3); it has {tuple(found.shape)}."
            )
