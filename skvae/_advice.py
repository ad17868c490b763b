"""Warnings that point at the user's own line. No torch."""

import sys
import warnings
from types import FrameType

# Frames of these packages stand between a warning here and the user's call.
_PASSED_THROUGH = ("skvae", "sklearn", "joblib", "contextlib")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's call, through whatever pipeline it came."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _package(frame) in _PASSED_THROUGH:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
