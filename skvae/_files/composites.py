"""scikit-learn's own estimators around ours, such as a Pipeline, by skops.

In a copy of the whole each of ours is replaced by a ``Part`` that has its number, which is the only
type that skops is told to trust beside scikit-learn's. Ours are nodes like any other.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator

from .._advice import warn
from .archives import check_skops, stored
from .container import FileError
from .estimators import CALLBACKS
from .estimators import FORMS as FORMS_OF_OURS
from .nodes import Form, Reader, Writer

OURS = ("VAETransformer", "VAEOutlierDetector", "VAEImputer")


class Part:
    """What stands for one of our estimators in what skops stores."""

    def __init__(self, number: int) -> None:
        self.number = number


PART = f"{Part.__module__}.{Part.__qualname__}"
# What scikit-learn's estimators hold beside what skops trusts by itself: plain values of Python and
# NumPy, and names of functions that loading does not call. Trees are not among them: compiled code
# follows their numbers without looking, so a changed file could make it read any memory.
HARMLESS = {
    "numpy": ["dtype"],
    "scipy.sparse._bsr": ["bsr_array", "bsr_matrix"],
    "scipy.sparse._csc": ["csc_array", "csc_matrix"],
    "scipy.sparse._csr": ["csr_array", "csr_matrix"],
    "sklearn.calibration": ["_CalibratedClassifier", "_SigmoidCalibration"],
    "sklearn.compose._column_transformer": ["_RemainderColsList"],  # before scikit-learn 1.7
    "sklearn.feature_selection._mutual_info": ["mutual_info_classif", "mutual_info_regression"],
    "sklearn.feature_selection._univariate_selection": ["chi2", "f_classif", "f_regression"],
    "sklearn.gaussian_process.kernels": [
        *("CompoundKernel", "ConstantKernel", "DotProduct", "Exponentiation", "ExpSineSquared"),
        *("Matern", "Product", "RBF", "RationalQuadratic", "Sum", "WhiteKernel"),
    ],
    "sklearn.metrics._scorer": ["_PassthroughScorer"],
    "sklearn.model_selection._search_successive_halving": [
        *("HalvingGridSearchCV", "HalvingRandomSearchCV"),
    ],
    "sklearn.model_selection._split": [
        *("GroupKFold", "GroupShuffleSplit", "KFold", "LeaveOneGroupOut", "LeaveOneOut"),
        *("RepeatedKFold", "RepeatedStratifiedKFold", "ShuffleSplit", "StratifiedGroupKFold"),
        *("StratifiedKFold", "StratifiedShuffleSplit", "TimeSeriesSplit"),
    ],
    "sklearn.multiclass": ["_ConstantPredictor"],
    "sklearn.neural_network._stochastic_optimizers": ["AdamOptimizer", "SGDOptimizer"],
    "sklearn.utils._bunch": ["Bunch"],
    "sklearn.utils._metadata_requests": ["MetadataRequest", "MethodMetadataRequest"],
}
TRUSTED = [PART, *(f"{module}.{name}" for module, names in HARMLESS.items() for name in names)]


class Composite:
    """An estimator of scikit-learn's that has ours within it, and further trusted types."""

    def __init__(self, estimator: Any, trusted: Sequence[str] = ()) -> None:
        self.estimator = estimator
        self.trusted = trusted


def parts_within(value: Any, wanted: Callable[[Any], bool], seen: set[int]) -> Iterator[Any]:
    """Yield what is wanted of all that an estimator consists of, each once."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if wanted(value):
        yield value
    elif isinstance(value, BaseEstimator):
        yield from parts_within(vars(value), wanted, seen)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from parts_within(part, wanted, seen)
    elif isinstance(value, list | tuple | set) or _holds_objects(value):
        for part in value:
            yield from parts_within(part, wanted, seen)


def is_ours(value: Any) -> bool:
    """Whether it is an object of one of our three estimators, and of no class derived from them."""
    return type(value).__name__ in OURS and type(value).__module__.startswith("skvae.")


def _holds_objects(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == object and value.ndim > 0


def _taken(writer: Writer, composite: Composite, where: str) -> dict[str, Any]:
    skops, whole = _skops(), composite.estimator
    ours = list(parts_within(whole, is_ours, set()))
    places: dict[int, Any] = {id(part): Part(number) for number, part in enumerate(ours)}
    blob = stored(skops.dumps(copy.deepcopy(whole, places | _without_callbacks(whole, where))))
    strange = sorted(set(skops.get_untrusted_types(data=blob)) - set(TRUSTED))
    if nameless := [name for name in strange if not _is_found(name)]:
        raise TypeError(
            f"This {where} holds {', '.join(nameless)}, which skvae.load could not find by that "
            "name. Define it by def or class at the top of a module."
        )
    if strange := [name for name in strange if name not in composite.trusted]:
        raise TypeError(
            f"This {where} holds {', '.join(strange)}, which skvae.save does not store by itself. "
            f"If you trust that, use trusted={strange} in save and in load."
        )
    check_skops(blob)
    return {
        "skops": writer.node(np.frombuffer(blob, np.uint8), f"{where}.skops"),
        "parts": [writer.node(part, f"{where}.{n}") for n, part in enumerate(ours)],
    }


def _is_found(name: str) -> bool:
    """Whether a function or a class can be imported by its full name: a lambda cannot."""
    try:
        resolve_name(name)
    except (ValueError, ImportError, AttributeError):
        return False
    return True


def _without_callbacks(whole: Any, where: str) -> dict[int, Any]:
    """Return what stands for lists of callbacks: these are no part of a model."""
    is_list = {id(vars(e)[CALLBACKS]) for e in _estimators_within(whole) if CALLBACKS in vars(e)}
    if is_list:
        warn(f"skvae.save does not store the callbacks of {where}. Set them again after load.")
    return {number: [] for number in is_list}


def _estimators_within(whole: Any) -> list[Any]:
    found: list[Any] = []

    def look(value: Any) -> bool:
        if isinstance(value, BaseEstimator):
            found.append(value)
        return is_ours(value)

    list(parts_within(whole, look, set()))
    return [one for one in found if not is_ours(one)]


def _built(reader: Reader, parts: Mapping[str, Any], owner: type) -> Any:
    skops = _skops()
    ours = [reader.value(part) for part in parts["parts"]]
    blob = reader.value(parts["skops"]).tobytes()
    check_skops(blob)
    if strange := sorted(set(skops.get_untrusted_types(data=blob)) - {*TRUSTED, *reader.trusted}):
        raise FileError(
            f"it holds {', '.join(strange)}. If you trust that, use skvae.load(path, "
            f"trusted={strange})"
        )
    whole = skops.loads(blob, trusted=[*TRUSTED, *reader.trusted])
    if not isinstance(whole, BaseEstimator):
        raise ValueError(f"a {type(whole).__name__} is no estimator")
    for matrix in parts_within(whole, issparse, set()):
        matrix.check_format(full_check=True)  # compiled code follows its indices
    places = list(parts_within(whole, lambda value: isinstance(value, Part), set()))
    numbered = dict(enumerate(ours))
    return copy.deepcopy(whole, {id(place): numbered[place.number] for place in places})


def _skops() -> Any:
    try:
        import skops.io
    except ImportError:
        raise ImportError(
            "skvae.save and skvae.load need skops for estimators of scikit-learn's around ours. "
            'Install it: pip install "skvae[files]"'
        ) from None
    return skops.io


FORMS = [*FORMS_OF_OURS, Form("_files.composites", "Composite", _taken, _built)]
