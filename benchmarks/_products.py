"""The matrix products of a training step, alone: what no implementation can do without."""

import time
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from _peers import import_jax

N_STEPS = 50


@contextmanager
def _bfloat16():
    """oneDNN with bfloat16 factors."""
    setting = torch.backends.mkldnn.matmul
    before, setting.fp32_precision = setting.fp32_precision, "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


def _tensors(layers, batch):
    """x, weight (as torch keeps it) and gradient of each layer."""
    return [
        (torch.randn(batch, i), torch.randn(o, i), torch.randn(batch, o), back)
        for i, o, back in layers
    ]


def _torch_step(layers, batch):
    factors = _tensors(layers, batch)

    def step():
        for x, weight, g, back in factors:
            torch.mm(x, weight.T)
            torch.mm(g.T, x)
            if back:
                torch.mm(g, weight)

    return step


def _linear_step(layers, batch):
    """oneDNN in float32, by the operator that torch.compile calls."""
    linear = torch.ops.mkldnn._linear_pointwise
    factors = [(x, w, g, back) for x, w, g, back in _tensors(layers, batch)]

    def step():
        for x, weight, g, back in factors:
            linear(x, weight, None, "none", [], "")
            linear(g.T, x.T, None, "none", [], "")
            if back:
                linear(g, weight.T, None, "none", [], "")

    return step


def _numpy_step(layers, batch):
    factors = [(x.numpy(), w.numpy(), g.numpy(), back) for x, w, g, back in _tensors(layers, batch)]

    def step():
        for x, weight, g, back in factors:
            np.dot(x, weight.T)
            np.dot(g.T, x)
            if back:
                np.dot(g, weight)

    return step


def _jax_step(layers, batch):
    jax = import_jax()
    factors = [
        [jax.numpy.asarray(a.numpy()) for a in (x, w, g)] for x, w, g, _ in _tensors(layers, batch)
    ]

    @jax.jit
    def products(factors):
        forward = [x @ w.T for x, w, _ in factors]
        of_weights = [g.T @ x for x, _, g in factors]
        backs = zip(factors, layers, strict=True)
        return forward, of_weights, [g @ w for (_, w, g), layer in backs if layer[2]]

    return lambda: jax.block_until_ready(products(factors))


def _multipliers():
    ways = {"torch": (_torch_step, nullcontext), "numpy": (_numpy_step, nullcontext)}
    if hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision"):
        ways["torch bf16"] = (_torch_step, _bfloat16)
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        ways["oneDNN"] = (_linear_step, nullcontext)
        ways["oneDNN bf16"] = (_linear_step, _bfloat16)
    try:
        import_jax()
        ways["jax dot"] = (_jax_step, nullcontext)
    except ImportError:
        pass
    return ways


MULTIPLIERS = _multipliers()


def time_products(way, layers, batch):
    """Seconds of one step's products."""
    make, precision = MULTIPLIERS[way]
    step = make(layers, batch)
    with precision(), torch.inference_mode():
        step()
        start = time.perf_counter()
        for _ in range(N_STEPS):
            step()
        return (time.perf_counter() - start) / N_STEPS
