"""Warnings that say what is wrong with a fit or a score, and what to do. No torch."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import sklearn
from sklearn.exceptions import ConvergenceWarning

from ._parameters import INACTIVE_KL, NOISE_FLOOR

if TYPE_CHECKING:
    from ._columns import Array, Columns

_LIBRARIES = tuple(str(Path(module.__file__).parent) for module in (sklearn, joblib))


def _warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's call, through whatever pipeline it came."""
    level, frame = 2, sys._getframe(2)
    inside = (*_LIBRARIES, str(Path(__file__).parent))
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level + 1)


def warn_about_fit(
    max_iter: Any,
    n_components_asked: Any,
    fitted: dict[str, Any],
    columns: "Columns",
    cut_short: bool,
    column_name: Callable[[int], str],
) -> None:
    """Warn of training cut short, inactive components, and noise at its floor."""
    if cut_short:
        _warn(
            f"All {fitted['n_iter_']} epochs (max_iter={max_iter!r}) were run, and the held-out bound "
            "was still rising. Use a larger max_iter.",
            ConvergenceWarning,
        )
    n_active, n_components = fitted["n_active_components_"], fitted["n_components_"]
    if n_components_asked != "auto" and n_active < n_components:
        fix = f"Use n_components={n_active}." if n_active else "The columns share no structure."
        _warn(
            f"{n_components - n_active} of {n_components} components are inactive: they carry "
            f"less than {INACTIVE_KL} nats, and transform returns 0 for them. {fix}"
        )
    floor = 1.001 * (NOISE_FLOOR * columns.rms * columns.scale) ** 2
    at_floor = np.flatnonzero((fitted["noise_variance_"] <= floor) & columns.varies)
    if len(at_floor):
        named = ", ".join(column_name(column) for column in at_floor[:5])
        more = " and others" if len(at_floor) > 5 else ""
        _warn(
            f"The noise scale of column {named}{more} fell to its floor, {NOISE_FLOOR} of the "
            "column's standard deviation: the components reproduce it exactly, so its density "
            "has no natural limit. Use fewer n_components, or drop columns that repeat others.",
        )


def warn_about_weights(largest: "Array", n_samples: int, refine: bool) -> None:
    """Warn if one sample holds most of the importance weight of many rows."""
    share = float((largest > 0.5).mean())
    if n_samples >= 8 and share > 0.1:
        fix = "Increase n_importance_samples." if refine else "Use refine=True."
        _warn(
            f"For {share:.0%} of the rows more than half of the importance weight sits on one of "
            f"{n_samples} samples: their log p(x) is too low. {fix}",
        )
