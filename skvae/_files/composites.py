"""scikit-learn's own estimators around ours, such as a Pipeline, by skops.

In a copy of the whole each of ours is replaced by a ``Part`` that has its number, which is the only
type that skops is told to trust beside scikit-learn's. Ours are nodes like any other.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from .._advice import warn
from .archives import check_archive, stored
from .estimators import CALLBACKS
from .estimators import FORMS as FORMS_OF_OURS
from .nodes import Form, Reader, Writer

OURS = ("VAETransformer", "VAEOutlierDetector", "VAEImputer")


class Part:
    """What stands for one of our estimators in what skops stores."""

    def __init__(self, number: int) -> None:
        self.number = number


PART = f"{Part.__module__}.{Part.__qualname__}"


class Composite:
    """An estimator of scikit-learn's that has ours within it."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator


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
    if strange := sorted(set(skops.get_untrusted_types(data=blob)) - {PART}):
        raise TypeError(
            f"skvae.save stores estimators of scikit-learn and skvae alone, and this {where} holds "
            f"{', '.join(strange)}. Use skops.io with these among its trusted types, or pickle."
        )
    check_archive(blob)
    return {
        "skops": writer.node(np.frombuffer(blob, np.uint8), f"{where}.skops"),
        "parts": [writer.node(part, f"{where}.{n}") for n, part in enumerate(ours)],
    }


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
    check_archive(blob)
    whole = skops.loads(blob, trusted=[PART])
    if not isinstance(whole, BaseEstimator):
        raise ValueError(f"a {type(whole).__name__} is no estimator")
    places = list(parts_within(whole, lambda value: isinstance(value, Part), set()))
    return copy.deepcopy(whole, {id(place): ours[place.number] for place in places})


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
