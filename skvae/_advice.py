"""Warnings that point at the user's own line. No torch."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

# Frames of these packages stand between a warning here and the user's call.
_PASSED_THROUGH = ("skvae", "sklearn", "joblib", "contextlib")
Warned = tuple[str, type[Warning]]


class NewLevelsWarning(UserWarning):
    """Rows hold nothing that fit has seen in a column."""


_hearer: ContextVar[list[Warned] | None] = ContextVar("hearer", default=None)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's call, through whatever pipeline it came."""
    if (hearer := _hearer.get()) is not None:
        hearer.append((message, category))
        return
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _package(frame) in _PASSED_THROUGH:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


@contextmanager
def heard() -> Iterator[list[Warned]]:
    """Keep warnings for a user who is elsewhere: another process may warn in this one's stead."""
    found: list[Warned] = []
    token = _hearer.set(found)
    try:
        yield found
    finally:
        _hearer.reset(token)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
