"""Matrix products outside autograd: how large ones of float32 are to be done.

On AMD's processors oneDNN takes half the time of MKL, once the product outweighs the call. On
Intel's it is as fast for x W^T of many rows, and takes 1.1 to 3 times as long for the products of a
step. The precision set for oneDNN's products holds there as for ``torch.mm``.
"""

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._resources import products_may_be_short

LARGE = 1.5e6  # multiplications
SHORT = 8e6
NARROW = 32  # columns: of fewer MKL makes slow work


_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def is_large(n_rows: int, weight: Tensor) -> bool:
    """Whether products of ``n_rows`` rows with a weight (n_out, n_in) are to be oneDNN's."""
    fits = weight.dtype == torch.float32 and weight.device.type == "cpu" and _onednn is not None
    smallest = LARGE / 4.0 if min(weight.shape) <= NARROW else LARGE
    return fits and n_rows * weight.numel() >= smallest and not _already_onednn()


@cache
def mkl_is_faster() -> bool:
    """Whether MKL is the faster one for the products of a step: on Intel's processors."""
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        processor = platform.processor()
    return torch.backends.mkl.is_available() and "GenuineIntel" in processor


def is_short(n_rows: int, weight: Tensor) -> bool:
    """Whether such products are to have bfloat16 factors: where that is allowed, and pays.

    The user's own setting rounds nothing on processors that multiply them but not by tiles.
    """
    fits = weight.dtype == torch.float32 and weight.device.type == "cpu"
    pays = n_rows * weight.numel() >= SHORT and min(weight.shape) > NARROW
    allowed = products_may_be_short() or _precision() == "bf16"
    return fits and pays and allowed and torch.cpu._is_avx512_bf16_supported()


def _already_onednn() -> bool:
    """Whether ``torch.mm`` itself calls oneDNN, and then writes where it is told to; or nothing."""
    return _precision() in ("bf16", "tf32") or not torch.backends.mkldnn.is_available()


def _precision() -> str:
    setting = getattr(torch.backends.mkldnn, "matmul", None)
    return str(getattr(setting, "fp32_precision", "none"))


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b."""
    return _onednn(x, weight, bias, "none", [], "")


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x W^T + b, by the faster of the two."""
    if is_large(len(x), weight):
        return onednn_linear(x, weight, bias)
    return torch.addmm(bias, x, weight.T)
