"""What the estimators' parameters may be and stand for, and messages that say so. No torch."""

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

VERSION = "0.1.0"
NOISE_FLOOR = 1e-3  # of a column's noise scale, relative to the columns' standard deviation
CELL_LIMIT = 3.0  # robust standard deviations of a column: no MLP sees values further out
MAX_COLUMNS_FOR_COVARIANCE = 1500  # up to here it is formed (D^2 numbers) and decomposed exactly
INACTIVE_KL = 0.01  # nats: a component that carries less on average is noise

Parameters = Mapping[str, Any]  # of VAETransformer.get_params

# The parameters that give the network its shape: weights fit no other.
ARCHITECTURE = (
    "n_components",
    "hidden_layer_sizes",
    "activation",
    "likelihood",
    "categorical_features",
    "max_categories",
    "missing",
    "noise",
    "prior",
)


class Rule(NamedTuple):
    """Names that are allowed, a range of numbers that is allowed, or both."""

    names: tuple[Any, ...] = ()
    kind: type | None = None
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False

    def admits(self, value: Any) -> bool:
        if isinstance(value, np.bool_):
            value = bool(value)
        if any(value is name or (isinstance(name, str) and value == name) for name in self.names):
            return True
        if self.kind is None or isinstance(value, bool) or not isinstance(value, self.kind):
            return False
        number: Any = value
        above = number > self.low if self.open_low else number >= self.low
        return bool(above and number <= self.high and math.isfinite(number))

    def __str__(self) -> str:
        parts = [", ".join(repr(name) for name in self.names)] if self.names else []
        if len(self.names) > 1:
            parts[0] = "one of " + parts[0]
        if self.kind is not None:
            noun = "an integer" if self.kind is Integral else "a number"
            limits = []
            if self.low > -math.inf:
                limits.append(f"{'>' if self.open_low else '>='} {self.low:g}")
            if self.high < math.inf:
                limits.append(f"<= {self.high:g}")
            parts.append(" ".join([noun, " and ".join(limits)]).strip())
        return " or ".join(parts)


TRANSFORMER_RULES: Mapping[str, Rule] = {
    "n_components": Rule(("auto", "evidence"), Integral, 1),
    "activation": Rule(("gelu", "relu", "silu", "tanh")),
    "noise": Rule(("auto", "shared", "per_column")),
    "scaling": Rule(("auto", "columns", "common", None)),
    "max_categories": Rule((None,), Integral, 2),
    "handle_unknown": Rule(("ignore", "error")),
    "missing": Rule(("auto", "ignore", "model")),
    "whiten": Rule((True, False)),
    "objective": Rule(("elbo", "iwae")),
    "n_train_samples": Rule((), Integral, 1),
    "beta": Rule((), Real, 0),
    "kl_warmup": Rule((), Real, 0, 1),
    "free_bits": Rule((), Real, 0),
    "alpha": Rule((), Real, 0),
    "batch_size": Rule(("auto",), Integral, 1),
    "learning_rate_init": Rule(("auto",), Real, 0, open_low=True),
    "max_iter": Rule(("auto",), Integral, 0),
    "early_stopping": Rule((True, False)),
    "validation_fraction": Rule((), Real, 0, 0.9, open_low=True),
    "n_iter_no_change": Rule((), Integral, 1),
    "tol": Rule((), Real, 0),
    "n_importance_samples": Rule(("auto",), Integral, 1),
    "warm_start": Rule((True, False)),
    "precision": Rule(("auto", "float32", "float64")),
    "verbose": Rule((True, False), Integral, 0),
}
METHODS = ("log_likelihood", "elbo", "reconstruction", "kl")
DETECTOR_RULES: Mapping[str, Rule] = {
    "score_method": Rule(("auto", "aggregate", *METHODS)),
    "contamination": Rule(("auto",), Real, 0.0, 0.5, open_low=True),
    "support_fraction": Rule(("auto",), Real, 0.5, 1.0),
    "fdr": Rule((None,), Real, 0.0, 1.0, open_low=True),
}
COUNT = Rule((), Integral, 1)
IMPUTER_RULES: Mapping[str, Rule] = {
    "add_indicator": Rule((True, False)),
    "keep_empty_features": Rule((True, False)),
    "sample_posterior": Rule((True, False)),
    "n_estimators": COUNT,
}


def check_parameters(owner: str, parameters: Parameters, rules: Mapping[str, Rule]) -> None:
    """Raise a ValueError that names the first parameter that breaks its rule."""
    for name, rule in rules.items():
        if not rule.admits(parameters[name]):
            raise ValueError(
                f"The {name!r} parameter of {owner} must be {rule}. "
                f"Got {parameters[name]!r} instead."
            )


def check_score(method: str, return_diagnostics: bool) -> None:
    """Raise a ValueError unless there is such a score, and such diagnostics of it."""
    if method not in METHODS:
        known = ", ".join(map(repr, METHODS))
        raise ValueError(f"method must be one of {known}. Got {method!r} instead.")
    if return_diagnostics and method != "log_likelihood":
        raise ValueError(
            "return_diagnostics=True says how good an importance-sampled estimate is, so it needs "
            f"method='log_likelihood'. Got method={method!r}."
        )


def check_hidden_layer_sizes(owner: str, value: Any) -> None:
    """Raise a ValueError unless these are sizes; one integer is one layer, as in MLPClassifier."""
    if isinstance(value, str) and value == "auto":
        return
    sizes = (value,) if isinstance(value, Integral) else value
    if not isinstance(sizes, list | tuple | np.ndarray) or not all(
        COUNT.admits(size) for size in sizes
    ):
        raise ValueError(
            f"The 'hidden_layer_sizes' parameter of {owner} must be 'auto', a sequence "
            f"of integers >= 1, or () for the linear model. Got {value!r} instead."
        )


def check_choice(
    owner: str,
    name: str,
    value: Any,
    known: Mapping[str, type],
    interface: type,
    *,
    extra_names: tuple[str, ...] = (),
) -> None:
    """Raise a ValueError unless the value is a known name or an object of the interface."""
    names = (*extra_names, *known)
    if not isinstance(value, interface) and not (isinstance(value, str) and value in names):
        raise ValueError(
            f"The {name!r} parameter of {owner} must be one of "
            f"{', '.join(map(repr, names))}, or an instance of {interface.__name__}. "
            f"Got {value!r} instead."
        )


def seed_of(random_state: Any, otherwise: Any = None) -> int:
    """Return a seed for torch's generators, of ``otherwise`` where ``random_state`` is None.

    None of both is fresh, and moves no global generator.
    """
    random_state = otherwise if random_state is None else random_state
    if random_state is None:
        return int(np.random.default_rng().integers(2**31))
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if Rule((), Integral, 0, 2**32 - 1).admits(random_state):
        return int(np.random.RandomState(random_state).randint(2**31 - 1))
    raise ValueError(
        "random_state must be a seed (an integer between 0 and 2**32 - 1), a numpy RandomState, or "
        "None. "
        f"Got {random_state!r} instead."
    )


def density_noise(n_columns: int) -> str:
    """Return the noise that makes better densities: per column, where that can be started."""
    return "per_column" if n_columns <= MAX_COLUMNS_FOR_COVARIANCE else "auto"


def automatic_batch_size(n_rows: int) -> int:
    return 128 if n_rows < 10_000 else 512 if n_rows < 100_000 else 2048


def architecture_of(parameters: Parameters) -> dict[str, Any]:
    """Pick the parameters that give the network its shape, safe from later changes of a list."""
    return {name: _unshared(parameters[name]) for name in ARCHITECTURE}


def _unshared(value: Any) -> Any:
    return copy.copy(value) if isinstance(value, list | dict | np.ndarray) else value


def check_same_architecture(before: Parameters, now: Parameters) -> None:
    """Raise a ValueError where weights would have to fit another network than their own."""
    for name, value in before.items():
        if not _same(now[name], value):
            raise ValueError(
                f"The {name!r} parameter was {value!r} when this estimator was "
                f"fitted and is {now[name]!r} now, so its weights cannot be trained further. Set "
                "it back, or fit anew (a clone, or warm_start=False)."
            )


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and bool(np.all(a == b)))


def per_column(value: Any, names: Sequence[Any] | None, n_columns: int) -> list[Any]:
    """Return a likelihood for each column from one for all, or from {column: likelihood}."""
    if not isinstance(value, Mapping):
        return [value] * n_columns
    result = ["auto"] * n_columns
    for key, one in value.items():
        result[_place(key, names, n_columns, "likelihood")] = one
    return result


def categories_asked(value: Any, names: Sequence[Any] | None, n_columns: int) -> list[bool | None]:
    """Tell of each column whether it is a category; None: its dtype says."""
    if isinstance(value, str) and value == "from_dtype":
        return [None] * n_columns
    result: list[bool | None] = [False] * n_columns
    if value is None:
        return result
    one_alone = isinstance(value, str) or not isinstance(value, Iterable)
    chosen = [value] if one_alone else list(value)
    if len(chosen) == n_columns and all(isinstance(one, bool | np.bool_) for one in chosen):
        return [bool(one) for one in chosen]
    if chosen and all(isinstance(one, bool | np.bool_) for one in chosen):
        raise ValueError(
            f"The 'categorical_features' parameter is a mask of {len(chosen)} columns, but X has "
            f"{n_columns}."
        )
    for key in chosen:
        result[_place(key, names, n_columns, "categorical_features")] = True
    return result


def _place(key: Any, names: Sequence[Any] | None, n_columns: int, parameter: str) -> int:
    """Return the number of the column that a name or a number stands for."""
    if names is not None and key in list(names):
        return list(names).index(key)
    is_number = isinstance(key, Integral) and not isinstance(key, bool)
    has_labels = names is not None and any(isinstance(name, Integral) for name in names)
    if is_number and not has_labels and -n_columns <= int(key) < n_columns:
        return int(key) % n_columns
    known = "numbers below " + str(n_columns) if names is None else ", ".join(map(repr, names))
    raise ValueError(
        f"The {parameter!r} parameter names the column {key!r}, which X does not have. "
        f"Its columns are {known}."
    )
