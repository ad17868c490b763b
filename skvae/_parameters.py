"""What the estimator's parameters may be, and messages that say so. No torch."""

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

NOISE_FLOOR = 1e-3  # of a column's noise scale, relative to the columns' standard deviation
INACTIVE_KL = 0.01  # nats: a component that carries less on average is noise
# The parameters that give the network its shape: weights fit no other.
ARCHITECTURE = (
    "n_components",
    "hidden_layer_sizes",
    "activation",
    "likelihood",
    "categorical_features",
    "max_categories",
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


RULES: Mapping[str, Rule] = {
    "n_components": Rule(("auto",), Integral, 1),
    "activation": Rule(("gelu", "relu", "silu", "tanh")),
    "noise": Rule(("auto", "shared", "per_column")),
    "scaling": Rule(("auto", "columns", "common", None)),
    "max_categories": Rule((None,), Integral, 2),
    "handle_unknown": Rule(("ignore", "error")),
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
    "n_importance_samples": Rule((), Integral, 1),
    "warm_start": Rule((True, False)),
    "precision": Rule(("auto", "float32", "float64")),
    "verbose": Rule((True, False), Integral, 0),
}


def check_parameters(estimator_name: str, parameters: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first parameter that breaks its rule."""
    for name, rule in RULES.items():
        if not rule.admits(parameters[name]):
            raise ValueError(
                f"The {name!r} parameter of {estimator_name} must be {rule}. "
                f"Got {parameters[name]!r} instead."
            )
    check_hidden_layer_sizes(estimator_name, parameters["hidden_layer_sizes"])


def check_hidden_layer_sizes(estimator_name: str, value: Any) -> None:
    """A sequence of sizes; one integer is one layer, as in MLPClassifier."""
    if isinstance(value, str) and value == "auto":
        return
    rule = Rule((), Integral, 1)
    sizes = (value,) if isinstance(value, Integral) else value
    if not isinstance(sizes, list | tuple | np.ndarray) or not all(
        rule.admits(size) for size in sizes
    ):
        raise ValueError(
            f"The 'hidden_layer_sizes' parameter of {estimator_name} must be 'auto', a sequence "
            f"of integers >= 1, or () for the linear model. Got {value!r} instead."
        )


def check_choice(
    estimator_name: str,
    name: str,
    value: Any,
    known: Mapping[str, type],
    interface: type,
    extra_names: tuple[str, ...] = (),
) -> None:
    """For parameters that take a name or an object."""
    names = (*extra_names, *known)
    if not isinstance(value, interface) and not (isinstance(value, str) and value in names):
        raise ValueError(
            f"The {name!r} parameter of {estimator_name} must be one of "
            f"{', '.join(map(repr, names))}, or an instance of {interface.__name__}. "
            f"Got {value!r} instead."
        )


def seed_of(random_state: Any) -> int:
    """A seed for torch's generators; None is fresh, not drawn from NumPy's global generator."""
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


def automatic_batch_size(n_rows: int) -> int:
    return 128 if n_rows < 10_000 else 512 if n_rows < 100_000 else 2048


def check_same_architecture(fitted: Any) -> None:
    """Weights can be trained further only in the network that they were fitted in."""
    for name, value in fitted._fitted_architecture.items():
        now = getattr(fitted, name)
        if not _same(now, value):
            raise ValueError(
                f"The {name!r} parameter was {value!r} when this {type(fitted).__name__} was "
                f"fitted and is {now!r} now, so its weights cannot be trained further. Set it "
                "back, or fit anew (a clone, or warm_start=False)."
            )


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and bool(np.all(a == b)))
