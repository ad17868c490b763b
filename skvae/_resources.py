"""Threads and the precision of products, scoped: whatever happens, nothing global stays changed."""

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from threadpoolctl import ThreadpoolController

T = TypeVar("T")


class Together(Protocol):
    """Makes calls, and returns what they do."""

    def __call__(self, calls: Sequence[Callable[[], T]], /) -> list[T]: ...


# Multiplications at a time below which one thread is the fastest: for small layers, waking and
# waiting for a second one costs more than it computes (10 times more on a busy machine).
ONE_THREAD_WORK = 5e8
# Eigenvalues, passes over cells and held-out rows gain little by a second thread, and take five
# times longer where that has to wait for a processor.
LITTLE = 0.0
# Below this a step's overhead hides any gain from shorter products.
BFLOAT16_WORK = 5e7
BFLOAT16_SPEEDUP = 4.0


class _Process:
    """What a forked process has lost: a fork copies one thread, and none of torch's pool."""

    lost_threads = False


# What the system calls the threads of :func:`for_each` that were joined and may not have ended.
_JOINED: list[int] = []
ENDS_WITHIN = 1.0  # seconds; a thread that was joined has only its memory to give back


def _lives(thread: int) -> bool:
    return Path(f"/proc/self/task/{thread}").exists()  # False where the system has no such list


def _note_joined(threads: Iterable[int]) -> None:
    _JOINED.extend(threads)
    for one in [one for one in _JOINED if not _lives(one)]:
        with suppress(ValueError):  # another thread was here before
            _JOINED.remove(one)


def _await_joined() -> None:
    """Let threads that were joined end, before the process forks.

    Python joins a thread (before 3.13) while it still gives memory back to MKL, under a lock. A
    fork in that moment copies the lock as held: the child's first product would wait for ever.
    """
    deadline = time.monotonic() + ENDS_WITHIN
    while _JOINED and time.monotonic() < deadline:
        _note_joined(())
        time.sleep(1e-4)


def _note_fork() -> None:
    _Process.lost_threads = _Process.lost_threads or "torch" in sys.modules
    _JOINED.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_await_joined, after_in_child=_note_fork)


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


class _Limit:
    """One thread for some libraries: the first user sets it, the last to leave restores it.

    Else a thread that leaves later would restore the limit of one that is long gone. What was set
    before is written down first, and to leave twice is to leave once, so that an interrupt at any
    line leaves nothing behind.
    """

    def __init__(self, libraries: Callable[[], ThreadpoolController]) -> None:
        self._libraries = libraries
        self._users: set[object] = set()
        self._before: list[tuple[Callable[[int], Any], int]] = []

    def enter(self, user: object) -> None:
        self._users.add(user)
        if len(self._users) > 1:
            return
        if not self._before:  # else it is what an interrupt left to restore
            libraries = self._libraries().lib_controllers
            before = [(library.set_num_threads, library.num_threads) for library in libraries]
            self._before = before + self._others()
        for set_number, _ in self._before:
            set_number(1)

    def leave(self, user: object) -> None:
        self._users.discard(user)
        if self._users:
            return
        for set_number, number in self._before:
            set_number(number)
        self._before = []

    def _others(self) -> list[tuple[Callable[[int], Any], int]]:
        """Return libraries that threadpoolctl does not reach."""
        return []


class _BlasLimit(_Limit):
    """BLAS's number is the process's."""

    def _others(self) -> list[tuple[Callable[[int], Any], int]]:
        # After torch.set_num_threads MKL's number no longer follows OpenMP's. It is linked into
        # torch, where threadpoolctl does not reach it.
        import torch

        pinned = re.search(r"mkl_get_max_threads\(\) : (\d+)", torch.__config__.parallel_info())
        n_threads = int(pinned[1]) if pinned else 1
        return [(torch.set_num_threads, n_threads)] if n_threads > 1 else []


class _Limits(threading.local):
    """OpenMP's number is each thread's own."""

    def __init__(self) -> None:
        self.openmp = _Limit(_openmp)


_BLAS, _BLAS_LOCK, _OWN = _BlasLimit(_blas), threading.RLock(), _Limits()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Hold to one thread, also where ``torch.set_num_threads`` was called."""
    import torch  # noqa: F401  its OpenMP is limited, too

    user, openmp = object(), _OWN.openmp
    try:
        try:
            openmp.enter(user)
            _locked(_BLAS.enter, user)
            yield
        finally:
            _leave(openmp, user)
    finally:  # again, where an interrupt came between
        _leave(openmp, user)


def _leave(openmp: _Limit, user: object) -> None:
    _locked(_BLAS.leave, user)
    openmp.leave(user)


def _locked(function: Callable[[object], None], user: object) -> None:
    """Call a function while no other thread does.

    An interrupt at the end of a ``with`` would leave the lock held (CPython's issue 74174).
    """
    held: list[bool] = []
    try:
        try:
            held.append(_BLAS_LOCK.acquire())
            function(user)
        finally:
            _release(held)
    finally:  # again, where an interrupt came between
        _release(held)


def _release(held: list[bool]) -> None:
    release: Callable[[], object] = _BLAS_LOCK.release
    _ = held and (held.pop(), release())  # in one line: both, or neither


def for_each(function: Callable[[T], None], items: Iterable[T], work: float) -> None:
    """Call ``function`` with each item, in as many threads as pay, each with products of its own.

    Threads that share every product wait for each other at each of them: on a busy machine that
    took 50 times longer than one thread alone.
    """
    import torch

    many = work >= ONE_THREAD_WORK and not _Process.lost_threads
    n_threads = torch.get_num_threads() if many else 1
    with _one_thread_each():
        if n_threads == 1:
            for item in items:
                function(item)
            return
        with _threads(n_threads) as pool:
            for done in [pool.submit(function, item) for item in items]:
                done.result()


def one_after_the_other(calls: Sequence[Callable[[], T]]) -> list[T]:
    return [call() for call in calls]


@contextmanager
def together() -> Iterator[Together]:
    """Yield what makes calls at once, in as many threads of one thread each as training may have.

    The calling thread is one of them.
    """
    n_threads = _TRAINING.n_threads
    with _one_thread_each():
        if n_threads == 1:
            yield one_after_the_other
            return
        with _threads(n_threads - 1, _TRAINING.short) as pool:

            def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
                shares = [calls[first::n_threads] for first in range(min(n_threads, len(calls)))]
                others = [pool.submit(one_after_the_other, share) for share in shares[1:]]
                found: list[Any] = [None] * len(calls)
                found[::n_threads] = one_after_the_other(shares[0])
                for first, other in enumerate(others, start=1):
                    found[first::n_threads] = other.result()
                return found

            yield at_once


@contextmanager
def _threads(n_threads: int, short: bool = False) -> Iterator[Any]:
    """Begin threads of one thread each; an error, or the user's Ctrl-C, waits for no more calls."""
    from concurrent.futures import ThreadPoolExecutor

    threads: list[int] = []
    try:
        with ThreadPoolExecutor(
            n_threads, initializer=_one_thread, initargs=(threads, short)
        ) as pool:
            try:
                yield pool
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    finally:
        _note_joined(threads)


def _one_thread(threads: list[int], short: bool) -> None:
    """Hold a thread of our own to itself, and note it: OpenMP's number is each thread's own.

    Torch sets it at first use.
    """
    threads.append(threading.get_native_id())
    _TRAINING.short = short
    import torch

    torch.get_num_threads()
    _controller().limit(limits=1)


class _Training(threading.local):
    """What this thread's own training may have: no other's is touched."""

    short = False  # bfloat16 factors of the large products
    n_threads = 1  # for the parts of a step


_TRAINING = _Training()


def products_may_be_short() -> bool:
    """Tell whether the large products of this thread may have bfloat16 factors."""
    return _TRAINING.short


@contextmanager
def training_resources(work: float, precision: str) -> Iterator[None]:
    """Allow bfloat16 products if they pay, and enough threads, for ``work`` multiplications.

    Sums and weights stay float32: only the factors are rounded that the gradient by hand gives the
    MLPs' large products, on processors that have the instruction.
    """
    import torch

    shorten = precision == "auto" and work >= BFLOAT16_WORK and _multiplies_bfloat16()
    before = _TRAINING.short, _TRAINING.n_threads
    n_threads = 1 if _Process.lost_threads else torch.get_num_threads()
    with enough_threads(work / BFLOAT16_SPEEDUP if shorten else work):
        try:
            _TRAINING.short, _TRAINING.n_threads = shorten, n_threads
            yield
        finally:
            _TRAINING.short, _TRAINING.n_threads = before


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

    return bool(torch.cpu._is_avx512_bf16_supported())
