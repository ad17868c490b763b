"""Pickles that say which version of skvae wrote them."""

import inspect
import warnings
from typing import Any

from sklearn.exceptions import InconsistentVersionWarning

from ._parameters import VERSION

_KEY = "_skvae_version"


class OtherVersionWarning(InconsistentVersionWarning):
    """An estimator was stored by another version of skvae."""

    def __init__(self, name: str, found: str) -> None:
        super().__init__(
            estimator_name=name, current_sklearn_version=VERSION, original_sklearn_version=found
        )

    def __str__(self) -> str:
        return (
            f"This {self.estimator_name} was stored by skvae {self.original_sklearn_version} and "
            f"is read by skvae {VERSION}, which may give other results or none. Fit it anew, or "
            "read it with the version that stored it."
        )


class Versioned:
    """An estimator whose pickles carry the version; parameters that are missing get defaults."""

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        return {**state, _KEY: VERSION}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        found = state.pop(_KEY, "(an earlier version)")
        if found != VERSION:
            warnings.warn(OtherVersionWarning(type(self).__name__, found), stacklevel=2)
        for name, parameter in inspect.signature(type(self)).parameters.items():
            state.setdefault(name, parameter.default)
        super().__setstate__(state)  # type: ignore[misc]
