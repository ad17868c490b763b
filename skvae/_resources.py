"""Threads and the precision of products, scoped: whatever happens, nothing global stays changed."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

# Multiplications at a time below which one thread is the fastest: for small layers, waking and
# waiting for a second one costs more than it computes (10 times more on a busy machine).
ONE_THREAD_WORK = 5e8
# Below this a step's overhead hides any gain from shorter products.
BFLOAT16_WORK = 2e8
BFLOAT16_SPEEDUP = 4.0


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # scans the loaded libraries: some milliseconds, so once


def enough_threads(work: float) -> AbstractContextManager[object]:
    """One thread for work this small, as many as the user allows for more."""
    if work >= ONE_THREAD_WORK:
        return nullcontext()
    return _controller().limit(limits=1)


@contextmanager
def training_resources(work: float, precision: str) -> Iterator[None]:
    """For steps of ``work`` multiplications: bfloat16 products if they pay, and enough threads.

    Sums, weights and everything else stay float32: only the factors of matrix products are
    rounded, by oneDNN, on processors that have the instruction.
    """
    shorten = precision == "auto" and work >= BFLOAT16_WORK and _multiplies_bfloat16()
    with (
        enough_threads(work / BFLOAT16_SPEEDUP if shorten else work),
        _bfloat16_products() if shorten else nullcontext(),
    ):
        yield


@contextmanager
def own_gradients() -> Iterator[None]:
    """Gradients work as usual, whatever mode the caller is in (``no_grad``, ``inference_mode``)."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        yield


@cache
def _multiplies_bfloat16() -> bool:
    import torch

    has_setting = hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision")
    return has_setting and bool(torch.cpu._is_avx512_bf16_supported())


class _SharedSetting:
    """The setting is the process's: the first fit in sets it, the last one out restores it."""

    lock = threading.Lock()
    users = 0
    before = "none"


@contextmanager
def _bfloat16_products() -> Iterator[None]:
    import torch

    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with _SharedSetting.lock:
        if _SharedSetting.users == 0:
            _SharedSetting.before = setting.fp32_precision
            setting.fp32_precision = "bf16"
        _SharedSetting.users += 1
    try:
        yield
    finally:
        with _SharedSetting.lock:
            _SharedSetting.users -= 1
            if _SharedSetting.users == 0:
                setting.fp32_precision = _SharedSetting.before
