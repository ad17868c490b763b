"""Tables that are too large for memory: in a file that is gone when nobody looks at it any more."""

import math
import mmap
import os
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .column import check_finite
from .statistics import row_chunks

MOST_CELLS = 2**25  # of a table in memory: 256 MB in float64


class Spool(np.memmap):
    """An array in a temporary file of our own, which has no name and ends with the process."""


def is_large(shape: tuple[int, ...]) -> bool:
    """Whether a table of this shape is kept in a file."""
    return math.prod(shape) > MOST_CELLS


def most_rows(n_columns: int) -> int:
    """Return how many rows of a table are kept in memory."""
    return MOST_CELLS // n_columns


def spooled(shape: tuple[int, int], dtype: Any) -> Spool:
    """Return an array in a temporary file (in ``TMPDIR``, or where Python puts them)."""
    n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    with tempfile.TemporaryFile(prefix="skvae-") as file:
        try:
            file.truncate(n_bytes)
            if hasattr(os, "posix_fallocate"):  # a hole in a file would be filled, or kill, later
                os.posix_fallocate(file.fileno(), 0, n_bytes)
        except OSError:
            raise OSError(
                f"The temporary folder {tempfile.gettempdir()} has no room for a table of "
                f"{n_bytes / 1e9:.1f} GB. Set the environment variable TMPDIR to another."
            ) from None
        return Spool(file, dtype=dtype, mode="r+", shape=shape)


def is_on_disk(X: Any) -> bool:
    """Whether an array is a large one whose cells stand in a file."""
    if not isinstance(X, np.ndarray) or not is_large(X.shape):
        return False
    base: Any = X
    while base is not None:
        if isinstance(base, np.memmap | mmap.mmap):
            return True
        base = getattr(base, "base", None)
    return False


def check_no_infinity(X: NDArray[Any]) -> None:
    """Raise a ValueError if an array holds an infinity; look at it chunk by chunk."""
    for rows in row_chunks(*X.shape):
        for column in np.flatnonzero(np.isinf(X[rows]).any(axis=0)):
            check_finite(X[:, column], str(column))
