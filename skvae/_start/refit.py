"""The linear encoder of columns that share a total, fitted to the posterior modes of the decoder.

A row's total says how much is known of its code, and the noise of a linear model does not.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .._model.vae import VAE
from .._table.column import Array

CLIMBS = 15  # steps to the modes
HALVINGS = 6  # of a step that does not climb
SETTLED = 1e-3  # nats that the next step would promise
RIDGE = 0.5  # times the number of features: of 0.5, 2 and 5 the best bound, and as good ranks


@torch.no_grad()
def fit_encoder(vae: VAE, cells: Array, known: NDArray[np.bool_] | None, weight: Array) -> None:
    """Move the linear encoder to where it gives the modes of rows x (N, D), as far as it can.

    It is a ridge regression of how far the modes are from the present codes on the features, in
    its dual form.
    """
    x = torch.from_numpy(cells).to(vae.device)
    observed = None if known is None else torch.from_numpy(known).to(vae.device)
    before, _ = vae.encode(x, observed)
    mode, curvature = _modes(vae, x, observed, before)
    features, layer = vae.likelihood.features(x), vae.encoder.linear
    if observed is not None:
        features = torch.where(observed[:, vae.encoder.column], features, vae.encoder.mean)
    share = torch.from_numpy(weight / weight.mean()).to(x)[:, None]
    sees = share.sqrt() * nn.functional.pad(features, (0, 1), value=1.0)
    gram = sees @ sees.T
    gram.diagonal().add_(RIDGE * sees.shape[1])
    moved = sees.T @ torch.linalg.solve(gram, share.sqrt() * (mode - before))
    precision = (curvature.diagonal(dim1=1, dim2=2) * share).mean(0)
    if bool(moved.isfinite().all() and precision.isfinite().all()):
        layer.weight.add_(moved[:-1].T)
        layer.bias.add_(moved[-1])
        vae.encoder.log_scale.copy_(-0.5 * torch.log(precision))


def _modes(
    vae: VAE, x: Tensor, observed: Tensor | None, z: Tensor
) -> tuple[Tensor, Tensor]:  # (N, K), (N, K, K)
    """Climb log p(x, z) by Gauss-Newton steps, each row's halved until it climbs."""
    for _ in range(CLIMBS):
        value, gradient = vae.log_joint_and_gradient(x, observed, z)
        curvature = vae.curvature(z, x, observed)
        step = torch.linalg.solve(curvature, gradient[..., None])[..., 0]
        for _ in range(HALVINGS):
            worse = ~(vae.log_joint(x, observed, z + step) >= value)
            step = torch.where(worse[:, None], 0.5 * step, step)
        z = torch.where(worse[:, None], z, z + step)
        if not bool(((gradient * step).sum(-1) > SETTLED).any()):
            break
    return z, curvature
