"""What can be an ONNX model, and what is said of the rest. Neither onnx nor torch is loaded."""

from importlib.util import find_spec
from typing import Any

import numpy as np

from .._imputer import VAEImputer
from .._outlier import VAEOutlierDetector
from .._transformer import VAETransformer

# What each class offers; the first is what a model is exported for.
METHODS: dict[type, tuple[str, ...]] = {
    VAETransformer: ("transform", "inverse_transform", "elbo", "reconstruction", "kl"),
    VAEOutlierDetector: ("predict", "decision_function", "score_samples"),
}
SEARCHED = (
    "It searches the modes of each row's posterior, for as long as that takes, which a graph of "
    "fixed steps cannot do."
)


def need(*packages: str) -> None:
    """Raise an ImportError that says how to install what is missing."""
    for package in packages:
        if find_spec(package) is None:
            raise ImportError(
                f'ONNX models need {package}, which is not installed: pip install "skvae[onnx]".'
            )


def check_exportable(estimator: Any) -> None:
    """Raise a TypeError unless the estimator is of a class that can be a graph."""
    offered = "VAETransformer and VAEOutlierDetector, and pipelines of them"
    if isinstance(estimator, VAEImputer):
        raise TypeError(
            f"A VAEImputer cannot be an ONNX model. {SEARCHED} to_onnx converts {offered}."
        )
    if hasattr(estimator, "to_local"):
        raise TypeError(
            f"to_onnx converts estimators without a cluster. Got a {type(estimator).__name__}: "
            "convert what its to_local() returns."
        )
    if type(estimator) not in METHODS:
        raise TypeError(
            f"to_onnx converts {offered}. Got {type(estimator).__name__} instead; skl2onnx has "
            "converters for scikit-learn's own estimators."
        )


def check_method(estimator: Any, method: str | None) -> str:
    """Return the method that is exported, or raise a ValueError."""
    offered, name = METHODS[type(estimator)], type(estimator).__name__
    method = offered[0] if method is None else method
    can_be = f"Of a {name}, {', '.join(map(repr, offered[:-1]))} and {offered[-1]!r} can be."
    if method in ("log_likelihood", "score_features", "sample"):
        why = SEARCHED if method == "log_likelihood" else ""
        raise ValueError(f"{method!r} cannot be an ONNX model. {why} {can_be}".replace("  ", " "))
    if method not in offered:
        raise ValueError(f"{method!r} cannot be an ONNX model. {can_be}")
    if isinstance(estimator, VAEOutlierDetector):
        _check_detector(estimator, method)
    return method


def _check_detector(detector: VAEOutlierDetector, method: str) -> None:
    if getattr(detector, "score_method_", "") == "log_likelihood":
        raise ValueError(
            f"score_method='log_likelihood' cannot be an ONNX model. {SEARCHED} Fit with "
            "score_method='auto', 'elbo', 'reconstruction' or 'kl'."
        )
    if method == "predict" and detector.fdr is not None:
        raise ValueError(
            f"With fdr={detector.fdr}, whether a row is an outlier depends on the rows beside it, "
            "which an ONNX model does not know. Use method='decision_function', or set "
            "fdr=None for labels by offset_."
        )


def precision_of(dtype: Any) -> str:
    """Return the name of a precision, or raise a ValueError."""
    for known in ("float32", "float64"):
        if dtype is not None and dtype in (known, getattr(np, known), np.dtype(known)):
            return known
    raise ValueError(f"dtype must be 'float32' or 'float64'. Got {dtype!r} instead.")
