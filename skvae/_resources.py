"""Threads and the precision of products, scoped: whatever happens, nothing global stays changed."""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, TypeVar

from threadpoolctl import ThreadpoolController

T = TypeVar("T")

# Multiplications at a time below which one thread is the fastest: for small layers, waking and
# waiting for a second one costs more than it computes (10 times more on a busy machine).
ONE_THREAD_WORK = 5e8
# Below this a step's overhead hides any gain from shorter products.
BFLOAT16_WORK = 5e7
BFLOAT16_SPEEDUP = 4.0


class _Process:
    """What a forked process has lost: a fork copies one thread, and none of torch's pool."""

    lost_threads = False


def _note_fork() -> None:
    _Process.lost_threads = _Process.lost_threads or "torch" in sys.modules


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_note_fork)


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # scans the loaded libraries: some milliseconds, so once


def enough_threads(work: float) -> AbstractContextManager[object]:
    """Allow the user's number of threads; one for work this small, and in a forked process."""
    if work >= ONE_THREAD_WORK and not _Process.lost_threads:
        return nullcontext()
    return _one_thread_each()


@cache
def _openmp() -> ThreadpoolController:
    return _controller().select(user_api="openmp")


@cache
def _blas() -> ThreadpoolController:
    return _controller().select(user_api="blas")


class _ProcessLimit:
    """One thread for BLAS, whose number is the process's: the first in sets it, the last restores.

    Else a thread that leaves later would restore the limit of one that is long gone.
    """

    lock = threading.Lock()
    users = 0
    limiter: Any = None
    n_threads = 1  # of MKL, as torch.set_num_threads set it

    @classmethod
    def enter(cls) -> None:
        import torch

        with cls.lock:
            cls.users += 1
            if cls.users > 1:
                return
            # After torch.set_num_threads MKL's number no longer follows OpenMP's. MKL is linked
            # into torch, where threadpoolctl does not reach it.
            info = torch.__config__.parallel_info()
            pinned = re.search(r"mkl_get_max_threads\(\) : (\d+)", info)
            cls.n_threads = int(pinned[1]) if pinned else 1
            cls.limiter = _blas().limit(limits=1)
            if cls.n_threads > 1:
                torch.set_num_threads(1)

    @classmethod
    def leave(cls) -> None:
        import torch

        with cls.lock:
            cls.users -= 1
            if cls.users == 0:
                cls.limiter.restore_original_limits()
                if cls.n_threads > 1:
                    torch.set_num_threads(cls.n_threads)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Hold to one thread, also where ``torch.set_num_threads`` was called."""
    import torch  # noqa: F401  its OpenMP is limited, too

    with _openmp().limit(limits=1):  # OpenMP's number is each thread's own
        _ProcessLimit.enter()
        try:
            yield
        finally:
            _ProcessLimit.leave()


def for_each(function: Callable[[T], None], items: Iterable[T], work: float) -> None:
    """Call ``function`` with each item, in as many threads as pay, each with products of its own.

    Threads that share every product wait for each other at each of them: on a busy machine that
    took 50 times longer than one thread alone.
    """
    from concurrent.futures import ThreadPoolExecutor

    import torch

    many = work >= ONE_THREAD_WORK and not _Process.lost_threads
    n_threads = torch.get_num_threads() if many else 1
    with _one_thread_each():
        if n_threads == 1:
            for item in items:
                function(item)
            return
        with ThreadPoolExecutor(n_threads, initializer=_one_thread) as pool:
            try:
                for done in [pool.submit(function, item) for item in items]:
                    done.result()
            except BaseException:  # of a call, or the user's Ctrl-C: the rest is not waited for
                pool.shutdown(cancel_futures=True)
                raise


def _one_thread() -> None:
    """Hold a thread of our own to itself: OpenMP's number is each thread's own.

    Torch sets it at first use.
    """
    import torch

    torch.get_num_threads()
    _controller().limit(limits=1)


@contextmanager
def training_resources(work: float, precision: str) -> Iterator[None]:
    """Allow bfloat16 products if they pay, and enough threads, for ``work`` multiplications.

    Sums and weights stay float32: only the factors of matrix products are rounded, and what the
    gradient by hand gets from the MLPs' large ones, on processors that have the instruction.
    """
    shorten = precision == "auto" and work >= BFLOAT16_WORK and _multiplies_bfloat16()
    with (
        enough_threads(work / BFLOAT16_SPEEDUP if shorten else work),
        _bfloat16_products() if shorten else nullcontext(),
    ):
        yield


@contextmanager
def own_gradients() -> Iterator[None]:
    """Let gradients work as usual, whatever mode the caller is in (such as ``no_grad``).

    All calls of torch stand inside, so a forked process gets its one thread here.
    """
    import torch

    with torch.inference_mode(False), torch.enable_grad(), enough_threads(ONE_THREAD_WORK):
        yield


@cache
def _multiplies_bfloat16() -> bool:
    import torch

    has_setting = hasattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision")
    return has_setting and bool(torch.cpu._is_avx512_bf16_supported())


class _SharedSetting:
    """The process has one setting: the first fit in sets it, the last one out restores it."""

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
