"""The parameters as one vector, and AdamW on it."""

import itertools

import torch
from torch import Tensor

from .._model.vae import VAE


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
        """Return the parts of a vector of this layout, in order and shapes of the parameters."""
        return [
            vector[(start := self._place[name]) : start + p.numel()].view(p.shape)
            for name, p in self.parameters.items()
        ]

    def point_at(self, vector: Tensor) -> None:
        """Let the module hold the values of a vector of this layout."""
        for parameter, own in zip(self.parameters.values(), self.views(vector), strict=True):
            parameter.data = own

    def halves(self, *vectors: Tensor) -> list[list[Tensor]]:
        """Split each vector into what weight decay leaves alone and what it pulls."""
        return [[v[: self.n_kept] for v in vectors], [v[self.n_kept :] for v in vectors]]


class AdamW:
    """Loshchilov & Hutter 2019; weight decay pulls the MLPs alone, and so towards the start.

    ``torch.optim.AdamW`` calls the same kernel, and takes longer to find it than the kernel runs.
    """

    def __init__(self, flat: Flat, alpha: float) -> None:
        # On a GPU the rate is a float32 tensor, which a recorded step looks up.
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


def _is_decayed(name: str) -> bool:
    """Whether weight decay pulls it: the MLPs alone, and so the model towards its linear start."""
    return ".mlp." in name and name.endswith("weight")


def _padded(size: int) -> int:
    """Fill up to a cache line, where the next parameter begins: odd addresses are slow."""
    return -(-size // 16) * 16
