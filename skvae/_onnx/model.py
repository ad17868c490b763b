"""Codes, scores and means of a fitted model as a graph, by the model's own functions."""

from typing import Any

import torch
from torch import Tensor, nn

from .._fitted import Fitted
from .._gaussian import normal_log_prob, normal_sample, standard_normal_log_prob
from .._inference.scores import noise_bank
from .._model.networks import ACTIVATIONS, MLP, Encoder, FewerColumns
from .._model.vae import VAE
from .functions import where_true
from .inputs import Encoded
from .loops import fold, gram_of, whitening_of


class ShortActivations(nn.Module):
    """An MLP whose activations alone are float32: only there a node computes error functions.

    Products in float32 would add up to differences of 1e-5 where a column hardly varies.
    """

    def __init__(self, mlp: MLP) -> None:
        super().__init__()
        self.mlp = mlp

    def forward(self, x: Any) -> Any:
        activation = ACTIVATIONS[self.mlp.activation].value
        for layer in (self.mlp.first, *self.mlp.middle):
            x = activation(layer(x).float()).double()
        return self.mlp.last(x)


def module_of(fitted: Fitted, dtype: torch.dtype) -> VAE:
    """Build a module that can be called with traced tensors; activations are of a precision."""
    vae = fitted.fresh_module(torch.device("cpu")).without_idle_layers().requires_grad_(False)
    for part in (vae.encoder, vae.decoder):
        if part.mlp is not None and dtype == torch.float32:
            part.add_module("mlp", ShortActivations(part.mlp))
    object.__setattr__(vae.encoder, "fewer_columns", _FewerColumns(vae.encoder))
    return vae


class _FewerColumns:
    """``Encoder.fewer_columns`` as a graph: by elimination."""

    def __init__(self, encoder: Encoder) -> None:
        self.loadings, self.variance = encoder.loadings, encoder.variance

    def __call__(self, seen: Any) -> FewerColumns:
        rows = where_true(~seen.all(1))
        factor = self.loadings / self.variance.sqrt()[:, None]
        identity = torch.eye(factor.shape[1], dtype=factor.dtype)
        of_all = factor.T @ factor + identity
        precision = gram_of(seen[rows].double(), factor) + identity
        whitening, _ = whitening_of(precision)
        lost = (precision * identity).sum(-1).log() - of_all.diagonal().log()
        correction = whitening.mT @ (whitening @ of_all)
        return FewerColumns(rows, correction, -0.5 * lost)


def codes_of(vae: VAE, rows: Encoded, scale: Tensor) -> Any:  # (N, K)
    """Return the posterior means, scaled."""
    return vae.encode(rows.x, rows.observed)[0] * scale


def score_of(vae: VAE, rows: Encoded, method: str, n_samples: int) -> Any:  # (N,)
    """Return a score of ``_inference/scores`` in the units of x, with the same noise bank."""
    return {"elbo": _elbo, "reconstruction": _reconstruction, "kl": _negative_kl}[method](
        vae, rows, noise_bank(n_samples, vae.n_components)[:, 0]
    )


def _elbo(vae: VAE, rows: Encoded, bank: Tensor) -> Any:
    loc, log_scale = vae.encode(rows.x, rows.observed)

    def add(total: Any, eps: Any) -> Any:
        log_qz_x = standard_normal_log_prob(eps).sum(-1) - log_scale.sum(-1)
        z = normal_sample(loc, log_scale, eps)
        return total + vae.log_joint(rows.x, rows.observed, z) - log_qz_x

    return fold(add, torch.zeros_like(loc[:, 0]), bank) / len(bank)


def _reconstruction(vae: VAE, rows: Encoded, bank: Tensor) -> Any:
    loc, log_scale = vae.encode(rows.x, rows.observed)

    def add(total: Any, eps: Any) -> Any:
        z = normal_sample(loc, log_scale, eps)
        return total + vae.log_px_z_by_column(rows.x, rows.observed, z).sum(-1)

    return fold(add, torch.zeros_like(loc[:, 0]), bank) / len(bank)


def _negative_kl(vae: VAE, rows: Encoded, bank: Tensor) -> Any:
    loc, log_scale = vae.encode(rows.x, rows.observed)
    kl = vae.prior.now.closed_kl(loc, log_scale)
    if kl is not None:
        return -kl.sum(-1)

    def add(total: Any, eps: Any) -> Any:
        z = normal_sample(loc, log_scale, eps)
        log_pz = vae.joint(rows.x, rows.observed, z)[1]
        return total + log_pz - normal_log_prob(z, loc, log_scale).sum(-1)

    return fold(add, torch.zeros_like(loc[:, 0]), bank) / len(bank)


def mean_of(vae: VAE, z: Any) -> Any:  # (N, K) -> (N, D)
    """Return the decoder's mean, in the units of x."""
    return vae.likelihood.mean(vae.decoder(z))
