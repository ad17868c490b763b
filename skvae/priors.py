"""p(z): the prior over the components."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ._gaussian import kl_to_standard_normal, standard_normal_log_prob


class Prior(nn.Module, ABC):
    """Interface of all priors over z (..., N, K)."""

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Log p(z) in nats, summed over the components: (..., N)."""

    @abstractmethod
    def kl(self, loc: Tensor, log_scale: Tensor) -> Tensor:
        """KL(N(loc, exp(log_scale)^2) || p) per component in nats: (N, K)."""

    @abstractmethod
    def sample(self, n_samples: int, n_components: int, generator: torch.Generator) -> Tensor:
        """Draw z, (n_samples, n_components), in float64."""


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

    def kl(self, loc: Tensor, log_scale: Tensor) -> Tensor:
        return kl_to_standard_normal(loc, log_scale)

    def sample(self, n_samples: int, n_components: int, generator: torch.Generator) -> Tensor:
        size = (n_samples, n_components)
        return torch.randn(size, generator=generator, dtype=torch.float64, device=generator.device)


PRIORS = {"normal": StandardNormal}
