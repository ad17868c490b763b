"""The three estimators as nodes: parameters, what a fit has left in them, scikit-learn's own."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._advice import warn
from .._inputs import attributes_of, become, snapshot
from .nodes import Form, Reader, Writer, check_known
from .records import FORMS as FORMS_OF_PARTS

# What a fit leaves beside what follows from the model, and of which class that is.
OWN: Mapping[str, Mapping[str, str]] = {
    "VAETransformer": {"model_": "Fitted", "_history": "History"},
    "VAEOutlierDetector": {
        **{"vae_": "VAETransformer", "score_method_": "str", "support_": "ndarray", "offset_": ""},
        **{"calibration_scores_": "ndarray", "_calibration": "Calibration"},
        **{"_score": "RowScore", "_usual": "tuple"},
    },
    "VAEImputer": {
        **{"vae_": "VAETransformer", "_moves": "tuple", "_empty": "ndarray"},
        **{"_indicated": "ndarray", "indicator_": "bool", "bag_": "tuple"},
    },
}
# What files have not that were written before fits left it.
LATER: Mapping[str, Mapping[str, Any]] = {"VAEImputer": {"bag_": ()}}
CONVENTIONS = ("n_features_in_", "feature_names_in_", "_sklearn_output_config")
REQUESTS = "_metadata_request"
CALLBACKS = "_skl_callbacks"


def _taken(writer: Writer, estimator: Any, where: str) -> dict[str, Any]:
    """Take an estimator apart; what is left over is named in a warning."""
    estimator = snapshot(estimator)  # another thread may fit it meanwhile
    parameters, state = estimator.get_params(deep=False), dict(vars(estimator))
    if "indicator_" in state:  # scikit-learn's; it follows from ``_indicated``
        state["indicator_"] = state["indicator_"] is not None
    own = OWN[type(estimator).__name__]
    names = [name for name in (*own, *CONVENTIONS) if name in state]
    parts = {
        "parameters": {n: writer.node(v, f"{where}.{n}") for n, v in parameters.items()},
        "fitted": {n: writer.node(state[n], f"{where}.{n}") for n in names},
    }
    if REQUESTS in state:
        parts["requests"] = _requests(state[REQUESTS])
    _warn_of_rest(state, {*parameters, *own, *CONVENTIONS, REQUESTS}, where)
    return parts


def _warn_of_rest(state: Mapping[str, Any], known: set[str], where: str) -> None:
    """Warn of what is not stored, because neither a parameter nor a fit has said it."""
    follows = attributes_of(state["model_"], state["_history"]) if "model_" in state else {}
    rest = {name for name in set(state) - known if not _same(state[name], follows.get(name))}
    if CALLBACKS in rest:
        rest.remove(CALLBACKS)
        warn(f"skvae.save does not store the callbacks of {where}. Set them again after load.")
    if rest:
        names = ", ".join(sorted(rest))
        warn(f"skvae.save does not store {names} of {where}: fit has not set it so.")


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
    return bool(one is other or (type(one) is type(other) and one == other))


def _requests(request: Any) -> dict[str, Any]:
    """Return what ``set_fit_request`` and the like have asked for, by method."""
    each = {name: getattr(one, "requests", None) for name, one in vars(request).items()}
    return {name: dict(one) for name, one in each.items() if one}


def _built(reader: Reader, parts: Mapping[str, Any], owner: type) -> Any:
    estimator: Any = owner()
    given = {name: reader.value(node) for name, node in parts["parameters"].items()}
    check_known(owner, given, estimator.get_params(deep=False))
    fitted = {name: reader.value(node) for name, node in parts["fitted"].items()}
    own = OWN[owner.__name__]
    check_known(owner, fitted, {**own, **dict.fromkeys(CONVENTIONS)})
    if fitted:
        fitted = {**LATER.get(owner.__name__, {}), **fitted}
        for name, expected in own.items():
            if expected and type(fitted[name]).__name__ != expected:
                raise ValueError(f"{name} of its {owner.__name__} is not a {expected}")
    if any(not _alike(one, fitted["vae_"]) for one in fitted.get("bag_", ())):
        raise ValueError(f"bag_ of its {owner.__name__} has other columns than vae_")
    if "model_" in fitted:
        fitted |= attributes_of(fitted["model_"], fitted["_history"])
    if "indicator_" in fitted:
        fitted["indicator_"] = _indicator(fitted) if fitted["indicator_"] else None
    become(estimator, given | fitted)
    for method, asked in parts.get("requests", {}).items():
        _ask(estimator, method, asked)
    return estimator


def _alike(one: Any, vae: Any) -> bool:
    """Tell whether a model of a bag has the columns of the estimator's own model."""
    known = ("names", "n_levels")
    kinds, own = one.columns.kinds, vae.model_.columns.kinds
    return all(getattr(kinds, name) == getattr(own, name) for name in known)


def _indicator(fitted: Mapping[str, Any]) -> Any:
    """Make the indicator of an imputer anew, by the columns that had holes in fit."""
    from sklearn.impute import MissingIndicator

    holes = np.zeros((1, len(fitted["_empty"])))
    holes[0, fitted["_indicated"]] = np.nan
    return MissingIndicator(error_on_new=False).fit(holes)


def _ask(estimator: Any, method: str, asked: Mapping[str, Any]) -> None:
    """Set what metadata a method asks for, as its ``set_..._request`` does."""
    request = estimator.get_metadata_routing()  # a copy
    for name, alias in asked.items():
        getattr(request, method).add_request(param=name, alias=alias)
    become(estimator, {REQUESTS: request})


FORMS = [
    *FORMS_OF_PARTS,
    Form("_transformer", "VAETransformer", _taken, _built),
    Form("_outlier", "VAEOutlierDetector", _taken, _built),
    Form("_imputer", "VAEImputer", _taken, _built),
]
