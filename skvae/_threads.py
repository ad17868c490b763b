"""How many threads a piece of work gets, scoped: nothing global stays changed."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

from threadpoolctl import ThreadpoolController

# Multiplications at a time below which one thread is fastest: for small layers, waking and
# waiting for a second one costs more than it computes (10 times more on a busy machine).
ONE_THREAD_WORK = 2e8


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()  # scans the loaded libraries: some milliseconds, so once


def enough_threads(work: float) -> AbstractContextManager[object]:
    """One thread for work this small, as many as the user allows for more."""
    if work >= ONE_THREAD_WORK:
        return nullcontext()
    return _controller().limit(limits=1)
