"""How far an importance-sampled estimate can be trusted: effective sample size and Pareto k."""

import math

import torch
from torch import Tensor

SHORTEST_TAIL = 5  # weights: fewer say nothing about a tail (Vehtari et al. 2024, appendix H)
EXACT = 1e-8  # spread of log weights below which they are equal but for rounding


def effective_sample_size(log_w: Tensor, log_control: Tensor | None = None) -> Tensor:
    """Return 1 / (1/S + sum_s (w_s - c_s)^2), from normalised weights (S, N): (N,), at most S.

    The sum is the relative variance of the estimate sum w / sum c, whose logarithm is log p(x).
    Without a control c_s = 1/S, and this is Kish's 1 / sum w_s^2 (Kong 1992). If the weights are
    a multiple of the control the estimate is exact, and all S samples count.
    """
    size = log_w.shape[0]
    difference = torch.softmax(log_w, 0) - _control(log_w, log_control)
    return 1.0 / (1.0 / size + difference.square().sum(0))


def standard_error(log_w: Tensor, log_control: Tensor) -> Tensor:  # (S, N) -> (N,)
    """Return that of log(sum w / sum c), by the delta method, in nats.

    Samples come in antithetic pairs, so what is independent is a pair: the odd terms of the
    log-posterior around its mode cancel within it.
    """
    difference = torch.softmax(log_w, 0) - torch.softmax(log_control, 0)
    if len(difference) % 2 == 0:
        difference = difference[0::2] + difference[1::2]
    return torch.linalg.vector_norm(difference, dim=0)


def skewness(log_w: Tensor, log_control: Tensor) -> Tensor:  # (S, N) -> (N,)
    """Return how much the log posterior is odd around its mode: root mean square, in nats.

    It is half of what the two samples of an antithetic pair differ by, in log weight over control.
    """
    ratio = log_w - log_control
    n_pairs = len(ratio) // 2
    if n_pairs == 0:
        return torch.zeros_like(ratio[0])
    odd = 0.5 * (ratio[0 : 2 * n_pairs : 2] - ratio[1 : 2 * n_pairs : 2])
    return odd.square().mean(0).sqrt()


def pareto_k(log_w: Tensor, log_control: Tensor | None = None) -> Tensor:  # (S, N) -> (N,)
    """Return the shape of the generalised Pareto distribution of the largest weights.

    Their number is M = ceil(min(0.2 S, 3 sqrt(S))) (Vehtari et al. 2024, section 3); nan if that
    is below 5. A mean of weights has moments of order below 1 / k.

    It is the weights' own tail, also where the estimate is a ratio: the control is bounded (its
    proposal is wider), so the weights and their difference from it have the same k, but only the
    weights show how much of the total the tail holds. Where the weights are a multiple of the
    control nothing is left to chance, and k is -inf.
    """
    n_tail = math.ceil(min(0.2 * len(log_w), 3.0 * math.sqrt(len(log_w))))
    if n_tail < SHORTEST_TAIL:
        k = log_w.new_full(log_w.shape[1:], math.nan)
    else:
        largest = torch.topk(log_w, n_tail + 1, dim=0).values.flip(0)  # ascending
        w = torch.exp(largest - largest[-1])
        k = generalised_pareto_k(w[1:] - w[:1])
    ratio = log_w if log_control is None else log_w - log_control
    rounding = EXACT + 1e-12 * log_w.abs().amax(0)
    exact = ratio.amax(0) - ratio.amin(0) < rounding
    return torch.where(exact, -math.inf, k)


def generalised_pareto_k(x: Tensor) -> Tensor:  # (M, N) -> (N,)
    """Fit the shape k of a generalised Pareto distribution to ascending exceedances.

    Zhang & Stephens 2009: the mean of theta over its profile likelihood on a grid of points.
    Then ten observations' worth of k = 0.5 (Vehtari et al. 2024, appendix G).
    """
    n = len(x)
    n_grid = 30 + math.isqrt(n)
    x = x.clamp(min=1e-100)  # underflow, and ties with the threshold
    quartile = x[int(n / 4 + 0.5) - 1]
    j = torch.arange(1, n_grid + 1, dtype=x.dtype, device=x.device)[:, None]
    theta = 1.0 / x[-1] + (1.0 - torch.sqrt(n_grid / (j - 0.5))) / (3.0 * quartile)  # (G, N)
    k = torch.stack([torch.log1p(-row * x).mean(0) for row in theta])
    log_likelihood = n * (torch.log(-theta / k) - k - 1.0)
    theta = (torch.softmax(log_likelihood, 0) * theta).sum(0)
    k = torch.log1p(-theta * x).mean(0)
    return (n * k + 10.0 * 0.5) / (n + 10.0)


def _control(log_w: Tensor, log_control: Tensor | None) -> Tensor | float:
    return 1.0 / len(log_w) if log_control is None else torch.softmax(log_control, 0)
